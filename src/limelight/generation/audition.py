"""Auditions: begin with several seeds, and finish the one whose attention promises most."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from numbers import Integral
from typing import Any

import torch

from ..attention.edits import bind_edits
from ..attention.probe import Probe
from ..errors import SettingsError
from ..guidance.base import Guidance, Objective, check_schedule, describe_objective, step_of
from ..guidance.divergence import divergence
from .batches import in_passes
from .loop import denoise
from .plan import GenerationPlan

STRIDE = 1_000_000
"""The candidates of seed 7 are 7, 1000007, 2000007, ...: seeds that a user hardly gives beside each other."""


@dataclass(frozen=True, kw_only=True)
class Audition:
    """How a seed is chosen. No gradient is taken, so the largest models can afford it.

    Of every candidate's maps an objective says what the image still lacks, and the candidates with the least loss stay.
    Before the first step that costs a part of one conditional pass; later rounds denoise those that are left plainly up
    to their step. The winner's seed stands in the result and gives the same image alone.

    Attributes:
        candidates: seeds to try for each image, at least 1.
        rounds: the steps before which the candidates are compared, in ascending order: a float is a fraction of the
            schedule (0..1), an int a number of steps. Each of R rounds keeps the same share: of N candidates
            N^(1 - r/R) are left after round r, and one after the last.
        objective: says what an image lacks.

    Raises:
        SettingsError: a setting is out of its range.
    """

    candidates: int = 4
    rounds: Sequence[float | int] = (0, 0.1)
    objective: Objective = field(default=divergence, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, Integral) or self.candidates < 1:
            raise SettingsError(f"candidates={self.candidates} must be a whole number of at least 1.")
        if not self.rounds or min(self.rounds) < 0:
            raise SettingsError(f"rounds={self.rounds} must be steps, for example (0, 0.1).")
        check_schedule(self.rounds)

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        return {
            "candidates": self.candidates,
            "rounds": list(self.rounds),
            "objective": describe_objective(self.objective),
        }


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
    rounds = sorted({step_of(at, settings.steps) for at in audition.rounds})
    if rounds[-1] >= settings.steps:
        raise SettingsError(f"An audition of {rounds[-1]} steps is too long for a schedule of {settings.steps} steps.")
    if settings.latents is not None or settings.conditioning is not None:
        raise SettingsError("An audition chooses seeds; it cannot be held with given latents or conditioning.")
    if not all(plan.subjects):
        raise SettingsError("An audition needs the subjects of every image; name them, for example subjects=['cat'].")

    left = [
        [(which, candidate) for candidate in candidate_seeds(seed, audition.candidates)] for which, seed in plan.images
    ]
    for number, step in enumerate(rounds, start=1):
        losses = _losses(plan, audition, list(chain.from_iterable(left)), step, batch)
        stay = round(audition.candidates ** (1 - number / len(rounds)))
        each = len(left[0])
        for i, images in enumerate(left):
            ranked = sorted(zip(losses[i * each :], images, strict=False), key=lambda pair: pair[0])
            left[i] = [image for _, image in ranked[:stay]]
    winners = tuple(images[0] for images in left)
    return replace(plan, images=winners, settings=replace(settings, audition=audition.settings()))


def _losses(
    plan: GenerationPlan, audition: Audition, images: Sequence[tuple[int, int]], step: int, batch: int | None
) -> list[float]:
    """What each image, a prompt's index and a seed, lacks before a step of its plain run."""

    def one_pass(rows: range, lean: bool) -> list[float]:
        return _losses_of_pass(plan, audition, images[rows.start : rows.stop], step)

    done = in_passes(plan.model, one_pass, len(images), batch, plan.settings.size, lean=True)
    return list(chain.from_iterable(done))


@torch.no_grad()
def _losses_of_pass(
    plan: GenerationPlan, audition: Audition, images: Sequence[tuple[int, int]], step: int
) -> list[float]:
    model, settings = plan.model.for_one_run(), plan.settings
    generators = [torch.Generator().manual_seed(seed) for _, seed in images]
    noise = model.noise(generators, *settings.size)
    prompts = [plan.prompts[which] for which, _ in images]
    negative = [settings.negative[which] for which, _ in images] if settings.two_branches else None
    conditioning = model.encode(prompts, negative, settings.size, clip_skip=settings.clip_skip)
    scale, edits = settings.guidance_scale, settings.edits

    # Denoise up to the step.
    timesteps = model.timesteps(settings.steps)
    latents = model.start(noise)
    if step:
        plain = denoise(
            model,
            conditioning,
            noise,
            steps=settings.steps,
            guidance_scale=scale,
            edits=edits,
            generators=generators,
            eta=settings.eta,
        )
        with closing(plain) as run:
            latents = next(islice(run, step - 1, None)).latents

    # Read the maps in a conditional pass that ends where the last of them is made.
    layers = Guidance(objective=audition.objective).layers(model, (noise.shape[-2], noise.shape[-1]))
    conditional = model.prepare(conditioning, scale).only_conditional()
    acting = bind_edits(edits, model, prompts, len(timesteps))
    with Probe(model, layers, edits=acting, images=len(latents), step=step) as probe:
        model.predict(latents, timesteps[step], conditional, until=layers[-1])
        maps = probe.take(latents, prompts)
    losses: list[float] = audition.objective(maps, [plan.subjects[which] for which, _ in images]).loss.tolist()
    return losses
