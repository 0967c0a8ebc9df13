"""The command line: thin commands over the library."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

# Before transformers and diffusers are imported: their notices are for programmers.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from . import (
    AttendAndExcite,
    Guidance,
    LimelightError,
    Model,
    Result,
    SettingsError,
    Step,
    UnknownWords,
    calibrate,
    edit,
    generate,
    load,
)
from .concepts.commands import ConceptFiles, read_concepts
from .concepts.commands import app as concept_app
from .concepts.learn_command import learn_command
from .concepts.pictures import open_picture
from .edits import HeadGain
from .edits import adjust as adjust_edit
from .edits import strengthen as strengthen_edit
from .evaluate.cli import app as evaluate
from .guidance import step_of
from .heads.commands import app as heads_app
from .heads.commands import parse_adjust, parse_strengthen
from .heads.relevance import relevance_for
from .models import SCHEDULERS, quiet
from .prompt import Prompt
from .result import grid, png, slug, write
from .subjects import resolve
from .suites import SUITES
from .suites import load as load_suite
from .terminal import Device, bar, console

app = typer.Typer(
    help="Look at, steer and edit the attention of text-to-image diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("learn")(learn_command)
app.add_typer(heads_app, name="heads")
app.add_typer(concept_app, name="concept")
app.add_typer(evaluate, name="evaluate")
SD_2_1 = "stabilityai/stable-diffusion-2-1-base"

PromptText = Annotated[str, typer.Argument(help="What to draw, e.g. 'a cat and a dog'.", show_default=False)]
ModelName = Annotated[str, typer.Option(help="'pocket', a folder in diffusers' layout, or a hub id (owner/name).")]


@app.command("generate")
def generate_command(
    context: typer.Context,
    prompt: PromptText,
    subjects: Annotated[
        str,
        typer.Option(help="Words or token indices to put on stage, e.g. cat,dog; 'auto' takes the nouns, 'ask' asks."),
    ] = "auto",
    seeds: Annotated[str, typer.Option(help="Seeds and ranges of seeds, e.g. 0-3,7.")] = "0",
    guidance: Annotated[bool, typer.Option(help="Steer by Attend-and-Excite, or draw plainly.")] = True,
    fast: Annotated[
        bool, typer.Option("--fast", help="Guide with at most about a tenth more work than plain drawing.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw every seed plainly and guided, in two rows.")
    ] = False,
    concept: ConceptFiles = None,
    model: ModelName = "pocket",
    sd_2_1: Annotated[
        bool, typer.Option("--sd-2-1", help="Short for --model stabilityai/stable-diffusion-2-1-base.")
    ] = False,
    scheduler: Annotated[
        str | None, typer.Option(help=f"By default the model's own; {', '.join(SCHEDULERS)}.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 7.5,
    negative: Annotated[str, typer.Option(help="What to avoid.")] = "",
    height: Annotated[int | None, typer.Option(help="In pixels; by default the model's own.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels; by default the model's own.")] = None,
    scale: Annotated[
        float | None, typer.Option(help="How far Attend-and-Excite moves the latents; by default what suits the model.")
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(help="Share of the steps that are guided; by default what suits the model.", min=0, max=1),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side of the attention maps to read; by default the model's.")
    ] = None,
    strengthen: Annotated[
        list[str] | None,
        typer.Option(help="word=Concept: heads see the word as much as its concept needs them.", show_default=False),
    ] = None,
    adjust: Annotated[
        list[str] | None,
        typer.Option(
            help="word=Desired-Undesired: read an ambiguous word as one concept and not as the other, "
            "e.g. rose-colored=Color-Plants.",
            show_default=False,
        ),
    ] = None,
    clamp: Annotated[
        float | None, typer.Option(help="Upper limit of the vectors in --adjust; 9 suits Stable Diffusion XL.")
    ] = None,
    vectors: Annotated[
        str | None, typer.Option(help="Head relevance vectors; by default those shipped for the model.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Most pictures in one pass; smaller where memory is short.", min=1)
    ] = None,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what guidance does in every step.")] = False,
) -> None:
    """Draw a prompt: one PNG per seed with its settings inside, and a grid."""
    if compare and not (guidance or strengthen or adjust):
        raise SettingsError("--compare draws guided pictures beside plain ones; leave out --no-guidance.")
    if fast and not guidance:
        raise SettingsError("--fast is about guidance; leave out --no-guidance.")
    seed_list = parse_seeds(seeds)
    _check_folder(out)
    drawn_by = _open(SD_2_1 if sd_2_1 else model, device, scheduler, concept, context)
    changes = {"scale": scale, "until": until, "resolution": resolution}
    preset = AttendAndExcite.fast if fast else AttendAndExcite.suited
    wanted = preset(drawn_by, **{name: value for name, value in changes.items() if value is not None})
    parsed = drawn_by.prompt(prompt)
    edits = _edits(drawn_by, parsed, strengthen or [], adjust or [], clamp, vectors)
    own = "guided" if guidance else "edited" if edits else "plain"
    runs: dict[str, tuple[Guidance | None, list[HeadGain]]] = {own: (wanted if guidance else None, edits)}
    if compare:
        runs = {"plain": (None, []), **runs}
    if subjects == "ask":
        subjects = _ask(parsed)
    names, _ = resolve(parsed, _subjects(subjects), needed=guidance)
    if subjects == "auto" and guidance:
        console.print(f"subjects: {escape(', '.join(map(str, names)))}")
    options: dict[str, Any] = {
        "subjects": names,
        "seeds": seed_list,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "negative": negative,
        "height": height,
        "width": width,
        "batch": batch,
    }
    results: list[Result] = []
    shown = _with_table if verbose else _with_progress
    for name, (chosen, edited) in runs.items():
        results.append(shown(name, generate, drawn_by, prompt, guidance=chosen, edits=edited, **options))
        results[-1].save(out, f"{slug(prompt, 70)} {name}")
    sheet = out / f"{slug(prompt, 70)}-grid.png"
    if compare:
        picture = grid([result.images for result in results], list(runs))
    else:
        picture = grid([results[0].images[i : i + 8] for i in range(0, len(seed_list), 8)])
    write(sheet, png({**results[-1].settings, "seeds": seed_list, "rows": list(runs)}, picture))
    console.print(f"{sum(len(r.images) for r in results)} pictures and {escape(sheet.name)} in {escape(str(out))}")


@app.command("edit")
def edit_command(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="What the picture shows, e.g. 'a red car'.", show_default=False)],
    targets: Annotated[
        list[str], typer.Argument(help="What it should show instead, e.g. 'a blue car'.", show_default=False)
    ],
    image: Annotated[
        Path | None, typer.Option(help="A picture of yours to edit; without it, one is drawn.", show_default=False)
    ] = None,
    null_text: Annotated[
        bool, typer.Option("--null-text", help="Reconstruct that picture more exactly; takes ten times as long.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="Seeds and ranges of seeds, e.g. 0-3,7.")] = "0",
    mode: Annotated[
        str, typer.Option(help="'replace' swaps words, 'refine' keeps what the prompts share; 'auto' decides.")
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
            help="Share in which shapes keep to the source's.",
            show_default="0.4, with --strengthen 0.9",
        ),
    ] = None,
    strengthen: Annotated[
        list[str] | None,
        typer.Option(
            help="WORD=CONCEPT: the heads of a concept see more of a target's word; repeat.", show_default=False
        ),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(help="Head relevance vectors; by default those shipped for the model.", show_default=False),
    ] = None,
    local: Annotated[
        str | None, typer.Option(help="Words outside whose place nothing may change, e.g. car.", show_default=False)
    ] = None,
    reweight: Annotated[
        list[str] | None,
        typer.Option(help="WORD=FACTOR: show more (above 1) or less of a word; repeat for more.", show_default=False),
    ] = None,
    concept: ConceptFiles = None,
    model: ModelName = "pocket",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 7.5,
    negative: Annotated[str, typer.Option(help="What to avoid.")] = "",
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
) -> None:
    """Change a picture by changing its prompt: the source above, each target below it, one column per seed."""
    seed_list = parse_seeds(seeds)
    _check_folder(out)
    picture = None if image is None else open_picture(image)
    drawn_by = _open(model, device, "ddim" if image else None, concept, context)
    shares = {word or "*": share for word, share in _factors(cross or []).items()}
    result = _with_progress(
        "edit",
        edit,
        drawn_by,
        source,
        targets,
        seeds=seed_list,
        image=picture,
        null_text=null_text,
        mode=mode,
        cross_steps=shares or 0.8,
        self_steps=self_steps,
        strengthen=dict(parse_strengthen(text) for text in strengthen or []),
        relevance=vectors,
        local=local.split(",") if local else None,
        reweight=_factors(reweight or []),
        steps=steps,
        guidance_scale=guidance_scale,
        negative=negative,
    )
    result.save(out)
    rows = [result.source, *result.targets]
    sheet = out / f"{slug(f'{source} to {targets[0]}', 70)}.png"
    settings = {**result.target.settings, "seeds": list(result.source.seeds), "rows": [source, *targets]}
    write(sheet, png(settings, grid([row.images for row in rows], [source, *targets])))
    console.print(f"{sum(len(r.images) for r in rows)} pictures and {escape(sheet.name)} in {escape(str(out))}")


@app.command("explain")
def explain_command(
    context: typer.Context,
    prompt: PromptText,
    words: Annotated[
        str | None, typer.Option(help="Words to show, e.g. cat,dog; by default every word.", show_default=False)
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw also without guidance, and show the change.")
    ] = False,
    over_steps: Annotated[bool, typer.Option("--steps", help="Show also when which word looked where.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Write one page that holds everything.")] = False,
    subjects: Annotated[
        str, typer.Option(help="Words or token indices to put on stage; 'auto' takes the nouns.")
    ] = "auto",
    seeds: Annotated[str, typer.Option(help="Seeds and ranges of seeds, e.g. 0-3,7.")] = "0",
    guidance: Annotated[bool, typer.Option(help="Steer by Attend-and-Excite, or draw plainly.")] = True,
    concept: ConceptFiles = None,
    model: ModelName = "pocket",
    scheduler: Annotated[
        str | None, typer.Option(help=f"By default the model's own; {', '.join(SCHEDULERS)}.", show_default=False)
    ] = None,
    num_steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 7.5,
    negative: Annotated[str, typer.Option(help="What to avoid.")] = "",
    height: Annotated[int | None, typer.Option(help="In pixels; by default the model's own.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels; by default the model's own.")] = None,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
) -> None:
    """Show where every word of a prompt looked: its attention over the picture, with and without guidance."""
    from .explain import explain  # matplotlib, which drawing alone does not need

    seed_list = parse_seeds(seeds)
    _check_folder(out)
    drawn_by = _open(model, device, scheduler, concept, context)
    parsed = drawn_by.prompt(prompt)
    explanation = explain(
        drawn_by,
        prompt,
        words=None if words is None else _subjects(words),
        guidance=AttendAndExcite.suited(drawn_by) if guidance else None,
        compare=compare,
        over_steps=over_steps,
        draw=partial(_with_progress, "drawing", generate),
        subjects=resolve(parsed, _subjects(subjects), needed=guidance)[0],
        seeds=seed_list,
        steps=num_steps,
        guidance_scale=guidance_scale,
        negative=negative,
        height=height,
        width=width,
    )
    for path in explanation.save(out, html=html):
        console.print(escape(str(path)), soft_wrap=True)


@app.command("calibrate")
def calibrate_command(
    model: ModelName = "pocket",
    suite: Annotated[
        str, typer.Option(help=f"{', '.join(SUITES)}, or a CSV or text file of prompts.")
    ] = "attend-excite",
    every: Annotated[int, typer.Option(help="Draw only every n-th prompt.", min=1)] = 23,
    seeds: Annotated[str, typer.Option(help="Seeds and ranges of seeds, e.g. 0-3,7.")] = "0",
    quantile: Annotated[
        float, typer.Option(help="Share of the subjects that stay below the threshold.", min=0, max=1)
    ] = 0.7,
    scheduler: Annotated[
        str | None, typer.Option(help=f"By default the model's own; {', '.join(SCHEDULERS)}.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Strength of classifier-free guidance.")] = 7.5,
    batch: Annotated[int, typer.Option(help="Most pictures in one pass.", min=1)] = 4,
    device: Device = None,
) -> None:
    """Propose thresholds of Attend-and-Excite for a model: what its better subjects have without guidance."""
    cases, seed_list = load_suite(suite)[::every], parse_seeds(seeds)
    opened = _open(model, device, scheduler)
    with bar("calibrating") as show:
        found = calibrate(
            opened,
            [case.prompt for case in cases],
            subjects=[case.subjects or "auto" for case in cases],
            seeds=seed_list,
            quantile=quantile,
            steps=steps,
            guidance_scale=guidance_scale,
            batch=batch,
            on_progress=show,
        )
    shares = (0, 0.5, 0.6, 0.7, 0.8, 1)
    table = Table("step", "lowest", *(f"{share:.0%}" for share in shares[1:-1]), "highest", "threshold")
    for key, values in found.presence.items():
        cells = [f"{values.quantile(share).item():.3f}" for share in shares]
        table.add_row(str(step_of(key, steps)), *cells, f"{found.thresholds[key]:.2f}")
    console.print(table)
    console.print(f"Presence of {len(next(iter(found.presence.values())))} subjects, drawn without guidance.")
    console.print("For the limelight.json in the model's folder:")
    settings = {"attend_and_excite": {"thresholds": {str(key): value for key, value in found.thresholds.items()}}}
    console.print(json.dumps(settings), markup=False, soft_wrap=True)


@app.command()
def tokens(
    context: typer.Context,
    prompt: PromptText,
    concept: ConceptFiles = None,
    model: ModelName = "pocket",
    device: Device = None,
) -> None:
    """Show how the model reads a prompt: its tokens and the words that they belong to."""
    _show_tokens(_open(model, device, concepts=concept, context=context).prompt(prompt))


def _show_tokens(parsed: Prompt) -> None:
    table = Table("position", "token", "word")
    for position in range(parsed.end + 1):
        owners = [word.text for word in parsed.words if position in word.positions]
        table.add_row(str(position), escape(parsed.tokens[position]), escape(", ".join(owners)))
    console.print(table)
    lost = [word.text for word in parsed.words if not word.positions]
    if lost:
        console.print(f"Beyond the {len(parsed.ids)} tokens that this model reads: {escape(', '.join(lost))}")


@app.command()
def info(model: ModelName = "pocket", device: Device = None) -> None:
    """Say what model, device, dtype and versions are in use."""
    from importlib.metadata import version

    table = Table(show_header=False)
    opened = _open(model, device)
    for key, value in opened.describe().items():
        table.add_row(key, escape(value))
    if opened.about.words is not None:
        table.add_row("words", escape(" ".join(sorted(opened.about.words))))
    for package in ("limelight", "torch", "diffusers", "transformers"):
        table.add_row(package, version(package))
    table.add_row("python", platform.python_version())
    console.print(table)


def _edits(
    model: Model, parsed: Prompt, strengthen: list[str], adjust: list[str], clamp: float | None, vectors: str | None
) -> list[HeadGain]:
    """The edits of --strengthen and --adjust; what is wrong with them is found out before the drawing."""
    if not strengthen and not adjust:
        if clamp is not None or vectors is not None:
            raise SettingsError("--clamp and --vectors belong to --strengthen or --adjust; name a word there.")
        return []
    relevance = relevance_for(model, vectors)
    edits = []
    for word, concept in map(parse_strengthen, strengthen):
        relevance.index(concept)
        edits.append(strengthen_edit(word, concept, relevance=relevance))
    for word, desired, undesired in (parse_adjust(text, relevance) for text in adjust):
        edits.append(adjust_edit(word, desired, undesired, clamp=clamp, relevance=relevance))
    for gain in edits:
        parsed.find(gain.about["word"])
    return edits


def _ask(parsed: Prompt) -> str:
    """Which tokens to put on stage, asked on the terminal."""
    if not sys.stdin.isatty():
        raise SettingsError("--subjects ask needs a terminal; name them instead, for example --subjects cat,dog.")
    _show_tokens(parsed)
    return typer.prompt("Token indices or words to put on stage, separated by commas")


def _open(
    model: str,
    device: str | None,
    scheduler: str | None = None,
    concepts: Sequence[str] | None = None,
    context: typer.Context | None = None,
) -> Model:
    """The model, with learned words from files for as long as the command of this context runs."""
    quiet()
    found = read_concepts(concepts or ())  # first: models take longer
    opened = load(model, device=device, scheduler=scheduler)
    if context is not None:
        for concept in found:
            context.with_resource(concept.bind(opened))
            console.print(f"learned word: {escape(concept.token)}")
    return opened


def _with_progress(label: str, draw: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with bar(label) as show:
        return draw(*args, on_step=lambda step: show(step.index + 1, step.count), **options)


def _with_table(label: str, draw: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A line per step; with guidance, the loss, each subject's presence and the refinements of every picture."""
    names = [str(name) for name in options["subjects"]] if options["guidance"] else []
    table = Table("step", "seconds", *(["picture", "loss", *map(escape, names), "tries"] if names else []), title=label)
    with Live(table, console=console, refresh_per_second=4):

        def show(step: Step) -> None:
            head = [f"{step.index + 1}/{step.count}", f"{step.seconds:.2f}"]
            if step.move is None:
                table.add_row(*head)
                return
            facts = step.move.facts()
            for i, (loss, presence, tries) in enumerate(zip(*facts.values(), strict=True)):
                numbers = [f"{value:.3f}" for value in (loss, *presence)]
                table.add_row(*(head if i == 0 else ["", ""]), str(i + 1), *numbers, str(tries))

        result = draw(*args, on_step=show, **options)
    if not console.is_terminal:  # there the table ends its line by itself
        console.print()
    return result


def _subjects(text: str) -> Any:
    names = [part.strip() for part in text.strip("[] ").split(",") if part.strip()]
    return "auto" if names == ["auto"] else [int(name) if name.isdecimal() else name for name in names]


def _factors(texts: Sequence[str]) -> dict[str, float]:
    """["red=0.5", "0.8"] to {"red": 0.5, "": 0.8}."""
    factors: dict[str, float] = {}
    for text in texts:
        word, _, number = text.rpartition("=")
        try:
            factors[word.strip()] = float(number)
        except ValueError:
            raise SettingsError(f"'{text}' is not of the form WORD=NUMBER, for example red=0.5.") from None
    return factors


def _check_folder(folder: Path) -> None:
    """Find out before the drawing, not after it, that its results cannot be written."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not os.path.isdir(there) or not os.access(there, os.W_OK):
        raise SettingsError(f"'{folder}' cannot be written: '{there}' is no folder that you may write to.")


def parse_seeds(text: str) -> list[int]:
    """Seeds as they are typed: "0-3,7"."""
    seeds: list[int] = []
    for part in text.strip("[] ").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last >= 2**63:
            raise SettingsError(f"'{text}' is no list of seeds; write for example 0-3,7.")
        if last - first >= 10_000:
            raise SettingsError(f"'{text}' is {last - first + 1} seeds; give at most 10000 at once.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries below, for programmers as well
        warnings.simplefilter("default", UnknownWords)
        warnings.showwarning = lambda message, *_: console.print(f"warning: {message}", markup=False, soft_wrap=True)
        try:
            app()
        except LimelightError as error:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
            sys.exit(2)


if __name__ == "__main__":
    main()
