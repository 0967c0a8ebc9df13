"""What all commands have in common on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .errors import SettingsError
from .models import quiet

console = Console(highlight=False)

Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; by default the first that is there.")]


class Show(Protocol):
    """Tells a progress bar how much is done, how much there is, and what to say beside it now."""

    def __call__(self, done: int, total: int, label: str | None = None) -> None: ...


class _Rate(ProgressColumn):
    """What is done in a second since the start, without what was there."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def bar(label: str) -> Iterator[Show]:
    """A progress bar for the time of a `with`; what is printed on the console meanwhile stands above it."""
    quiet()
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    # The rate of the last five minutes: workers finish several things at once.
    with Progress(
        *columns, _Rate(), TimeRemainingColumn(), console=console, transient=True, speed_estimate_period=300
    ) as progress:
        task = progress.add_task(label[:40], total=None)

        def show(done: int, total: int, label: str | None = None) -> None:
            progress.update(task, completed=done, total=total, description=label and label[:40])

        yield show


def read_lines(path: Path, purpose: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"'{path}' cannot be read as {purpose} ({error}).") from error
    return [line.strip() for line in lines if line.strip()]
