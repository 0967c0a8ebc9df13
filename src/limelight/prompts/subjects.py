"""Which words of a prompt are its subjects, and what belongs to each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ..errors import PromptError, SettingsError
from .markup import without_markup
from .prompt import Prompt, Word, occurrence_name

SubjectName = str | int | Sequence[int]
"""A word, a phrase ("red car"), a later occurrence ("dog#2"), a token index or several."""
SubjectChoice = Sequence[SubjectName] | Literal["auto"] | None
"""The subjects of one prompt, or its nouns; None are none."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom as fractions of the image, 0..1."""
Place = Mapping[Any, Box]
"""Where the subjects of one prompt are to be: a `SubjectName` and its box."""


class Subject(NamedTuple):
    """What guidance knows of a subject.

    Attributes:
        positions: token positions of its noun; of several token indices, all of them.
        modifiers: token positions of each word that describes it, for example of "red" in "red car".
        box: where it is to be, or None.
    """

    positions: tuple[int, ...]
    modifiers: tuple[tuple[int, ...], ...] = ()
    box: Box | None = None

    @property
    def all_positions(self) -> tuple[int, ...]:
        """The token positions of the noun and of its modifiers."""
        return tuple(chain(self.positions, *self.modifiers))


_DETERMINERS = frozenset(
    "a an the one two three four five six seven eight nine ten some many several my your his her its our their this "
    "that these those another".split()
)
# Words that end a noun phrase: "a cat on a mat".
_BREAKS = frozenset(
    "and or with without in on at by of for from to into under over near beside behind before above below between "
    "against wearing holding riding eating sitting standing lying playing running looking is are was were has have "
    "who that which while as like next through during up down off out away".split()
)
FUNCTION_WORDS = _DETERMINERS | _BREAKS
# Before "of": how something is shown, or how much of it.
_MEDIA = frozenset(
    "photo photograph picture image painting drawing sketch illustration portrait render rendering artwork watercolor "
    "watercolour snapshot selfie closeup close-up close-ups closeups shot view pair couple lot number kind sort type "
    "group bunch".split()
)
_PUNCTUATION = r"[,.;:!?()\[\]{}|\u2014\u3001\u3002\uff0c\uff1b\uff1a\uff01\uff1f\uff08\uff09]|\s[-\u2013]+\s"


def per_prompt(subjects: SubjectChoice | Sequence[SubjectChoice], prompts: int, listed: bool) -> list[Any]:
    """The subjects of each prompt.

    Args:
        subjects: those of one prompt; where they are `listed`, one entry per prompt. "auto" and None serve any number.

    Raises:
        PromptError: there are more or fewer entries than prompts.
    """
    same_for_all = not listed or subjects is None or subjects == "auto"
    asked = [subjects] * prompts if same_for_all else list(subjects or ())
    if len(asked) != prompts:
        raise PromptError(f"{prompts} prompts need {prompts} lists of subjects, not {len(asked)}.")
    return asked


def resolve(
    prompt: Prompt, subjects: SubjectChoice, *, needed: bool = True, place: Place = MappingProxyType({})
) -> tuple[tuple[SubjectName, ...], tuple[Subject, ...]]:
    """Subjects by name, and with their token positions.

    In a phrase the last word is the subject and the words before it describe it: "red car" is a car that is to be red.
    Several token indices are one subject without modifiers.

    Args:
        subjects: what the user asked for; "auto" takes the `nouns`, each with the words that describe it; None is as
            an empty list.
        needed: whether it is an error to find none.
        place: the boxes of subjects. A word that is not a subject yet becomes one.

    Raises:
        PromptError: a subject is not in the prompt, there is none, or two of them share a word.
        SettingsError: a box is empty or lies outside the image, or a subject has two.
    """
    names = _names_of(prompt, subjects, needed and not place)
    names, found = _placed(prompt, names, [_subject(prompt, name) for name in names], place)
    _check_apart(names, found)
    return names, found


def _names_of(prompt: Prompt, subjects: SubjectChoice, needed: bool) -> tuple[SubjectName, ...]:
    """The subjects that the user named, or that are guessed."""
    if isinstance(subjects, str) and subjects != "auto":
        raise PromptError(f"subjects='{subjects}' must be a list of words, for example subjects=['{subjects}'].")

    names: tuple[SubjectName, ...] = described_nouns(prompt) if isinstance(subjects, str) else tuple(subjects or ())
    if not names and needed:
        if not isinstance(subjects, str):
            raise PromptError("subjects is empty; guidance needs at least one word.")
        words = ", ".join(word.text for word in prompt.words) or "none"
        raise PromptError(f"No subject can be guessed from '{prompt.text}'; name some of its words: {words}.")
    return names


def _placed(
    prompt: Prompt, names: tuple[SubjectName, ...], subjects: list[Subject], place: Place
) -> tuple[tuple[SubjectName, ...], tuple[Subject, ...]]:
    """Give subjects their boxes, and add those that are named by their box alone."""
    for name, box in place.items():
        subject = _subject(prompt, name)
        known = [own.positions for own in subjects]
        if subject.positions not in known:
            names, subjects = (*names, name), [*subjects, subject]
        k = known.index(subject.positions) if subject.positions in known else len(known)
        if subjects[k].box is not None:
            raise SettingsError(f"The subject '{names[k]}' has two boxes. Give each subject one.")
        subjects[k] = subjects[k]._replace(box=_box(name, box))
    return names, tuple(subjects)


def _box(name: SubjectName, box: Any) -> Box:
    """A box that lies in the image."""
    try:
        left, top, right, bottom = (float(edge) for edge in box)
    except (TypeError, ValueError):
        raise SettingsError(
            f"The box of '{name}', {box!r}, must be left, top, right and bottom, for example (0, 0.4, 0.5, 1)."
        ) from None

    if not all(0 <= edge <= 1 for edge in (left, top, right, bottom)):
        raise SettingsError(
            f"The box of '{name}', {box!r}, lies outside the image: left, top, right and bottom are fractions, 0 to 1."
        )
    if left >= right or top >= bottom:
        raise SettingsError(
            f"The box of '{name}', {box!r}, is empty: left must be less than right, and top less than bottom."
        )
    return left, top, right, bottom


def _subject(prompt: Prompt, name: SubjectName) -> Subject:
    """A name's noun and modifiers."""
    if not isinstance(name, str):
        return Subject(prompt.find(name))

    *before, noun = (word.positions for word in prompt.find_words(name))
    return Subject(noun, tuple(before))


def _check_apart(names: Sequence[SubjectName], subjects: Sequence[Subject]) -> None:
    """Refuse subjects that share a token."""
    taken: dict[int, SubjectName] = {}
    for name, subject in zip(names, subjects, strict=True):
        for position in subject.all_positions:
            if position in taken:
                other = taken[position]
                raise PromptError(f"The subjects '{other}' and '{name}' share a word; each needs words of its own.")
        taken |= dict.fromkeys(subject.all_positions, name)


def described_nouns(prompt: Prompt) -> tuple[str, ...]:
    """The `nouns` of a prompt, each as a phrase with the words directly before it that describe it.

    "a big red car and a bench" gives "big red car" and "bench".
    """
    plain, phrases = _without_markup(prompt), []
    for noun in _noun_indices(plain):
        first = noun
        while first > 0 and _describes(plain, first - 1):
            first -= 1
        phrases.append(plain.words[first : noun + 1])
    return _names(prompt, phrases)


def _describes(prompt: Prompt, i: int) -> bool:
    """Whether word i belongs to the word after it."""
    word = prompt.words[i]
    return word.key not in FUNCTION_WORDS and not word.learned and not _parted(prompt, i + 1)


def nouns(prompt: Prompt) -> tuple[str, ...]:
    """The subjects of a prompt, guessed.

    They are the last words of the phrases that begin with an article or a number: "a black cat and a dog on a bench"
    gives cat, dog, bench; "a photo of a cat" gives cat. A prompt without such phrases is read by spaCy where it and its
    model ``en_core_web_sm`` are installed, and else cut at "and", "with" and punctuation: "cat and dog" gives cat, dog.
    A learned word is always one: "a photo of <my-cat> and a dog" gives <my-cat>, dog. Markup of other programs is none.
    """
    plain = _without_markup(prompt)
    return _names(prompt, [plain.words[i : i + 1] for i in _noun_indices(plain)])


def _without_markup(prompt: Prompt) -> Prompt:
    """A prompt with the words that are not markup."""
    text = without_markup(prompt.text, prompt.markup)
    return replace(
        prompt, text=text, words=tuple(word for word in prompt.words if text[slice(*word.span)] == word.text)
    )


def _noun_indices(prompt: Prompt) -> list[int]:
    """The places of the nouns and of the learned words among the prompt's words, in order."""
    learned = [i for i, word in enumerate(prompt.words) if word.learned]
    found = _after_determiners(prompt) or _by_spacy(prompt) or _between_joiners(prompt)
    return sorted({*found, *learned})


def _after_determiners(prompt: Prompt) -> list[int]:
    """The last words of the phrases that begin with an article or a number."""
    keys, found = [*prompt.keys, ""], []
    for first in _phrase_starts(prompt):
        stop = first + 1
        while stop < len(prompt.words) and not _ends_phrase(prompt, stop):
            stop += 1

        last, following = keys[stop - 1 : stop + 1]
        of_something = following == "of" and last in _MEDIA  # "a photo of"
        close_up = last == "close" and following == "up"
        if not of_something and not close_up:
            found.append(stop - 1)
    return found


def _phrase_starts(prompt: Prompt) -> list[int]:
    """The words after an article or a number, or after several."""
    keys = prompt.keys
    return [i for i in range(1, len(keys)) if keys[i - 1] in _DETERMINERS and keys[i] not in FUNCTION_WORDS]


def _ends_phrase(prompt: Prompt, i: int) -> bool:
    """Whether word i does not belong to the phrase of the word before it."""
    return prompt.words[i].key in FUNCTION_WORDS or _parted(prompt, i)


def _between_joiners(prompt: Prompt) -> list[int]:
    """The last words of the parts between "and", "with" and punctuation, where all parts are short."""
    keys, ends, start = prompt.keys, [], 0
    for i, word in enumerate(keys):
        joined = i + 1 < len(keys) and keys[i + 1] not in ("and", "with") and not _parted(prompt, i + 1)
        if joined:
            continue
        if i - start > 2:
            return []  # longer than adjective, adjective, noun: no list of things
        if word not in FUNCTION_WORDS:
            ends.append(i)
        start = i + 1 + (i + 1 < len(keys) and keys[i + 1] in ("and", "with"))
    return ends


def _by_spacy(prompt: Prompt) -> list[int]:
    read = _spacy_model()
    if read is None:
        return []
    document = read(prompt.text)
    starts = {word.span[0]: i for i, word in enumerate(prompt.words)}
    found = []
    for chunk in document.noun_chunks:
        if chunk.root.pos_ in ("NOUN", "PROPN") and chunk.root.idx in starts:
            found.append(starts[chunk.root.idx])
    return found


@lru_cache(maxsize=1)
def _spacy_model() -> Any:
    try:
        import spacy

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        return None


def _names(prompt: Prompt, phrases: Sequence[Sequence[Word]]) -> tuple[str, ...]:
    """Runs of words as `Prompt.find` takes them, without those beyond the model's reach."""
    places = {word.span: i for i, word in enumerate(prompt.words)}
    names = []
    for words in phrases:
        first, last = places[words[0].span], places[words[-1].span]
        if last - first >= len(words):  # markup lies between them
            first = last
        if all(word.positions for word in prompt.words[first : last + 1]):
            names.append(_name(prompt, first, last + 1))
    return tuple(names)


def _name(prompt: Prompt, first: int, stop: int) -> str:
    """The words from `first` to before `stop` as `Prompt.find` takes them: "dog", "red car", "dog#2"."""
    name = " ".join(word.text for word in prompt.words[first:stop])
    wanted = prompt.keys[first:stop]
    occurrence = sum(prompt.keys[i : i + len(wanted)] == wanted for i in range(first + 1))
    return occurrence_name(name, occurrence)


def _parted(prompt: Prompt, i: int) -> bool:
    """Whether punctuation stands before word i."""
    between = prompt.text[prompt.words[i - 1].span[1] : prompt.words[i].span[0]]
    return re.search(_PUNCTUATION, between) is not None
