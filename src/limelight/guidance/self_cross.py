"""Self-Cross: what belongs to one subject does not attend to another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps, connected
from .base import Score, Subjects, reading
from .overlap import pairwise_overlap
from .terms import blur, mean_over, sharpened, weakest_score


@reading("cross", "self")
def self_cross(maps: AttentionMaps, subjects: Subjects, *, gate: float = 0.5, clean: float = 0.1) -> Score:
    """Keep what a subject's places attend to apart from the other subjects' maps.

    Weimin Qiu, Jieke Wang, Meng Tang, "Self-Cross Diffusion Guidance for Text-to-Image Synthesis of Similar Subjects",
    2025, https://arxiv.org/abs/2411.18936

    With the sharpened maps S, Otsu's mask of each, and R_k what the self-attention of subject k's places looks at:

        R_k = blur((mask_k * S_k) @ self-attention), divided by its sum
        loss = mean over ordered pairs of sum min(R_j, S_i) + clean * (see `stray`)

    The overlap counts only in images whose weakest subject is there.

    Args:
        maps: cross- and self-attention of one size.
        subjects: of each image; their modifiers do not count.
        gate: the neglect, 0..1, above which the overlap does not count.
        clean: weight of attention far from a subject's own place.
    """
    sharp, absent = sharpened(maps.cross, subjects)
    smooth = blur(sharp)
    masks = otsu(smooth)
    between = maps.between_pixels.mean().flatten(1, 2)  # [images, pixels, pixels]

    regions = blur(((masks * smooth).flatten(2) @ between).unflatten(2, smooth.shape[2:])).flatten(2)
    regions = regions / regions.sum(dim=2, keepdim=True).clamp(min=1e-30)
    flat = smooth.flatten(2)
    if flat.shape[2] > 256:  # as published: larger maps are normalized
        flat = flat / flat.sum(dim=2, keepdim=True).clamp(min=1e-30)
    shared = torch.minimum(regions[:, :, None], flat[:, None, :]).sum(dim=3)
    pairs = ~absent[:, :, None] & ~absent[:, None, :]
    pairs = pairs & ~torch.eye(pairs.shape[1], dtype=torch.bool, device=pairs.device)
    mixing = mean_over(shared, pairs)

    own = weakest_score(smooth, absent)
    loss = mixing * (own.parts["neglect"] <= gate)
    if clean:
        loss = loss + clean * stray(smooth, masks, absent)
    return own.of(loss, mixing=mixing)


@reading("cross", "self")
def peak_overlap(maps: AttentionMaps, subjects: Subjects, *, gate: float = 0.5, clean: float = 0.1) -> Score:
    """Keep apart what the strongest places of the subjects attend to.

    Xiefan Guo, Jinlin Liu, Miaomiao Cui, Jiankai Li, Hongyu Yang, Di Huang, "InitNO: Boosting Text-to-Image Diffusion
    Models via Initial Noise Optimization", 2024, https://arxiv.org/abs/2404.04650

    With s_k the blurred self-attention of the place where the sharpened map of subject k is largest:

        loss = mean over pairs of sum min(s_i, s_j) / sum (s_i + s_j) + clean * (see `stray`)

    Args:
        maps: cross- and self-attention of one size.
        subjects: of each image; their modifiers do not count.
        gate: the neglect, 0..1, above which the overlap does not count.
        clean: weight of attention far from a subject's own place.
    """
    sharp, absent = sharpened(maps.cross, subjects)
    smooth = blur(sharp)
    between = maps.between_pixels.mean().flatten(1, 2)
    peaks = smooth.flatten(2).argmax(dim=2)
    rows = between.gather(1, peaks[..., None].expand(-1, -1, between.shape[2]))
    mixing = pairwise_overlap(blur(rows.unflatten(2, smooth.shape[2:])), ~absent)

    own = weakest_score(smooth, absent)
    loss = mixing / 2 * (own.parts["neglect"] <= gate)
    if clean:
        loss = loss + clean * stray(smooth, otsu(smooth), absent)
    return own.of(loss, mixing=mixing)


@torch.no_grad()
def otsu(maps: Tensor) -> Tensor:
    """Where each map [..., height, width], in 0..1, is above the threshold that parts it best in two; as 0 and 1.

    Nobuyuki Otsu, "A Threshold Selection Method from Gray-Level Histograms", 1979. A map without contrast has no mask.
    """
    values = maps.flatten(-2)
    bins = torch.arange(256, device=maps.device)
    levels = (values * 255).floor().clamp(0, 255).long()
    counts = torch.zeros(*values.shape[:-1], 256, device=maps.device, dtype=torch.float64)
    counts.scatter_add_(-1, levels, torch.ones_like(levels, dtype=torch.float64))
    below, sums = counts.cumsum(dim=-1), (counts * bins).cumsum(dim=-1)
    above, rest = below[..., -1:] - below, sums[..., -1:] - sums
    variance = below * above * (sums / below.clamp(min=1) - rest / above.clamp(min=1)) ** 2
    threshold = variance.argmax(dim=-1, keepdim=True) / 255
    contrast = values.amax(dim=-1, keepdim=True) - values.amin(dim=-1, keepdim=True) >= 1e-3
    return ((values >= threshold) & contrast).to(maps).unflatten(-1, maps.shape[-2:])


def stray(maps: Tensor, masks: Tensor, absent: Tensor) -> Tensor:
    """The largest attention of each subject beside the part of its mask that holds its peak, summed [images].

    It counts where it exceeds the smallest value of that part.
    """
    heat = maps.detach()
    part = connected(heat == heat.amax(dim=(2, 3), keepdim=True), masks > 0, corners=False)
    outside = maps.masked_fill(part, 0).amax(dim=(2, 3))
    least = heat.masked_fill(~part, float("inf")).amin(dim=(2, 3))
    return (outside * (outside > least)).masked_fill(absent, 0).sum(dim=1)
