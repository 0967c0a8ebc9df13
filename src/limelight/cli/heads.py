"""`limelight heads ...`: head relevance vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..evaluate.suites import attend_excite
from ..heads.vocabulary import SHIPPED as CONCEPTS
from ..heads.vocabulary import Concepts
from ..utils.files import png, slug, user_path, write_new
from ..utils.numbers import parse_seeds
from .options import (
    Device,
    Dtype,
    Engine,
    Every,
    HeadVectors,
    ModelName,
    Offload,
    OwnGuidanceScale,
    Quantize,
    RayAddress,
    Workers,
    loading,
    parse_numbers,
    parse_part,
    read_lines,
)
from .terminal import console, open_model, resumable_bar, say_loading

if TYPE_CHECKING:
    from ..evaluate.weakening import Curves
    from ..heads.relevance import Relevance

app = typer.Typer(help="Which attention heads a concept needs: compute, show, weaken.", no_args_is_help=True)
Steps = Annotated[int, typer.Option(help="Number of denoising steps.", min=1)]
File = Annotated[Path, typer.Option(parser=user_path, metavar="PATH", help="File to write.")]


@app.command()
def compute(
    out: Annotated[
        Path,
        typer.Option(parser=user_path, metavar="PATH", help="File to write; a second call continues a stopped run."),
    ],
    model: ModelName = "pocket",
    concepts: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(CONCEPTS)}, or a CSV, YAML or JSON file; by default pocket's or the paper's.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="Text file, one prompt a line; by default the Attend-and-Excite benchmark's.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Count only the first so many prompts.", min=1, show_default=False)
    ] = None,
    part: Annotated[str, typer.Option(help="Part of the work, e.g. 2/4; see limelight heads merge.")] = "1/1",
    seed: Annotated[int, typer.Option(help="Seed of the noise and of the sampled words.")] = 22,
    steps: Steps = 50,
    guidance_scale: OwnGuidanceScale = None,
    batch: Annotated[int, typer.Option(help="Prompts in one pass; the counts depend on it.", min=1)] = 4,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
    engine: Engine = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Count which concept every head attends to most while the model generates."""
    portion = parse_part(part)
    lines = [case.prompt for case in attend_excite()]
    if prompts:
        lines = read_lines(prompts, "prompts")
    chosen = Concepts.read(concepts) if concepts else Concepts.suited(model)

    say_loading(model)

    from ..heads import counting

    settings = counting.Counting(chosen, tuple(lines[:limit]), seed, steps, guidance_scale, batch)
    with resumable_bar("counting", "prompts", out) as show:
        relevance = counting.compute(
            model,
            settings,
            out,
            part=portion,
            device=device,
            loading=loading(dtype, quantize, offload),
            engine=engine,
            workers=workers,
            address=ray_address,
            on_job=show,
        )

    _print_counted(relevance, out)
    _print_heads(relevance, relevance.concepts)


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(parser=user_path, help="The files of all parts.", show_default=False)],
    out: File,
) -> None:
    """Add the counts of several parts of one run."""
    from ..heads import counting
    from ..heads.relevance import Relevance

    relevance = counting.merge(list(map(Relevance.load, parts)))
    relevance.save(out, overwrite=False)
    _print_counted(relevance, out)


@app.command("import")
def import_command(
    vectors: Annotated[Path, typer.Argument(parser=user_path, help="category_vectors_....npy", show_default=False)],
    heads: Annotated[Path, typer.Argument(parser=user_path, help="head_index_....npy", show_default=False)],
    out: File,
    concepts: Annotated[str, typer.Option(help="Concepts of the rows, in their order.")] = "paper",
    model: Annotated[str, typer.Option(help="Model that the vectors are of.")] = "CompVis/stable-diffusion-v1-4",
    choices: Annotated[
        int, typer.Option(help="How often each head chose (prompts x passes), to recover the counts; 0: do not.")
    ] = 2100 * 51,
) -> None:
    """Convert the NumPy files of the paper's authors."""
    from ..heads.relevance import Relevance

    relevance = Relevance.read_npy(vectors, heads, Concepts.read(concepts).words, model=model, choices=choices)
    relevance.save(out, overwrite=False)
    recovered = "with" if relevance.counts is not None else "without"
    console.print(
        f"{len(relevance.concepts)} concepts, {len(relevance.heads)} heads, {recovered} counts: {escape(str(out))}"
    )


@app.command()
def show(
    source: Annotated[str, typer.Argument(help="Shipped vectors, e.g. pocket, or a file.", show_default=False)],
    concepts: Annotated[
        str | None,
        typer.Option(help="Some concepts, e.g. 'Animals,Color'; by default all.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(help="How many heads to list.", min=1)] = 5,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="Folder for plots: heat maps, similarities, steps.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the most relevant heads of concepts; with --out, plot heat maps."""
    from ..heads.relevance import Relevance

    relevance = Relevance.load(source)
    names = relevance.named(concepts)
    _print_heads(relevance, names, top)
    _print_agreement(relevance)
    if out is not None:
        _save_plots(relevance, names, source, out)


@app.command()
def weaken(
    experiment: Annotated[
        str, typer.Argument(help="e.g. pocket-animals, pocket-colors, or one of the paper's: color, animals, style...")
    ] = "pocket-animals",
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path,
            metavar="PATH",
            help="Folder; a second call continues a stopped run. By default out/weakening/EXPERIMENT.",
            show_default=False,
        ),
    ] = None,
    model: ModelName = "pocket",
    head_vectors: HeadVectors = None,
    seeds: Annotated[str, typer.Option(help="Seeds and ranges of seeds of every prompt, e.g. 0-3,7.")] = "10,20,30",
    counts: Annotated[
        str | None, typer.Option(help="Numbers of weakened heads, e.g. 4,8,16,32.", show_default=False)
    ] = None,
    every: Every = 1,
    factor: Annotated[float, typer.Option(help="Gain of the weakened heads.")] = -2.0,
    steps: Steps = 50,
    clip: Annotated[
        str,
        typer.Option(
            help="CLIP of the scores: pocket, a folder or a hub id; the paper's is "
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K."
        ),
    ] = "pocket",
    batch: Annotated[int | None, typer.Option(help="Most images in one pass.", min=1, show_default=False)] = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
) -> None:
    """Weaken the most and the least relevant heads first, and measure when the concept is lost."""
    numbers = parse_seeds(seeds)
    sizes = parse_numbers(counts, "--counts") if counts else None
    out = out or Path("out/weakening") / experiment
    say_loading(model)

    from dataclasses import replace

    from ..evaluate.clip import Clip
    from ..evaluate.weakening import Experiment, weakened
    from ..heads.relevance import relevance_for
    from ..viz.heads import save_weakening

    chosen = Experiment.of(experiment)
    chosen = replace(chosen, prompts=chosen.prompts[::every])
    opened = open_model(model, device, **loading(dtype, quantize, offload))
    relevance = relevance_for(opened, head_vectors)
    relevance.index(chosen.concept)  # an unknown concept is refused before CLIP is loaded
    with resumable_bar(experiment, "numbers of heads", out) as show:
        found = weakened(
            opened,
            relevance,
            chosen,
            out,
            seeds=numbers,
            counts=sizes,
            factor=factor,
            clip=Clip(clip, opened.device),
            images=True,
            on_job=show,
            steps=steps,
            batch=batch,
        )

    _print_weakening(found)
    save_weakening(found, out, experiment)
    console.print(f"curves, strips and scores.jsonl in {escape(str(out))}")


def _print_counted(relevance: Relevance, out: Path) -> None:
    assert relevance.counted is not None
    console.print(f"{int(relevance.counted.sum())} of {len(relevance.counted)} prompts in {escape(str(out))}")


def _print_heads(relevance: Relevance, names: tuple[str, ...], top: int = 5) -> None:
    table = Table(
        "concept", f"most relevant heads (group layer/head, relevance; the mean is 1) of {len(relevance.heads)}"
    )
    for name in names:
        cells = [f"{h.group}\u00a0{h.layer}/{h.head}\u00a0{value:.2f}" for h, value in relevance.top(name, top)]
        table.add_row(escape(name), "   ".join(cells))
    console.print(table)


def _print_agreement(relevance: Relevance) -> None:
    if relevance.blocks is None or relevance.counted is None or int(relevance.counted.sum()) < 8:
        return
    prompts, cosines = relevance.agreement()[-1]
    console.print(
        f"Two samples of {prompts} prompts agree to a cosine of {float(cosines.min()):.3f} (worst concept) to "
        f"{float(cosines.max()):.3f}."
    )


def _save_plots(relevance: Relevance, names: tuple[str, ...], source: str, out: Path) -> None:
    from ..heads.relevance import SHIPPED
    from ..viz.heads import figures

    stem = source if source in SHIPPED else Path(source).stem
    plotted = figures(relevance, names, title=stem)
    paths = []
    for name, image in plotted.items():
        paths.append(write_new(out, f"{slug(stem, 60)}-{name}", "png", png({"source": source}, image)))
    console.print(f"{', '.join(path.name for path in paths)} in {escape(str(out))}", soft_wrap=True)


def _print_weakening(found: Curves) -> None:
    table = Table("weakened heads", *found.scores)
    for row, number in enumerate(found.counts):
        table.add_row(str(number), *(f"{float(found.mean(order)[row]):.4f}" for order in found.scores))
    table.add_row("area", *(f"{found.area(order):.4f}" for order in found.scores))
    console.print(table)
    between = found.between()
    interval = ", in brackets its 95 % interval" if between.prompts > 1 else ""
    console.print(f"area between LeRHF and MoRHF: {between.shown(4)}{interval}", markup=False)
