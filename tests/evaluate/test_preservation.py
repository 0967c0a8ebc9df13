"""What an edit changes outside a mask."""

import pytest
import torch
from PIL import Image

from limelight.evaluate.preservation import grown, pixel_change, read, structure_change, written
from limelight.utils.files import png


def test_what_changes_outside_a_mask():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, :2] = True
    before, after = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    after.paste((255, 255, 255), (0, 0, 4, 4))  # all of it within the mask
    assert pixel_change(before, after, mask) == 0
    after.paste((51, 0, 0), (4, 4, 8, 8))
    assert pixel_change(before, after, mask) == pytest.approx((16 * 0.2**2 / (48 * 3)) ** 0.5)
    assert pixel_change(before, after, torch.ones(4, 4, dtype=torch.bool)) is None
    assert pixel_change(before, after.resize((4, 4)), mask) is None
    one, other = torch.rand(2, 4, 3).double()
    left = [1, 2, 3]  # of four patches the mask touches the first
    cosine = torch.nn.functional.cosine_similarity
    each = [(cosine(one[i], one[j], 0) - cosine(other[i], other[j], 0)).item() ** 2 for i in left for j in left]
    assert structure_change(one, other, mask) == pytest.approx((sum(each) / 9) ** 0.5)
    assert structure_change(one, 3 * one, mask) == pytest.approx(0, abs=1e-7)
    assert structure_change(one, other, torch.ones(4, 4, dtype=torch.bool)) is None
    assert grown(mask[None])[0].tolist() == [[True] * 3 + [False]] * 3 + [[False] * 4]
    assert written(mask) == ["1100", "1100", "0000", "0000"]
    # Of a wide picture the patches see the middle.
    wide = torch.nn.functional.pad(mask, (2, 2), value=True)
    assert structure_change(one, other, wide) == structure_change(one, other, mask)
    assert read(png({"edited": written(mask)}, before)).equal(mask)
    assert read(png({}, before)) is None
    assert read(png({"edited": ["01", "0"]}, before)) is None
    assert read(b"no picture") is None
