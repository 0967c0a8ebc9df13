"""`limelight word ...`: show and convert learned words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import SettingsError
from ..utils.files import user_path
from .options import ModelName
from .terminal import console, log, open_model, say_loading

if TYPE_CHECKING:
    from ..models.base import Model
    from ..textual_inversion.word import LearnedWord

app = typer.Typer(help="Show and convert learned words (textual inversion).", no_args_is_help=True)
File = Annotated[Path, typer.Argument(parser=user_path, help="A file or folder of learned words.", show_default=False)]


@app.command()
def show(
    file: File,
    model: ModelName = "pocket",
    nearest: Annotated[int, typer.Option(help="How many words of the model to list for each vector.", min=0)] = 5,
) -> None:
    """Show the learned words of a file: vectors, their lengths, facts, and the nearest words of the model."""
    say_loading(file)

    from ..textual_inversion.word import LearnedWord

    words = LearnedWord.load_all(file)
    opened = open_model(model, "cpu") if nearest else None
    for word in words:
        _show(word, opened, nearest)


def _show(word: LearnedWord, model: Model | None, count: int) -> None:
    shapes = " and ".join("{} x {}".format(*vectors.shape) for vectors in word.vectors)
    own = "; changes the denoiser" if word.changes else ""
    console.print(f"{escape(word.token)}: {shapes}{own}", soft_wrap=True)
    for key, value in word.about.items():
        console.print(f"  {escape(key)}: {escape(str(value))}", soft_wrap=True)

    try:
        facts = word.facts(model, count)
    except SettingsError as error:
        log.print(f"No nearest words: {error} Name its model with --model.", markup=False, soft_wrap=True)
        facts = word.facts()
    table = Table("vector", "length")
    if facts[0].nearest:
        table.add_column("nearest words (cosine)")
    for number, fact in enumerate(facts, 1):
        cells = [str(number), " and ".join(f"{length:.3f}" for length in fact.lengths)]
        if fact.nearest:
            cells.append(escape(", ".join(f"{name} {cosine:.2f}" for name, cosine in fact.nearest)))
        table.add_row(*cells)
    console.print(table)


@app.command()
def convert(
    file: File,
    out: Annotated[
        Path,
        typer.Argument(parser=user_path, help="A .safetensors or .pt file, or a folder, to write.", show_default=False),
    ],
    token: Annotated[
        str | None,
        typer.Option(help="New name of the word; of a file with several, the word to take.", show_default=False),
    ] = None,
) -> None:
    """Convert a learned word to another format: diffusers' (.safetensors, or a folder) or the original's (.pt).

    A file that is there already and holds something else is not overwritten.
    """
    from ..textual_inversion.word import LearnedWord

    word = LearnedWord.load(file, token)
    word.save(out, overwrite=False)
    console.print(f"{escape(word.token)} in {escape(str(out))}", soft_wrap=True)
