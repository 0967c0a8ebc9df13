"""One progress protocol, and quiet libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


def quiet() -> None:
    """Show no bars of diffusers and transformers, where a program has imported them; downloads keep theirs.

    Imported later, they are silent while they load, see `quiet_loading`.
    """
    for name in ("diffusers", "transformers"):
        if name in sys.modules:
            sys.modules[name].utils.logging.disable_progress_bar()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers and diffusers silent while they load local files, and restore their settings at the end.

    Bars of downloads belong to another library and stay.
    """
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    logs = of_diffusers, of_transformers
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


@contextmanager
def notebook_bar(label: str = "steps") -> Iterator[Callable[[Any], None]]:
    """Show a bar of denoising steps, in notebooks as a widget; yields the callback for `on_step`.

    Examples:
        >>> with notebook_bar() as on_step:
        ...     result = limelight.generate(limelight.load("pocket"), "a cat", steps=2, on_step=on_step)
    """
    from tqdm.auto import tqdm

    with tqdm(desc=label, leave=False) as bar:

        def show(step: Any) -> None:
            bar.total, bar.n = step.count, step.index + 1
            bar.refresh()

        yield show


class Show(Protocol):
    """Tells a progress bar how much is done, how much there is, and what to say beside it now."""

    def __call__(self, done: int, total: int, label: str | None = None) -> None: ...
