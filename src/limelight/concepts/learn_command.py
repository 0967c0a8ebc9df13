"""`limelight learn`: a word from a few pictures."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from ..errors import SettingsError
from ..models import Model, load, quiet
from ..result import slug
from ..terminal import Device, bar, console, read_lines
from .concept import Concept
from .report import verdict
from .state import InversionConfig, TrainState
from .training import STATE, Row, learn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def learn_command(
    pictures: Annotated[
        Path, typer.Argument(help="A folder of pictures of one thing, or one picture.", show_default=False)
    ],
    token: Annotated[str | None, typer.Option(help="What to call it, e.g. '<my-cat>'.", show_default=False)] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="A word for what it is, e.g. cat; or another concept's path, e.g. learned/cat/.", show_default=False
        ),
    ] = None,
    vectors: Annotated[int | None, typer.Option(help="How many tokens it is.", show_default="1")] = None,
    steps: Annotated[int | None, typer.Option(help="Of training.", show_default="what suits the model")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="what suits the model")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures in one pass.", show_default="4")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Passes of one step.", show_default="1")] = None,
    style: Annotated[bool, typer.Option("--style", help="Learn a style and not a thing.")] = False,
    templates: Annotated[
        Path | None, typer.Option(help="A text file of sentences to learn in, {} for the word.", show_default=False)
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures.", show_default="the model's own")] = None,
    fit: Annotated[str | None, typer.Option(help="crop or stretch.", show_default="crop")] = None,
    flip: Annotated[
        float | None, typer.Option(help="Share of pictures shown mirrored; 0 for text.", show_default="0.5")
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(help="'keep' keeps the word from drowning others.", show_default="what suits the model"),
    ] = None,
    attention: Annotated[
        float | None, typer.Option(help="Weight of keeping its attention near its init word's.", show_default="0")
    ] = None,
    every: Annotated[
        int | None, typer.Option(help="Steps between saves.", show_default="a tenth of all, at least 50", min=1)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many saves without gain.", show_default=False, min=1)
    ] = None,
    preview: Annotated[
        list[str] | None,
        typer.Option(help="More to draw at every save, with the word in it; repeat.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default="0")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="'pocket', a folder in diffusers' layout, or a hub id.", show_default="pocket"),
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16.", show_default="bfloat16 on CUDA, else float32")
    ] = None,
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Less memory, more time.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the word.", show_default="learned/WORD")] = None,
) -> None:
    """Learn a word from a few pictures of a thing."""
    if token is None and not (resume and out):
        raise SettingsError("Name the word that is to be learned, for example --token '<my-cat>'.")
    if style and templates:
        raise SettingsError("--style and --templates are two lists of sentences; give one.")
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"--dtype {dtype} must be {' or '.join(DTYPES)}.")
    folder = out or Path("learned") / slug(token or "")
    given: dict[str, Any] = {
        "token": token,
        "vectors": vectors,
        "steps": steps,
        "lr": lr,
        "batch": batch,
        "accumulate": accumulate,
        "templates": "style" if style else read_lines(templates, "sentences") if templates else None,
        "size": size,
        "fit": fit,
        "flip": flip,
        "norm": norm,
        "attention_weight": attention,
        "checkpoint": checkpoint or None,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    start = None
    if init is not None and (os.sep in init or Path(init).suffix):  # no word looks like a path
        start = Concept.load(init)
        given.setdefault("vectors", len(start.vectors[0]))
    elif init is not None:
        given["init"] = init
    if resume:
        saved = TrainState.load(folder / STATE)
        opened = _open(model or saved.about["model"], device, dtype)
        config = replace(saved.config, **given)
        said = f"'{config.token}' goes on after step {saved.step}"
    else:
        opened = _open(model or "pocket", device, dtype)
        config = InversionConfig.suited(opened, **given)
        begun = f"'{config.init}'" if config.init else init or "random vectors"
        said = f"'{config.token}' begins as {begun}"
    console.print(f"{escape(said)}, {config.vectors} vector{'s' * (config.vectors != 1)}; in {escape(str(folder))}")

    def saved_now(row: Row) -> None:
        console.print(
            f"step {row.step}: error on fixed noise {row.held:.4f}, cosine to the beginning {row.cosine:.3f}, "
            f"length {row.norm:.2f}"
        )

    try:
        with bar("pictures") as show:
            show(saved.step if resume else 0, config.steps)
            report = learn(
                opened, pictures, config, folder, resume=resume, start=start, every=every, patience=patience,
                prompts=preview or [], on_save=saved_now,
                on_step=lambda step: show(step.state.step, config.steps, f"error {step.loss:.4f}"),
            )  # fmt: skip
    except KeyboardInterrupt:
        _say_how_to_go_on(folder)
        raise typer.Exit(130) from None
    console.print(
        f"'{escape(report.concept.token)}' learned in {report.rows[-1].step} steps. {escape(verdict(report))}"
    )
    if report.stopped:
        console.print(f"Ended early: nothing gained since step {report.best.step}, whose word is kept.")
    prompt = f"a {report.concept.token} and a dog"
    console.print(
        f"draw it: limelight generate {shlex.quote(prompt)} --concept {escape(shlex.quote(str(folder)))}",
        soft_wrap=True,
    )


def _say_how_to_go_on(folder: Path) -> None:
    if not (folder / f"{STATE}.safetensors").exists():
        console.print("stopped before the first step; nothing is kept")
        return
    step = TrainState.load(folder / STATE).step
    again = shlex.join([*sys.argv[1:], *([] if "--resume" in sys.argv else ["--resume"])])
    console.print(f"stopped after step {step}, which is saved; go on: limelight {escape(again)}", soft_wrap=True)


def _open(source: str, device: str | None, dtype: str | None) -> Model:
    quiet()
    if dtype is None:
        cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
        dtype = "bfloat16" if cuda else "float32"
    return load(source, device=device, dtype=DTYPES[dtype])
