"""Thresholds of Attend-and-Excite for a model without published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..errors import PromptError, SettingsError
from ..guidance.attend_and_excite import AttendAndExcite
from ..guidance.base import Guidance, step_of
from ..models.base import Model
from ..prompts.prompt import Prompt
from ..prompts.subjects import Subject, SubjectChoice, per_prompt, resolve
from ..utils.numbers import MOST_IMAGES, MOST_STEPS, check_whole
from ..utils.torch import seeded
from .arguments import check_model
from .loop import Step, denoise
from .plan import checked, negatives


@dataclass(frozen=True, eq=False)
class Calibration:
    """What subjects have by themselves at the steps that have thresholds.

    Attributes:
        presence: by the thresholds' own keys, of every subject of every image: [subjects], in 0..1, as
            `limelight.guidance.base.Score.presence`.
        quantile: which of these the thresholds are, 0..1.
    """

    presence: Mapping[float | int, Tensor]
    quantile: float

    @property
    def thresholds(self) -> dict[float | int, float]:
        """For `AttendAndExcite(thresholds=...)`, rounded down to hundredths and below 1, which no softmax reaches."""
        found = {}
        for key, values in self.presence.items():
            exact = values.quantile(self.quantile).item()
            found[key] = min(int(100 * exact) / 100, 0.99)
        return found

    @property
    def preset(self) -> dict[str, Any]:
        """The thresholds as the limelight.json in a model's folder has them, see `limelight.models.base.About`."""
        return {"attend_and_excite": {"thresholds": {str(key): value for key, value in self.thresholds.items()}}}

    @property
    def subjects(self) -> int:
        """How many subjects were watched, over all images."""
        return len(next(iter(self.presence.values())))


@torch.no_grad()
def calibrate(
    model: Model,
    prompts: Sequence[str],
    *,
    subjects: Sequence[SubjectChoice] | str = "auto",
    seeds: int | Sequence[int] = 0,
    guidance: Guidance | None = None,
    quantile: float = 0.7,
    steps: int = 50,
    guidance_scale: float | None = None,
    negative: str | None = "",
    batch: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Propose thresholds: what the better subjects reach without guidance.

    Generates without guidance, as far as the step of the last threshold, and reads at each threshold's step every
    subject's presence (with Attend-and-Excite the largest value of its sharpened, blurred map), which is what
    thresholds are about. With a quantile of 0.7, refinement asks of the other subjects what 3 of 10 have by themselves.

    Where even the lowest presence is near 1, this model's maps are too sharp for the objective's temperature (see
    `limelight.guidance.attend_and_excite.excite`), and no threshold separates the subjects.

    Args:
        model: see `limelight.load`.
        prompts: of the kind to be generated later; five tell the scale, fifty the second digit.
        subjects: of each prompt, see `limelight.generate`; "auto" takes the nouns.
        seeds: of every prompt, one or several.
        guidance: whose objective, resolution and steps of thresholds (the paper's where it has none); by default
            `AttendAndExcite.suited(model)`.
        quantile: share of the subjects that stay below the threshold, 0..1; 0.6 to 0.8 are reasonable.
        steps, guidance_scale, negative: as in the generations to come, see `limelight.generate`.
        batch: most images in one pass.
        on_progress: called after every step with how many are done, and of how many, e.g. for a progress bar.

    Raises:
        PromptError: a subject is not in its prompt, or there are no prompts.
        SettingsError: a setting is out of range.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> list(limelight.calibrate(model, ["a cat and a dog"], steps=1).thresholds)
        [0, 0.2, 0.4]
    """
    check_model(model)
    _check(prompts, quantile, batch, steps)
    watched = _without_moves(guidance or AttendAndExcite.suited(model))
    images = _images(model, list(prompts), subjects, checked(seeds))
    (unwanted,) = negatives(negative, 1)

    found: dict[int, list[Tensor]] = {step_of(key, steps): [] for key in watched.thresholds}
    last = max(found)
    if last >= model.passes(steps):
        raise SettingsError(f"The threshold of step {last} lies beyond the schedule of {steps} steps.")

    scale = model.scale_or_own(guidance_scale)
    passes = -(-len(images) // batch)
    for done in range(passes):
        rows = images[done * batch : (done + 1) * batch]
        for step in _watch(model, rows, watched, steps, scale, unwanted):
            if step.move is not None:
                found[step.index].append(step.move.presence[~step.move.presence.isnan()].float().cpu())
            if on_progress:
                on_progress(done * (last + 1) + step.index + 1, passes * (last + 1))
            if step.index == last:
                break
    return Calibration({key: torch.cat(found[step_of(key, steps)]) for key in watched.thresholds}, quantile)


def _check(prompts: Sequence[str], quantile: float, batch: int, steps: int) -> None:
    if isinstance(prompts, str) or not prompts:
        raise PromptError("prompts must be a list of at least one, for example ['a cat and a dog'].")
    if not 0 <= quantile <= 1:
        raise SettingsError(f"quantile={quantile} must be between 0 and 1, for example 0.7.")
    check_whole(MOST_IMAGES, batch=batch)
    check_whole(MOST_STEPS, steps=steps)


_Image = tuple[Prompt, tuple[Subject, ...], int]
"""A prompt, its subjects, and a seed."""


def _without_moves(guidance: Guidance) -> Guidance:
    """The same guidance, evaluated at the thresholds alone, and without any effect."""
    thresholds = guidance.thresholds or AttendAndExcite().thresholds
    return replace(guidance, thresholds=thresholds, until=0, max_refinements=0)


def _images(
    model: Model, prompts: Sequence[str], subjects: Sequence[SubjectChoice] | str, seeds: Sequence[int]
) -> list[_Image]:
    """Every seed of every prompt."""
    images: list[_Image] = []
    for text, asked in zip(prompts, per_prompt(subjects, len(prompts), listed=True), strict=True):
        prompt = model.prompt(text)
        _, found = resolve(prompt, asked)
        images += product([prompt], [found], seeds)
    return images


def _watch(
    model: Model,
    images: Sequence[_Image],
    guidance: Guidance,
    steps: int,
    guidance_scale: float,
    negative: str,
) -> Iterator[Step]:
    """Generate one batch of images, step by step."""
    prompts, found, seeds = zip(*images, strict=True)
    generators = seeded(seeds)
    return denoise(
        model,
        model.encode(prompts, model.negative_in_use(guidance_scale, negative)),
        model.noise(generators, *model.default_size),
        steps=steps,
        guidance_scale=guidance_scale,
        guidance=guidance,
        subjects=found,
        generators=generators,
    )
