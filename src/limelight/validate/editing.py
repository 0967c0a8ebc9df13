"""Stage "editing": do edits of an image follow their prompt, and keep what they are not about?"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from ..evaluate.metrics import METRICS
from ..evaluate.report import Line, table
from ..evaluate.rows import column
from ..evaluate.suites import Case, load
from ..utils.statistics import Difference
from .context import Context, Skip
from .instruments import backbones, measured_images
from .outcome import LEAST, Outcome, Table, Verdict, judged, number

METHODS = ("source", "plain", "prompt-to-prompt")
SCORES = ("full_text", "image_image", "structure", "pixels")


def run(context: Context) -> Outcome:
    """Edit a share of the five lists, and compare with the source images and with new ones of the same seeds."""
    model = context.model
    if "prompt-to-prompt" not in model.can:
        raise Skip(f"Edits do not work on {type(model).__name__} yet.")
    names, reasons = backbones(context)
    if names["clip"] == "none":
        raise Skip(f"Edits are measured by CLIP. {' '.join(reasons)}".strip())
    cases = _cases(context)
    if not cases:
        raise Skip(f"'{model.name}' knows the words of none of the edits.")

    measure = {**dict.fromkeys(names, "none"), "clip": names["clip"]}
    rows, count = measured_images(context, "editing", cases, METHODS, [0], measure)
    known = [name for name in SCORES if column(rows, name)]
    lines = {base: _whole(table(rows, base, known)) for base in ("source", "plain")}
    shown = list(lines["source"].values())

    edit = lines["source"]["prompt-to-prompt"]
    follows = edit.changes["full_text"]
    keeps = lines["plain"]["prompt-to-prompt"].changes.get("structure")
    numbers = {f"{METRICS[name].title}, {line.method}": line.means[name] for line in shown for name in known}
    return Outcome(
        verdict=_verdict(follows, keeps, count),
        summary=f"On {count} of {len(cases)} edits, {_summary(follows, keeps, count)}.",
        tables=(_table(shown, known),),
        numbers=numbers,
    )


def _summary(follows: Difference, keeps: Difference | None, count: int) -> str:
    """What edits change, in words."""
    said = f"similarity to the new prompt {_change(follows, count)} against the source"
    if keeps is not None:
        said += f", and structure changed outside {_change(keeps, count)} against new images"
    if count < LEAST:
        said += "; too few for a verdict"
    return said


def _cases(context: Context) -> list[Case]:
    """The five lists in one order for all, without those of words that the model does not know."""
    cases, found = list(load("hrv-edit")), []
    random.Random(0).shuffle(cases)
    for case in cases:
        prompts = (context.model.prompt(text) for text in (case.source, case.prompt) if text is not None)
        if not any(context.model.unknown(prompt) for prompt in prompts):
            found.append(case)
    return found


def _whole(lines: Sequence[Line]) -> dict[str, Line]:
    """The lines of all cases together, by method."""
    return {line.method: line for line in lines if line.subset == "all" and line.method in METHODS}


def _change(change: Difference, count: int) -> str:
    """The mean, and its interval where there are enough edits for one."""
    interval = "" if count < LEAST else f" ({change.low:+.3f} to {change.high:+.3f})"
    return f"{change.mean:+.3f}{interval}"


def _verdict(follows: Difference, keeps: Difference | None, count: int) -> Verdict:
    """Failed where edits lead away from their prompts, or change more than new images; passed where they do neither."""
    kept = (-math.inf, math.inf) if keeps is None else (-keeps.high, -keeps.low)
    return judged([(follows.low, follows.high), kept], count, every=True)


def _table(lines: Sequence[Line], names: Sequence[str]) -> Table:
    rows = []
    for line in lines:
        cells = (number(line.means[name]) for name in names)
        rows.append((line.method, str(line.images), *cells))
    titles = (METRICS[name].title for name in names)
    note = "source: the image before; plain: a new image with the same seed. Outside: of the words that change."
    return Table("Edits", ("method", "images", *titles), tuple(rows), note)
