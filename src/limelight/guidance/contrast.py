"""CONFORM: the words of one subject attract each other, and those of others repel."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..prompts.subjects import Subject
from .base import Score, Subjects, reading
from .terms import blur, mean_over, scored, sharpened, word_maps


@reading("cross", remembers=True)
def contrast(
    maps: AttentionMaps,
    subjects: Subjects,
    *,
    temperature: float = 0.5,
    memory: bool = False,
    sharpen: bool = False,
    sigma: float = 0.5,
) -> Score:
    """Contrast the maps of words: the normalized temperature-scaled cross entropy of their cosine similarities.

    Tuna Han Salih Meral, Enis Simsar, Federico Tombari, Pinar Yanardag, "CONFORM: Contrast is All You Need For
    High-Fidelity Text-to-Image Diffusion Models", 2024, https://arxiv.org/abs/2312.06059

    With z_ij the cosine of the blurred maps of words i and j over the temperature, over all pairs i, j of one subject:

        loss = mean of -ln(e^z_ij / (e^z_ij + sum over the words k of other subjects of e^z_ik))

    The maps of the step before take part as further words of the same subjects, so that a subject of one word has a
    pair, too.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: of each image, with their modifiers.
        temperature: of the cosines, above 0.
        memory: compare with the last guided step, as published; else with the same maps, without their gradient.
        sharpen: compare the sharpened maps, see `limelight.guidance.terms.sharpened`, as the class of the released code
            does; its notebook, and with it the published images, compares the raw ones.
        sigma: width of the blur, see `limelight.guidance.terms.blur`.
    """
    found = word_maps(maps, subjects)
    vectors, owner = _directions(maps, subjects, sharpen, sigma), found.owner
    past = vectors.detach()
    if memory:
        past = vectors[:, :0]
        if maps.before is not None:
            past = _directions(maps.before, subjects, sharpen, sigma)
    vectors, owner = torch.cat([vectors, past], dim=1), torch.cat([owner, owner[:, : past.shape[1]]], dim=1)

    same, other = owner[:, :, None] == owner[:, None, :], owner[:, :, None] != owner[:, None, :]
    there = (owner >= 0)[:, :, None] & (owner >= 0)[:, None, :]
    same = same & there & ~torch.eye(owner.shape[1], dtype=torch.bool, device=owner.device)
    other = other & there

    cosine = vectors @ vectors.transpose(1, 2)
    scaled = cosine / temperature
    negatives = (scaled.exp() * other).sum(dim=2, keepdim=True)
    loss = mean_over(torch.log1p(negatives * (-scaled).exp()), same)

    words = found.maps.shape[1]
    binding = torch.where(found.together.any(dim=(1, 2)), 1 - mean_over(cosine[:, :words, :words], found.together), 0)
    mixing = mean_over(cosine[:, :words, :words], found.apart)
    return scored(maps, subjects, loss, binding=binding, mixing=mixing)


def _directions(maps: AttentionMaps, subjects: Subjects, sharpen: bool, sigma: float) -> Tensor:
    """The blurred maps of the subjects' words, in the order of `word_maps`, [images, words, pixels], of length 1."""
    if sharpen:
        read, _ = sharpened(maps.cross, [_words(own) for own in subjects])
    else:
        read = word_maps(maps, subjects).maps
    return F.normalize(blur(read, sigma).flatten(2), dim=2)


def _words(subjects: Sequence[Subject]) -> list[Subject]:
    """Nouns and modifiers as subjects of their own: first all nouns."""
    modifiers = chain.from_iterable(subject.modifiers for subject in subjects)
    return [*(Subject(subject.positions) for subject in subjects), *map(Subject, modifiers)]
