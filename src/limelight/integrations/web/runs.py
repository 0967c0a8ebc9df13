"""Runs of the library in threads: they show previews, they can be stopped, and their errors become sentences."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from time import perf_counter
from typing import Any

import gradio as gr
from PIL import Image

from ...errors import LimelightError
from ...generation.loop import Step
from ...models.base import Model

PAUSE = 0.3
"""Seconds between previews: decoding takes time from the run itself."""
PREVIEW = 512
"""Longest side of a preview in pixels."""


class StoppedError(Exception):
    """The user has stopped a run."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        title: what it does.
        text: how far it is, in words.
        images: what it would give now; none where nothing new is to be seen.
    """

    title: str
    text: str
    images: tuple[Image.Image, ...] = ()


class Stops:
    """The runs that are under way, by who began them: a session and a tab."""

    def __init__(self) -> None:
        self._flags: dict[tuple[str | None, str], threading.Event] = {}

    def begin(self, request: gr.Request, tab: str) -> threading.Event:
        """A flag for a new run, which ends the one before it."""
        self.stop(request, tab)
        flag = threading.Event()
        self._flags[request.session_hash, tab] = flag
        return flag

    def stop(self, request: gr.Request, tab: str) -> None:
        """End the run of a tab, if there is one."""
        flag = self._flags.pop((request.session_hash, tab), None)
        if flag is not None:
            flag.set()

    def leave(self, request: gr.Request) -> None:
        """End all runs of a session whose page was closed."""
        for session, tab in list(self._flags):
            if session == request.session_hash:
                self.stop(request, tab)


class Run:
    """One run: what it reports, and whether it is to go on.

    Attributes:
        title: what it does at the moment, as the start of its reports.
    """

    def __init__(self, model: Model, flag: threading.Event) -> None:
        self.model, self.title = model, ""
        self._flag, self._reports, self._last = flag, Queue[Any](), 0.0

    def on_step(self, step: Step) -> None:
        """Report a denoising step, with a preview if the last one is some time ago.

        Raises:
            StoppedError: the run is to end.
        """
        images: tuple[Image.Image, ...] = ()
        if perf_counter() - self._last > PAUSE and step.index + 1 < step.count:
            images = tuple(map(_small, self.model.decode(step.latents)))
            self._last = perf_counter()
        self.report(f"step {step.index + 1} of {step.count}", images)

    def report(self, text: str, images: tuple[Image.Image, ...] = ()) -> None:
        """Report something in words.

        Raises:
            StoppedError: the run is to end.
        """
        if self._flag.is_set():
            raise StoppedError
        self._reports.put(Progress(self.title, f"{self.title} \u00b7 {text}" if self.title else text, images))

    def follow(self, work: Callable[[Run], Any]) -> Iterator[Any]:
        """Do work in a thread; yield the `Progress` that it reports and at last what it returns.

        When the caller ends early, the work ends at its next report.

        Raises:
            gr.Error: the work failed; the sentence of a `LimelightError` is its message.
        """
        thread = threading.Thread(target=self._work, args=(work,), daemon=True)
        thread.start()
        try:
            while True:
                found = self._newest()
                if isinstance(found, StoppedError):
                    return
                if isinstance(found, LimelightError):
                    raise refusal(found)
                if isinstance(found, BaseException):
                    raise found
                yield found
                if not isinstance(found, Progress):
                    return
        finally:
            self._flag.set()

    def _work(self, work: Callable[[Run], Any]) -> None:
        try:
            found = work(self)
        except BaseException as error:  # it belongs to the thread that follows
            found = error
        self._reports.put(found)

    def _newest(self) -> Any:
        """The newest report: those before it are passed over, unless they have images."""
        found = self._reports.get()
        try:
            while isinstance(found, Progress) and not found.images:
                found = self._reports.get_nowait()
        except Empty:
            pass
        return found


@contextmanager
def refused() -> Iterator[None]:
    """Turn a `LimelightError` into what Gradio shows.

    Raises:
        gr.Error: instead of it.
    """
    try:
        yield
    except LimelightError as error:
        raise refusal(error) from error


def refusal(error: LimelightError) -> gr.Error:
    """An error of the library as one sentence on the page."""
    return gr.Error(literal(str(error)), title="That does not work", print_exception=False)


def literal(text: str) -> str:
    """Text as the page shows it where angle brackets would be markup: "<my-cat>" stays a word."""
    return html.escape(text, quote=False)


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((PREVIEW, PREVIEW))
    return image
