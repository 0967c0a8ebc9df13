"""Attend-and-Excite with maps weighted by the heads of a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..errors import PromptError, SettingsError
from ..guidance.attend_and_excite import AttendAndExcite
from ..guidance.base import Objective, Score, Subjects, layers_to_read
from ..guidance.terms import blur, pooling_of, weakest_score
from ..models.base import Model
from ..models.sites import AttentionSite, head_slices
from ..prompts.prompt import Prompt
from .relevance import Relevance, relevance_for

SIGMA = 0.5 / 2**0.5
"""The released code blurs with exp(-(d / 0.5)^2 / 2), a standard deviation of 0.5. That of Attend-and-Excite, and with
it `limelight.guidance.terms.blur`, has sigma * sqrt(2)."""


@dataclass(frozen=True, kw_only=True)
class HeadWeightedAttendAndExcite(AttendAndExcite):
    """Attend-and-Excite on maps that are weighted by head, see `excite_by_heads`.

    Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
    with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

    Attributes:
        concepts: the concept of each subject, by a word of it; or one for all.
        head_vectors: the head relevance vectors or their file; None takes those that are shipped for the model.
        resolution: the maps' shorter side; None takes 8.

    Raises:
        SettingsError: `concepts` is empty, or `resolution` is not a single number.

    Examples:
        >>> guidance = HeadWeightedAttendAndExcite(concepts={"cat": "Animals", "dog": "Animals"})
        >>> guidance.settings()["concepts"]
        {'cat': 'Animals', 'dog': 'Animals'}
    """

    concepts: Mapping[str, str] | str
    head_vectors: Relevance | str | Path | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.concepts:
            raise SettingsError("concepts is empty; name the concept of each subject, for example {'cat': 'Animals'}.")
        if isinstance(self.resolution, Sequence):
            raise SettingsError(f"resolution={self.resolution} must be one number: the shorter side of the maps.")

    def layers(self, model: Model, latent_size: tuple[int, int]) -> tuple[AttentionSite, ...]:
        return model.text_sites

    def recorded_layers(self, model: Model, latent_size: tuple[int, int]) -> tuple[AttentionSite, ...]:
        return layers_to_read(model, latent_size)  # weighted maps have a size that no layer need have

    def objective_for(self, model: Model) -> Objective:
        relevance, concepts = relevance_for(model, self.head_vectors), self.concepts
        for concept in (concepts,) if isinstance(concepts, str) else concepts.values():
            relevance.index(concept)  # an unknown concept is refused before the first step

        return partial(
            excite_by_heads,
            relevance=relevance,
            concepts=concepts,
            side=self.resolution or 8,
            smooth=self.smooth,
            own_tokens=self.own_tokens,
        )

    def settings(self) -> dict[str, Any]:
        vectors = self.head_vectors
        if isinstance(vectors, Relevance):
            vectors = str(vectors.facts.get("model", "given"))
        return {**super().settings(), "head_vectors": vectors and str(vectors)}


def excite_by_heads(
    maps: AttentionMaps,
    subjects: Subjects,
    *,
    relevance: Relevance,
    concepts: Mapping[str, str] | str,
    side: int = 8,
    temperature: float = 100.0,
    smooth: bool = True,
    sigma: float = SIGMA,
    own_tokens: bool | None = None,
) -> Score:
    """As `excite`, but each subject has a map of its own: all heads of all layers, weighted by their relevance to its
    concept.

    Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
    with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

    The map of a subject with the concept c is the sum over all H heads h of relevance[c, h] / H times the head's map.
    As in the released code the last token competes, too.

    Args:
        maps: of every cross-attention layer of the model.
        subjects: token positions per image.
        relevance: vectors that fit the model.
        concepts: the concept of each subject, by a word of it; or one concept for all.
        side: every map is resized to so many pixels along its shorter side, see `resizing`.
        temperature, smooth, own_tokens: see `excite`.
        sigma: width of the blur, see `limelight.guidance.terms.blur`.

    Raises:
        SettingsError: a subject has no concept, the vectors lack it, or they do not fit the maps.
    """
    tokens = next(iter(maps.layers.values())).shape[-1]
    pooling, padding, absent = pooling_of(maps, subjects, tokens, own_tokens)

    weights = torch.zeros(*absent.shape, len(relevance.heads))
    for row, prompt, own in zip(weights, maps.prompts, subjects, strict=True):
        for k, subject in enumerate(own):
            row[k] = relevance[_concept(prompt, subject.all_positions, concepts)] / len(relevance.heads)

    height, width = (max(round(side * x / min(maps.latent_size)), 1) for x in maps.latent_size)
    weighted = _weighted(maps, weights, (height, width))
    logits = torch.einsum("bkpt,btu->bkpu", weighted, pooling.to(weighted.dtype)) * temperature
    sharp = logits.masked_fill(padding[:, None, None], float("-inf")).softmax(dim=-1)

    # Of each subject's own maps its own column.
    of_subjects = sharp[..., : absent.shape[1]].diagonal(dim1=1, dim2=3).movedim(-1, 1).unflatten(2, (height, width))
    return weakest_score(blur(of_subjects, sigma) if smooth else of_subjects, absent)


def _weighted(maps: AttentionMaps, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """The sum of all heads' maps, resized to one size: weights [images, subjects, heads] make of them
    [images, subjects, pixels, tokens]."""
    heads = sum(layer.heads for layer in maps.layers)
    if heads != weights.shape[-1]:
        raise SettingsError(f"Maps of {heads} heads do not fit vectors of {weights.shape[-1]} heads.")

    total = next(iter(maps.layers.values())).new_zeros(())
    slices = head_slices(tuple(maps.layers))
    for layer, p in maps.layers.items():
        # Resizing is linear: one map per subject is resized, not one per head.
        of_layer = torch.einsum("bkh,bhpt->bkpt", weights[..., slices[layer]].to(p), p)
        matrix = resizing(layer.size(maps.latent_size), size, p.dtype, p.device)
        total = total + matrix @ of_layer
    return total


def _concept(prompt: Prompt, span: tuple[int, ...], concepts: Mapping[str, str] | str) -> str:
    if isinstance(concepts, str):
        return concepts
    for word, concept in concepts.items():
        with suppress(PromptError):  # a word of another prompt
            if set(prompt.find(word)) <= set(span):
                return concept

    name = " ".join(word.text for word in prompt.words if set(word.positions) & set(span))
    raise SettingsError(f"The subject '{name}' has no concept; give for example concepts={{'{name}': 'Animals'}}.")


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def resizing(
    size: tuple[int, int],
    target: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
) -> Tensor:
    """The matrix [target pixels, pixels] that resizes maps as the released code of the head relevance vectors does.

    Larger maps are blurred by a Gaussian of k = size // target + 1 pixels with reflected borders and the standard
    deviation 0.3 ((k - 1) / 2 - 1) + 0.8. Then every map is resized bicubically.
    """
    down, across = _resizing_along(size[0], target[0]), _resizing_along(size[1], target[1])
    return torch.kron(down, across).to(device, dtype)


def _resizing_along(old: int, new: int) -> Tensor:
    """The same along one axis, [new, old], float64."""
    basis = torch.eye(old, dtype=torch.float64)
    if old > new:
        reach = (old // new + 1) // 2
        offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offsets / (0.3 * (reach - 1) + 0.8)) ** 2)
        padded = F.pad(basis[:, None], (reach, reach), mode="reflect")
        basis = F.conv1d(padded, (kernel / kernel.sum())[None, None])[:, 0]

    resized = F.interpolate(basis[:, None, :, None], size=(new, 1), mode="bicubic", align_corners=False)
    return resized[:, 0, :, 0].T
