"""`limelight info`."""

from __future__ import annotations

import platform
from importlib.metadata import version

from rich.markup import escape
from rich.table import Table

from .options import Device, ModelName
from .terminal import console, open_model


def info(model: ModelName = "pocket", device: Device = None) -> None:
    """Show the model, device, dtype and versions in use."""
    table = Table(show_header=False)
    opened = open_model(model, device)
    for key, value in opened.describe().items():
        table.add_row(key, escape(value))
    if opened.about.words is not None:
        table.add_row("words", escape(" ".join(sorted(opened.about.words))))
    for package in ("limelight", "torch", "diffusers", "transformers"):
        table.add_row(package, version(package))
    table.add_row("python", platform.python_version())
    console.print(table)
