"""`limelight heads ...`: thin commands over head relevance vectors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import SettingsError
from ..evaluate.cli import Engine, RayAddress, Workers
from ..models import load
from ..result import png, slug, write
from ..suites import attend_excite
from ..terminal import Device, bar, console, read_lines
from .concepts import SHIPPED as CONCEPTS
from .concepts import Concepts
from .relevance import SHIPPED, Relevance, relevance_for

app = typer.Typer(help="Which attention heads a concept needs: compute, show, weaken.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help=f"{', '.join(SHIPPED)} (shipped), or a file.", show_default=False)]
ModelName = Annotated[str, typer.Option(help="'pocket', a folder in diffusers' layout, or a hub id (owner/name).")]
ConceptNames = Annotated[
    str | None, typer.Option("--concepts", help="Some concepts, e.g. 'Animals,Color'; by default all.")
]


@app.command()
def compute(
    out: Annotated[Path, typer.Option(help="The file to write; a stopped run goes on where it was.")],
    model: ModelName = "pocket",
    concepts: Annotated[
        str | None,
        typer.Option(help=f"{' or '.join(CONCEPTS)}, or a CSV, YAML or JSON file; by default pocket's or the paper's."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file, one prompt a line; by default the Attend-and-Excite benchmark's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many prompts.", min=1)] = None,
    share: Annotated[str, typer.Option(help="Which part of the work, e.g. 2/4; see limelight heads merge.")] = "1/1",
    seed: Annotated[int, typer.Option(help="Of noise and of the drawn words.")] = 22,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 7.5,
    batch: Annotated[int, typer.Option(help="Prompts in one pass; part of what fixes the counts.", min=1)] = 4,
    device: Device = None,
    engine: Engine = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
) -> None:
    """Count which concept every head attends to most while the model draws."""
    from .counting import Counting
    from .counting import compute as count

    match = re.fullmatch(r"(\d+)/(\d+)", share)
    if match is None:
        raise SettingsError(f"--share {share} is no share; write for example 2/4.")
    lines = read_lines(prompts, "prompts") if prompts else [case.prompt for case in attend_excite()]
    chosen = Concepts.read(concepts or ("pocket" if model == "pocket" else "paper"))
    counting = Counting(chosen, tuple(lines[:limit]), seed, steps, guidance_scale, batch)
    with bar("counting") as show:
        relevance = count(
            model,
            counting,
            out,
            share=(int(match[1]), int(match[2])),
            device=device,
            engine=engine,
            workers=workers,
            address=ray_address,
            on_job=show,
        )
    assert relevance.counted is not None
    console.print(f"{int(relevance.counted.sum())} of {len(counting.prompts)} prompts in {escape(str(out))}")
    _table(relevance, relevance.concepts)


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="The files of all shares.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The file to write.")],
) -> None:
    """Add the counts of several shares of one run."""
    from .counting import merge as add

    relevance = add([Relevance.load(path) for path in parts])
    relevance.save(out)
    assert relevance.counted is not None
    console.print(f"{int(relevance.counted.sum())} of {len(relevance.counted)} prompts in {escape(str(out))}")


@app.command("import")
def import_command(
    vectors: Annotated[Path, typer.Argument(help="category_vectors_....npy", show_default=False)],
    heads: Annotated[Path, typer.Argument(help="head_index_....npy", show_default=False)],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    concepts: Annotated[str, typer.Option(help="Of the rows, in their order.")] = "paper",
    model: Annotated[str, typer.Option(help="The model that they are of.")] = "CompVis/stable-diffusion-v1-4",
    choices: Annotated[
        int, typer.Option(help="How often each head chose (prompts x passes), to recover the counts; 0 leaves it.")
    ] = 2100 * 51,
) -> None:
    """Convert the authors' NumPy files."""
    relevance = Relevance.read_npy(vectors, heads, Concepts.read(concepts).words, model=model, choices=choices)
    relevance.save(out)
    recovered = "with" if relevance.counts is not None else "without"
    console.print(
        f"{len(relevance.concepts)} concepts, {len(relevance.heads)} heads, {recovered} counts: {escape(str(out))}"
    )


@app.command()
def show(
    source: Source,
    concepts: ConceptNames = None,
    top: Annotated[int, typer.Option(help="How many heads to list.", min=1)] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for pictures: heat maps, similarities, steps.")] = None,
) -> None:
    """List the most relevant heads of concepts; with --out, draw heat maps."""
    relevance = Relevance.load(source)
    names = _some(relevance, concepts)
    _table(relevance, names, top)
    if relevance.blocks is not None and relevance.counted is not None and int(relevance.counted.sum()) >= 8:
        prompts, cosines = relevance.agreement()[-1]
        console.print(
            f"Two samples of {prompts} prompts agree to a cosine of {float(cosines.min()):.3f} (worst concept) to "
            f"{float(cosines.max()):.3f}."
        )
    if out is None:
        return
    from . import pictures

    drawn = {"heatmaps": pictures.heatmaps(relevance, names), "concepts": pictures.similarities(relevance)}
    if relevance.counts is not None and len(relevance.counts) > 1:
        drawn["steps"] = pictures.steps(relevance)
    stem = source if source in SHIPPED else Path(source).stem
    for name, picture in drawn.items():
        write(out / f"{slug(stem)}-{name}.png", png({"source": source}, picture))
    console.print(f"{', '.join(drawn)} in {escape(str(out))}")


@app.command()
def weaken(
    experiment: Annotated[
        str, typer.Argument(help="e.g. pocket-animals, pocket-colours, or one of the paper's: color, animals, style...")
    ] = "pocket-animals",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; a stopped run goes on where it was. By default out/weakening/EXPERIMENT."),
    ] = None,
    model: ModelName = "pocket",
    vectors: Annotated[str | None, typer.Option(help="By default those shipped for the model.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of every prompt, e.g. 10,20,30.")] = "10,20,30",
    counts: Annotated[str | None, typer.Option(help="Numbers of weakened heads, e.g. 4,8,16,32.")] = None,
    every: Annotated[int, typer.Option(help="Only every n-th prompt.", min=1)] = 1,
    factor: Annotated[float, typer.Option(help="What weakened heads are multiplied by.")] = -2.0,
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=1)] = 50,
    clip: Annotated[
        str,
        typer.Option(
            help="Scores: pocket, a folder or a hub id; the paper takes laion/CLIP-ViT-H-14-laion2B-s32B-b79K."
        ),
    ] = "pocket",
    batch: Annotated[int | None, typer.Option(help="Most pictures in one pass.", min=1)] = None,
    device: Device = None,
) -> None:
    """Weaken the most and the least relevant heads first, and see when the concept is lost."""
    from dataclasses import replace

    from ..scores import Clip
    from . import pictures
    from .weakening import Experiment, strip, weakened

    chosen = Experiment.of(experiment)
    out = out or Path("out/weakening") / experiment
    chosen = replace(chosen, prompts=chosen.prompts[::every])
    numbers = [_whole(part, "--counts") for part in counts.split(",")] if counts else None
    drawn_seeds = [_whole(part, "--seeds") for part in seeds.split(",")]
    with bar(experiment) as show_job:
        opened = load(model, device=device)
        relevance = relevance_for(opened, vectors)
        relevance.index(chosen.concept)
        found = weakened(
            opened,
            relevance,
            chosen,
            out,
            seeds=drawn_seeds,
            counts=numbers,
            factor=factor,
            clip=Clip(clip, opened.device),
            pictures=True,
            on_job=show_job,
            steps=steps,
            batch=batch,
        )
    table = Table("weakened heads", *found.scores)
    for row, number in enumerate(found.counts):
        table.add_row(str(number), *(f"{float(found.mean(order)[row]):.4f}" for order in found.scores))
    table.add_row("area", *(f"{found.area(order):.4f}" for order in found.scores))
    console.print(table)
    area, low, high = found.between()
    console.print(f"area between LeRHF and MoRHF: {area:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    for prompt, _ in chosen.prompts[:4]:
        write(out / f"{slug(prompt)}.png", png({"prompt": prompt}, strip(out, found, prompt)))
    write(out / "curves.png", png({"experiment": experiment}, pictures.curves(found)))
    console.print(f"curves.png, strips and scores.jsonl in {escape(str(out))}")


def parse_strengthen(text: str) -> tuple[str, str]:
    """'word=Concept' to its parts."""
    word, mark, concept = text.rpartition("=")
    if not mark or not word.strip() or not concept.strip():
        raise SettingsError(f"--strengthen '{text}' must be word=Concept, for example cat=Animals.")
    return word.strip(), concept.strip()


def parse_adjust(text: str, relevance: Relevance) -> tuple[str, str, str]:
    """'word=Desired-Undesired' to its parts; concepts may have hyphens of their own."""
    word, mark, both = text.rpartition("=")
    pieces = both.split("-")
    known = {name.casefold() for name in relevance.concepts}
    for cut in range(1, len(pieces)):
        pair = "-".join(pieces[:cut]).strip(), "-".join(pieces[cut:]).strip()
        if mark and word.strip() and all(name.casefold() in known for name in pair):
            return word.strip(), *pair
    raise SettingsError(
        f"--adjust '{text}' must be word=Desired-Undesired, for example rose-colored=Color-Plants, of these concepts: "
        f"{', '.join(relevance.concepts)}."
    )


def _table(relevance: Relevance, names: tuple[str, ...], top: int = 5) -> None:
    table = Table(
        "concept", f"most relevant heads (place layer/head, relevance; the mean is 1) of {len(relevance.heads)}"
    )
    for name in names:
        row = relevance[name]
        cells = []
        for index in relevance.order(name)[:top]:
            head = relevance.heads[index]
            cells.append(f"{head.place}\u00a0{head.layer}/{head.head}\u00a0{float(row[index]):.2f}")
        table.add_row(escape(name), "   ".join(cells))
    console.print(table)


def _some(relevance: Relevance, concepts: str | None) -> tuple[str, ...]:
    if concepts is None:
        return relevance.concepts
    return tuple(relevance.concepts[relevance.index(name)] for name in concepts.split(","))


def _whole(text: str, option: str) -> int:
    if not text.strip().isdecimal():
        raise SettingsError(f"{option}: '{text}' is no whole number; write for example 10,20,30.")
    return int(text)
