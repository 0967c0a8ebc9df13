"""What all commands have in common on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from .models import quiet

console = Console(highlight=False)


class _Rate(ProgressColumn):
    """What is done in a second since the start, without what was there."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for the time of a `with`; yields what is to be told how much is done, and how much there is."""
    quiet()
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    # The rate of the last five minutes: workers finish several things at once.
    with Progress(
        *columns, _Rate(), TimeRemainingColumn(), console=console, transient=True, speed_estimate_period=300
    ) as progress:
        task = progress.add_task(label[:40], total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
