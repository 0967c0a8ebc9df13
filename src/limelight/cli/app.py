"""The command line: thin commands over the library."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .. import __version__
from .calibrate import calibrate_command
from .edit import edit_command
from .evaluate import app as evaluate_app
from .explain import explain_command
from .generate import generate_command
from .heads import app as heads_app
from .info import info
from .learn import learn_command
from .redraw import redraw_command
from .terminal import read_arguments, reported
from .tokens import tokens
from .validate import validate_command
from .web import web_command
from .word import app as word_app

# Before transformers and diffusers are imported: their notices are for programmers.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"limelight {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Read, steer and edit the attention of text-to-image diffusion models."""


app.command("generate")(generate_command)
app.command("redraw")(redraw_command)
app.command("edit")(edit_command)
app.command("explain")(explain_command)
app.command("calibrate")(calibrate_command)
app.command("validate")(validate_command)
app.command("tokens")(tokens)
app.command("info")(info)
app.command("learn")(learn_command)
app.command("web")(web_command)
app.add_typer(heads_app, name="heads")
app.add_typer(word_app, name="word")
app.add_typer(evaluate_app, name="evaluate")


def main() -> None:
    """Run the command line; a `LimelightError` or output that cannot be written ends it with a sentence and code 2."""
    with reported():
        read_arguments()
        app()


if __name__ == "__main__":
    main()
