"""Which words of a prompt are its subjects, and what belongs to each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from ..errors import PromptError, SettingsError
from .markup import without_markup
from .prompt import Prompt, Word, occurrence_name
from .tagging import Part, parts

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


# How something is shown, or how much of it: no subject before "of" and without an article.
_MEDIA = frozenset(
    "photo photograph picture image painting drawing sketch illustration portrait render rendering artwork watercolor "
    "watercolour snapshot selfie closeup close-up close-ups closeups shot view pair couple lot number kind sort type "
    "group bunch photos photography art scene film model print poster lighting light lights focus style shape form "
    "background foreground composition".split()
)
_NOT_OF_AN_ARTIST = frozenset("of in on at with".split())
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
    plain = _without_markup(prompt)
    return _names(prompt, [plain.words[first : noun + 1] for first, noun in _phrases(plain, _read(plain))])


def compound_nouns(prompt: Prompt) -> tuple[str, ...]:
    """The things of a prompt whose names are several nouns: "a fire truck and a red car" gives "fire truck".

    Words are read as by `nouns`.
    """
    plain = _without_markup(prompt)
    found, runs = _read(plain), list[Sequence[Word]]()
    for first, noun in _phrases(plain, found):
        start = noun
        while start > first and found[start - 1] in (Part.NOUN, Part.OTHER):
            start -= 1
        if start < noun:
            runs.append(plain.words[start : noun + 1])
    return _names(prompt, runs)


def nouns(prompt: Prompt) -> tuple[str, ...]:
    """The subjects of a prompt, guessed: what it names that can be seen.

    "a majestic lion jumping from a big stone at night" gives lion, stone: jumping is no noun, and a night no thing. So
    are no subjects: how the image is made ("a photo of", "4k, octane render"), artists ("by Greg Rutkowski"), qualities
    ("best quality") and markup of other programs. What no thing names is taken for its other nouns: "a summer night"
    gives night. A learned word is always one: "a photo of <my-cat> and a dog" gives <my-cat>, dog.

    Words are read by spaCy where it and one of its English models are installed (``en_core_web_sm``), else by the
    lexicon of `limelight.prompts.lexicon`.
    """
    plain = _without_markup(prompt)
    return _names(prompt, [plain.words[noun : noun + 1] for _, noun in _phrases(plain, _read(plain))])


def _without_markup(prompt: Prompt) -> Prompt:
    """A prompt with the words that are not markup."""
    text = without_markup(prompt.text, prompt.markup)
    return replace(
        prompt, text=text, words=tuple(word for word in prompt.words if text[slice(*word.span)] == word.text)
    )


def _read(prompt: Prompt) -> list[Part]:
    """The part of each word of a prompt without markup."""
    return parts(prompt, partial(_parted, prompt)) if prompt.words else []


def _phrases(prompt: Prompt, found: list[Part]) -> list[tuple[int, int]]:
    """The places of nouns among the prompt's words, in order, each with that of the first word that describes it.

    Args:
        found: the part of each word.
    """
    named = _of_artists(prompt, found)
    phrases = list[tuple[int, int]]()
    for first, stop in _runs(prompt, found):
        noun = _head(found, first, stop)
        if noun is None or noun in named:
            continue
        if not _of_medium(prompt, found, first, noun) and not _at_a_time(prompt, first):
            phrases.append((first, noun))
    return [phrase for phrase in phrases if found[phrase[1]] is Part.NOUN] or phrases


def _head(found: list[Part], first: int, stop: int) -> int | None:
    """The last noun of a run; none if the run says how the image is made."""
    if Part.STYLE in found[first:stop]:
        return None
    return max((i for i in range(first, stop) if found[i] in (Part.NOUN, Part.OTHER)), default=None)


def _runs(prompt: Prompt, found: list[Part]) -> list[tuple[int, int]]:
    """The runs of words that belong together: nouns and what describes them; a learned word ends one."""
    inner = (Part.NOUN, Part.OTHER, Part.MODIFIER, Part.STYLE)
    runs, first = list[tuple[int, int]](), 0
    for i in range(len(found) + 1):
        ends = i == len(found) or found[i] not in inner
        if ends or (i > first and (_parted(prompt, i) or prompt.words[i - 1].learned)):
            if i > first:
                runs.append((first, i))
            first = i
        if ends:
            first = i + 1
    return runs


def _of_medium(prompt: Prompt, found: list[Part], first: int, noun: int) -> bool:
    """Whether a noun says how the image is made: "a photo of", "oil painting", "a close up of"."""
    keys = [*prompt.keys, ""]
    if keys[noun] == "close" and keys[noun + 1] == "up":
        return True
    has_article = first > 0 and found[first - 1] is Part.DETERMINER and not _parted(prompt, first)
    return keys[noun] in _MEDIA and (keys[noun + 1] == "of" or not has_article)


def _at_a_time(prompt: Prompt, first: int) -> bool:
    """Whether a phrase without an article stands after "at": "at sunset"."""
    return first > 0 and prompt.keys[first - 1] == "at" and not _parted(prompt, first)


def _of_artists(prompt: Prompt, found: list[Part]) -> set[int]:
    """The words that name artists: "by Greg Rutkowski", "in the style of Van Gogh"."""
    keys, named = prompt.keys, set[int]()
    for i, word in enumerate(keys):
        by = word == "by" and found[i + 1 : i + 2] != [Part.DETERMINER]
        if by or keys[i : i + 2] == ["style", "of"]:
            first = i + 1 if by else i + 2
            named |= set(range(first, _end_of_names(prompt, first)))
    return named


def _end_of_names(prompt: Prompt, first: int) -> int:
    """The end of the names that begin at a word: punctuation, or a word that leads to a place."""
    for i in range(first, len(prompt.words)):
        if _parted(prompt, i) or prompt.keys[i] in _NOT_OF_AN_ARTIST:
            return i
    return len(prompt.words)


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
