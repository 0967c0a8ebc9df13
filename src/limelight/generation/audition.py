"""Auditions: begin with several seeds, and finish the one whose attention promises most."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from numbers import Integral
from typing import Any

import torch

from ..errors import SettingsError
from ..guidance.attend_and_excite import excite
from ..guidance.base import Guidance, Objective, describe_objective, step_of
from .batches import in_passes
from .loop import denoise
from .plan import GenerationPlan

STRIDE = 1_000_000
"""The candidates of seed 7 are 7, 1000007, 2000007, ...: seeds that a user hardly gives beside each other."""


@dataclass(frozen=True, kw_only=True)
class Audition:
    """How a seed is chosen. No gradient is taken, so the largest models can afford it.

    The candidates are denoised plainly for the first steps; of their maps in the last of these an objective says what
    each still lacks, and the one with the least loss is generated. Its seed stands in the result and gives the same
    image alone.

    Attributes:
        candidates: seeds to try for each image, at least 1.
        steps: how far: a float is a fraction of the schedule (0..1), an int a number of steps, at least 1.
        objective: says what an image lacks.

    Raises:
        SettingsError: a setting is out of its range.
    """

    candidates: int = 4
    steps: float | int = 0.1
    objective: Objective = field(default=excite, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, Integral) or self.candidates < 1:
            raise SettingsError(f"candidates={self.candidates} must be a whole number of at least 1.")
        fraction = not isinstance(self.steps, Integral) and 0 < self.steps <= 1
        if not fraction and not (isinstance(self.steps, Integral) and self.steps >= 1):
            raise SettingsError(f"steps={self.steps} of an audition must be a fraction above 0, or a number of steps.")

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        return {"candidates": self.candidates, "steps": self.steps, "objective": describe_objective(self.objective)}


def candidate_seeds(seed: int, count: int) -> tuple[int, ...]:
    """The seeds that are tried for one image: its own first."""
    return tuple((seed + STRIDE * i) % 2**63 for i in range(count))


def cast(plan: GenerationPlan, audition: Audition, batch: int | None) -> GenerationPlan:
    """A plan in which every image has the best of its candidate seeds.

    Args:
        plan: every image needs a subject.
        batch: most images in one pass, see `in_passes`.

    Raises:
        SettingsError: an image has no subjects, latents are given, or the audition is longer than the schedule.
    """
    settings = plan.settings
    last = max(step_of(audition.steps, settings.steps), 1) - 1
    if last >= settings.steps:
        raise SettingsError(f"An audition of {last + 1} steps is longer than the schedule of {settings.steps} steps.")
    if settings.latents is not None or settings.conditioning is not None:
        raise SettingsError("An audition chooses seeds; it cannot be held with given latents or conditioning.")
    if not all(plan.subjects):
        raise SettingsError("An audition needs the subjects of every image; name them, for example subjects=['cat'].")

    tried = []
    for which, seed in plan.images:
        tried += [(which, candidate) for candidate in candidate_seeds(seed, audition.candidates)]

    def one_pass(rows: range, lean: bool) -> list[float]:
        return _losses(plan, audition, tried[rows.start : rows.stop], last)

    losses = list(chain.from_iterable(in_passes(plan.model, one_pass, len(tried), batch, settings.size, lean=True)))
    winners = []
    for i in range(0, len(tried), audition.candidates):
        own = range(i, i + audition.candidates)
        winners.append(tried[min(own, key=lambda k: losses[k])])
    return replace(plan, images=tuple(winners), settings=replace(settings, audition=audition.settings()))


@torch.no_grad()
def _losses(plan: GenerationPlan, audition: Audition, images: Sequence[tuple[int, int]], last: int) -> list[float]:
    """Denoise some candidates plainly, as far as the last step of the audition, and say what each lacks there."""
    model, settings = plan.model, plan.settings
    generators = [torch.Generator().manual_seed(seed) for _, seed in images]
    noise = model.noise(generators, *settings.size)
    prompts = [plan.prompts[which] for which, _ in images]
    negative = [settings.negative[which] for which, _ in images] if settings.two_branches else None
    run = denoise(
        model,
        model.encode(prompts, negative, settings.size, clip_skip=settings.clip_skip),
        noise,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        edits=settings.edits,
        record=True,
        layers=Guidance(objective=audition.objective).layers(model, (noise.shape[-2], noise.shape[-1])),
        generators=generators,
        eta=settings.eta,
    )
    with closing(run):
        step = next(islice(run, last, None))
        assert step.maps is not None  # they are recorded
        losses: list[float] = audition.objective(step.maps, [plan.subjects[which] for which, _ in images]).loss.tolist()
    return losses
