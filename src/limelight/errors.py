"""The errors that a user can mend. Each is one sentence that quotes the user's words and says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
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


class WorkerWarning(UserWarning):
    """A worker was ended because it did nothing; its job is done again."""


class SizeWarning(UserWarning):
    """Images are to be far larger than those that the model was trained on."""


class PromptWarning(UserWarning):
    """A model does not read a prompt as its author may expect."""


class UnknownWords(PromptWarning):
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
        unseen = f"The model '{model}' has never seen {quoted(words)}"
        super().__init__("; ".join(filter(None, (unseen, so, cure))) + ".")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._given


class LostWords(PromptWarning):
    """Words at the end of a prompt that is longer than the model reads."""

    @classmethod
    def of(cls, model: str, tokens: int, text: str, size: str, words: Sequence[str], others: int = 0) -> LostWords:
        """Name them.

        Args:
            model: its name.
            tokens: how many it reads.
            text: the prompt.
            size: how many tokens the prompt has, as a part of a sentence.
            words: those that are lost, as the user wrote them.
            others: how many further prompts are too long.
        """
        words = list(dict.fromkeys(words))
        also = ""
        if others:
            also = f", and {others} other prompt{' is' if others == 1 else 's are'} too long as well"
        return cls(
            f"The model '{model}' reads {tokens} tokens of a prompt and leaves out {_listed(words)} of "
            f"'{_short(text)}', which has {size}{also}; shorten it."
        )


class UnsupportedMarkup(PromptWarning):
    """Markup of other programs in a prompt."""

    @classmethod
    def of(cls, markup: Sequence[str]) -> UnsupportedMarkup:
        """Quote it."""
        return cls(
            f"{_listed(markup)} in the prompt is markup of other programs, which limelight does not support: the model "
            "reads it as text. Remove it; `limelight.edit(reweight=...)` weighs words, `--word` loads learned ones."
        )


class KeptByLocal(PromptWarning):
    """Words that a local edit leaves in the image although the target lacks them."""

    @classmethod
    def of(cls, words: Sequence[str], target: str, local: Sequence[str]) -> KeptByLocal:
        """Name them.

        Args:
            words: of the source.
            target: a target that lacks them.
            local: the words whose places alone change.
        """
        return cls(
            f"{_listed(words)} stays in the image although '{_short(target)}' lacks it: the edit changes the places of "
            f"{_listed(local)} alone. Add it to local, on the command line --local {','.join((*local, *words))}."
        )


class PoorReconstruction(PromptWarning):
    """A given image that the model does not give back."""

    @classmethod
    def of(cls, decibels: float, prompt: str, null_text: bool) -> PoorReconstruction:
        """Say how far it is, and why.

        Args:
            decibels: peak signal-to-noise ratio of the reconstruction.
            prompt: what the image is said to show.
            null_text: whether null-text inversion was used already.
        """
        cure = "" if null_text else ", or use null_text (--null-text)"
        return cls(
            f"The image is reconstructed with only {decibels:.1f} dB (PSNR), so that edits are of another image. "
            f"'{_short(prompt)}' may not describe it: write what it shows in words that the model knows{cure}."
        )


class NoSubjects(PromptWarning):
    """A prompt in which no subject is found, so that it is generated without guidance."""

    @classmethod
    def of(cls, texts: Sequence[str], words: Sequence[str]) -> NoSubjects:
        """Quote the first.

        Args:
            texts: all such prompts.
            words: those of the first prompt, as the user wrote them.
        """
        also = f" and of {len(texts) - 1} other prompts" if len(texts) > 1 else ""
        choice = f"name some of its words as subjects: {_listed(words)}" if words else "it has no words"
        return cls(
            f"No subject can be guessed from '{_short(texts[0])}', so that its images{also} are generated without "
            f"guidance; {choice}."
        )


def quoted(names: Iterable[object]) -> str:
    """A list in quotation marks."""
    return ", ".join(f"'{name}'" for name in names)


def meant(name: str, choices: Iterable[str]) -> str:
    """What was probably meant by a name that is none of the choices, as a sentence that follows another, or nothing."""
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return f" Did you mean '{lower[close[0]]}'?" if close else ""


def _listed(words: Sequence[str], most: int = 12) -> str:
    """The first words of a list in quotation marks, and how many there are besides."""
    shown = quoted(map(_short, words[:most]))
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
