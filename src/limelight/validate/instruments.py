"""The backbones of a validation, the prompts that it takes, and images of as many as there is time for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ..errors import LimelightError
from ..evaluate.clip import Clip
from ..evaluate.detectors import Detector
from ..evaluate.methods import Own
from ..evaluate.report import scored_rows
from ..evaluate.rows import Row
from ..evaluate.runs import run as generate_images
from ..evaluate.scoring import Backbones, Scorer, score
from ..evaluate.suites import Case, attend_excite
from .context import Context, Skip

TUNED = 40
"""So many of the 276 prompts are kept for tuning; the others are reported."""


def detector(context: Context) -> Detector:
    """The detector; its CLIP names colors.

    Raises:
        Skip: it cannot be had.
    """
    names = context.settings.measured_by
    if names["detector"] == "none":
        raise Skip("No detector: --detector none.")
    found = _scorer(context, Backbones(names["clip"], "none", names["detector"])).instruments.detector
    assert found is not None  # as its name is not "none"
    return found


def clip(context: Context) -> Clip:
    """CLIP.

    Raises:
        Skip: it cannot be had.
    """
    name = context.settings.measured_by["clip"]
    if name == "none":
        raise Skip("No CLIP: --clip none.")
    found = _scorer(context, Backbones(name, "none", "none")).instruments.clip
    assert found is not None  # as its name is not "none"
    return found


def backbones(context: Context) -> tuple[dict[str, str], list[str]]:
    """The names of the backbones that can be had, "none" for the others, and why the others cannot.

    Raises:
        Skip: there is none.
    """
    if context.backbones is None:
        context.backbones = _tried(context)
    found, reasons = context.backbones
    if set(found.values()) == {"none"}:
        raise Skip(" ".join(reasons) or "All backbones are 'none'.")
    return found, reasons


def _tried(context: Context) -> tuple[dict[str, str], list[str]]:
    """Open each of the backbones by itself."""
    names = context.settings.measured_by
    found, reasons = dict.fromkeys(names, "none"), list[str]()
    for kind, name in names.items():
        if name == "none":
            continue
        clip = found["clip"] if kind == "detector" else "none"
        alone: dict[str, Any] = {**dict.fromkeys(names, "none"), "clip": clip, kind: name}
        try:
            _scorer(context, Backbones(**alone))
        except Skip as reason:
            reasons.append(str(reason))
        else:
            found[kind] = name
    return found, reasons


def _scorer(context: Context, names: Backbones) -> Scorer:
    try:
        return Scorer(names, str(context.model.device))
    except LimelightError as error:
        raise Skip(str(error)) from error


def measured_images(
    context: Context,
    stage: str,
    cases: Sequence[Case],
    methods: Sequence[str] | Mapping[str, Own],
    seeds: Sequence[int],
    names: Mapping[str, str],
) -> tuple[list[Row], int]:
    """Generate case after case by every method until the time is over, at least one, and measure all images there.

    Args:
        stage: its folder.
        names: of the backbones.

    Returns:
        A row per image, as in scores.parquet, and how many cases there are; a killed stage may have left some more.
    """
    folder, count = context.out / stage, 0
    options: dict[str, Any] = {"batch": len(seeds), "say": context.say, **context.common}
    while count < len(cases) and context.room(count):
        count += 1
        generate_images(folder, cases[:count], methods, seeds, model=context.model, **options)
        context.show(count, len(cases))

    score(folder, names, workers=1, device=str(context.model.device), say=context.say)
    rows, _ = scored_rows([folder])
    return rows, len({(row["source"], row["prompt"]) for row in rows})


@cache
def _shuffled() -> tuple[Case, ...]:
    """The 276 prompts in one order for all: whatever share is taken has all subsets."""
    cases = list(attend_excite())
    random.Random(0).shuffle(cases)
    return tuple(cases)


def reported() -> tuple[Case, ...]:
    """The prompts that results are reported on."""
    return _shuffled()[:-TUNED]


def tuning() -> tuple[Case, ...]:
    """The prompts that choices are made on."""
    return _shuffled()[-TUNED:]
