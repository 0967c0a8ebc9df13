"""Attention losses: what a picture still lacks, read from its attention maps. One pure function per paper.

An objective takes the maps and, for each image, its subjects as token positions. It returns a loss per image [images],
0 when satisfied and at most 1, and each subject's presence [images, subjects] in 0..1 (NaN where an image has fewer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import AttentionMaps

Subjects = Sequence[Sequence[tuple[int, ...]]]
"""For each image, for each subject: its token positions."""


class Score(NamedTuple):
    """A loss per image [images] and the presence of each of its subjects [images, subjects]."""

    loss: Tensor
    presence: Tensor


Objective = Callable[[AttentionMaps, Subjects], Score]


def excite(
    maps: AttentionMaps, subjects: Subjects, *, temperature: float = 100.0, smooth: bool = True, sigma: float = 0.5
) -> Score:
    """Every subject should own at least one place of the picture: 1 - the largest attention of the weakest subject.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826

    The probabilities of all tokens but the first (which draws most of the attention) and the last are sharpened by a
    softmax with the given temperature. The tokens of one subject are first added into one: the softmax is exponential,
    so adding after it would make a word that is split in two lose against its neighbours.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: token positions per image.
        temperature: factor before the softmax.
        smooth: blur the maps before taking their maximum.
        sigma: width of the blur in map pixels, see `blur`.
    """
    mean = maps.mean()
    tokens = mean.shape[-1]
    columns = [_columns(spans, tokens) for spans in subjects]
    width = max(len(units) for units in columns)
    count = max(len(spans) for spans in subjects)
    # Which token goes into which column, as 0/1 matrices: all images are then one product, whatever their subjects.
    pooling = mean.new_zeros(len(columns), tokens, width)
    padding = torch.ones(len(columns), width, dtype=torch.bool)
    absent = torch.ones(len(columns), count, dtype=torch.bool)
    for image, (units, spans) in enumerate(zip(columns, subjects, strict=True)):
        for column, unit in enumerate(units):
            pooling[image, list(unit), column] = 1
        padding[image, : len(units)] = False
        absent[image, : len(spans)] = False
    logits = torch.einsum("bhwt,btu->bhwu", mean, pooling) * temperature
    sharp = logits.masked_fill(padding.to(mean.device)[:, None, None], float("-inf")).softmax(dim=-1)
    of_subjects = sharp[..., :count].movedim(-1, 1)
    if smooth:
        of_subjects = blur(of_subjects, sigma)
    presence = of_subjects.amax(dim=(2, 3)).masked_fill(absent.to(mean.device), float("nan"))
    losses = (1 - presence).clamp(min=0).nan_to_num(nan=-1.0)
    return Score(losses.max(dim=1).values, presence.detach())


def _columns(spans: Sequence[tuple[int, ...]], tokens: int) -> list[tuple[int, ...]]:
    """The columns of the sharpened map: the subjects first, then every other token between the first and the last."""
    taken = {position for span in spans for position in span}
    return [*spans, *((position,) for position in range(1, tokens - 1) if position not in taken)]


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
