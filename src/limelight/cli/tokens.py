"""`limelight tokens`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from .options import Device, ModelName, PromptText, WordFiles
from .terminal import console, open_model, say_loading

if TYPE_CHECKING:
    from ..prompts.prompt import Prompt


def tokens(
    context: typer.Context,
    prompt: PromptText,
    word: WordFiles = None,
    model: ModelName = "pocket",
    device: Device = None,
) -> None:
    """Show the tokens of a prompt and the words that they belong to."""
    say_loading(model)
    show_tokens(open_model(model, device, words=word, context=context).prompt(prompt))


def show_tokens(parsed: Prompt) -> None:
    """Print a prompt's tokens as a table."""
    table = Table("position", "token", "word")
    for position in range(parsed.end + 1):
        owners = [word.text for word in parsed.words if position in word.positions]
        table.add_row(str(position), escape(parsed.tokens[position]), escape(", ".join(owners)))
    console.print(table)

    lost = [word.text for word in parsed.words if not word.positions]
    if lost:
        console.print(f"Beyond the {len(parsed.ids)} tokens that this model reads: {escape(', '.join(lost))}")
