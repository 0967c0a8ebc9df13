"""The similarities of textual inversion."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from limelight.evaluate.clip import image_similarity, text_similarity


def test_similarities_by_hand():
    one, other = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), F.normalize(torch.tensor([[1.0, 1.0]]))
    assert image_similarity(one, one) == pytest.approx(0.5)
    assert image_similarity(one, other) == pytest.approx(0.5**0.5)

    class Clip:
        def texts(self, texts):
            assert texts == ["a photo of a on grass"]
            return other

    found = text_similarity(Clip(), one, "a photo of a <cat> on grass", "<cat>")
    torch.testing.assert_close(found, torch.full((2,), 0.5**0.5))
