"""Attention edits by head: gains on a word's columns, after the softmax, in the conditional branch alone.

Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

Rows are not normalised again: more attention to one word takes none from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attention.edits import Edit
from ..errors import SettingsError
from ..models.base import Model
from ..models.sites import AttentionSite, head_slices
from ..prompts.prompt import Prompt
from ..prompts.subjects import SubjectName
from ..utils.numbers import check_finite
from .relevance import Relevance, layers_of, relevance_for

Window = tuple[float | int, float | int]
"""First step and the one after the last: floats are fractions of the schedule (0..1), ints numbers of steps."""
WHOLE: Window = (0.0, 1.0)


def _is_time(value: float) -> bool:
    return value >= 0 and (isinstance(value, Integral) or value <= 1)


def _step(value: float, passes: int) -> int:
    """The step that one end of a window means."""
    if isinstance(value, Integral):
        return int(value)
    return int(value * passes)


@dataclass(frozen=True, eq=False)
class HeadGain:
    """A gain for every head on some columns of its attention; `bind` makes an `Edit` of it.

    Attributes:
        gains: a model to its heads' gains [heads], in execution order.
        word: whose columns: a subject as in `Prompt.find`; None takes every token of the prompt's own text.
        window: the steps in which it acts.
        about: name and settings, to be stored with a result.
    """

    gains: Callable[[Model], Tensor]
    word: SubjectName | None
    window: Window
    about: dict[str, Any]

    def __post_init__(self) -> None:
        start, stop = self.window if len(self.window) == 2 else (-1, -1)
        if not (_is_time(start) and _is_time(stop)):
            raise SettingsError(
                f"window={self.window} must be two steps: fractions of the schedule (0.0 to 1.0) or whole numbers."
            )

    def bind(self, model: Model, prompts: Sequence[Prompt], passes: int) -> Edit:
        """The edit of one batch.

        Args:
            prompts: one per image.
            passes: denoiser passes of the schedule.

        Raises:
            PromptError: the word is not in a prompt.
            SettingsError: the vectors do not fit the model.
        """
        start, stop = _step(self.window[0], passes), _step(self.window[1], passes)
        columns = torch.zeros(len(prompts), 1, 1, max(len(p.ids) for p in prompts), dtype=torch.bool)
        for row, prompt in zip(columns, prompts, strict=True):
            row[..., list(range(1, prompt.end) if self.word is None else prompt.find(self.word))] = True

        flat = self.gains(model).float()
        by_layer = {
            layer: torch.where(columns, flat[heads, None, None], 1.0).to(model.device)
            for layer, heads in head_slices(model.text_sites).items()
        }

        def edit(layer: AttentionSite, probabilities: Tensor, step: int) -> Tensor:
            if not start <= step < stop:
                return probabilities
            return probabilities * by_layer[layer].to(probabilities.dtype)

        return edit


def strengthen(
    word: SubjectName, concept: str, *, head_vectors: Relevance | str | Path | None = None, window: Window = WHOLE
) -> HeadGain:
    """Let the heads that a concept needs attend more to a word: multiply every head by its relevance to the concept.

    Args:
        word: a word of the prompt, see `Prompt.find`.
        concept: a concept of the vectors.
        head_vectors: vectors or their file; None takes those that are shipped for the model.
        window: the steps in which it acts.

    Examples:
        >>> model = limelight.load("pocket")
        >>> edits = [strengthen("cat", "Animals")]
        >>> result = limelight.generate(model, "a black cat", subjects=[], edits=edits, steps=2)
        >>> result.settings["edits"][0]["concept"]
        'Animals'
    """
    about = {"name": "strengthen", "word": word, "concept": concept, "window": window}
    return HeadGain(partial(_relevance, concept, head_vectors), word, window, about)


def _relevance(concept: str, head_vectors: Relevance | str | Path | None, model: Model) -> Tensor:
    return relevance_for(model, head_vectors)[concept]


def adjust(
    word: SubjectName,
    desired: str,
    undesired: str,
    *,
    clamp: float | None = None,
    head_vectors: Relevance | str | Path | None = None,
    window: Window = WHOLE,
) -> HeadGain:
    """Read an ambiguous word as one concept and not as another: multiply every head by 2 desired - undesired.

    Args:
        word: a word of the prompt, e.g. "rose-colored".
        desired, undesired: concepts of the vectors, e.g. "Color" and "Plants".
        clamp: upper limit of both vectors before they are combined; the authors take 9 for Stable Diffusion XL, None
            elsewhere.
        head_vectors: vectors or their file; None takes those that are shipped for the model.
        window: the steps in which it acts.

    Raises:
        SettingsError: the clamp is not positive.

    Examples:
        >>> model = limelight.load("pocket")
        >>> edits = [adjust("orange", "Color", "Food")]
        >>> result = limelight.generate(model, "an orange cat", subjects=[], edits=edits, steps=2)
        >>> result.settings["edits"][0]["desired"]
        'Color'
    """
    check_finite(clamp=clamp)
    if clamp is not None and not clamp > 0:
        raise SettingsError(f"clamp={clamp} must be positive.")
    about = {"name": "adjust", "word": word, "desired": desired, "undesired": undesired, "clamp": clamp}
    gains = partial(_adjustment, desired, undesired, clamp, head_vectors)
    return HeadGain(gains, word, window, {**about, "window": window})


def _adjustment(
    desired: str, undesired: str, clamp: float | None, head_vectors: Relevance | str | Path | None, model: Model
) -> Tensor:
    relevance = relevance_for(model, head_vectors)
    wanted, unwanted = relevance[desired], relevance[undesired]
    if clamp is not None:
        wanted, unwanted = wanted.clamp(max=clamp), unwanted.clamp(max=clamp)
    return 2 * wanted - unwanted


def weaken(
    heads: Sequence[int | str],
    factor: float = -2.0,
    *,
    word: SubjectName | None = None,
    window: Window = WHOLE,
) -> HeadGain:
    """Turn some heads away from the prompt.

    Args:
        heads: by index in execution order, or by name, e.g. "up, layer: 8, head: 0".
        factor: the gain of these heads; the authors' -2 turns the sign, 0 silences.
        word: whose columns; None takes the whole prompt.
        window: the steps in which it acts.

    Examples:
        >>> model = limelight.load("pocket")
        >>> edits = [weaken(["up, layer: 0, head: 1"], factor=0.0)]
        >>> result = limelight.generate(model, "a black cat", subjects=[], edits=edits, steps=2)
        >>> result.settings["edits"][0]["factor"]
        0.0
    """
    check_finite(factor=factor)
    about = {"name": "weaken", "heads": list(heads), "factor": factor, "word": word, "window": window}
    return HeadGain(partial(_weakened, tuple(heads), factor), word, window, about)


def _weakened(heads: Sequence[int | str], factor: float, model: Model) -> Tensor:
    named = Relevance((), layers_of(model), torch.empty(0))
    found = torch.ones(len(named.heads))
    found[[named.find(head) for head in heads]] = factor
    return found
