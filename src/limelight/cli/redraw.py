"""`limelight redraw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ..utils.files import user_path
from .options import Device, Out, WordFiles, check_folder
from .terminal import console, open_model, saving_at_end, say_loading, step_bar


def redraw_command(
    context: typer.Context,
    image: Annotated[
        Path, typer.Argument(parser=user_path, help="A PNG that limelight has written.", show_default=False)
    ],
    word: WordFiles = None,
    model: Annotated[
        str | None, typer.Option(help="Where its model lies now; by default where it lay.", show_default=False)
    ] = None,
    device: Device = None,
    out: Out = Path("out"),
) -> None:
    """Generate an image again from the settings inside its PNG, and say whether it is the same."""
    check_folder(out)
    say_loading(image)

    from ..generation.redraw import difference, read_settings, redraw

    settings = read_settings(image)
    with saving_at_end(out) as saving:
        opened = None
        if model is not None or word:
            opened = open_model(model or settings["model"], device, None, word, context)
        with step_bar("generating") as on_step:
            result = redraw(image, opened, device=device, on_step=on_step)
        saving()
        paths = result.save(out)

    console.print(escape(difference(image, result)), soft_wrap=True)
    console.print(f"{escape(paths[0].name)} in {escape(str(out))}", soft_wrap=True)
