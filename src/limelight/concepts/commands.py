"""`limelight concept ...`: thin commands over learned words, and the option that names their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import SettingsError
from ..models import load, quiet
from ..terminal import console
from .concept import Concept

app = typer.Typer(help="Learned words (textual inversion): show, convert.", no_args_is_help=True)

ConceptFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--concept", help="File or folder of a learned word; '<cat>=FILE' names it; repeat.", show_default=False
    ),
]
File = Annotated[Path, typer.Argument(help="A file or folder of learned words.", show_default=False)]


def read_concepts(texts: Sequence[str]) -> list[Concept]:
    """The concepts of "cat.safetensors" or "<cat>=embeddings.pt".

    Raises:
        SettingsError: one cannot be read.
    """
    found: list[Concept] = []
    for text in texts:
        name, named, path = text.partition("=")
        if named and not Path(text).expanduser().exists():
            found.append(Concept.load(path, name))
        else:
            found += Concept.load_all(text)
    return found


@app.command()
def show(
    file: File,
    model: Annotated[
        str, typer.Option(help="Whose words to compare it with: 'pocket', a folder in diffusers' layout, or a hub id.")
    ] = "pocket",
    nearest: Annotated[int, typer.Option(help="How many words of the model to name for each vector.", min=0)] = 5,
) -> None:
    """Show the learned words of a file: vectors, their lengths, what is known, and the words that lie next to them."""
    concepts = Concept.load_all(file)
    quiet()
    opened = load(model, device="cpu") if nearest else None
    for concept in concepts:
        shapes = " and ".join("{} x {}".format(*vectors.shape) for vectors in concept.vectors)
        console.print(f"{escape(concept.token)}: {shapes}", soft_wrap=True)
        for key, value in concept.about.items():
            console.print(f"  {escape(key)}: {escape(str(value))}", soft_wrap=True)
        reason = ""
        try:
            near = concept.nearest(opened, nearest) if opened else None
        except SettingsError as error:
            near, reason = None, str(error)
        table = Table("vector", "length", *(["nearest words (cosine)"] if near else []))
        for i in range(len(concept.vectors[0])):
            lengths = " and ".join(f"{vectors[i].norm():.3f}" for vectors in concept.vectors)
            names = [", ".join(f"{escape(word)} {cosine:.2f}" for word, cosine in near[i])] if near else []
            table.add_row(str(i + 1), lengths, *names)
        console.print(table)
        if reason:
            console.print(f"No nearest words: {escape(reason)} Name its model with --model.", soft_wrap=True)


@app.command()
def convert(
    file: File,
    out: Annotated[Path, typer.Argument(help="A .safetensors or .pt file, or a folder, to write.", show_default=False)],
    token: Annotated[
        str | None, typer.Option(help="What to call it; of a file with several, which.", show_default=False)
    ] = None,
) -> None:
    """Write a learned word in another format: diffusers' (.safetensors, or a folder) or the original's (.pt)."""
    concept = Concept.load(file, token)
    concept.save(out)
    console.print(f"{escape(concept.token)} in {escape(str(out))}", soft_wrap=True)
