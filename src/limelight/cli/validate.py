"""`limelight validate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import SettingsError
from ..utils.files import user_path
from ..utils.mappings import without_none
from .options import Device, Dtype, Height, Offload, Quantize, Scheduler, Steps, Width, loading, parse_names
from .terminal import bar, console, say, say_loading

if TYPE_CHECKING:
    from ..validate.outcome import Outcome


def parse_budget(text: str) -> float:
    """Parse "30m", "90s" or "2h" to seconds."""
    match = re.fullmatch(r"\s*(\d{1,7}(?:\.\d{1,6})?)\s*([smh]?)\s*", text)
    if match is None:
        raise SettingsError(f"Cannot read --budget '{text}'. Write for example 90s, 30m or 2h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def validate_command(
    model: Annotated[
        str,
        typer.Argument(
            help="'pocket', 'pocket-256', 'pocket-dit', a folder, a checkpoint (.safetensors, .ckpt), or a hub id "
            "(owner/name); or 'compare'."
        ),
    ] = "pocket",
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=user_path, metavar="[A.json B.json]", help="For 'compare': two validation.json.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(parser=user_path, metavar="PATH", help="Folder; a second call does only what is missing."),
    ] = Path("validation"),
    budget: Annotated[str, typer.Option(help="Time for all stages, e.g. 90s, 30m, 2h.")] = "30m",
    stages: Annotated[
        str | None,
        typer.Option(help="Only these, e.g. load,parity; an unknown name lists all.", show_default=False),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP: 'pocket', a folder, a hub id, or 'none'.")] = None,
    captioner: Annotated[str | None, typer.Option(help="BLIP: 'pocket', a folder, a hub id, or 'none'.")] = None,
    detector: Annotated[
        str | None, typer.Option(help="OWLv2 or Grounding DINO: 'pocket', a folder, a hub id, or 'none'.")
    ] = None,
    save_preset: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="Write what the stage calibrate chose as limelight.json, which a model's folder is loaded with.",
            show_default=False,
        ),
    ] = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
    scheduler: Scheduler = None,
    steps: Steps = 50,
    height: Height = None,
    width: Width = None,
    device: Device = None,
) -> None:
    """Check on a model what limelight claims: one page, one JSON.

    Exits with 1 where a claim does not hold or a stage is broken.

    limelight validate compare A.json B.json shows two validations side by side.
    """
    if model == "compare":
        _compare(files or [])
        return
    if files:
        raise SettingsError(f"'{files[0]}' is one argument too many. Give one model, or: compare A.json B.json.")
    seconds = parse_budget(budget)

    say_loading(model)

    from ..validate.runner import validate

    verdicts = []

    def tell(name: str, outcome: Outcome | None) -> None:
        if outcome is not None:
            verdicts.append(outcome.verdict)
            console.print(f"{name}: {outcome.verdict}. {escape(outcome.summary)}")

    with bar("validating") as show:
        page = validate(
            model,
            out,
            stages=None if stages is None else parse_names(stages),
            budget=seconds,
            device=device,
            loading=loading(dtype, quantize, offload),
            scheduler=scheduler,
            steps=steps,
            height=height,
            width=width,
            backbones=without_none({"clip": clip, "captioner": captioner, "detector": detector}),
            save_preset=save_preset,
            say=say,
            on_stage=tell,
            on_progress=show,
        )

    console.print(f"{escape(str(page))}, validation.json and validation.md")
    if {"failed", "broken"} & set(verdicts):
        raise typer.Exit(1)


def _compare(files: Sequence[Path]) -> None:
    """Print two validations side by side."""
    if len(files) != 2:
        raise SettingsError(f"'compare' needs two files, not {len(files)}: limelight validate compare A.json B.json.")

    from ..validate.comparison import compare

    found = compare(*files)
    for letter, file in zip("AB", files, strict=True):
        console.print(f"{letter}: {file}", markup=False, highlight=False)
    for name, (first, second) in found.differ.items():
        console.print(f"{name}: A {first}, B {second}", markup=False, highlight=False)
    table = Table("stage", "number", "A", "B", "B - A")
    for stage, verdicts in found.verdicts.items():
        table.add_row(stage, "verdict", *(verdict or "not run" for verdict in verdicts), "")
        for (of, name), (ours, theirs) in found.numbers.items():
            if of == stage:
                table.add_row("", escape(name), *map(_shown, (ours, theirs)), _change(ours, theirs))
    console.print(table)


def _change(ours: float | None, theirs: float | None) -> str:
    return "" if ours is None or theirs is None else f"{theirs - ours:+.4g}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
