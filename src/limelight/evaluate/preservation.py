"""How much of an image an edit changes outside the place of the words that it is about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..utils.files import png


def grown(mask: Tensor) -> Tensor:
    """Masks [images, height, width], grown by a sixteenth of the image: words peak inside what they are about."""
    around = max(min(mask.shape[-2:]) // 16, 1)
    return F.max_pool2d(mask.float(), 2 * around + 1, stride=1, padding=around) > 0


def mask_path(image: Path) -> Path:
    """Where the mask of an image lies: beside it, "0.mask.png" beside "0.png"."""
    return image.with_suffix(".mask.png")


def mask_png(mask: Tensor) -> bytes:
    """Write a mask, bool [height, width], as a PNG file: white where it is true.

    >>> mask_png(torch.ones(2, 2, dtype=torch.bool))[:4]
    b'\\x89PNG'
    """
    return png({}, Image.fromarray(mask.numpy()))


def read_mask(image: Path) -> Tensor | None:
    """Where the words are that an edit changes, bool [height, width]; None if that is unknown.

    Args:
        image: the file of the image before the edit. Versions before 0.2 wrote the mask into it, as a text of zeros and
            ones.
    """
    try:
        if mask_path(image).is_file():
            with Image.open(mask_path(image), formats=["PNG"]) as mask:
                return torch.from_numpy(np.array(mask.convert("1")))
        with Image.open(image, formats=["PNG"]) as file:
            rows = json.loads(file.info["limelight"])["edited"]
        found = torch.tensor([list(map(int, row)) for row in rows]).bool()
    except Exception:  # a file of others
        return None
    if found.dim() != 2 or not found.numel():
        return None
    return found


def pixel_change(before: Image.Image, after: Image.Image, mask: Tensor) -> float | None:
    """Root mean square difference of two images' pixels outside a mask, 0..1; None where there is no outside."""
    if before.size != after.size:
        return None
    outside = ~np.asarray(Image.fromarray(mask.numpy()).resize(before.size, Image.Resampling.NEAREST))
    change = (np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64))[outside] / 255
    if not change.size:
        return None
    return float(np.sqrt((change**2).mean()))


def structure_change(before: Tensor, after: Tensor, mask: Tensor) -> float | None:
    """How much the structure of an image changes outside a mask, 0..2.

    The structure distance of Narek Tumanyan, Omer Bar-Tal, Shai Bagon, Tali Dekel, "Splicing ViT Features for Semantic
    Appearance Transfer", 2022, https://arxiv.org/abs/2201.00424, with CLIP's vision transformer for theirs, among the
    patches that the mask does not touch: the root mean square difference of the two matrices of cosine similarity
    between every two of them.

    Args:
        before, after: a feature per patch of a square of patches, [patches, width], see `Clip.patches`.
        mask: bool [height, width], of the image of which the patches see the square in the middle.

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
