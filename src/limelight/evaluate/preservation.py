"""How much of a picture an edit changes outside the place of the words that it is about."""

from __future__ import annotations

import io
import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def grown(mask: Tensor) -> Tensor:
    """Masks [images, height, width], grown by a sixteenth of the picture: words peak inside what they are about."""
    around = max(min(mask.shape[-2:]) // 16, 1)
    return F.max_pool2d(mask.float(), 2 * around + 1, stride=1, padding=around) > 0


def written(mask: Tensor) -> list[str]:
    """A mask, bool [height, width], as the settings in a PNG have it: a row of 0 and 1 each."""
    return ["".join("01"[cell] for cell in row) for row in mask.tolist()]


def read(file: bytes) -> Tensor | None:
    """Where the words are that an edit changes, bool [height, width], as a source's PNG says; None if it does not."""
    try:
        with Image.open(io.BytesIO(file)) as image:
            rows = json.loads(image.info["limelight"])["edited"]
        mask = torch.tensor([[int(cell) for cell in row] for row in rows]).bool()
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return None
    return mask if mask.dim() == 2 and mask.numel() else None


def pixel_change(before: Image.Image, after: Image.Image, mask: Tensor) -> float | None:
    """Root mean square difference of two pictures' pixels outside a mask, 0..1; None where there is no outside."""
    if before.size != after.size:
        return None
    outside = ~np.asarray(Image.fromarray(mask.numpy()).resize(before.size, Image.Resampling.NEAREST))
    change = (np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64))[outside] / 255
    return float(np.sqrt((change**2).mean())) if change.size else None


def structure_change(before: Tensor, after: Tensor, mask: Tensor) -> float | None:
    """How much the structure of a picture changes outside a mask, 0..2.

    The structure distance of Narek Tumanyan, Omer Bar-Tal, Shai Bagon, Tali Dekel, "Splicing ViT Features for Semantic
    Appearance Transfer", 2022, https://arxiv.org/abs/2201.00424, with CLIP's vision transformer for theirs, among the
    patches that the mask does not touch: the root mean square difference of the two matrices of cosine similarity
    between every two of them.

    Args:
        before, after: a feature per patch of a square of patches, [patches, width], see `Clip.patches`.
        mask: bool [height, width], of the picture of which the patches see the square in the middle.

    Returns:
        None where fewer than two patches are outside.
    """
    side, grid = min(mask.shape), round(len(before) ** 0.5)
    top, left = ((length - side) // 2 for length in mask.shape)
    middle = mask[top : top + side, left : left + side].float()
    outside = F.adaptive_max_pool2d(middle[None, None], grid).flatten() == 0
    if outside.sum() < 2:
        return None
    one, other = (F.normalize(keys[outside.to(keys.device)].double(), dim=1) for keys in (before, after))
    return (one @ one.T - other @ other.T).square().mean().sqrt().item()
