"""`limelight explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..guidance.names import RECOMMENDED
from ..utils.numbers import check_sampling, parse_seeds
from .options import (
    Device,
    GuidanceName,
    Height,
    ModelName,
    Negative,
    Out,
    OwnGuidanceScale,
    PromptText,
    Scheduler,
    Seeds,
    Steps,
    Width,
    WordFiles,
    check_folder,
    parse_guidance,
    parse_names,
    parse_subjects,
)
from .terminal import console, open_model, step_bar

if TYPE_CHECKING:
    from ..generation.result import Result


def explain_command(
    context: typer.Context,
    prompt: PromptText,
    words: Annotated[
        str | None, typer.Option(help="Words to show, e.g. cat,dog; by default every word.", show_default=False)
    ] = None,
    also: Annotated[
        str | None,
        typer.Option(
            help="Words that are not in the prompt, e.g. sky,shadow; images stay the same.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Generate also without guidance, and show the change.")
    ] = False,
    over_time: Annotated[bool, typer.Option("--over-time", help="Show also the maps of single steps.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Write one HTML page that holds everything.")] = False,
    subjects: Annotated[
        str, typer.Option(help="Words or token indices to guide, e.g. cat,dog; 'auto' takes the nouns.")
    ] = "auto",
    seeds: Seeds = "0",
    guidance: GuidanceName = RECOMMENDED,
    word: WordFiles = None,
    model: ModelName = "pocket",
    scheduler: Scheduler = None,
    steps: Steps = 50,
    guidance_scale: OwnGuidanceScale = None,
    negative: Negative = "",
    height: Height = None,
    width: Width = None,
    device: Device = None,
    out: Out = Path("out"),
) -> None:
    """Show the attention of every word of a prompt over the image, with and without guidance."""
    numbers = parse_seeds(seeds)
    check_sampling(steps=steps, height=height, width=width, guidance_scale=guidance_scale)
    check_folder(out)

    from ..viz.explain import explain

    opened = open_model(model, device, scheduler, word, context)
    explanation = explain(
        opened,
        prompt,
        words=None if words is None else parse_subjects(words),
        also=() if also is None else parse_names(also),
        guidance=parse_guidance(opened, guidance),
        compare=compare,
        over_steps=over_time,
        run=_generate,
        subjects=parse_subjects(subjects),
        seeds=numbers,
        steps=steps,
        guidance_scale=guidance_scale,
        negative=negative,
        height=height,
        width=width,
    )

    for path in explanation.save(out, html=html):
        console.print(escape(str(path)), soft_wrap=True)


def _generate(*args: Any, **options: Any) -> Result:
    from ..generation.generate import generate

    with step_bar("generating") as on_step:
        return generate(*args, on_step=on_step, **options)
