"""Stage "calibrate": the step size, the thresholds and the blocks that suit the model, found on tuning prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..evaluate.report import Line, table
from ..generation.calibrate import Calibration, calibrate
from ..guidance.attend_and_excite import AttendAndExcite
from ..guidance.base import Guidance
from ..guidance.presets import preset
from ..models.base import Model
from ..models.embedded import EMBEDDED
from ..utils.files import json_text
from ..utils.numbers import amount
from ..utils.reading import reading
from .context import TUNING, Context, Skip
from .instruments import backbones, measured_images, tuning
from .outcome import LEAST, Outcome, Table, number

FACTORS = (0.5, 1.0, 2.0)
"""Step sizes that are tried, relative to the model's own."""
PROMPTS = 6
"""Prompts that thresholds are read on."""


def run(context: Context) -> Outcome:
    """Try step sizes, propose thresholds where the model has some, and take over the blocks that stage "maps" found."""
    changes: dict[str, dict[str, Any]] = {}
    tables, said = list[Table](), list[str]()
    if AttendAndExcite.suited(context.model).thresholds:
        found = _thresholds(context)
        changes["attend_and_excite"] = {"thresholds": found.preset["attend_and_excite"]["thresholds"]}
        tables.append(_threshold_table(context.model, found))
        said.append(f"Thresholds of {amount(found.subjects, 'subject')} proposed.")

    scale, text, sizes = _step_size(context)
    said.append(text)
    tables += sizes
    if scale is not None:
        changes["recommended"] = {"preset": _method(context.model), "scale": scale}
    blocks = _blocks(context)
    if blocks:
        changes["maps"] = {"layers": blocks}
        said.append(f"Blocks: {', '.join(blocks)}.")

    content = _preset(context, changes)
    if not changes:
        said.append("The model's own settings stay.")
    numbers = {"step size": preset("recommended", context.model).scale if scale is None else scale}
    summary = " ".join(said)
    return Outcome(
        verdict="measured", summary=summary, tables=tuple(tables), numbers=numbers, facts={"preset": content}
    )


def _thresholds(context: Context) -> Calibration:
    cases = tuning()[:PROMPTS]
    return calibrate(
        context.model,
        [case.prompt for case in cases],
        subjects=[case.subjects for case in cases],
        seeds=[TUNING],
        steps=context.settings.steps,
        batch=1,
    )


def _threshold_table(model: Model, found: Calibration) -> Table:
    own = AttendAndExcite.suited(model).thresholds
    rows = []
    for key, value in found.thresholds.items():
        rows.append((str(key), number(own.get(key), 2), number(value, 2)))
    note = "Presence that the weakest subject must reach; proposed is what 3 of 10 subjects exceed without guidance."
    return Table("Thresholds", ("step or share of the schedule", "now", "proposed"), tuple(rows), note)


def _step_size(context: Context) -> tuple[float | None, str, list[Table]]:
    """A step size that brings more things than the model's own, if one does; a sentence, and a table of all."""
    try:
        names, _ = backbones(context)
    except Skip as reason:
        return None, f"No step size was tried: {reason}", []
    if names["detector"] == "none":
        return None, "No step size was tried: there is no detector.", []

    guidance = preset("recommended", context.model)
    own, methods = f"step size {guidance.scale:g}", dict[str, Guidance]()
    for factor in FACTORS:
        size = guidance.scale * factor
        methods[f"step size {size:g}"] = replace(guidance, scale=size)
    rows, count = measured_images(context, "calibrate", tuning(), methods, [TUNING], names)
    lines = [line for line in table(rows, own, ["present"]) if line.subset == "all" and line.method in methods]
    if count < LEAST:
        text = f"{amount(count, 'prompt')}, too few to choose a step size by; the model's own is {guidance.scale:g}."
        return None, text, [_sizes(lines)]
    better = _better(lines)
    if better is None:
        text = (
            f"No step size brings more things than the model's own, {guidance.scale:g}, on {amount(count, 'prompt')}."
        )
        return None, text, [_sizes(lines)]
    text = (
        f"Step size {methods[better].scale:g} brings more things than {guidance.scale:g} on {amount(count, 'prompt')}."
    )
    return methods[better].scale, text, [_sizes(lines)]


def _better(lines: Sequence[Line]) -> str | None:
    """The method that brings most things, of those whose 95 % interval lies above the model's own."""
    best = [line for line in lines if "present" in line.changes and line.changes["present"].low > 0]
    if not best:
        return None
    return max(best, key=lambda line: line.changes["present"].mean).method


def _sizes(lines: Sequence[Line]) -> Table:
    rows = []
    for line in sorted(lines, key=lambda line: float(line.method.split()[-1])):
        change = line.changes.get("present")
        interval = "" if change is None else change.shown()
        rows.append((line.method.removeprefix("step size "), number(line.means["present"]), interval))
    note = "Things there: the share of the things that the detector finds; in brackets 95 % intervals."
    columns = ("step size", "things there", "against the model's own")
    return Table("Step sizes of the recommended guidance", columns, tuple(rows), note)


def _method(model: Model) -> str:
    """What "recommended" stands for on the model."""
    return str(model.about.preset("recommended").get("preset", "conform"))


def _blocks(context: Context) -> list[str]:
    maps = context.done.get("maps")
    return [] if maps is None else list(maps.facts.get("better", []))


def _preset(context: Context, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A whole limelight.json: what the model's own says, with the changes."""
    model = context.model
    folder = EMBEDDED.get(model.name, Path(context.settings.source).expanduser())
    content: dict[str, Any] = {}
    if (folder / "limelight.json").is_file():
        with reading(folder / "limelight.json", "settings", "correct it, or remove it"):
            content = json.loads((folder / "limelight.json").read_bytes())
    for method, settings in changes.items():
        content[method] = json.loads(json_text({**model.about.preset(method), **settings}))
    return content
