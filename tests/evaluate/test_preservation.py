"""What an edit changes outside a mask."""

import pytest
import torch
from PIL import Image

from limelight.evaluate.preservation import grown, mask_path, mask_png, pixel_change, read_mask, structure_change
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
    # Of a wide image the patches see the middle.
    wide = torch.nn.functional.pad(mask, (2, 2), value=True)
    assert structure_change(one, other, wide) == structure_change(one, other, mask)


def test_masks_lie_beside_their_images(tmp_path):
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[:2, :3] = True
    image = tmp_path / "0.png"
    image.write_bytes(png({}, Image.new("RGB", (8, 8))))
    assert read_mask(image) is None
    mask_path(image).write_bytes(mask_png(mask))
    assert mask_path(image).name == "0.mask.png"
    assert read_mask(image).equal(mask)
    mask_path(image).write_bytes(b"not an image")
    assert read_mask(image) is None


def test_masks_of_version_0_1_lie_within_their_images(tmp_path):
    image = tmp_path / "0.png"
    image.write_bytes(png({"edited": ["1100", "0001"]}, Image.new("RGB", (8, 8))))
    assert read_mask(image).tolist() == [[True, True, False, False], [False, False, False, True]]
    image.write_bytes(png({"edited": ["01", "0"]}, Image.new("RGB", (8, 8))))
    assert read_mask(image) is None
