"""Overlap of subjects: two subjects do not share a place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps
from .base import Score, Subjects
from .terms import blur, mean_over, scored, sharpened, word_maps


def overlap(maps: AttentionMaps, subjects: Subjects, *, sharpen: bool = False) -> Score:
    """Keep the maps of subjects apart: the mean over pairs of twice their intersection over their sum.

    Aishwarya Agarwal, Srikrishna Karanam, K J Joseph, Apoorv Saxena, Koustava Goswami, Balaji Vasan Srinivasan,
    "A-STAR: Test-time Attention Segregation and Retention for Text-to-image Synthesis", 2023,
    https://arxiv.org/abs/2306.14544

        loss = mean over pairs of 2 * sum min(A_i, A_j) / sum (A_i + A_j)

    It lies in 0..1, and is 0 for a single subject.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: of each image; their modifiers do not count.
        sharpen: take Attend-and-Excite's sharpened maps instead of the probabilities.
    """
    if sharpen:
        sharp, absent = sharpened(maps.cross, subjects)
        of_subjects, there = blur(sharp), ~absent
    else:
        found = word_maps(maps, subjects)
        count = max(map(len, subjects))
        of_subjects, there = found.maps[:, :count] * found.noun[:, :count, None, None], found.noun[:, :count]
    mixing = pairwise_overlap(of_subjects, there)
    return scored(maps, subjects, mixing, mixing=mixing)


def pairwise_overlap(maps: Tensor, there: Tensor) -> Tensor:
    """Mean over the pairs of an image of twice the intersection over the sum, in 0..1 [images].

    Args:
        maps: [images, subjects, height, width].
        there: which subjects an image has [images, subjects].
    """
    flat = maps.flatten(2)
    shared = torch.minimum(flat[:, :, None], flat[:, None, :]).sum(dim=3)
    total = (flat[:, :, None] + flat[:, None, :]).sum(dim=3)
    pairs = (there[:, :, None] & there[:, None, :]).triu(diagonal=1)
    return mean_over(2 * shared / total.clamp(min=1e-30), pairs)
