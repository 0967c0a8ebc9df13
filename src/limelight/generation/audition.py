"""Auditions: begin with several seeds, and finish the one whose attention promises most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError
from ..guidance.attend_and_excite import excite
from ..guidance.base import Guidance, Objective, describe_objective, step_of
from ..models.base import Model
from ..prompts.prompt import Prompt
from ..prompts.subjects import Subject
from .loop import denoise

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


@dataclass(frozen=True)
class Choice:
    """The outcome of an audition for one image.

    Attributes:
        seed: the candidate with the least loss.
        losses: candidate seed -> loss; in the order in which they were tried.
    """

    seed: int
    losses: dict[int, float]


@dataclass(frozen=True)
class Part:
    """An image that is to be cast."""

    prompt: Prompt
    subjects: tuple[Subject, ...]
    seed: int


def candidate_seeds(seed: int, count: int) -> tuple[int, ...]:
    """The seeds that are tried for one image: its own first."""
    return tuple((seed + STRIDE * i) % 2**63 for i in range(count))


@torch.no_grad()
def hold_audition(
    model: Model,
    audition: Audition,
    parts: Sequence[Part],
    *,
    steps: int,
    guidance_scale: float,
    negative: str,
    size: tuple[int, int],
    eta: float = 0.0,
    clip_skip: int = 0,
    batch: int = 8,
) -> list[Choice]:
    """Choose a seed for each image.

    Args:
        model: see `limelight.load`.
        parts: the images, each with at least one subject.
        steps, guidance_scale, negative, eta, clip_skip: as in the generation to come, see `limelight.generate`.
        size: height and width in pixels.
        batch: most images in one pass.

    Raises:
        SettingsError: an image has no subjects, or the audition is longer than the schedule.
    """
    if not all(part.subjects for part in parts):
        raise SettingsError("An audition needs the subjects of every image.")
    last = max(step_of(audition.steps, steps), 1) - 1
    if last >= steps:
        raise SettingsError(f"An audition of {last + 1} steps is longer than the schedule of {steps} steps.")

    tried = [replace(part, seed=seed) for part in parts for seed in candidate_seeds(part.seed, audition.candidates)]
    losses: list[float] = []
    for start in range(0, len(tried), batch):
        some = tried[start : start + batch]
        generators = [torch.Generator().manual_seed(part.seed) for part in some]
        noise = model.noise(generators, *size)
        conditioning = model.encode(
            [part.prompt for part in some], negative if guidance_scale > 1 else None, size, clip_skip=clip_skip
        )
        layers = Guidance(objective=audition.objective).layers(model, (noise.shape[-2], noise.shape[-1]))
        run = denoise(
            model,
            conditioning,
            noise,
            steps=steps,
            guidance_scale=guidance_scale,
            record=True,
            layers=layers,
            generators=generators,
            eta=eta,
        )
        for step in run:
            if step.index == last:
                losses += _losses(audition, step.maps, [part.subjects for part in some])
                break
        run.close()

    choices = []
    for i, part in enumerate(parts):
        own = losses[i * audition.candidates : (i + 1) * audition.candidates]
        of_seeds = dict(zip(candidate_seeds(part.seed, audition.candidates), own, strict=True))
        choices.append(Choice(min(of_seeds, key=lambda seed: of_seeds[seed]), of_seeds))
    return choices


def _losses(audition: Audition, maps: Any, subjects: Sequence[tuple[Subject, ...]]) -> list[float]:
    loss: Tensor = audition.objective(maps, subjects).loss
    found: list[float] = loss.tolist()
    return found
