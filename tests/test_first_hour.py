"""The commands of the documents: each has only options that exist; run really, each does what it should."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from limelight.cli.app import app
from tests.first_hour import commands, documents, main, runnable

COMMANDS = [(document.name, arguments) for document in documents() for arguments in commands(document)]


@pytest.fixture(scope="module")
def program() -> Any:
    return typer.main.get_command(app)


@pytest.mark.parametrize(("document", "arguments"), COMMANDS, ids=[shlex.join(args) for _, args in COMMANDS])
def test_every_option_of_a_command_exists(program, document, arguments):
    """Parsing refuses an unknown command, an unknown option, and values of a wrong type."""
    command, left = program, list(arguments)
    while hasattr(command, "commands"):
        name = left.pop(0)
        if name.startswith("--"):
            return
        assert name in command.commands, f"{document}: limelight has no command '{name}'"
        command = command.commands[name]
    command.make_context(command.name, left)


def test_the_documents_have_commands():
    assert len(COMMANDS) > 40
    assert sum(runnable(arguments) for _, arguments in COMMANDS) > 15


@pytest.mark.slow
@pytest.mark.skipif("not config.getoption('markexpr')", reason="runs for half an hour: pytest -m slow")
def test_the_first_hour(tmp_path):
    assert main(tmp_path, []) == 0
