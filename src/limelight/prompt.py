"""From words to token positions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import PromptError

# A word: a placeholder such as <my-cat>, or letters and digits with inner apostrophes and hyphens.
_WORD = re.compile(r"<[^<>\s]+>|[^\W_]+(?:['\u2019-][^\W_]+)*")


@dataclass(frozen=True)
class Word:
    """A word of a prompt.

    Attributes:
        text: as it is written in the prompt.
        span: its first character and the one after its last.
        positions: its tokens' positions; empty when it lies beyond what the model reads.
    """

    text: str
    span: tuple[int, int]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

    Attributes:
        text: what the user wrote.
        ids: token ids, padded to the tokenizer's length.
        tokens: their texts, as the tokenizer spells them.
        end: position of the end token: the prompt's own tokens are 1..end-1.
        words: the words in order.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    end: int
    words: tuple[Word, ...]

    def find(self, subject: str | int | Sequence[int]) -> tuple[int, ...]:
        """Token positions of a subject, in order.

        Args:
            subject: a word ("cat"), a phrase ("black cat"), a later occurrence of either ("dog#2"), a token index,
                or several indices. Upper and lower case are the same; punctuation around words does not count.

        Raises:
            PromptError: it is not in the prompt, or lies beyond what the model reads.
        """
        if isinstance(subject, int):
            return self._checked((subject,))
        if not isinstance(subject, str):
            return self._checked(tuple(subject))
        name, mark, count = subject.rpartition("#")
        occurrence = int(count) if mark and count.isdigit() else 1
        wanted = _words(name if mark and count.isdigit() else subject)
        if not wanted or occurrence < 1:
            raise PromptError(f"'{subject}' is not a word; {self._choices()}")
        texts = [word.text.lower() for word in self.words]
        starts = [i for i in range(len(texts)) if texts[i : i + len(wanted)] == wanted]
        if not starts:
            raise PromptError(f"'{subject}' is not in the prompt; {self._choices()}")
        if occurrence > len(starts):
            times = "once" if len(starts) == 1 else f"{len(starts)} times"
            raise PromptError(f"'{subject}' asks for occurrence {occurrence}, but '{name}' is in the prompt {times}.")
        found = self.words[starts[occurrence - 1] :][: len(wanted)]
        if not all(word.positions for word in found):
            raise PromptError(
                f"'{subject}' lies beyond the {len(self.ids)} tokens that this model reads; shorten the prompt. "
                f"It reads these words: {', '.join(word.text for word in self.words if word.positions)}."
            )
        return tuple(sorted({position for word in found for position in word.positions}))

    def _checked(self, indices: tuple[int, ...]) -> tuple[int, ...]:
        for index in indices:
            if not 1 <= index < self.end:
                listed = ", ".join(f"{i} {self.tokens[i]}" for i in range(1, self.end))
                raise PromptError(f"Token index {index} is not in the prompt; its tokens are: {listed}.")
        if not indices:
            raise PromptError("An empty list of token indices names no subject.")
        return indices

    def _choices(self) -> str:
        return (
            f"its words are: {', '.join(word.text for word in self.words)}." if self.words else "the prompt is empty."
        )


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in _WORD.finditer(text)]


def parse(text: str, tokenizer: Any, length: int) -> Prompt:
    """Tokenize a prompt with a fast transformers tokenizer, cut and padded to `length` tokens."""
    encoded = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True)
    ids = tuple(encoded["input_ids"])
    # A padding token may be the end token (SD 1.x): the prompt ends at the first one after it starts.
    end = next((i for i, token in enumerate(ids) if i > 0 and token == tokenizer.eos_token_id), len(ids) - 1)
    spans = encoded["offset_mapping"]
    words = []
    for match in _WORD.finditer(text):
        start, stop = match.span()
        inside = tuple(i for i in range(1, end) if spans[i][0] < stop and spans[i][1] > start)
        whole = bool(inside) and max(spans[i][1] for i in inside) >= stop
        words.append(Word(match.group(), (start, stop), inside if whole else ()))
    return Prompt(text, ids, tuple(tokenizer.convert_ids_to_tokens(list(ids))), end, tuple(words))
