"""The console protocol of all commands: results on stdout; progress, notes, warnings and errors on stderr."""

from __future__ import annotations

import io
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..errors import LimelightError, PromptWarning, SettingsError, SizeWarning, WorkerWarning
from ..utils.progress import Show, quiet
from .options import read_words
from .threads import choose_threads

if TYPE_CHECKING:
    from ..generation.loop import Step
    from ..models.base import Model
    from ..textual_inversion.word import LearnedWord

# Control characters, and those that turn the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class _Console(Console):
    """A console on which names and prompts of others' files are shown, and command nothing."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(_CONTROL.sub(_escaped, text), **options)


def _escaped(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode()


LINE_SECONDS = 60
"""Between lines of progress where there is no terminal."""
console = _Console(highlight=False)
log = _Console(highlight=False, stderr=True)


@contextmanager
def reported() -> Iterator[None]:
    """Print a `LimelightError` as one sentence and exit with code 2; show limelight's own warnings alone.

    Letters that the terminal does not have are printed as escapes. Output that cannot be written is such an error, too.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries are for programmers
        warnings.simplefilter("once", PromptWarning)
        warnings.simplefilter("once", SizeWarning)
        warnings.simplefilter("always", WorkerWarning)
        warnings.showwarning = lambda message, *_: say(message, "warning")

        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except LimelightError as error:
            _end(error)
        except OSError as error:
            what = f"'{error.filename}' cannot be used" if error.filename else "The output cannot be written"
            _end(f"{what}: {error.strerror or error}.")


def _end(reason: object) -> NoReturn:
    """Exit with code 2 after one sentence, if stderr takes it."""
    try:
        say(reason, "error")
        sys.stdout.flush()
    except OSError:
        pass
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # what is left would be written at the very end again, and fail with a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(2)


def read_arguments() -> None:
    """Take the arguments as UTF-8, also where the locale has another encoding.

    Raises:
        SettingsError: one is not.
    """
    for i, text in enumerate(sys.argv):
        try:
            if not text.isascii():
                sys.argv[i] = os.fsencode(text).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SettingsError(f"The argument {text!a} is not UTF-8. Write it, or name the file, in UTF-8.") from error
        except UnicodeEncodeError:
            pass  # the argument is not from the system


def say(text: object, kind: str = "note") -> None:
    """Print a sentence on stderr, on one line above a progress bar if there is one."""
    line = str(text).replace("\n", "\\n")
    log.print(f"{kind}: {line}", markup=False, soft_wrap=True)


def say_loading(what: object) -> None:
    """Say at once what is loaded: what a command imports for it takes seconds. Threads are chosen before that."""
    log.print(f"loading {escape(' '.join(str(what).split()))} ...", soft_wrap=True)
    choose_threads(what)


def open_model(
    source: str,
    device: str | None,
    scheduler: str | None = None,
    words: Sequence[str] | None = None,
    context: typer.Context | None = None,
    **options: Any,
) -> Model:
    """Load a model, with learned words from files for as long as the command of this context runs.

    `say_loading` comes first.
    """
    learned = read_words(words or ())  # first: models take longer

    from ..models.loading import load

    model = load(source, device=device, scheduler=scheduler, **options)
    if context is not None:
        bind_words(model, learned, context)
    return model


def bind_words(model: Model, learned: Sequence[LearnedWord], context: typer.Context) -> None:
    """Bind learned words for as long as the command of this context runs."""
    for word in learned:
        context.with_resource(word.bind(model))
        log.print(f"learned word: {escape(word.token)}")


@contextmanager
def stoppable(saved: Callable[[], str]) -> Iterator[None]:
    """End a command with one sentence and exit code 130 where it is stopped with Ctrl-C.

    Args:
        saved: says what is saved and how to go on.
    """
    try:
        yield
    except KeyboardInterrupt:
        log.print(f"Stopped: {saved()}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def saving_at_end(folder: Path) -> Iterator[Callable[[], None]]:
    """Let a command be stopped that saves all its images together; yields what to call before it saves."""
    begun: list[bool] = []

    def saved() -> str:
        if begun:
            return f"the files in '{folder}' are whole; the same command adds those that are missing."
        return "nothing is saved, as images are saved when all are finished; the same command begins again."

    with stoppable(saved):
        yield lambda: begun.append(True)


@contextmanager
def resumable_bar(label: str, kept: str, folder: object) -> Iterator[Show]:
    """Show a progress bar of a command that can be stopped, and goes on when it is called again.

    Args:
        label: of the bar.
        kept: what is counted, for example "images".
        folder: where it is saved.
    """
    counts = [0, 0]

    def saved() -> str:
        done, total = counts
        what = f"{done} of {total} {kept} are" if total else "what was there is"
        return f"{what} saved in '{folder}'; the same command goes on from there."

    with stoppable(saved), bar(label) as show:

        def note(done: int, total: int, label: str | None = None) -> None:
            counts[:] = done, total
            show(done, total, label)

        yield note


class _Rate(ProgressColumn):
    """What is done per second since the start, without what was there."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def bar(label: str) -> Iterator[Show]:
    """Show a progress bar for the time of a `with`; what `say` prints meanwhile stands above it.

    Where stderr is not a terminal there is a line a minute instead.
    """
    quiet()
    title, said = label, time.monotonic()
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()

    # The rate of the last five minutes: workers finish several things at once. In a file a bar is an empty line.
    with Progress(
        *columns,
        _Rate(),
        TimeRemainingColumn(),
        console=log,
        transient=True,
        speed_estimate_period=300,
        disable=not log.is_terminal,
    ) as progress:
        task = progress.add_task(label[:40], total=None)

        def show(done: int, total: int, label: str | None = None) -> None:
            nonlocal said
            progress.update(task, completed=done, total=total, description=label and label[:40])
            if not log.is_terminal and time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                log.print(f"{label or title}: {done} of {total}", markup=False, soft_wrap=True)

        yield show


@contextmanager
def step_bar(label: str) -> Iterator[Callable[[Step], None]]:
    """Show a progress bar of denoising steps; yields the callback for `on_step`."""
    with bar(label) as show:
        yield lambda step: show(step.index + 1, step.count)


@contextmanager
def step_table(label: str, subjects: Sequence[str]) -> Iterator[Callable[[Step], None]]:
    """Show a line per denoising step; yields the callback for `on_step`.

    Args:
        label: title of the table.
        subjects: the guided ones; with them, every image has its loss, each subject's presence and the refinements.
    """
    columns = ["image", "loss", *map(escape, subjects), "refinements"] if subjects else []
    table = Table("step", "seconds", *columns, title=label)

    def show(step: Step) -> None:
        head = [f"{step.index + 1}/{step.count}", f"{step.seconds:.2f}"]
        if step.move is None:
            table.add_row(*head)
            return
        facts = step.move.facts()
        looked = step.move.plain_facts().get("plain_presence")
        columns = zip(facts["loss"], facts["presence"], facts["refinements"], strict=True)
        for i, (loss, presence, refinements) in enumerate(columns):
            if looked and presence == looked[i]:  # those of the plain run, repeated in every step
                cells = ["stays plain"]
            else:
                cells = [*(f"{value:.3f}" for value in (loss, *presence)), str(refinements)]
            table.add_row(*(head if i == 0 else ["", ""]), str(i + 1), *cells)

    with Live(table, console=log, refresh_per_second=4):
        yield show

    if not log.is_terminal:  # there the table ends its line by itself
        log.print()
