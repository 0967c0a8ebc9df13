"""FOCUS and JEDI: the words of one subject share a place, and subjects have places of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps
from .base import Score, Subjects
from .terms import WordMaps, blur, distributions, mean_over, scored, word_maps


def divergence(
    maps: AttentionMaps,
    subjects: Subjects,
    *,
    power: float = 3.0,
    sigma: float = 1.0,
    spread: float = 0.0,
    geometric: bool = False,
) -> Score:
    """Draw a subject's words together and subjects apart, by the Jensen-Shannon divergence of their maps.

    Eric Tillmann Bill, Enis Simsar, Thomas Hofmann, "Optimal Control Meets Flow Matching: A Principled Route to
    Multi-Subject Fidelity" (FOCUS), 2025, https://arxiv.org/abs/2510.02315; the same authors, "JEDI: The Force of
    Jensen-Shannon Divergence in Disentangling Diffusion Models", 2025, https://arxiv.org/abs/2505.19166

    With P the maps as distributions over places and JSD(P_1, ..., P_T) = mean_i KL(P_i || mean P) / ln T, in 0..1:

        loss = (mean over subjects of JSD(their words) + 1 - JSD(subjects)) / 2 + spread * mean(1 - H / ln pixels) / 2

    A subject's own map is the mean of its words' maps, and H is its entropy. A subject of one word has no inner
    divergence, and a single subject none to others. The loss needs no temperature, threshold or memory.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: of each image, with their modifiers.
        power: maps are raised to it before they are normalized. FOCUS 3, JEDI 1.
        sigma: standard deviation of the blur before, in map pixels; 0 leaves it out.
        spread: weight of the entropy of the subjects' maps. JEDI 0.01.
        geometric: take the geometric mean of words and of no power, as JEDI's mean of logits.
    """
    found = word_maps(maps, subjects)
    raw = blur(found.maps, sigma / 2**0.5) if sigma else found.maps
    flat = raw.flatten(2)
    member = _members(found)
    count = member.sum(dim=2)  # words of each subject [images, subjects]

    # Within subjects: each word against the mean of its subject's words.
    words = distributions(flat, power)
    middle = (member @ words) / count.clamp(min=1)[..., None]
    of_word = middle.gather(1, found.owner.clamp(min=0)[..., None].expand_as(words))
    inside = (member @ _kl(words, of_word)[..., None])[..., 0] / (count * count.clamp(min=2).log()).clamp(min=1)
    binding = mean_over(inside, count > 1)

    # Between subjects.
    if geometric:
        of_subject = ((member @ flat.clamp(min=1e-30).log()) / count.clamp(min=1)[..., None]).exp()
    else:
        of_subject = (member @ flat) / count.clamp(min=1)[..., None]
    there, groups = count > 0, distributions(of_subject, power)
    number = there.sum(dim=1)
    mean = (groups * there[..., None]).sum(dim=1, keepdim=True) / number[:, None, None]
    between = mean_over(_kl(groups, mean), there) / number.clamp(min=2).log()
    mixing = torch.where(number > 1, 1 - between, 0)

    loss = (binding + mixing) / 2
    if spread:
        entropy = -(groups * groups.log()).sum(dim=2) / torch.tensor(groups.shape[2]).log()
        loss = loss + spread * mean_over(1 - entropy, there) / 2
    return scored(maps, subjects, loss, binding=binding, mixing=mixing)


def _members(found: WordMaps) -> Tensor:
    """Which word belongs to which subject [images, subjects, words], as 0 and 1."""
    subjects = torch.arange(int(found.owner.max()) + 1, device=found.owner.device)
    return (found.owner[:, None, :] == subjects[None, :, None]).to(found.maps)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the last axis."""
    return (p * (p.clamp(min=1e-30).log() - q.clamp(min=1e-30).log())).sum(dim=-1)
