"""From words to token positions."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any, NamedTuple

from ..errors import PromptError, meant
from .markup import Markup, find_markup
from .pieces import encoded_spans
from .words import graphemes, key, spaceless, word_spans

# Each word is at least one token: the words after so many times the model's length cannot be among those it reads.
_MARGIN = 8


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
        return key(self.text)


class _Unit(NamedTuple):
    """The least that a subject can name: a word, or a character of a script without spaces."""

    key: str
    span: tuple[int, int]
    word: int


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
        whole: how many tokens it would have if the model read all of it; of a prompt of very many words, at least.
        spans: for each position before `end`, the first character of its token and the one after its last.
        streams: the positions from which on the tokens are those of a second, third, ... text encoder. A word has
            positions in every stream.
        places: for each position, where its token lies in the text that the denoiser reads, -1 where it does not; empty
            where positions and places are the same.
        limit: how many tokens the model reads, if that is another number than `ids` has.
        around: what the model writes around the prompt.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    end: int
    words: tuple[Word, ...]
    padded: bool = False
    whole: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    streams: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    limit: int = 0
    around: str = ""

    @property
    def length(self) -> int:
        """How many tokens the model reads at most."""
        return self.limit or len(self.ids)

    @property
    def parts(self) -> tuple[range, ...]:
        """The positions of each stream, up to `end`; the first begins at 0."""
        ends = (*self.streams, self.end)
        return tuple(range(start, stop) for start, stop in zip((0, *self.streams), ends, strict=True))

    def widened(self, positions: int) -> Prompt:
        """The same prompt with so many positions."""
        more = positions - len(self.ids)
        if not more:
            return self
        ids, tokens = (*self.ids, *(0,) * more), (*self.tokens, *("",) * more)
        return replace(self, ids=ids, tokens=tokens, places=(*self.places, *(-1,) * more), limit=self.length)

    @property
    def lost(self) -> tuple[str, ...]:
        """What the model does not read because the prompt is too long: words, or the text that holds none."""
        words = tuple(word.text for word in self.words if not word.positions)
        if words or self.whole <= self.length:
            return words
        return (self.text[self.spans[-1][1] :].strip(),)

    @cached_property
    def markup(self) -> tuple[Markup, ...]:
        """Markup of other programs, which the model reads as text."""
        return tuple(find_markup(self.text, [word.span for word in self.words if word.learned]))

    @property
    def size(self) -> str:
        """`whole` as a number in a sentence."""
        if len(self.words) > _MARGIN * self.length:
            return f"more than {self.whole}"
        return str(self.whole)

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
        positions = map(operator.attrgetter("positions"), self.find_words(subject))
        return tuple(sorted(set(chain.from_iterable(positions))))

    def has(self, subject: str) -> bool:
        """Whether a word or phrase is in the prompt, and is read."""
        try:
            return bool(self.find(subject))
        except PromptError:
            return False

    def find_words(self, subject: str) -> tuple[Word, ...]:
        """The words of a subject that is a word, a phrase, or a later occurrence of either, see `find`.

        In Chinese, Japanese, Thai and other scripts without spaces, a part of a run of letters is a word of its own
        where no run is equal to it.

        Raises:
            PromptError: it is not in the prompt, or lies beyond what the model reads.
        """
        name, occurrence = _numbered(subject)
        found = self._occurrence(subject, name, occurrence)
        if not all(word.positions for word in found):
            read = ", ".join(self.read)
            raise PromptError(
                f"'{subject}' lies beyond the {self.length} tokens that this model reads; shorten the prompt, which "
                f"has {self.size}. It reads these words: {read}."
            )
        return found

    def _occurrence(self, subject: str, name: str, occurrence: int) -> tuple[Word, ...]:
        """The words of one occurrence, counted from 1, of a word or phrase."""
        spans = word_spans(name, self._names)
        if not spans or occurrence < 1:
            raise PromptError(f"'{subject}' is not a word; {self._choices()}")

        found = self._whole_words([key(name[slice(*span)]) for span in spans]) or self._parts_of_words(name, spans)
        if not found:
            where = ""
            if _places(_keys(self.around), [key(name[slice(*span)]) for span in spans]):
                where = " but in the text that this model writes around it, which has no maps"
            raise PromptError(f"'{subject}' is not in the prompt{where}; {self._choices()}{meant(name, self.read)}")
        if occurrence > len(found):
            times = "once"
            if len(found) > 1:
                times = f"{len(found)} times"
            raise PromptError(f"'{subject}' asks for occurrence {occurrence}, but '{name}' is in the prompt {times}.")
        return found[occurrence - 1]

    def _whole_words(self, wanted: list[str]) -> list[tuple[Word, ...]]:
        """Every place where words with these keys follow each other."""
        return [self.words[i : i + len(wanted)] for i in _places(self.keys, wanted)]

    def _parts_of_words(self, name: str, spans: list[tuple[int, int]]) -> list[tuple[Word, ...]]:
        """Every place of a name that has letters of a script without spaces, also inside words."""
        if not any(spaceless(name[slice(*span)]) for span in spans):
            return []

        wanted = [unit.key for unit in _units(name, spans)]
        units = _units(self.text, [word.span for word in self.words])
        found = []
        for i in _places([unit.key for unit in units], wanted):
            parts = []
            for which, own in groupby(units[i : i + len(wanted)], lambda unit: unit.word):
                covered = [unit.span for unit in own]
                parts.append(self._part(self.words[which], covered[0][0], covered[-1][1]))
            found.append(tuple(parts))
        return found

    def _part(self, word: Word, start: int, stop: int) -> Word:
        """The part of a word between two characters of the prompt."""
        positions = tuple(i for i in word.positions if self.spans[i][0] < stop and self.spans[i][1] > start)
        return Word(self.text[start:stop], (start, stop), positions, word.learned)

    @property
    def read(self) -> list[str]:
        """The words that the model reads, as they are written."""
        return [word.text for word in self.words if word.positions]

    @cached_property
    def keys(self) -> list[str]:
        """What makes two spellings of each word the same."""
        return [word.key for word in self.words]

    @cached_property
    def _names(self) -> frozenset[str]:
        """The learned words, whose names may have any form."""
        return frozenset(word.text for word in self.words if word.learned)

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


def _units(text: str, spans: Sequence[tuple[int, int]]) -> list[_Unit]:
    """The words at some spans, those of scripts without spaces character by character."""
    units = []
    for which, (start, stop) in enumerate(spans):
        word = text[start:stop]
        inner = [(0, len(word))]
        if spaceless(word):
            inner = graphemes(word)
        units += [_Unit(key(word[a:b]), (start + a, start + b), which) for a, b in inner]
    return units


def _keys(text: str) -> list[str]:
    """What makes two spellings of each word of a text the same."""
    return [key(text[start:stop]) for start, stop in word_spans(text)]


def _places(keys: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where a sequence lies in another."""
    length = len(wanted)
    return [i for i, first in enumerate(keys) if first == wanted[0] and list(keys[i : i + length]) == list(wanted)]


def _numbered(subject: str) -> tuple[str, int]:
    """A name and which of its occurrences is meant: "dog#2" is the second dog."""
    name, mark, count = subject.rpartition("#")
    if mark and count.isdecimal():
        return name, int(count)
    return subject, 1


def occurrence_name(name: str, occurrence: int) -> str:
    """A word or phrase as `Prompt.find` takes its occurrence, counted from 1: "dog", "dog#2"."""
    if occurrence == 1:
        return name
    return f"{name}#{occurrence}"


def unread(length: int) -> Prompt:
    """A prompt of which only `length` encoded tokens are known, and neither its words nor where they end."""
    return Prompt("", (0,) * length, ("",) * length, length - 1, ())


def parse(text: str, tokenizer: Any, length: int) -> Prompt:
    """Tokenize a prompt with a fast transformers tokenizer, cut and padded to `length` tokens.

    A learned word that the tokenizer knows is as many tokens as it has vectors. The time is linear in the length of the
    text.

    Raises:
        PromptError: it names single vectors of a learned word, or is not valid text.
    """
    spans = word_spans(text)
    tokens = _tokens(_begin(text, spans, length), tokenizer)
    ids = list(map(_id, tokens))
    if len(ids) > length:
        ids = ids[: length - 1] + ids[-1:]

    end = len(ids) - 1
    padded = tokenizer.pad_token_id != ids[end]
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    return Prompt(
        text,
        tuple(ids),
        tuple(tokenizer.convert_ids_to_tokens(ids)),
        end,
        _words(text, _with_learned(spans, tokens), tokens, end),
        padded,
        len(tokens),
        tuple(map(_span, tokens[:end])),
    )


@dataclass(frozen=True)
class Stream:
    """How one text encoder of a model reads a prompt.

    Attributes:
        tokenizer: a fast one of transformers.
        length: how many tokens it reads, with those that it adds itself and those of the template.
        first: where its first token that the denoiser reads lies in the text of all encoders.
        template: what is written around the prompt, for which "{}" stands.
        dropped: how many tokens at the begin do not reach the denoiser.
        lower: whether it reads the prompt in lower case and without the spaces around it.
        adds: whether the tokenizer adds tokens of its own around the text.
        left: whether the text is filled up on the left, so that it ends at `length`.
    """

    tokenizer: Any
    length: int
    first: int = 0
    template: str = "{}"
    dropped: int = 0
    lower: bool = False
    adds: bool = True
    left: bool = False

    def tokens(self, text: str) -> tuple[list[_Token], list[int]]:
        """The prompt's own tokens with their spans in it, and the places of those that are read."""
        before, _, after = self.template.partition("{}")
        start = len(before)
        if self.lower:
            start -= len(text) - len(text.lstrip())
            text = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text).strip()
        found = _tokens(f"{before}{text}{after}", self.tokenizer, self.adds)
        first = self._place_of_first(len(found))
        read = self.length - _ending(found)  # the tokenizer's own tokens at the end stay where a text is cut
        own, places = list[_Token](), list[int]()
        for i, (token, (a, b), learned) in enumerate(found):
            if a < b and b > len(before) and a < len(before) + len(text):
                own.append(_Token(token, (a - start, b - start), learned))
                if i < read:
                    places.append(first + i)
        return own, places

    def _place_of_first(self, count: int) -> int:
        """The place of the first of so many tokens, also where it is not read."""
        first = self.first - self.dropped
        if self.left:
            first += max(self.length - count, 0)
        return first


def parse_streams(text: str, streams: Sequence[Stream]) -> Prompt:
    """Tokenize a prompt that one or several text encoders read, each its own way.

    Its positions are the prompt's own tokens of all streams, one after the other, behind one that stands for no token;
    a word's are its tokens in every stream. The templates' tokens and the tokenizers' own have none.

    Raises:
        PromptError: as `parse`.
    """
    spans, length = word_spans(text), max(stream.length for stream in streams)
    read = _begin(text, spans, length)

    tokens, names, places = [_Token(0, (0, 0), False)], [""], [-1]
    starts, whole = list[int](), 0
    words = [Word(text[start:stop], (start, stop), ()) for start, stop in spans]
    for stream in streams:
        own, at = stream.tokens(read)
        first = len(tokens)
        starts.append(first)
        found = _words(text, spans, own, len(at))
        words = [_in_both(word, more, first) for word, more in zip(words, found, strict=True)]
        tokens += own[: len(at)]
        names += stream.tokenizer.convert_ids_to_tokens(list(map(_id, own[: len(at)])))
        places += at
        whole = max(whole, len(own))

    return Prompt(
        text,
        (*map(_id, tokens), 0),
        (*names, ""),
        len(tokens),
        tuple(words),
        True,
        whole,
        tuple(map(_span, tokens)),
        tuple(starts[1:]),
        (*places, -1),
        length,
        " ".join(stream.template.replace("{}", " ") for stream in streams),
    )


def _begin(text: str, spans: Sequence[tuple[int, int]], length: int) -> str:
    """A text without the words that are beyond the reach of a model of so many tokens."""
    most = _MARGIN * length
    if len(spans) > most:
        return text[: spans[most][0]]
    return text


def _ending(tokens: Sequence[_Token]) -> int:
    """How many tokens at the end stand for no characters."""
    count = 0
    while count < len(tokens) and tokens[-1 - count].span[0] == tokens[-1 - count].span[1]:
        count += 1
    return count


def _in_both(word: Word, again: Word, first: int) -> Word:
    """A word with the positions that it has in a further stream, whose first is `first`."""
    positions = (*word.positions, *(first + position for position in again.positions))
    return replace(word, positions=positions, learned=word.learned or again.learned)


def aligned(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The same prompts with equally many positions; those that are new stand for no token."""
    widest = max((len(prompt.ids) for prompt in prompts), default=0)
    return tuple(prompt.widened(widest) for prompt in prompts)


class _Token(NamedTuple):
    """A token and the characters that it stands for."""

    id: int
    span: tuple[int, int]
    learned: bool


_id, _span = operator.attrgetter("id"), operator.attrgetter("span")


def _tokens(text: str, tokenizer: Any, adds: bool = True) -> list[_Token]:
    """All tokens of a text, with those that the tokenizer adds unless `adds` is false; a learned word is as many as it
    has vectors.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt {text!r} is not valid text: its character {error.start + 1} is half of a pair; remove it."
        ) from None
    ids, spans = encoded_spans(text, tokenizer, adds)
    learned, single = _learned(tokenizer)
    tokens = []
    for token, span in zip(ids, spans, strict=True):
        if token in single:
            word = single[token]
            raise PromptError(f"'{text[slice(*span)]}' in the prompt is one vector of '{word}'; write '{word}' alone.")
        for own in learned.get(token, (token,)):
            tokens.append(_Token(own, span, token in learned))
    return tokens


def _with_learned(spans: list[tuple[int, int]], tokens: Sequence[_Token]) -> list[tuple[int, int]]:
    """The spans of words, where each learned word is one, whatever characters are in its name."""
    names = list(dict.fromkeys(token.span for token in tokens if token.learned))
    starts = [start for start, _ in names]

    def apart(span: tuple[int, int]) -> bool:
        before = bisect_left(starts, span[1])
        return not before or names[before - 1][1] <= span[0]

    return sorted([*names, *filter(apart, spans)])


def _words(text: str, spans: Sequence[tuple[int, int]], tokens: Sequence[_Token], end: int) -> tuple[Word, ...]:
    """The words at some spans, each with its tokens' positions; without any if they do not all lie before `end`."""
    words, first = [], 0
    for start, stop in spans:
        while first < len(tokens) and tokens[first].span[1] <= start:
            first += 1
        last = first
        while last < len(tokens) and start < tokens[last].span[1] and tokens[last].span[0] < stop:
            last += 1

        learned = any(token.learned for token in tokens[first:last])
        positions = tuple(range(first, last))
        if last > end:
            positions = ()
        words.append(Word(text[start:stop], (start, stop), positions, learned))
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
