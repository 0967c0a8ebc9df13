"""`limelight evaluate`: run, score, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..concepts.commands import ConceptFiles, read_concepts
from ..errors import SettingsError
from ..suites import SUITES, load
from ..terminal import Device, bar, console
from .executor import ENGINES
from .methods import METHODS

app = typer.Typer(help="Compare methods on many prompts: run, score, report.", no_args_is_help=True)

Engine = Annotated[str, typer.Option(help=f"Who does the work: {' or '.join(ENGINES)}.")]
Workers = Annotated[
    int | None, typer.Option(help="By default one per GPU, or per CPU core; each holds the models.", min=1)
]
RayAddress = Annotated[
    str | None, typer.Option(help="Of a Ray cluster, e.g. auto; by default a Ray of this machine.", show_default=False)
]
Share = Annotated[float, typer.Option(help="GPUs (or CPU cores) that each Ray worker takes.", min=0.01)]


@app.command("run")
def run_command(
    out: Annotated[Path, typer.Option(help="Folder of the run; run again, it draws what is missing.")],
    suite: Annotated[
        str, typer.Option(help=f"{', '.join(SUITES)}, or a CSV or text file of prompts.")
    ] = "attend-excite",
    methods: Annotated[
        str,
        typer.Option(help=f"Of {', '.join(METHODS)}; with settings of your own: attend-and-excite:scale=10:until=0.3."),
    ] = "plain,attend-and-excite",
    seeds: Annotated[str, typer.Option(help="How many (64 is 0-63), or seeds and ranges of seeds: 0-3,7.")] = "4",
    every: Annotated[int, typer.Option(help="Draw only every n-th prompt.", min=1)] = 1,
    first: Annotated[int, typer.Option(help="The prompt to begin with, from 0.", min=0)] = 0,
    model: Annotated[str, typer.Option(help="'pocket', a folder in diffusers' layout, or a hub id.")] = "pocket",
    scheduler: Annotated[str | None, typer.Option(help="By default the model's own.", show_default=False)] = None,
    concept: ConceptFiles = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 7.5,
    height: Annotated[int | None, typer.Option(help="In pixels; by default the model's own.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels; by default the model's own.")] = None,
    batch: Annotated[int, typer.Option(help="Most pictures in one pass, all of one prompt.", min=1)] = 8,
    device: Device = None,
    engine: Engine = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
    share: Share = 1,
) -> None:
    """Draw every prompt of a suite with every method and seed."""
    from ..cli import parse_seeds
    from .runs import run

    cases = load(suite)[first::every]
    if not cases:
        raise SettingsError(f"The suite '{suite}' has no prompt {first}.")
    names = [name.strip() for name in methods.split(",") if name.strip()]
    chosen = list(range(int(seeds))) if seeds.isdecimal() else parse_seeds(seeds)
    with bar("drawing") as show:
        drawn = run(
            out,
            cases,
            names,
            chosen,
            model=model,
            device=device,
            scheduler=scheduler,
            concepts=read_concepts(concept or []),
            batch=batch,
            engine=engine,
            workers=workers,
            address=ray_address,
            share=share,
            on_progress=show,
            say=_say,
            steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
        )
    total = len(cases) * len(dict.fromkeys(names)) * len(chosen)
    console.print(f"{drawn} pictures drawn, {total - drawn} were there; in {escape(str(out))}")


@app.command("score")
def score_command(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder of <prompt>/<seed>.png.", show_default=False)],
    clip: Annotated[
        str | None, typer.Option(help="'pocket', a folder or a hub id of a CLIP; 'none'.", show_default=False)
    ] = None,
    captioner: Annotated[str | None, typer.Option(help="The same of a BLIP.", show_default=False)] = None,
    detector: Annotated[
        str | None, typer.Option(help="The same of an OWLv2 or a Grounding DINO.", show_default=False)
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Handle texts as Attend-and-Excite's script did.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default into the folder.")] = None,
    device: Device = None,
    engine: Engine = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
    share: Share = 1,
) -> None:
    """Measure every picture: scores.parquet has the values, scores.json the means."""
    from .scoring import score

    given = {"clip": clip, "captioner": captioner, "detector": detector}
    backbones: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with bar("measuring") as show:
        found = score(
            folder,
            {**backbones, "paper": paper},
            out=out,
            device=device,
            engine=engine,
            workers=workers,
            address=ray_address,
            share=share,
            on_progress=show,
            say=_say,
        )
    for method, subsets in found["methods"].items():
        values = subsets["all"]
        known = ", ".join(f"{k} {v:.3f}" for k, v in values.items() if isinstance(v, float))
        console.print(f"{escape(method)}: {values['pictures']} pictures, {known}")
    console.print(f"scores.parquet and scores.json in {escape(str(out or folder))}")


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="Scored folders.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder to write into; by default the first of them.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="The method to compare with; by default plain, or else the first.", show_default=False),
    ] = None,
) -> None:
    """Show methods side by side: report.html and report.md."""
    from .reporting import report

    page = report(folders, out or folders[0], reference=reference)
    console.print(f"{escape(str(page))} and report.md")


def _say(text: str) -> None:
    console.print(f"note: {text}", markup=False)
