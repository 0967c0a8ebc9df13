"""The errors that a user can mend. Each is one sentence that quotes the user's words and says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class LimelightError(Exception):
    """Base of limelight's own errors; the command line prints its text and exits with 2."""


class PromptError(LimelightError, ValueError):
    """A word, phrase or index is not where the user said."""


class ModelError(LimelightError, ValueError):
    """A model cannot be found, read or driven."""


class SettingsError(LimelightError, ValueError):
    """A setting is out of its range or does not fit the model."""


class FileError(LimelightError, ValueError):
    """A file or folder cannot be found, read or written, or holds something else than expected."""


class MissingDependency(LimelightError, ImportError):
    """An optional package is not installed."""


class ProbeError(LimelightError, RuntimeError):
    """An attention layer that should have been seen was not."""


class UnknownWords(UserWarning):
    """Words that a model has never seen, where its folder says which ones it knows.

    Args:
        model: its name.
        words: as the user wrote them.
        so: what follows from it.
        cure: what to do.
    """

    def __init__(
        self, model: str, words: Iterable[str], so: str = "what it generates for that means nothing", cure: str = ""
    ) -> None:
        words = tuple(words)
        self._given = model, words, so, cure
        listed = ", ".join(f"'{word}'" for word in words)
        super().__init__("; ".join(filter(None, (f"The model '{model}' has never seen {listed}", so, cure))) + ".")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given
