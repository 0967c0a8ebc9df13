"""Attention losses: what a picture still lacks, read from its attention maps. One pure function per paper.

An objective takes the maps and, for each image, its subjects as token positions. It returns a loss per image [images],
0 when satisfied and at most 1, and each subject's presence [images, subjects] in 0..1 (NaN where an image has fewer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PromptError, SettingsError
from .heads.relevance import Relevance
from .maps import AttentionMaps
from .prompt import Prompt

Subjects = Sequence[Sequence[tuple[int, ...]]]
"""For each image, for each subject: its token positions."""


class Score(NamedTuple):
    """A loss per image [images] and the presence of each of its subjects [images, subjects]."""

    loss: Tensor
    presence: Tensor


Objective = Callable[[AttentionMaps, Subjects], Score]


def excite(
    maps: AttentionMaps,
    subjects: Subjects,
    *,
    temperature: float = 100.0,
    smooth: bool = True,
    sigma: float = 0.5,
    own_tokens: bool | None = None,
) -> Score:
    """Every subject should own at least one place of the picture: 1 - the largest attention of the weakest subject.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826

    The probabilities of all tokens but the first (which draws most of the attention) and the last are sharpened by a
    softmax with the given temperature; in models that pad with other tokens, those of the prompt's own tokens alone.
    The tokens of one subject are first added into one: the softmax is exponential, so adding after it would make a word
    that is split in two lose against its neighbours.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: token positions per image.
        temperature: factor before the softmax.
        smooth: blur the maps before taking their maximum.
        sigma: width of the blur in map pixels, see `blur`.
        own_tokens: whether the softmax is over the prompt's own tokens alone; None asks `Prompt.padded`. (The released
            code has a flag for this, which is set for Stable Diffusion 2.1.)
    """
    mean = maps.mean()
    last = mean.shape[-1] - 1
    stops = tuple(p.end if (p.padded if own_tokens is None else own_tokens) else last for p in maps.prompts)
    pooling, padding, absent = (
        x.to(mean.device) for x in _pooling(tuple(tuple(spans) for spans in subjects), stops, mean.shape[-1])
    )
    logits = torch.einsum("bhwt,btu->bhwu", mean, pooling.to(mean.dtype)) * temperature
    sharp = logits.masked_fill(padding[:, None, None], float("-inf")).softmax(dim=-1)
    of_subjects = sharp[..., : absent.shape[1]].movedim(-1, 1)
    return _weakest(blur(of_subjects, sigma) if smooth else of_subjects, absent)


def _weakest(of_subjects: Tensor, absent: Tensor) -> Score:
    """The score of sharpened maps [images, subjects, height, width]; `absent` [images, subjects] do not count."""
    presence = of_subjects.amax(dim=(2, 3))
    lacking = (1 - presence).clamp(min=0).masked_fill(absent, -1)
    return Score(lacking.max(dim=1).values, presence.detach().masked_fill(absent, float("nan")))


def excite_by_heads(
    maps: AttentionMaps,
    subjects: Subjects,
    *,
    relevance: Relevance,
    concepts: Mapping[str, str] | str,
    side: int = 8,
    temperature: float = 100.0,
    smooth: bool = True,
    sigma: float = 0.5,
    own_tokens: bool | None = None,
) -> Score:
    """As `excite`, but each subject has a map of its own: all heads of all layers, weighted by their relevance to its
    concept.

    Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
    with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

    As in the released code the last token competes, too.

    Args:
        maps: of every cross-attention layer of the model.
        relevance: vectors that fit the model.
        concepts: the concept of each subject, by a word of it; or one concept for all.
        side: every map is resized to so many pixels along its shorter side, see `resizing`.
    """
    tokens = next(iter(maps.layers.values())).shape[-1]
    stops = tuple(p.end if (p.padded if own_tokens is None else own_tokens) else tokens for p in maps.prompts)
    first = next(iter(maps.layers.values()))
    pooling, padding, absent = (
        x.to(first.device) for x in _pooling(tuple(tuple(spans) for spans in subjects), stops, tokens)
    )
    weights = torch.zeros(*absent.shape, len(relevance.heads))
    for i, (prompt, spans) in enumerate(zip(maps.prompts, subjects, strict=True)):
        for k, span in enumerate(spans):
            weights[i, k] = relevance[_concept(prompt, span, concepts)] / len(relevance.heads)
    height, width = (max(round(side * x / min(maps.latent_size)), 1) for x in maps.latent_size)
    weighted = torch.zeros((), dtype=first.dtype, device=first.device)
    taken = 0
    for layer, p in maps.layers.items():
        own = weights[..., taken : taken + p.shape[1]].to(p)
        taken += p.shape[1]
        # Resizing is linear: one map per subject is resized, not one per head.
        of_layer = torch.einsum("bkh,bhpt->bkpt", own, p)
        matrix = resizing(layer.size(maps.latent_size), (height, width), p.dtype, p.device)
        weighted = weighted + matrix @ of_layer
    if taken != len(relevance.heads):
        raise SettingsError(f"Maps of {taken} heads do not fit vectors of {len(relevance.heads)} heads.")
    logits = torch.einsum("bkpt,btu->bkpu", weighted, pooling.to(weighted.dtype)) * temperature
    sharp = logits.masked_fill(padding[:, None, None], float("-inf")).softmax(dim=-1)
    # Of each subject's own maps its own column.
    of_subjects = sharp[..., : absent.shape[1]].diagonal(dim1=1, dim2=3).movedim(-1, 1).unflatten(2, (height, width))
    return _weakest(blur(of_subjects, sigma) if smooth else of_subjects, absent)


def _concept(prompt: Prompt, span: tuple[int, ...], concepts: Mapping[str, str] | str) -> str:
    if isinstance(concepts, str):
        return concepts
    words = [word.text for word in prompt.words if set(word.positions) & set(span)]
    for word, concept in concepts.items():
        with suppress(PromptError):  # a word of another prompt
            if set(prompt.find(word)) <= set(span):
                return concept
    name = " ".join(words)
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

    Larger maps are blurred by a Gaussian of size // target + 1 pixels with reflected borders and the standard deviation
    0.3 ((pixels - 1) / 2 - 1) + 0.8, then every map is resized bicubically.
    """
    down, across = (_resizing_along(old, new) for old, new in zip(size, target, strict=True))
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


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached tensors must serve later backward passes
def _pooling(
    subjects: tuple[tuple[tuple[int, ...], ...], ...], stops: tuple[int, ...], tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Which token goes into which column of the sharpened maps: a product with 0/1 matrices pools all images at once.

    An image's columns are its subjects and then every other token between the first and its stop. Returns the matrices
    [images, tokens, columns], the columns that an image does not have [images, columns] and the subjects that it does
    not have [images, subjects].
    """
    columns = []
    for spans, stop in zip(subjects, stops, strict=True):
        taken = {position for span in spans for position in span}
        columns.append([*spans, *((position,) for position in range(1, stop) if position not in taken)])
    pooling = torch.zeros(len(columns), tokens, max(len(units) for units in columns))
    for image, units in enumerate(columns):
        for column, unit in enumerate(units):
            pooling[image, list(unit), column] = 1
    padding = torch.tensor([[i >= len(units) for i in range(pooling.shape[2])] for units in columns])
    most = max(len(spans) for spans in subjects)
    absent = torch.tensor([[i >= len(spans) for i in range(most)] for spans in subjects])
    return pooling, padding, absent


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
