"""Auditions: begin with several seeds, and finish the one whose attention promises most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Any, NamedTuple

from ..errors import SettingsError
from ..guidance.base import (
    Guidance,
    Objective,
    Score,
    check_schedule,
    check_targets,
    describe_objective,
    score_of,
    step_of,
)
from ..guidance.divergence import divergence
from ..utils.numbers import MOST_IMAGES, check_whole
from .batches import in_passes
from .loop import maps_before
from .noise import initial_noise
from .plan import GenerationPlan

STRIDE = 1_000_000
"""The candidates of seed 7 are 7, 1000007, 2000007, ...: seeds that a user hardly gives beside each other."""

GOOD = {"neglect": 1.0, "mixing": 0.1, "binding": 0.1}
"""Parts of `divergence` up to which an image lacks nothing after a sixth of its steps. On the embedded model nine of
ten of those that come out wrong are above, and one of seven of the others."""


@dataclass(frozen=True, kw_only=True)
class Audition:
    """How a seed is chosen. No gradient is taken, so the largest models can afford it.

    Of every candidate's maps an objective says what the image still lacks, and the candidates with the least loss stay.
    Before the first step that costs a part of one conditional pass; later rounds denoise those that are left plainly up
    to their step. The winner's seed stands in the result and gives the same image alone. An image that lacks nothing by
    its own seed keeps it; that is found out first, at the step of the last round.

    Attributes:
        candidates: seeds to try for each image, at least 1.
        rounds: the steps before which the candidates are compared, in ascending order: a float is a fraction of the
            schedule (0..1), an int a number of steps. Each of R rounds keeps the same share: of N candidates
            N^(1 - r/R) are left after round r, and one after the last.
        objective: says what an image lacks.
        targets: part of the score -> the value, 0..1, up to which nothing of it is wrong, as in `limelight.Guidance`.
            By default `GOOD` for `divergence`, and none for other objectives, which then compare all candidates.

    Raises:
        SettingsError: a setting is out of its range.
    """

    candidates: int = 4
    rounds: Sequence[float | int] = (0, 0.16)
    objective: Objective = field(default=divergence, compare=False)
    targets: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_whole(MOST_IMAGES, candidates=self.candidates)
        if not self.rounds or min(self.rounds) < 0:
            raise SettingsError(f"rounds={self.rounds} must be steps, for example (0, 0.1).")
        check_schedule(self.rounds)
        check_targets(self.limits)

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        return {
            "candidates": self.candidates,
            "rounds": list(self.rounds),
            "objective": describe_objective(self.objective),
            "targets": dict(self.limits),
        }

    @property
    def limits(self) -> Mapping[str, float]:
        """Part of the score -> the largest value with which an image lacks nothing of it."""
        if self.targets is not None:
            return self.targets
        if self.objective is divergence:
            return GOOD
        return {}


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
    rounds = _rounds(plan, audition)

    # Which images lack something by their own seed.
    winners = list(plan.images)
    found = _find(plan, audition, winners, rounds[-1], batch)
    seeking = [i for i, image in enumerate(winners) if found[image].lacks]

    left = []
    for i in seeking:
        which, seed = winners[i]
        left.append(list(product([which], candidate_seeds(seed, audition.candidates))))
    for number, step in enumerate(rounds, start=1):
        found = _find(plan, audition, list(chain.from_iterable(left)), step, batch)
        stay = round(audition.candidates ** (1 - number / len(rounds)))
        for images in left:
            images.sort(key=lambda image: found[image].loss)
            del images[stay:]
    for i, (winner,) in zip(seeking, left, strict=True):
        winners[i] = winner
    return replace(plan, images=tuple(winners), settings=replace(plan.settings, audition=audition.settings()))


def _rounds(plan: GenerationPlan, audition: Audition) -> list[int]:
    """The steps of the rounds, in ascending order."""
    settings = plan.settings
    rounds = sorted({step_of(at, settings.steps) for at in audition.rounds})
    if rounds[-1] >= settings.steps:
        raise SettingsError(f"An audition of {rounds[-1]} steps is too long for a schedule of {settings.steps} steps.")
    if settings.latents is not None or settings.conditioning is not None:
        raise SettingsError("An audition chooses seeds; it cannot be held with given latents or conditioning.")
    if not all(plan.subjects):
        raise SettingsError("An audition needs the subjects of every image; name them, for example subjects=['cat'].")
    return rounds


_Image = tuple[int, int]
"""The index of a prompt, and a seed."""


class _Found(NamedTuple):
    """What is found of an image."""

    loss: float
    lacks: bool


def _find(
    plan: GenerationPlan, audition: Audition, images: Sequence[_Image], step: int, batch: int | None
) -> dict[_Image, _Found]:
    """What each image lacks before a step of its plain run."""
    trial = replace(plan, images=tuple(images))

    def one_pass(rows: range, lean: bool) -> list[_Found]:
        score = _look(trial, audition.objective, rows, step)
        return list(map(_Found, score.loss.tolist(), score.lacking(audition.limits).tolist()))

    done = in_passes(plan.model, one_pass, len(images), batch, plan.settings.size, lean=True)
    return dict(zip(images, chain.from_iterable(done), strict=True))


def _look(plan: GenerationPlan, objective: Objective, rows: range, step: int) -> Score:
    """The score of one pass of images before a step of their plain run."""
    model, settings, generators = plan.model, plan.settings, plan.generators(rows)
    noise = initial_noise(plan, rows, generators)
    maps = maps_before(
        model,
        plan.encoded(rows),
        noise,
        step,
        Guidance(objective=objective).layers(model, (noise.shape[-2], noise.shape[-1])),
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        edits=settings.edits,
        generators=generators,
        eta=settings.eta,
    )
    return score_of(objective, maps, plan.subjects_of(rows))
