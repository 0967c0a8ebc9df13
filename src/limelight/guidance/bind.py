"""SynGen and EBAMA: a modifier shares the place of its noun, and the noun keeps away from other words."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import AttentionMaps
from .base import Score, Subjects
from .terms import WordMaps, Words, blur, distributions, mean_over, scored, sharpened, word_maps


def bind(
    maps: AttentionMaps,
    subjects: Subjects,
    *,
    distance: Literal["cos", "kl"] = "cos",
    push: Literal["noun", "both"] = "noun",
    words: Words = "content",
    intensity: float = 0.0,
    published: bool = False,
) -> Score:
    """Pull the maps of modifiers to that of their noun, and push nouns from the words of others.

    Royi Rassin, Eran Hirsch, Daniel Glickman, Shauli Ravfogel, Yoav Goldberg, Gal Chechik, "Linguistic Binding in
    Diffusion Models: Enhancing Attribute Correspondence through Attention Map Alignment" (SynGen), 2023,
    https://arxiv.org/abs/2306.08877; Yasi Zhang, Peiyu Yu, Ying Nian Wu, "Object-Conditioned Energy-Based Attention Map
    Alignment in Text-to-Image Diffusion Models" (EBAMA), 2024, https://arxiv.org/abs/2404.07389

    With D the distance of two maps and u the words outside a subject:

        loss = mean D(modifier, noun) - mean over nouns of mean_u D(noun, u) - intensity * sum over nouns of max S

    where S are Attend-and-Excite's sharpened maps. SynGen's D is the symmetric Kullback-Leibler divergence of the maps
    as distributions, and it pushes modifiers as well; EBAMA's is 1 - cosine.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: of each image, with their modifiers.
        distance: "cos" lies in 0..1; "kl" has no upper bound.
        push: what is pushed away, the noun or both it and its modifiers.
        words: which words it is pushed from: "subjects" and their modifiers, "content" words, or "all".
        intensity: weight of the subjects' presence. EBAMA 0.5.
        published: sum over pairs instead of taking means, as both papers do. A subject without modifiers is then
            pushed with "noun" alone.
    """
    found = word_maps(maps, subjects, words)
    distances = _DISTANCES[distance](found)
    others = found.apart
    away = (distances * others).sum(dim=2) / others.sum(dim=2).clamp(min=1)  # of each word [images, words]
    nouns = found.noun & others.any(dim=2)
    binding = mean_over(distances, found.described)
    mean_away = mean_over(away, nouns)

    if published:
        loss = _summed(found, distances, away, push)
    else:
        pushed = nouns if push == "noun" else others.any(dim=2)
        loss = binding - mean_over(away, pushed)
    if intensity:
        sharp, absent = sharpened(maps.cross, subjects)
        loss = loss - intensity * blur(sharp).amax(dim=(2, 3)).masked_fill(absent, 0).sum(dim=1)
    mixing = torch.where(nouns.any(dim=1), 1 - mean_away, 0)
    return scored(maps, subjects, loss, binding=binding, mixing=mixing)


def _summed(found: WordMaps, distances: Tensor, away: Tensor, push: str) -> Tensor:
    """The papers' sums over pairs of a noun and a modifier."""
    pairs = found.described
    pull = (distances * pairs).sum(dim=(1, 2))
    if push == "both":
        return pull - ((away[:, :, None] + away[:, None, :]) / 2 * pairs).sum(dim=(1, 2))

    times = torch.where(found.noun, pairs.sum(dim=2).clamp(min=1), 0)
    return pull - (away * times).sum(dim=1)


def _cosine(found: WordMaps) -> Tensor:
    directions = F.normalize(found.flat, dim=2, eps=1e-30)
    return 1 - directions @ directions.transpose(1, 2)


def _symmetric_kl(found: WordMaps) -> Tensor:
    p = distributions(found.flat)
    log = p.log()
    cross = p @ log.transpose(1, 2)
    kl = (p * log).sum(dim=2)[:, :, None] - cross
    return (kl + kl.transpose(1, 2)) / 2


_DISTANCES = {"cos": _cosine, "kl": _symmetric_kl}
