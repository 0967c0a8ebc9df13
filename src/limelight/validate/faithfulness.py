"""Stage "faithfulness": do guided images show what the prompt asks for, more than plain ones?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any, NotRequired

import torch
import yaml

from ..errors import ModelError
from ..evaluate.detectors import SAME
from ..evaluate.metrics import METRICS
from ..evaluate.report import Line, table
from ..evaluate.rows import Row, column, grouped
from ..evaluate.suites import Case
from ..guidance.base import Guidance, Steering
from ..guidance.presets import preset
from ..models.base import Model
from ..models.embedded import EMBEDDED
from ..prompts.subjects import resolve
from ..utils.files import DATA
from ..utils.images import fit_image, grid, open_image
from ..utils.numbers import amount
from ..utils.reading import Record, from_python
from ..utils.statistics import Difference
from ..utils.torch import seeded
from .context import TUNING, Context
from .instruments import backbones, measured_images, reported, tuning
from .outcome import Figure, Outcome, Table, Verdict, judged, number

METHODS = ("plain", "attend-and-excite", "recommended", "audition")
SCORES = ("success", "present", "mixed", "binding", "full_text", "minimum_object", "text_text")
WATCHED, SMALL = 4, 0.01
"""Images whose objective is watched, and how far they are moved, relative to the length of the latents."""
SHOWN, SIDE = 4, 256
"""Prompts whose images are shown, and their side in pixels."""
PEOPLE = {"missing": "misses a thing, by people", "leaking": "leaks an attribute, by people"}
"""What papers let people count, as shares of the images."""


class Published(Record):
    """A table of a paper."""

    source: str
    family: str
    checkpoint: str
    prompts: str
    rows: list[dict[str, Any]]
    note: NotRequired[str]


def run(context: Context) -> Outcome:
    """Watch the objective, generate a share of the prompts by every method, score them, and compare."""
    names, reasons = backbones(context)
    watched, rises = _objective(context)
    seeds = range(4) if context.model.device.type == "cuda" else range(1)
    rows, count = measured_images(context, "faithfulness", reported(), METHODS, seeds, names)
    known = [name for name in SCORES if column(rows, name)]
    lines = [line for line in table(rows, "plain", known) if line.method in METHODS]

    summary, verdict = _judged(lines, rises, count)
    if reasons:
        summary += f" Without: {' '.join(reasons)}"
    return Outcome(
        verdict=verdict,
        summary=summary,
        tables=(watched, *_tables(lines, known), *_papers(context.model)),
        figures=_figures(context, rows),
        numbers=_numbers(lines, known),
        facts={"prompts": count, "backbones": names},
    )


def _figures(context: Context, rows: Sequence[Row]) -> tuple[Figure, ...]:
    """The first images of the first prompts, a row of them per method."""
    strips = {}
    for method, own in grouped(rows, itemgetter("method")).items():
        first = [row for row in own if row["seed"] == "0"][:SHOWN]
        strips[method] = [fit_image(open_image(row["file"]), (SIDE, SIDE)) for row in first]
    prompts = list(dict.fromkeys(column(rows, "prompt")))[:SHOWN]
    title = ", ".join(f"“{prompt}”" for prompt in prompts) + ", seed 0"
    sheet = grid(list(strips.values()), list(strips))
    return (context.figure("faithfulness", "images", title, sheet),)


def _objective(context: Context) -> tuple[Table, int]:
    """What a small step of guidance does to its own objective, at the first noise level.

    Returns:
        A table, and by how many more images the loss rises than falls.
    """
    model, rows, balance = context.model, list[tuple[str, ...]](), 0
    always: dict[str, Any] = {"until": 1, "enough": 1.0, "targets": {}, "thresholds": {}, "look": None}
    guidance = replace(preset("attend-and-excite", model), step_rule="relative", scale=SMALL, **always)
    for case in tuning()[:WATCHED]:
        before, after = _losses(context, model.for_one_run(), guidance, case)
        if not math.isfinite(before + after):
            raise ModelError(
                f"The attention of '{model.name}' is not a number (NaN) in {str(model.dtype).removeprefix('torch.')}; "
                "validate it with --dtype float32."
            )
        balance += (after > before) - (after < before)
        rows.append((case.prompt, number(before, 5), number(after, 5)))
    note = f"The loss before and after one step of {SMALL:.0%} of the length of the latents, at the same noise level."
    return Table("What guidance does to its own objective", ("prompt", "before", "after"), tuple(rows), note), balance


def _losses(context: Context, model: Model, guidance: Guidance, case: Case) -> tuple[float, float]:
    """The loss before and after one step. The model must be for one run."""
    size, steps, prompt = context.size, context.settings.steps, model.prompt(case.prompt)
    timesteps = model.timesteps(steps, size)
    latents = model.start(model.noise(seeded([TUNING]), *size))
    encoded = model.prepare(model.encode([prompt], size=size), model.guidance_scale)
    _, subjects = resolve(prompt, case.subjects)

    layers = guidance.layers(model, (latents.shape[-2], latents.shape[-1]))
    steering = Steering(guidance, model, encoded, [subjects], steps, timesteps, layers)
    image = torch.arange(1, device=latents.device)
    before, _ = steering.evaluate(latents, timesteps[0], image)
    move = steering.update(0, timesteps[0], latents)
    assert move is not None  # it is guided in its first step
    after, _ = steering.evaluate(move.latents, timesteps[0], image)
    return float(before.loss), float(after.loss)


def _judged(lines: Sequence[Line], rises: int, prompts: int) -> tuple[str, Verdict]:
    """One sentence, and whether guidance does what it is for."""
    if rises > 0:
        return "Guidance raises its own objective: its steps go the wrong way.", "failed"

    whole = [line for line in lines if line.subset == "all"]
    if not any(line.means.get("present") for line in whole):
        return f"The detector finds nothing in images of {amount(prompts, 'prompt')}.{_lowered(rises)}", "measured"

    things = {line.method: line.changes["present"] for line in whole if "present" in line.changes}
    verdict = judged(((change.low, change.high) for change in things.values()), prompts)
    unclear = " They are too few to tell a method from chance." if verdict == "measured" else ""
    summary = f"Things there, in percentage points against plain on {amount(prompts, 'prompt')}: {_points(things)}."
    return f"{summary}{unclear}{_lowered(rises)}", verdict


def _points(changes: Mapping[str, Difference]) -> str:
    """The change of each method in percentage points, with its interval."""
    return ", ".join(f"{method} {change.shown(1, 100)}" for method, change in changes.items())


def _lowered(rises: int) -> str:
    return " Guidance lowers its own objective." if rises < 0 else ""


def _tables(lines: Sequence[Line], names: Sequence[str]) -> tuple[Table, Table]:
    """Means, and changes against plain images."""
    titles = [METRICS[name].title for name in names]
    means, changes = [], []
    for line in lines:
        head = (line.subset, line.method)
        means.append((*head, str(line.images), *(number(line.means[name]) for name in names)))
        if line.changes:
            changes.append((*head, *(_change(line.changes.get(name)) for name in names)))
    about = (
        "All there: the share of images with every thing of the prompt. Things there: the share of the things. "
        f"Subjects mixed: the share of images where boxes of two of them overlap by {SAME} (IoU) or more, so that one "
        "thing could be both; it counts as the surer one alone. CLIP's numbers are cosines."
    )
    note = "In brackets 95 % intervals by paired bootstrap over prompts."
    return (
        Table("Means", ("subset", "method", "images", *titles), tuple(means), about),
        Table("Change against plain", ("subset", "method", *titles), tuple(changes), note),
    )


def _change(value: Difference | None) -> str:
    return "" if value is None else value.shown()


def _numbers(lines: Sequence[Line], names: Sequence[str]) -> dict[str, float | None]:
    """The means of the whole, for comparisons."""
    found: dict[str, float | None] = {}
    for line in lines:
        if line.subset == "all":
            found |= {f"{METRICS[name].title}, {line.method}": line.means[name] for name in names}
    return found


def published() -> list[Mapping[str, Any]]:
    """The tables of papers that are shipped."""
    text = (DATA / "published.yaml").read_text(encoding="utf-8")
    found: list[Mapping[str, Any]] = from_python(list[Published], yaml.safe_load(text))
    return found


def _papers(model: Model) -> tuple[Table, ...]:
    """What papers report of the family; nothing beside an embedded model, which is no checkpoint of theirs."""
    if model.name in EMBEDDED:
        return ()
    return tuple(_paper(paper) for paper in published() if paper["family"] == type(model).__name__)


def _paper(paper: Mapping[str, Any]) -> Table:
    titles = {**{name: METRICS[name].title for name in SCORES}, **PEOPLE}
    names = [name for name in titles if any(name in row for row in paper["rows"])]
    rows = []
    for row in paper["rows"]:
        cells = (number(row.get(name)) for name in names)
        rows.append((row["method"], *cells))
    note = " ".join(
        filter(None, (f"{paper['source'].strip()}.", paper.get("note"), "Other prompts and seeds than here."))
    )
    title = f"Published, {paper['checkpoint']}: {paper['prompts']}"
    return Table(title, ("method", *(titles[name] for name in names)), tuple(rows), note)
