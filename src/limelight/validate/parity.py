"""Stage "parity": the same seed gives the same image here and in diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..generation.generate import generate
from ..models.base import Model
from ..models.reference import by_diffusers, decoded_latents, reads_negative, rounded, shared_noise
from ..utils.images import grid
from ..utils.numbers import amount
from .context import Context
from .deprecated import PROMPT, SUBJECTS, Published, has_deprecated
from .outcome import Outcome, Table

STEPS = 8
PLAIN, STEERED = 4.0, 32.0
"""Both sides may be so many times as far apart as diffusers is from itself with other last digits. Its pipeline of
Attend-and-Excite computes attention otherwise than by the fused kernel, which rounds more than a last digit."""


class Run(NamedTuple):
    """A finished image, and what the autoencoder was given for it."""

    image: Image.Image
    latents: Tensor


class Check(NamedTuple):
    """Two runs that should be equal.

    Attributes:
        distance: relative root mean square difference of the latents.
        allowed: what rounding alone explains.
        pixels: largest difference of a pixel, 0..255.
    """

    name: str
    ours: Run
    theirs: Run
    distance: float
    allowed: float
    pixels: int

    @property
    def equal(self) -> bool:
        return self.distance <= self.allowed


def run(context: Context) -> Outcome:
    """Generate plainly in two sizes, and with diffusers' deprecated Attend-and-Excite where the family has it."""
    model, (height, width) = context.model, context.size
    steps = min(STEPS, context.settings.steps)
    checks = [_plain(model, (height, width), 0, steps)]
    if context.settings.width is None:
        checks.append(_plain(model, (height, width // 2), 1, steps))
    if has_deprecated(model):
        checks.append(_steered(model, (height, width), steps))

    wrong = [check.name for check in checks if not check.equal]
    runs = f"{amount(len(checks), 'run')} of {amount(steps, 'step')}"
    summary = f"The same latents and images as diffusers, but for rounding, in {runs}."
    if wrong:
        summary = f"Not diffusers' images: {', '.join(wrong)}."
    numbers = {}
    for check in checks:  # JSON has no word for infinity
        numbers[f"difference, {check.name}"] = check.distance if check.distance < float("inf") else None
    first = checks[0]
    sheet = grid([[first.ours.image, first.theirs.image]])
    return Outcome(
        verdict="failed" if wrong else "passed",
        summary=summary,
        tables=(_table(checks),),
        figures=(context.figure("parity", "plain", f"“{PROMPT}”, seed 0: limelight (left), diffusers (right)", sheet),),
        numbers=numbers,
    )


def _plain(model: Model, size: tuple[int, int], seed: int, steps: int) -> Check:
    """A plain run with a negative prompt, where there is one."""
    scale = model.guidance_scale
    negative = "a tree" if reads_negative(model) and model.branches(scale) == 2 else ""
    options: dict[str, Any] = {"steps": steps, "guidance_scale": scale, "negative": negative}

    def theirs() -> Image.Image:
        return by_diffusers(model, PROMPT, seed=seed, size=size, **options)[0]

    def ours() -> Image.Image:
        given: dict[str, Any] = {"latents": shared_noise(model, seed, size), "subjects": [], "record": False}
        return generate(model, PROMPT, seeds=seed, height=size[0], width=size[1], **given, **options).images[0]

    return _checked(f"plain, {size[0]}x{size[1]}", model, ours, theirs)


def _steered(model: Model, size: tuple[int, int], steps: int) -> Check:
    """Attend-and-Excite without refinement."""
    published, scale = Published(steps), model.guidance_scale

    def ours() -> Image.Image:
        options: dict[str, Any] = {"steps": steps, "height": size[0], "width": size[1], "record": False}
        return generate(model, PROMPT, subjects=SUBJECTS, seeds=2, guidance=published.ours, **options).images[0]

    return _checked("Attend-and-Excite", model, ours, lambda: published.theirs(model, 2, scale, size)[0], STEERED)


def _checked(
    name: str, model: Model, ours: Callable[[], Image.Image], theirs: Callable[[], Image.Image], times: float = PLAIN
) -> Check:
    """Compare two runs, and diffusers' with itself where the denoiser rounds otherwise."""
    found = [_seen(model, side) for side in (ours, theirs)]
    again = _seen(model, theirs, shaken=True)
    rounding = _distance(again.latents, found[1].latents)
    # Some pipelines compute parts of a step in float32 whatever the dtype of the model.
    digit = max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)
    allowed = times * max(rounding, 2 * digit)
    pixels = np.abs(np.asarray(found[0].image, int) - np.asarray(found[1].image, int)).max()
    return Check(name, found[0], found[1], _distance(found[0].latents, found[1].latents), allowed, int(pixels))


def _seen(model: Model, side: Callable[[], Image.Image], shaken: bool = False) -> Run:
    with decoded_latents(model) as latents, rounded(model) if shaken else nullcontext():
        image = side()
    return Run(image, latents[-1])


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square of the difference, relative to that of the second."""
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return float("inf")
    return float((ours - theirs).square().mean().sqrt() / theirs.square().mean().sqrt().clamp(min=1e-30))


def _table(checks: list[Check]) -> Table:
    rows = []
    for check in checks:
        cells = (_small(check.distance), _small(check.allowed), f"{check.pixels} of 255")
        rows.append((check.name, *cells, "equal" if check.equal else "different"))
    return Table(
        "limelight and diffusers",
        ("run", "difference of latents", "allowed by rounding", "largest difference of a pixel", "result"),
        tuple(rows),
        "The difference is a root mean square, relative to the latents. Allowed is four times, of the "
        "steered run 32 times, what diffusers differs from itself when the last digit of every prediction is another.",
    )


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
