"""`limelight evaluate ...`: run, score and report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import SettingsError
from ..evaluate.suites import load as load_suite
from ..utils.files import user_path
from ..utils.mappings import without_none
from ..utils.numbers import amount, parse_seeds
from .options import (
    Device,
    Dtype,
    Engine,
    Every,
    GpusPerWorker,
    Height,
    ModelName,
    Offload,
    OwnGuidanceScale,
    Quantize,
    RayAddress,
    Scheduler,
    Seeds,
    Steps,
    Suite,
    Width,
    WordFiles,
    Workers,
    loading,
    parse_names,
    read_words,
)
from .terminal import console, resumable_bar, say, say_loading

app = typer.Typer(help="Compare methods on many prompts: run, score, report.", no_args_is_help=True)


@app.command("run")
def run_command(
    out: Annotated[
        Path,
        typer.Option(
            parser=user_path, metavar="PATH", help="Folder of the run; a second call generates only what is missing."
        ),
    ],
    suite: Suite = "attend-excite",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, with settings after colons, e.g. attend-and-excite:scale=10:until=0.3; "
            "MODULE:OBJECT for a guidance or an objective of your own; an unknown name lists all."
        ),
    ] = "plain,recommended",
    seeds: Seeds = "0-3",
    every: Every = 1,
    first: Annotated[int, typer.Option(help="Index of the first prompt, from 0.", min=0)] = 0,
    model: ModelName = "pocket",
    scheduler: Scheduler = None,
    word: WordFiles = None,
    steps: Steps = 50,
    guidance_scale: OwnGuidanceScale = None,
    height: Height = None,
    width: Width = None,
    batch: Annotated[int, typer.Option(help="Most images in one pass, all of one prompt.", min=1)] = 8,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
    engine: Engine = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 1,
) -> None:
    """Generate images of every prompt of a suite with every method and seed."""
    numbers = parse_seeds(seeds)
    cases = load_suite(suite)[first::every]
    if not cases:
        raise SettingsError(f"The suite '{suite}' has no prompt {first}.")
    names = parse_names(methods)

    say_loading(model)

    from ..evaluate.runs import run

    with resumable_bar("generating", "images", out) as show:
        count = run(
            out,
            cases,
            names,
            numbers,
            model=model,
            device=device,
            scheduler=scheduler,
            loading=loading(dtype, quantize, offload),
            words=read_words(word or []),
            batch=batch,
            engine=engine,
            workers=workers,
            address=ray_address,
            gpus_per_worker=gpus_per_worker,
            on_progress=show,
            say=say,
            about={"suite": suite, "command": shlex.join(["limelight", *sys.argv[1:]])},
            steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
        )

    total = len(cases) * len(dict.fromkeys(names)) * len(numbers)
    console.print(f"{amount(count, 'image')} generated, {total - count} there before; in {escape(str(out))}")


@app.command("score")
def score_command(
    folder: Annotated[
        Path, typer.Argument(parser=user_path, help="A run, or a folder of <prompt>/<seed>.png.", show_default=False)
    ],
    clip: Annotated[
        str | None, typer.Option(help="CLIP: 'pocket', a folder, a hub id, or 'none'.", show_default=False)
    ] = None,
    captioner: Annotated[
        str | None, typer.Option(help="BLIP: 'pocket', a folder, a hub id, or 'none'.", show_default=False)
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(help="OWLv2 or Grounding DINO: 'pocket', a folder, a hub id, or 'none'.", show_default=False),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Handle texts as Attend-and-Excite's script did.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path, metavar="PATH", help="Folder for the scores; by default the run's.", show_default=False
        ),
    ] = None,
    device: Device = None,
    engine: Engine = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
    gpus_per_worker: GpusPerWorker = 1,
) -> None:
    """Measure every image: scores.parquet has the values, scores.json the means."""
    say_loading("what measures")

    from ..evaluate.scoring import score

    backbones = without_none({"clip": clip, "captioner": captioner, "detector": detector})
    with resumable_bar("scoring", "measured images", out or folder) as show:
        scores = score(
            folder,
            {**backbones, "paper": paper},
            out=out,
            device=device,
            engine=engine,
            workers=workers,
            address=ray_address,
            gpus_per_worker=gpus_per_worker,
            on_progress=show,
            say=say,
        )

    for method, subsets in scores["methods"].items():
        values = subsets["all"]
        known = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if isinstance(value, float))
        console.print(f"{escape(method)}: {amount(values['images'], 'image')}, {known}")
    console.print(f"scores.parquet and scores.json in {escape(str(out or folder))}")


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(parser=user_path, help="Scored folders.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="Folder for the report; by default the first of them.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Method to compare with; by default plain, or else the first.", show_default=False),
    ] = None,
) -> None:
    """Show methods side by side: report.html and report.md."""
    from ..evaluate.report import report

    page = report(folders, out or folders[0], reference=reference)
    console.print(f"{escape(str(page))} and report.md")
