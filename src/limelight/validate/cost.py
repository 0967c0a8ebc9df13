"""Stage "cost": seconds and memory, here and in diffusers' pipelines, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from ..generation.generate import generate
from ..guidance.attend_and_excite import AttendAndExcite
from ..guidance.base import Guidance, Steering
from ..guidance.presets import preset
from ..models.base import Model
from ..models.reference import by_diffusers
from ..prompts.subjects import Subject
from ..utils.measure import Cost, measured, median_ratio
from ..utils.numbers import amount
from ..utils.torch import seeded
from .context import Context
from .deprecated import PROMPT, SUBJECTS, Published, has_deprecated
from .outcome import Outcome, Table, number

STEPS, MOST_TURNS = 4, 5
UNIT = "one pass, one branch"
RIVALS = {
    "plain run": "plain run, diffusers",
    "Attend-and-Excite": "Attend-and-Excite, diffusers",
}
"""What of ours takes turns with what of diffusers'."""


def run(context: Context) -> Outcome:
    """Let every way take turns; the first turn warms up."""
    ways, device = _ways(context), context.model.device
    start = time.perf_counter()
    for way in ways.values():
        way()
    taken = _turns(context, ways, device, time.perf_counter() - start)

    unit = median(cost.seconds for cost in taken[UNIT])
    numbers: dict[str, float | None] = {}
    rows = []
    for name, costs in taken.items():
        seconds, memory = median(cost.seconds for cost in costs), max(cost.gibibytes for cost in costs)
        numbers |= {f"seconds, {name}": seconds, f"GiB, {name}": memory}
        rows.append((name, number(seconds), number(seconds / unit if unit else None, 2), number(memory)))

    pairs = []
    for ours, theirs in RIVALS.items():
        if theirs in taken:
            ratio = median_ratio(taken[ours], taken[theirs])
            numbers[f"seconds over diffusers', {ours}"] = ratio
            pairs.append(f"{ours} {ratio:.2f} times")
    turns = len(taken[UNIT])
    note = (
        f"Medians of {amount(turns, 'turn')} in one process; passes: the time as a multiple of {UNIT}. A run has "
        f"{STEPS} steps with decoding, all of them guided where guidance acts. Attend-and-Excite has {2 * STEPS}, half "
        "of them guided. Memory is the most above what was there before: of the GPU, or of the process."
    )
    table = Table("Cost", ("what", "seconds", "passes", "GiB"), tuple(rows), note)
    summary = f"Time beside diffusers' own: {', '.join(pairs)} (medians of {amount(turns, 'pair')} in turns)."
    return Outcome(verdict="measured", summary=summary, tables=(table,), numbers=numbers, facts={"turns": turns})


def _turns(
    context: Context, ways: Mapping[str, Callable[[], Any]], device: torch.device, once: float
) -> dict[str, list[Cost]]:
    """As many turns as the time allows."""
    taken: dict[str, list[Cost]] = {name: [] for name in ways}
    for turn in range(MOST_TURNS):
        if turn and context.left < once:
            break
        for name, way in ways.items():
            taken[name].append(measured(way, device))
        context.show(turn + 1, MOST_TURNS)
    return taken


def _ways(context: Context) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    model, size = context.model, context.size
    scale = model.guidance_scale
    options: dict[str, Any] = {"steps": STEPS, "height": size[0], "width": size[1], "record": False}
    subject: dict[str, Any] = {**options, "subjects": SUBJECTS}
    guided = _everywhere(preset("recommended", model))
    ways: dict[str, Callable[[], Any]] = {**_passes(model, size)}

    ways["plain run"] = lambda: generate(model, PROMPT, **options)
    ways["plain run, diffusers"] = lambda: by_diffusers(
        model, PROMPT, seed=0, steps=STEPS, guidance_scale=scale, size=size
    )
    ways["guided run (recommended)"] = lambda: generate(model, PROMPT, guidance=guided, **subject)
    ways["audition of four seeds"] = lambda: generate(model, PROMPT, audition=4, **subject)
    if has_deprecated(model):
        published = Published(2 * STEPS)
        whole = {**subject, "steps": 2 * STEPS}
        ways["Attend-and-Excite"] = lambda: generate(model, PROMPT, guidance=published.ours, **whole)
        ways["Attend-and-Excite, diffusers"] = lambda: published.theirs(model, 0, scale, size)
    return ways


def _everywhere(guidance: Guidance) -> Guidance:
    """The guidance in every step, without refinement and whatever the image lacks: the dearest case."""
    return replace(guidance, until=1.0, every=1, thresholds={}, look=None, targets={}, enough=1.0, noise_search=None)


def _passes(model: Model, size: tuple[int, int]) -> dict[str, Callable[[], Any]]:
    """Single passes of the denoiser, and a gradient step."""
    own = model.for_one_run()
    scale = own.guidance_scale
    timesteps = own.timesteps(STEPS, size)
    latents = own.start(own.noise(seeded([0]), *size))
    negative = own.negative_in_use(scale, "")
    both = own.prepare(own.encode([own.prompt(PROMPT)], negative, size), scale)
    one = both.only_conditional()

    @torch.no_grad()
    def forward(conditioning: Any) -> None:
        own.predict(latents, timesteps[0], conditioning, guidance_scale=scale)

    guidance = AttendAndExcite(thresholds={})
    layers = guidance.layers(own, (latents.shape[-2], latents.shape[-1]))
    subjects = [[Subject(own.prompt(PROMPT).find(word)) for word in SUBJECTS]]

    def gradient() -> None:
        Steering(guidance, own, both, subjects, STEPS, timesteps, layers).update(0, timesteps[0], latents)

    ways: dict[str, Callable[[], Any]] = {UNIT: lambda: forward(one)}
    if both.unconditional is not None:
        ways["one pass, both branches"] = lambda: forward(both)
    ways["gradient step"] = gradient
    return ways
