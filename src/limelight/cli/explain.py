"""`limelight explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import SettingsError
from ..guidance.names import RECOMMENDED
from ..utils.files import json_text, user_path
from ..utils.numbers import check_sampling, parse_seeds
from .options import (
    Device,
    Dtype,
    GuidanceName,
    Height,
    ModelName,
    Negative,
    Offload,
    Out,
    OwnGuidanceScale,
    PromptText,
    Quantize,
    Scheduler,
    Seeds,
    Steps,
    TrueCfgScale,
    Width,
    WordFiles,
    check_folder,
    loading,
    parse_guidance,
    parse_names,
    parse_subjects,
    was_given,
)
from .terminal import console, open_model, saving_at_end, say_loading, step_bar

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
    image: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="An image that exists, which the prompt describes; by default generate it.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Invert that image instead of adding noise; takes twice as long.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Generate also without guidance, and show the change.")
    ] = False,
    over_time: Annotated[bool, typer.Option("--over-time", help="Show also the maps of single steps.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Write one HTML page that holds everything.")] = False,
    export: Annotated[
        str | None,
        typer.Option(
            help="Write the maps for other programs: npz (NumPy), tif (a stack), json (COCO masks); e.g. npz,tif.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print boxes, masks and overlaps of the words as JSON.")] = False,
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
    true_cfg_scale: TrueCfgScale = 1.0,
    negative: Negative = "",
    height: Height = None,
    width: Width = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
    out: Out = Path("out"),
) -> None:
    """Show the attention of every word of a prompt over the image, with and without guidance.

    With --image, over an image that exists: --steps is how many strengths of noise are read, by default 10.
    """
    numbers = parse_seeds(seeds)
    check_sampling(steps=steps, height=height, width=width, guidance_scale=guidance_scale)
    check_folder(out)
    kinds = _kinds(export)
    say_loading(model)

    from ..viz.explain import explain

    chosen: dict[str, Any] = {
        "words": None if words is None else parse_subjects(words),
        "also": () if also is None else parse_names(also),
        "over_steps": over_time,
        "height": height,
        "width": width,
    }
    with saving_at_end(out) as saving:
        if image is not None:
            _check_image_options(context)
            if was_given(context, "steps"):
                chosen["steps"] = steps
            opened = open_model(
                model,
                device,
                scheduler or ("ddim" if exact else None),
                word,
                context,
                **loading(dtype, quantize, offload),
            )
            with step_bar("reading") as on_step:
                explanation = explain(opened, prompt, image=image, exact=exact, on_step=on_step, **chosen)
        else:
            opened = open_model(model, device, scheduler, word, context, **loading(dtype, quantize, offload))
            explanation = explain(
                opened,
                prompt,
                exact=exact,
                guidance=parse_guidance(opened, guidance),
                compare=compare,
                run=_generate,
                subjects=parse_subjects(subjects),
                seeds=numbers,
                steps=steps,
                guidance_scale=guidance_scale,
                true_cfg_scale=true_cfg_scale,
                negative=negative,
                **chosen,
            )
        saving()
        written = list(map(str, explanation.save(out, html=html, export=kinds)))

    if json:
        typer.echo(json_text({**explanation.facts(), "files": written}))
        return
    for path in written:
        console.print(escape(path), soft_wrap=True)


def _kinds(export: str | None) -> list[Any]:
    """The formats of --export.

    Raises:
        SettingsError: one is unknown.
    """
    kinds = parse_names(export or "")
    unknown = set(kinds) - {"npz", "tif", "json"}
    if unknown:
        raise SettingsError(f"Unknown --export '{min(unknown)}'. Choose of: npz, tif, json.")
    return kinds


def _check_image_options(context: typer.Context) -> None:
    """Refuse options of generated images beside --image.

    Raises:
        SettingsError: one was given.
    """
    for name in ("compare", "subjects", "seeds", "guidance", "guidance_scale", "true_cfg_scale", "negative"):
        if was_given(context, name):
            raise SettingsError(f"--{name.replace('_', '-')} is for images that are generated. Leave out --image.")


def _generate(*args: Any, **options: Any) -> Result:
    from ..generation.generate import generate

    with step_bar("generating") as on_step:
        return generate(*args, on_step=on_step, **options)
