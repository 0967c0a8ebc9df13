"""Lists of prompts that methods are compared on."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

from ..errors import FileError, SettingsError
from ..prompts.prompt import occurrence_name
from ..utils.files import DATA, user_path
from ..utils.reading import from_json, from_python, reading, record

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

    @property
    def phrase(self) -> str:
        """The thing in words: "car", "red car"."""
        return f"{self.color} {self.word}" if self.color else self.word


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
        phrases: list[str] = []
        names = []
        for thing in self.wanted:
            phrases.append(thing.phrase)
            names.append(occurrence_name(thing.phrase, phrases.count(thing.phrase)))
        return tuple(names)


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
    found = []
    for name in names:
        kind = "txt" if name.startswith("multi") else "csv"
        for case in read(DATA / "hrv" / f"{name}.{kind}", name):
            found.append(replace(case, concept=_EDITS.get(name)))
    return tuple(found)


ANIMALS = tuple("cat dog bird bear lion horse elephant monkey frog turtle rabbit mouse".split())
OBJECTS = tuple("backpack glasses crown suitcase chair balloon bow car bowl bench clock apple".split())
"""The subjects of the Attend-and-Excite benchmark."""


def single() -> tuple[Case, ...]:
    """Each of the benchmark's 24 subjects alone."""
    return tuple(case("single", Wanted(word)) for word in ANIMALS + OBJECTS)


def colored() -> tuple[Case, ...]:
    """Each of the benchmark's 12 objects in each of its 11 colors."""
    return tuple(case("colors", Wanted(*pair)) for pair in itertools.product(OBJECTS, COLORS))


def three() -> tuple[Case, ...]:
    """68 prompts of three of the benchmark's subjects, for models to which two are easy."""
    words, cases = ANIMALS + OBJECTS, []
    for i in range(72):
        trio = words[i % 24], words[(i * 5 + 7) % 24], words[(i * 11 + i // 24 + 14) % 24]
        if len(set(trio)) == 3:
            cases.append(case("three", *map(Wanted, trio)))
    return tuple(cases)


SIMILAR = (
    "cat tiger, lion tiger, dog fox, bear panda, panda koala, frog turtle, horse unicorn, horse cow, cow sheep, "
    "chicken duck, duck penguin, mouse rabbit, rabbit koala, monkey bear, snake crocodile, fish shark, shark whale, "
    "bee butterfly, rose tulip, flower sunflower, apple tomato, lemon banana, car bus, bus train"
)
"""Pairs of the embedded model's subjects that look alike."""


def similar() -> tuple[Case, ...]:
    """24 prompts of two subjects that look alike, which models mix."""
    return tuple(case("similar", *map(Wanted, pair.split())) for pair in SIMILAR.split(", "))


def case(subset: str, *things: Wanted) -> Case:
    """A prompt of some things: "a cat and an apple"."""
    phrases = []
    for thing in things:
        article = "an" if thing.phrase[0] in "aeiou" else "a"
        phrases.append(f"{article} {thing.phrase}")
    return Case(" and ".join(phrases), subset, things)


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
    "similar": similar,
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
    path = user_path(name)
    if not path.exists():
        raise SettingsError(f"'{name}' is neither a suite ({', '.join(SUITES)}) nor a file of prompts.")
    return read(path, path.stem)


def read(path: Any, subset: str) -> tuple[Case, ...]:
    """The cases of a file.

    Args:
        path: by its suffix one of

            - ``.txt`` or none: a prompt a line;
            - ``.csv`` (commas) or ``.tsv`` (tabs): a table whose first line names its columns: "prompt" (or "prompts",
              "target_prompt") and, if you like, "subset" (or "category"), "subjects" ("red car;dog"), and for edits
              "source_prompt" and "concept". DrawBench and PartiPrompts are such tables;
            - ``.jsonl`` (a value a line) or ``.json`` (a list): prompts, or objects with the columns as keys. Those of
              GenEval have "tag" and "include", whose classes and colors are the subjects.

            Upper and lower case of columns are the same, and others are passed over. Without subjects, those of prompts
            such as "a red car and a dog" are read from the prompt (of edits, where they have a color); of others
            guidance takes the nouns, and no detector can check whether all is there.
        subset: what to call the cases that do not say.

    Raises:
        FileError: it cannot be read, has no prompts, or has one of them twice.
    """
    suffix = os.path.splitext(path.name)[1].lower()
    if suffix not in _READERS:
        raise FileError(f"'{path}' must be a file of one of these kinds: {', '.join(filter(None, _READERS))}.")
    with reading(path, "prompts", "correct the file"):
        cases = [_case_of_row(row, subset) for row in _READERS[suffix](path.read_text(encoding="utf-8-sig"))]
    _check(path, cases)
    return tuple(cases)


Row = tuple[str, Mapping[str, Any]]
"""Where it stands ("line 3"), and its values by column."""


def _lines(text: str) -> Iterator[Row]:
    """The rows of a text file."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"line {number}", {"prompt": line}


def _table(text: str, delimiter: str) -> Iterator[Row]:
    """The rows of a table."""
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows.fieldnames = [name.strip().casefold() for name in rows.fieldnames or ()]
    if not any(name in rows.fieldnames for name in _PROMPT):
        raise ValueError("its first line has no column 'prompt'")
    try:
        for row in rows:
            where = f"line {rows.line_num}"
            if None in row:
                raise ValueError(f'{where} has more cells than the first line; put text with a comma into "quotes"')
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{error} after line {rows.line_num}; a quote may be open") from error


def _json_lines(text: str) -> Iterator[Row]:
    """The rows of a file with a JSON value a line."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _json_row(f"line {number}", from_json(Any, line, f"line {number}"))


def _json_list(text: str) -> Iterator[Row]:
    """The rows of a JSON list."""
    values = from_json(Any, text)
    if not isinstance(values, list):
        raise ValueError("it is not a list")
    for number, value in enumerate(values, 1):
        yield _json_row(f"entry {number}", value)


def _json_row(where: str, value: Any) -> Row:
    if isinstance(value, str):
        return where, {"prompt": value}
    if not isinstance(value, dict):
        raise ValueError(f"{where} is neither a prompt nor an object with a key 'prompt'")
    return where, {name.casefold(): cell for name, cell in value.items()}


_PROMPT, _SUBSET = ("prompt", "prompts", "target_prompt"), ("subset", "category", "tag")
_COLUMNS = (*_PROMPT, *_SUBSET, "source_prompt", "concept", "subjects")
_THING = record("_THING", {"class": str, "color": NotRequired[str], "count": NotRequired[int]})
_ROW = record(
    "_ROW",
    {"include": NotRequired[list[_THING]], **dict.fromkeys(_COLUMNS, NotRequired[str | None])},  # type: ignore[valid-type]
)
_READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    "": _lines,
    ".txt": _lines,
    ".csv": partial(_table, delimiter=","),
    ".tsv": partial(_table, delimiter="\t"),
    ".json": _json_list,
    ".jsonl": _json_lines,
}


def _case_of_row(row: Row, subset: str) -> Case:
    where, cells = row[0], from_python(_ROW, row[1], row[0])
    prompt = _cell(cells, *_PROMPT)
    if prompt is None:
        raise ValueError(f"{where} has no prompt")
    source = _cell(cells, "source_prompt")
    things = _included(cells["include"], prompt) if "include" in cells else _things(cells, prompt, source)
    return Case(prompt, _cell(cells, *_SUBSET) or subset, things, source, _cell(cells, "concept"))


def _cell(row: Mapping[str, Any], *columns: str) -> str | None:
    """The text of the first of these columns that has one."""
    for column in columns:
        value = (row.get(column) or "").strip()
        if value:
            return value
    return None


def _included(include: Sequence[Mapping[str, Any]], prompt: str) -> tuple[Wanted, ...]:
    """The things that GenEval asks for; none where the prompt has other words for them ("two dogs")."""
    for thing in include:
        if thing.get("count", 1) != 1 or not re.search(rf"\b{re.escape(thing['class'])}\b", prompt):
            return ()
    return tuple(Wanted(thing["class"], thing.get("color")) for thing in include)


def _check(path: Any, cases: Sequence[Case]) -> None:
    """Raise a FileError where a file has no case, or one of them twice."""
    if not cases:
        raise FileError(f"'{path}' has no prompts.")

    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise FileError(f"'{path}' has '{case.name}' twice.")
        seen.add(case.name)


def _things(row: Mapping[str, Any], prompt: str, source: str | None) -> tuple[Wanted, ...]:
    """The wanted things of a row: its subjects, or where that column is absent those of its prompt."""
    if "subjects" in row:
        return tuple(map(_thing, filter(str.strip, (_cell(row, "subjects") or "").split(";"))))

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
    return tuple(map(_thing, phrases))


def _thing(phrase: str) -> Wanted:
    *others, word = phrase.split()
    if others and others[-1] in COLORS:
        return Wanted(word, others[-1])
    return Wanted(word)
