"""What objectives share: pooled tokens, sharpened maps, the blur."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Score


def weakest_score(of_subjects: Tensor, absent: Tensor) -> Score:
    """The score of sharpened maps [images, subjects, height, width]; `absent` [images, subjects] do not count."""
    presence = of_subjects.amax(dim=(2, 3))
    lacking = (1 - presence).clamp(min=0).masked_fill(absent, -1)
    return Score(lacking.max(dim=1).values, presence.detach().masked_fill(absent, float("nan")))


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached tensors must serve later backward passes
def pool_tokens(
    subjects: tuple[tuple[tuple[int, ...], ...], ...], stops: tuple[int, ...], tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which token goes into which column of the sharpened maps: a product with 0/1 matrices pools all images at once.

    An image's columns are its subjects and then every other token between the first and its stop. Returns the matrices
    [images, tokens, columns], the columns that an image does not have [images, columns] and the subjects that it does
    not have [images, subjects].
    """
    images = [_columns(spans, stop) for spans, stop in zip(subjects, stops, strict=True)]
    widest, most = max(map(len, images)), max(map(len, subjects))
    pooling = torch.zeros(len(images), tokens, widest)
    padding = torch.ones(len(images), widest, dtype=torch.bool)
    absent = torch.ones(len(images), most, dtype=torch.bool)

    for image, columns in enumerate(images):
        padding[image, : len(columns)] = False
        absent[image, : len(subjects[image])] = False
        for column, positions in enumerate(columns):
            pooling[image, list(positions), column] = 1
    return pooling, padding, absent


def _columns(spans: Sequence[tuple[int, ...]], stop: int) -> list[tuple[int, ...]]:
    """The token positions of each column of one image."""
    taken = {position for span in spans for position in span}
    others = [(position,) for position in range(1, stop) if position not in taken]
    return [*spans, *others]


def blur(maps: Tensor, sigma: float = 0.5) -> Tensor:
    """Blur [images, subjects, height, width] with the reference's 3 x 3 kernel and reflected borders.

    The kernel's weights along an axis go with exp(-(d / (2 sigma))^2), as in the released code of Attend-and-Excite: a
    Gaussian of standard deviation sigma * sqrt(2). Built in float32 first, as there, so that results agree to the
    last digits.
    """
    rows = torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 3)
    down, across = (1 / (sigma * (2 * torch.pi) ** 0.5) * torch.exp(-((d / (2 * sigma)) ** 2)) for d in (rows, rows.T))
    kernel = down * across
    kernel = (kernel / kernel.sum()).to(maps)
    # Reflected borders by slicing: padding's own backward is not deterministic on CUDA.
    padded = torch.cat([maps[:, :, 1:2], maps, maps[:, :, -2:-1]], dim=2)
    padded = torch.cat([padded[..., 1:2], padded, padded[..., -2:-1]], dim=3)
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).unflatten(0, maps.shape[:2])[:, :, 0]
