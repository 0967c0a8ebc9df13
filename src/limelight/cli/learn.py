"""`limelight learn`: learn a word from a few images."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..errors import SettingsError
from ..utils.files import slug, user_path
from ..utils.mappings import without_none
from ..utils.numbers import amount
from .options import Device, read_lines
from .terminal import bar, console, log, say_loading

if TYPE_CHECKING:
    import torch

    from ..textual_inversion.folder import Report, Row
    from ..textual_inversion.state import TrainState

DTYPES = ("float32", "bfloat16")


def learn_command(
    images: Annotated[
        Path,
        typer.Argument(parser=user_path, help="A folder of images of one thing, or one image.", show_default=False),
    ],
    token: Annotated[str | None, typer.Option(help="Name of the word, e.g. '<my-cat>'.", show_default=False)] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="A word for what it is, e.g. cat; or the path of another learned word, e.g. learned/cat/.",
            show_default=False,
        ),
    ] = None,
    num_vectors: Annotated[int | None, typer.Option(help="Number of token vectors.", show_default="1")] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="Rank of changes that the word makes to the denoiser in its images; 8 learns how the thing is drawn.",
            show_default="0",
        ),
    ] = None,
    rank_lr: Annotated[
        float | None, typer.Option(help="Learning rate of these changes.", show_default="what suits the model")
    ] = None,
    prior_images: Annotated[
        int | None,
        typer.Option(help="Images of other things, drawn first, that they are to leave alone.", show_default="24"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of training steps.", show_default="what suits the model")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="what suits the model")] = None,
    batch: Annotated[int | None, typer.Option(help="Images in one pass.", show_default="4")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Passes of one training step.", show_default="1")] = None,
    style: Annotated[bool, typer.Option("--style", help="Learn a style instead of a thing.")] = False,
    templates: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="Text file of sentences to learn in, with {} for the word.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images.", show_default="the model's own")] = None,
    fit: Annotated[
        str | None, typer.Option(help="How to make images square: crop or stretch.", show_default="crop")
    ] = None,
    flip: Annotated[
        float | None, typer.Option(help="Share of the images to mirror; 0 for text.", show_default="0.5")
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            help="'keep' keeps the vectors' length, so that the word does not drown others.",
            show_default="what suits the model",
        ),
    ] = None,
    attention: Annotated[
        float | None,
        typer.Option(help="Weight of keeping the word's attention near that of --init.", show_default="0"),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between saves.", show_default="a tenth of all, at least 50", min=1)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after so many saves without gain.", show_default=False, min=1)
    ] = None,
    preview: Annotated[
        list[str] | None,
        typer.Option(help="Another prompt to generate at every save, with the word in it; repeat.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped training.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", show_default="0")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="'pocket', a folder in diffusers' layout, a checkpoint, or a hub id.", show_default="pocket"),
    ] = None,
    device: Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16.", show_default="bfloat16 on CUDA, else float32")
    ] = None,
    quantize: Annotated[str | None, typer.Option(hidden=True)] = None,
    offload: Annotated[str | None, typer.Option(hidden=True)] = None,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Recompute activations: less memory, more time.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="PATH", help="Folder for the word.", show_default="learned/WORD"),
    ] = None,
) -> None:
    """Learn a word from a few images of a thing."""
    _check_whole(quantize, offload)
    if token is None and not (resume and out):
        raise SettingsError("Name the word to learn, for example --token '<my-cat>'.")
    folder = out or Path("learned") / slug(token or "")
    first, start = _beginning(init)
    settings = {
        "token": token,
        "init": first,
        "vectors": num_vectors,
        "rank": rank,
        "rank_lr": rank_lr,
        "prior_images": prior_images,
        "steps": steps,
        "lr": lr,
        "batch": batch,
        "accumulate": accumulate,
        "templates": _sentences(style, templates),
        "size": size,
        "fit": fit,
        "flip": flip,
        "norm": norm,
        "attention_weight": attention,
        "checkpoint": checkpoint or None,
        "seed": seed,
    }

    say_loading(model or _own_model(folder, resume))

    from ..textual_inversion.folder import learn

    def begin(state: TrainState) -> None:
        _print_beginning(state, folder, init, resume)
        show(state.step, state.config.steps)

    try:
        with bar("images") as show:
            report = learn(
                model,
                images,
                without_none(settings),
                folder,
                resume=resume,
                start=start,
                save_every=save_every,
                patience=patience,
                preview=preview or [],
                device=device,
                dtype=_dtype(dtype),
                on_begin=begin,
                on_step=lambda step: show(step.state.step, step.state.config.steps, f"error {step.loss:.4f}"),
                on_save=_print_row,
            )
    except KeyboardInterrupt:
        _print_how_to_resume(folder)
        raise typer.Exit(130) from None

    _print_report(report, folder)


def _check_whole(quantize: str | None, offload: str | None) -> None:
    """Refuse ways to save memory under which words are not learned.

    Raises:
        SettingsError: one was given.
    """
    if quantize is not None:
        raise SettingsError(
            f"A word is not learned with --quantize {quantize}: it would fit the rounded weights, and not the model. "
            "Use --checkpoint or --dtype bfloat16 for less memory."
        )
    if offload is not None:
        raise SettingsError(
            f"A word is not learned with --offload {offload}: a training step needs text encoder and denoiser at "
            "the same time. Use --checkpoint or --dtype bfloat16 for less memory."
        )


def _own_model(folder: Path, resume: bool) -> str:
    """What is loaded where no model is given."""
    return str(folder) if resume else "pocket"


def _sentences(style: bool, file: Path | None) -> str | list[str] | None:
    """The sentences to learn in."""
    if style and file:
        raise SettingsError("--style and --templates both set the sentences. Give one of them.")
    if file:
        return read_lines(file, "sentences")
    return "style" if style else None


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise SettingsError(f"--dtype {name} must be {' or '.join(DTYPES)}.")

    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _beginning(init: str | None) -> tuple[str | None, str | None]:
    """The word of --init, and the file of another learned word: what looks like a path is not a word."""
    if init is not None and (os.sep in init or Path(init).suffix):
        return None, init
    return init, None


def _print_beginning(state: TrainState, folder: Path, init: str | None, resume: bool) -> None:
    """Say how the training starts or goes on."""
    config = state.config
    first = f"continues after step {state.step}"
    if not resume:
        begun = f"'{config.init}'" if config.init else init or "random vectors"
        first = f"begins as {begun}"
    count = f"{config.vectors} vector{'s' * (config.vectors != 1)}"
    log.print(f"'{escape(config.token)}' {escape(first)}, {count}; in {escape(str(folder))}")
    if config.rank and config.prior_images:
        log.print(f"The model draws {amount(config.prior_images, 'image')} of other things first.")


def _print_row(row: Row) -> None:
    log.print(
        f"step {row.step}: error on fixed noise {row.held:.4f}, cosine to the beginning {row.cosine:.3f}, "
        f"length {row.norm:.2f}"
    )


def _print_report(report: Report, folder: Path) -> None:
    from ..textual_inversion.card import summary

    token = escape(report.word.token)
    console.print(
        f"'{token}' learned in {amount(report.rows[-1].step, 'step')}. {escape(summary(report))}", soft_wrap=True
    )
    if report.stopped:
        console.print(f"Ended early: nothing gained since step {report.best.step}, whose word is kept.")
    prompt = shlex.quote(f"a {report.word.token} and a dog")
    console.print(
        f"Generate it: limelight generate {escape(prompt)} --word {escape(shlex.quote(str(folder)))}", soft_wrap=True
    )


def _print_how_to_resume(folder: Path) -> None:
    from ..textual_inversion.folder import STATE
    from ..textual_inversion.state import TrainState

    if not (folder / STATE).exists():
        log.print("Stopped before the first step; nothing is kept.")
        return
    step = TrainState.load(folder / STATE).step
    again = shlex.join([*sys.argv[1:], *([] if "--resume" in sys.argv else ["--resume"])])
    log.print(f"Stopped after step {step}, which is saved. Continue: limelight {escape(again)}", soft_wrap=True)
