"""`limelight redraw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..errors import SettingsError
from ..utils.files import user_path
from .options import Device, Offload, Out, WordFiles, check_folder, loading, read_words
from .terminal import bind_words, console, saving_at_end, say_loading, step_bar


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
    offload: Offload = None,
    dtype: Annotated[str | None, typer.Option(hidden=True)] = None,
    quantize: Annotated[str | None, typer.Option(hidden=True)] = None,
    out: Out = Path("out"),
) -> None:
    """Generate an image again from the settings inside its PNG, and say whether it is the same."""
    _check_own(dtype, quantize)
    kept: dict[str, Any] = {**loading(None, None, offload)}
    check_folder(out)
    say_loading(image)

    from ..generation.redraw import difference, model_of, read_settings, redraw

    settings = read_settings(image)
    with saving_at_end(out) as saving:
        opened = None
        if model is not None or word:
            learned = read_words(word or ())
            opened = model_of(settings, device, **kept, source=model)
            bind_words(opened, learned, context)
        with step_bar("generating") as on_step:
            result = redraw(image, opened, device=device, **kept, on_step=on_step)
        saving()
        paths = result.save(out)

    console.print(escape(difference(image, result)), soft_wrap=True)
    console.print(f"{escape(paths[0].name)} in {escape(str(out))}", soft_wrap=True)


def _check_own(dtype: str | None, quantize: str | None) -> None:
    """Refuse what the image itself says.

    Raises:
        SettingsError: it was given.
    """
    for name, value in (("dtype", dtype), ("quantize", quantize)):
        if value is not None:
            raise SettingsError(f"The image says itself how its weights were kept. Leave out --{name} {value}.")
