"""Concepts and the words that stand for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import FileError, SettingsError
from ..models.embedded import EMBEDDED
from ..utils.files import DATA, user_path
from ..utils.reading import from_python, reading

SHIPPED = {"paper": "concept_words.csv", "pocket": "pocket_concepts.yaml"}
_CURE = f"give {', '.join(SHIPPED)}, a CSV file, or YAML or JSON with a list of words, in quotes, for every concept"
_NUMBERED = re.compile(r"\s*(\d+)\.\s*(.*)")


@dataclass(frozen=True)
class Concepts:
    """Concepts, each with equally many words.

    Attributes:
        words: the words or phrases of each concept, by its name; two concepts or more.

    Raises:
        SettingsError: a concept or a word is empty, a word stands twice, or the numbers of words differ.

    Examples:
        >>> concepts = Concepts({"Animals": ("cat", "dog"), "Color": ("red", "blue")})
        >>> concepts.names, concepts.each
        (('Animals', 'Color'), 2)
    """

    words: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise SettingsError(f"Heads are compared between concepts: {len(self.words)} is too few, give two or more.")
        self._check_texts()
        self._check_owners()
        self._check_numbers()

    def _check_texts(self) -> None:
        for name, words in self.words.items():
            if not name.strip():
                raise SettingsError(f"A concept has no name; its words are: {', '.join(words) or 'none'}.")
            if not all(word.strip() for word in words):
                raise SettingsError(f"The concept '{name}' has an empty word.")

    def _check_owners(self) -> None:
        """A word stands for one concept."""
        owners: dict[str, str] = {}
        for name, words in self.words.items():
            for word in words:
                other = owners.get(word.casefold())
                if other is not None:
                    where = f"twice in '{name}'" if other == name else f"in '{other}' and again in '{name}'"
                    raise SettingsError(f"The word '{word}' is {where}; every word may stand for one concept only.")
                owners[word.casefold()] = name

    def _check_numbers(self) -> None:
        """All concepts have equally many words."""
        first = self.names[0]
        for name, words in self.words.items():
            if len(words) != self.each or not words:
                raise SettingsError(
                    f"The concept '{name}' has {len(words)} words and '{first}' has {self.each}; "
                    "all need equally many, at least one."
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.words)

    @property
    def each(self) -> int:
        """Words per concept."""
        return len(next(iter(self.words.values())))

    @classmethod
    def suited(cls, model: str) -> Concepts:
        """The shipped concepts of a model, by its name: embedded models have their own, all others the paper's."""
        return cls.read("pocket" if model in EMBEDDED else "paper")

    @classmethod
    def read(cls, source: str | Path) -> Concepts:
        """Read a file of concepts.

        Args:
            source: "paper" (the 34 concepts of the paper), "pocket" (those that the embedded model knows), a YAML or
                JSON file ``{name: [word, ...]}``, or a file in the authors' format: the concept's name on a line, then
                its words as ``1. word``, ``2. word``...

        Raises:
            FileError: the file cannot be read, is not in one of these formats, or its concepts do not fit each other.

        Examples:
            >>> Concepts.read("paper").words["Color"][:3]
            ('Red', 'Blue', 'Green')
        """
        path: Any = DATA / SHIPPED[str(source)] if str(source) in SHIPPED else user_path(source)
        with reading(path, "concepts", _CURE):
            text = path.read_text(encoding="utf-8-sig")
            if path.name.lower().endswith((".yaml", ".yml", ".json")):
                found = from_python(dict[str, list[str]], yaml.load(text, _Strict))  # a SafeLoader
            else:
                found = _from_lines(text.splitlines(), str(source))
            return cls({name: tuple(words) for name, words in found.items()})


def _from_lines(lines: Iterable[str], source: str) -> dict[str, list[str]]:
    """Concepts in the authors' format; the errors name the line."""
    found: dict[str, list[str]] = {}
    name, before = "", 0
    for at, line in enumerate(lines, 1):
        row = line.strip().rstrip(",").strip().strip('"')
        if not row:
            continue

        numbered = _NUMBERED.fullmatch(row)
        if numbered is None:
            if row in found:
                raise FileError(f"{source}, line {at}: the concept '{row}' is there already; give every concept once.")
            name, before = row, 0
            found[name] = []
            continue

        number, word = int(numbered[1]), numbered[2].strip()
        # The numbers tell where a list begins: one that does not grow begins a list without a name.
        if not name or number <= before:
            raise FileError(f"{source}, line {at}: '{row}' begins a list, but no concept's name stands before it.")
        found[name].append(word)
        before = number

    if not found:
        raise FileError(f"{source} holds no concepts; write a name on a line, then '1. word', '2. word'...")
    return found


class _Strict(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that refuses a name given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise FileError(f"The concept '{key}' is there twice; give every concept once.")
        return super().construct_mapping(node, deep)
