"""`limelight web`."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Annotated

import typer
from rich.markup import escape

from ..errors import SettingsError
from .options import Device, Dtype, ModelName, Offload, Quantize, Scheduler, WordFiles, loading
from .terminal import console, log, open_model, say_loading


def web_command(
    context: typer.Context,
    model: ModelName = "pocket",
    word: WordFiles = None,
    scheduler: Scheduler = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines reach the page.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port; by default the first free one from 7860.", min=1, max=65535)
    ] = None,
    at_once: Annotated[int, typer.Option(help="Runs at a time; the others wait in a queue.", min=1, max=64)] = 2,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    share: Annotated[bool, typer.Option("--share", help="Make a public link through a server of Gradio.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
) -> None:
    """Serve a web page around a model: steer, explain, edit, heads, learn."""
    say_loading(model)

    from ..integrations.web import build

    opened = open_model(model, device, scheduler, word, context, **loading(dtype, quantize, offload))
    page = build(opened, at_once=at_once)
    try:
        _, here, public = page.launch(
            server_name=host, server_port=port, share=share, inbrowser=browser, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        raise SettingsError(f"The page cannot be served at {host}, port {port or '7860 to 7959'}: {error}") from error

    console.print(f"limelight is at {escape(public or here)}", soft_wrap=True)
    log.print("Press Ctrl-C to end it.")
    try:
        with suppress(KeyboardInterrupt):
            threading.Event().wait()  # Gradio's own waiting prints at its end
    finally:
        page.close(verbose=False)
