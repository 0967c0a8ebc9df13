"""From words to token positions."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import PromptError

# A word: a placeholder such as <my-cat>, or letters (with accents) and digits with inner apostrophes and hyphens.
_LETTERS = r"(?:[^\W_][\u0300-\u036f]*)+"
_WORD = re.compile(rf"<[^<>\s]+>|{_LETTERS}(?:['\u2019-]{_LETTERS})*")


@dataclass(frozen=True)
class Word:
    """A word of a prompt.

    Attributes:
        text: as it is written in the prompt.
        span: its first character and the one after its last.
        positions: its tokens' positions; empty when it lies beyond what the model reads.
        learned: whether it is a learned word, see `limelight.LearnedWord`.
    """

    text: str
    span: tuple[int, int]
    positions: tuple[int, ...]
    learned: bool = False

    @property
    def key(self) -> str:
        """What makes two spellings the same word."""
        return _key(self.text)


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        text: what the user wrote.
        ids: token ids, padded to the tokenizer's length.
        tokens: their texts, as the tokenizer spells them.
        end: position of the end token: the prompt's own tokens are 1..end-1.
        words: the words in order.
        padded: whether what follows the end token are tokens of another kind (Stable Diffusion 2.x, BERT) and not more
            end tokens (Stable Diffusion 1.x, XL), which carry meaning of their own.
        whole: how many tokens it would have if the model read all of it.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    end: int
    words: tuple[Word, ...]
    padded: bool = False
    whole: int = 0

    def find(self, subject: str | int | Sequence[int]) -> tuple[int, ...]:
        """Token positions of a subject, in order.

        Args:
            subject: a word ("cat"), a phrase ("black cat"), a later occurrence of either ("dog#2"), a token index,
                or several indices. Upper and lower case are the same; punctuation around words does not count.

        Raises:
            PromptError: it is not in the prompt, or lies beyond what the model reads.
        """
        if not isinstance(subject, str):
            return self._checked(subject)

        name, occurrence = _numbered(subject)
        found = self._occurrence(subject, name, occurrence)
        if not all(word.positions for word in found):
            read = ", ".join(word.text for word in self.words if word.positions)
            raise PromptError(
                f"'{subject}' lies beyond the {len(self.ids)} tokens that this model reads; shorten the prompt, which "
                f"has {self.whole}. It reads these words: {read}."
            )
        return tuple(sorted({position for word in found for position in word.positions}))

    def _occurrence(self, subject: str, name: str, occurrence: int) -> tuple[Word, ...]:
        """The words of one occurrence, counted from 1, of a word or phrase."""
        wanted = [_key(match.group()) for match in _WORD.finditer(name)]
        if not wanted or occurrence < 1:
            raise PromptError(f"'{subject}' is not a word; {self._choices()}")

        keys = [word.key for word in self.words]
        starts = [i for i in range(len(keys)) if keys[i : i + len(wanted)] == wanted]
        if not starts:
            raise PromptError(f"'{subject}' is not in the prompt; {self._choices()}")
        if occurrence > len(starts):
            times = "once" if len(starts) == 1 else f"{len(starts)} times"
            raise PromptError(f"'{subject}' asks for occurrence {occurrence}, but '{name}' is in the prompt {times}.")

        start = starts[occurrence - 1]
        return self.words[start : start + len(wanted)]

    def _checked(self, subject: int | Sequence[int]) -> tuple[int, ...]:
        """Token indices, without repetitions and in order."""
        given = subject if isinstance(subject, Sequence) else [subject]
        try:
            indices = tuple(sorted({operator.index(i) for i in given}))
        except TypeError:
            raise PromptError(
                f"The subject {subject!r} is neither a word nor a token index nor a list of them."
            ) from None
        if not indices:
            raise PromptError("An empty list of token indices names no subject.")

        for index in indices:
            if not 1 <= index < self.end:
                listed = ", ".join(f"{i} {self.tokens[i]}" for i in range(1, self.end))
                raise PromptError(f"Token index {index} is not in the prompt; its tokens are: {listed}.")
        return indices

    def _choices(self) -> str:
        if not self.words:
            return "the prompt is empty."
        return f"its words are: {', '.join(word.text for word in self.words)}."


def _numbered(subject: str) -> tuple[str, int]:
    """A name and which of its occurrences is meant: "dog#2" is the second dog."""
    name, mark, count = subject.rpartition("#")
    if mark and count.isdecimal():
        return name, int(count)
    return subject, 1


def _key(word: str) -> str:
    return unicodedata.normalize("NFC", word).lower()


def unread(length: int) -> Prompt:
    """A prompt of which only `length` encoded tokens are known, and neither its words nor where they end."""
    return Prompt("", (0,) * length, ("",) * length, length - 1, ())


def parse(text: str, tokenizer: Any, length: int) -> Prompt:
    """Tokenize a prompt with a fast transformers tokenizer, cut and padded to `length` tokens.

    A learned word that the tokenizer knows is as many tokens as it has vectors.

    Raises:
        PromptError: it names single vectors of a learned word.
    """
    tokens = _tokens(text, tokenizer)
    ids = [token.id for token in tokens]
    if len(ids) > length:
        ids = ids[: length - 1] + ids[-1:]

    end = len(ids) - 1
    padded = tokenizer.pad_token_id != ids[end]
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    names = tuple(tokenizer.convert_ids_to_tokens(ids))
    return Prompt(text, tuple(ids), names, end, _words(text, tokens, end), padded, len(tokens))


class _Token(NamedTuple):
    """A token and the characters that it stands for."""

    id: int
    span: tuple[int, int]
    learned: bool


def _tokens(text: str, tokenizer: Any) -> list[_Token]:
    """All tokens of a text; a learned word is as many as it has vectors."""
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    learned, single = _learned(tokenizer)
    tokens = []
    for token, span in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if token in single:
            word = single[token]
            raise PromptError(f"'{text[slice(*span)]}' in the prompt is one vector of '{word}'; write '{word}' alone.")
        for own in learned.get(token, (token,)):
            tokens.append(_Token(own, span, token in learned))
    return tokens


def _words(text: str, tokens: Sequence[_Token], end: int) -> tuple[Word, ...]:
    """The words of a text, each with the positions of its tokens; without any if they do not all lie before `end`."""
    words = []
    for match in _WORD.finditer(text):
        start, stop = match.span()
        positions = tuple(i for i, (_, span, _) in enumerate(tokens) if span[0] < stop and span[1] > start)
        learned = any(tokens[i].learned for i in positions)
        read = positions if positions and positions[-1] < end else ()
        words.append(Word(match.group(), (start, stop), read, learned))
    return tuple(words)


def _learned(tokenizer: Any) -> tuple[dict[int, tuple[int, ...]], dict[int, str]]:
    """The learned words of a tokenizer: the ids of their vectors by that of the first; the others' words by their ids.

    The vectors of <cat> are called <cat>, <cat>_1, <cat>_2, ..., as diffusers names them.
    """
    added = tokenizer.get_added_vocab()
    learned: dict[int, tuple[int, ...]] = {}
    single: dict[int, str] = {}
    for name in added.keys() - set(tokenizer.all_special_tokens):
        further: list[int] = []
        while (following := added.get(f"{name}_{len(further) + 1}")) is not None:
            further.append(following)
        learned[added[name]] = (added[name], *further)
        single |= dict.fromkeys(further, name)
    return {first: ids for first, ids in learned.items() if first not in single}, single
