"""`limelight tokens`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from .options import Device, Dtype, ModelName, Offload, PromptText, Quantize, WordFiles, loading
from .terminal import console, open_model, say_loading

if TYPE_CHECKING:
    from ..prompts.prompt import Prompt


def tokens(
    context: typer.Context,
    prompt: PromptText,
    word: WordFiles = None,
    model: ModelName = "pocket",
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
) -> None:
    """Show the tokens of a prompt and the words that they belong to."""
    say_loading(model)
    opened = open_model(model, device, words=word, context=context, **loading(dtype, quantize, offload))
    show_tokens(opened.prompt(prompt))


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
