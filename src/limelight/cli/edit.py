"""`limelight edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from ..utils.files import user_path
from ..utils.numbers import amount, check_sampling, parse_seeds
from .options import (
    Device,
    Dtype,
    HeadVectors,
    ModelName,
    Negative,
    Offload,
    Out,
    OwnGuidanceScale,
    Quantize,
    Seeds,
    Steps,
    TrueCfgScale,
    WordFiles,
    check_folder,
    loading,
    parse_factors,
    parse_strengthen,
)
from .terminal import console, open_model, saving_at_end, say_loading, step_bar

if TYPE_CHECKING:
    from ..editing.prompt_to_prompt import EditResult


def edit_command(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="What the image shows, e.g. 'a red car'.", show_default=False)],
    targets: Annotated[
        list[str], typer.Argument(help="What it should show instead, e.g. 'a blue car'.", show_default=False)
    ],
    image: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="Image file to edit; by default generate the source.",
            show_default=False,
        ),
    ] = None,
    null_text: Annotated[
        bool, typer.Option("--null-text", help="Reconstruct that image more exactly; takes ten times as long.")
    ] = False,
    seeds: Seeds = "0",
    mode: Annotated[
        Literal["auto", "replace", "refine"],
        typer.Option(help="'replace' swaps words, 'refine' keeps what the prompts share, 'auto' chooses."),
    ] = "auto",
    cross: Annotated[
        list[str] | None,
        typer.Option(
            help="Share of the steps in which words keep the source's maps; WORD=SHARE for one word; repeat.",
            show_default="0.8",
        ),
    ] = None,
    self_steps: Annotated[
        float | None,
        typer.Option(
            "--self",
            help="Share of the steps in which shapes stay as in the source.",
            show_default="0.4, with --strengthen 0.9",
        ),
    ] = None,
    strengthen: Annotated[
        list[str] | None,
        typer.Option(
            help="WORD=CONCEPT: scale each head's attention to a target's word by its relevance to a concept; repeat.",
            show_default=False,
        ),
    ] = None,
    head_vectors: HeadVectors = None,
    local: Annotated[
        str | None, typer.Option(help="Change only the places of these words, e.g. car.", show_default=False)
    ] = None,
    reweight: Annotated[
        list[str] | None,
        typer.Option(help="WORD=FACTOR: show more (above 1) or less of a word; repeat.", show_default=False),
    ] = None,
    word: WordFiles = None,
    model: ModelName = "pocket",
    steps: Steps = 50,
    guidance_scale: OwnGuidanceScale = None,
    true_cfg_scale: TrueCfgScale = 1.0,
    negative: Negative = "",
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
    out: Out = Path("out"),
) -> None:
    """Edit an image by editing its prompt: the source above, each target below it, one column per seed."""
    numbers = parse_seeds(seeds)
    shares = {name or "*": share for name, share in parse_factors(cross or []).items()}
    factors = parse_factors(reweight or [])
    strengthened = dict(map(parse_strengthen, strengthen or []))
    check_sampling(steps=steps, guidance_scale=guidance_scale)
    check_folder(out)
    say_loading(model)

    from ..editing.prompt_to_prompt import edit
    from ..utils.images import open_image

    with saving_at_end(out) as saving:
        given = None if image is None else open_image(image)
        scheduler = "ddim" if image else None
        opened = open_model(model, device, scheduler, word, context, **loading(dtype, quantize, offload))
        with step_bar("editing") as on_step:
            result = edit(
                opened,
                source,
                targets,
                seeds=numbers,
                image=given,
                null_text=null_text,
                mode=mode,
                cross_steps=shares or 0.8,
                self_steps=self_steps,
                strengthen=strengthened,
                head_vectors=head_vectors,
                local=local.split(",") if local else None,
                reweight=factors,
                steps=steps,
                guidance_scale=guidance_scale,
                true_cfg_scale=true_cfg_scale,
                negative=negative,
                on_step=on_step,
            )

        saving()
        paths = result.save(out)
        sheet = result.save_grid(out)

    _report(result, paths, sheet, out)


def _report(result: EditResult, paths: list[Path], sheet: Path, out: Path) -> None:
    """Say how well a given image was reconstructed, and where the images are."""
    if result.reconstruction is not None:
        console.print(f"the given image is reconstructed with {result.reconstruction:.1f} dB (PSNR)")
    console.print(f"{amount(len(paths), 'image')} and {escape(sheet.name)} in {escape(str(out))}")
