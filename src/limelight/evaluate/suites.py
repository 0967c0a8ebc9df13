"""Lists of prompts that methods are compared on."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FileError, SettingsError
from ..utils.files import DATA

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "black", "white")


@dataclass(frozen=True)
class Wanted:
    """One thing that an image should show.

    Attributes:
        word: the subject.
        color: its color word, or None if any will do.
    """

    word: str
    color: str | None = None


@dataclass(frozen=True)
class Case:
    """One prompt of a suite.

    Attributes:
        prompt: as published.
        subset: the part of the suite that it belongs to.
        wanted: the things that it names, in its order; empty where they are unknown.
        source: of a suite of edits, the prompt of the image that is to be edited.
        concept: what kind of word an edit changes, as head relevance vectors name it.
    """

    prompt: str
    subset: str
    wanted: tuple[Wanted, ...] = ()
    source: str | None = None
    concept: str | None = None

    @property
    def name(self) -> str:
        """The name of the case, unique in its suite."""
        return self.prompt if self.source is None else f"{self.source} -> {self.prompt}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """The wanted words as `limelight.generate` takes them: "red car", and a second "car" is "car#2"."""
        words = [f"{thing.color} {thing.word}" if thing.color else thing.word for thing in self.wanted]
        counts = [words[: i + 1].count(word) for i, word in enumerate(words)]
        return tuple(word if n == 1 else f"{word}#{n}" for word, n in zip(words, counts, strict=True))


def attend_excite() -> tuple[Case, ...]:
    """The 276 prompts of the Attend-and-Excite benchmark: 66 of two animals, 144 with an object, 66 of two objects.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826
    """
    return read(DATA / "attend_excite_prompts.csv", "attend-excite")


def head_relevance(*names: str) -> tuple[Case, ...]:
    """Prompts on which head relevance vectors were compared.

    "multi_1" (66 of two animals) and "multi_2" (150 of two colored animals) of several concepts; "edit_color",
    "edit_material", "edit_pattern", "edit_style" (50 each) and "edit_weather" (25) of edits, each with its source and
    its concept.

    Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
    with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237
    """
    kinds = {name: "txt" if name.startswith("multi") else "csv" for name in names}
    return tuple(
        replace(case, concept=_EDITS.get(name))
        for name, kind in kinds.items()
        for case in read(DATA / "hrv" / f"{name}.{kind}", name)
    )


ANIMALS = tuple("cat dog bird bear lion horse elephant monkey frog turtle rabbit mouse".split())
OBJECTS = tuple("backpack glasses crown suitcase chair balloon bow car bowl bench clock apple".split())
"""The subjects of the Attend-and-Excite benchmark."""


def single() -> tuple[Case, ...]:
    """Each of the benchmark's 24 subjects alone."""
    return tuple(_case("single", Wanted(word)) for word in ANIMALS + OBJECTS)


def colored() -> tuple[Case, ...]:
    """Each of the benchmark's 12 objects in each of its 11 colors."""
    return tuple(_case("colors", Wanted(word, color)) for word in OBJECTS for color in COLORS)


def three() -> tuple[Case, ...]:
    """68 prompts of three of the benchmark's subjects, for models to which two are easy."""
    words = ANIMALS + OBJECTS
    trios = [(words[i % 24], words[(i * 5 + 7) % 24], words[(i * 11 + i // 24 + 14) % 24]) for i in range(72)]
    return tuple(_case("three", *map(Wanted, trio)) for trio in trios if len(set(trio)) == 3)


def _case(subset: str, *things: Wanted) -> Case:
    phrases = [f"{thing.color} {thing.word}" if thing.color else thing.word for thing in things]
    named = " and ".join(f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}" for phrase in phrases)
    return Case(named, subset, things)


_EDITS = {
    "edit_color": "Color",
    "edit_material": "Material",
    "edit_pattern": "Geometric Patterns",
    "edit_style": "Image Style",
    "edit_weather": "Weather Conditions",
}
SUITES: dict[str, Callable[[], tuple[Case, ...]]] = {
    "attend-excite": attend_excite,
    "single": single,
    "colors": colored,
    "three": three,
    "hrv-multi": partial(head_relevance, "multi_1", "multi_2"),
    **{f"hrv-{name.replace('_', '-')}": partial(head_relevance, name) for name in ("multi_1", "multi_2", *_EDITS)},
    "hrv-edit": partial(head_relevance, *_EDITS),
}


def load(name: str | Path) -> tuple[Case, ...]:
    """A suite by its name in `SUITES`, or from a file of yours, see `read`.

    Raises:
        SettingsError: there is no such suite or file.
        FileError: the file cannot be read, see `read`.
    """
    if str(name) in SUITES:
        return SUITES[str(name)]()
    path = Path(name).expanduser()
    if not path.is_file():
        raise SettingsError(f"'{name}' is neither a suite ({', '.join(SUITES)}) nor a file of prompts.")
    return read(path, path.stem)


def read(path: Any, subset: str) -> tuple[Case, ...]:
    """The cases of a file.

    Args:
        path: a text file with a prompt a line, or a CSV file with the column "prompt" (or "target_prompt") and, if you
            like, "subset", "subjects" ("red car;dog"), and for edits "source_prompt" and "concept". Without subjects,
            those of prompts such as "a red car and a dog" are read from the prompt (of edits, where they have a
            color); of others guidance takes the nouns, and no detector can check whether all is there.
        subset: what to call the cases that do not say.

    Raises:
        FileError: it cannot be read, has no prompts, or has one of them twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise FileError(f"'{path}' cannot be read: {error}.") from error
    if path.name.lower().endswith(".csv"):
        cases = _from_rows(path, text, subset)
    else:
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
        cases = [Case(prompt, subset, wanted(prompt)) for prompt in prompts]
    _check(path, cases)
    return tuple(cases)


def _check(path: Any, cases: Sequence[Case]) -> None:
    """Raise a FileError where a file has no case, or one of them twice."""
    if not cases:
        raise FileError(f"'{path}' has no prompts.")

    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise FileError(f"'{path}' has '{case.name}' twice.")
        seen.add(case.name)


def _from_rows(path: Any, text: str, subset: str) -> list[Case]:
    """Read the cases of a CSV file."""
    rows = csv.DictReader(text.splitlines())
    column = next((c for c in ("prompt", "target_prompt") if c in (rows.fieldnames or ())), None)
    if column is None:
        raise FileError(f"'{path}' has no column 'prompt' or 'target_prompt' in its first line.")

    cases = []
    for row in rows:
        prompt, source, concept = (_cell(row, name) for name in (column, "source_prompt", "concept"))
        if not prompt:
            raise FileError(f"Line {rows.line_num} of '{path}' has no prompt.")
        things = _things(row.get("subjects"), prompt, source)
        cases.append(Case(prompt, row.get("subset") or subset, things, source, concept))
    return cases


def _cell(row: Mapping[str, str | None], column: str) -> str | None:
    """Return the text of a column, or None where the row has none."""
    return (row.get(column) or "").strip() or None


def _things(subjects: str | None, prompt: str, source: str | None) -> tuple[Wanted, ...]:
    """Return the wanted things of a row: its subjects, or where that column is absent those of its prompt."""
    if subjects is not None:
        return tuple(_thing(phrase) for phrase in subjects.split(";") if phrase.strip())

    things = wanted(prompt)
    if source is not None and not any(thing.color for thing in things):
        return ()
    return things


def wanted(prompt: str) -> tuple[Wanted, ...]:
    """The things that a prompt of the form "a red car and a dog" names: phrases joined by "and" or "with".

    The last word of a phrase is its subject; the word before it counts if it is one of the benchmark's 11 colors.
    A prompt of another form names nothing.

    >>> wanted("a red car and a dog")
    (Wanted(word='car', color='red'), Wanted(word='dog', color=None))
    """
    phrases = re.split(r" and | with ", prompt)
    if not all(re.fullmatch(r"(?:(?:an?|the) )?(?:[\w-]+ )?[\w-]+", phrase) for phrase in phrases):
        return ()
    return tuple(_thing(phrase) for phrase in phrases)


def _thing(phrase: str) -> Wanted:
    words = phrase.split()
    return Wanted(words[-1], words[-2] if len(words) > 1 and words[-2] in COLORS else None)
