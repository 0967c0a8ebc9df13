"""Concepts and the words that stand for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import SettingsError
from ..utils.files import DATA

SHIPPED = {"paper": "concept_words.csv", "pocket": "pocket_concepts.yaml"}
_NUMBERED = re.compile(r"\s*(\d+)\.\s*(.*)")


@dataclass(frozen=True)
class Concepts:
    """Concepts, each with equally many words.

    Attributes:
        words: the words or phrases of each concept, by its name.
    """

    words: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise SettingsError(f"Heads are compared between concepts: {len(self.words)} is too few, give two or more.")
        owners: dict[str, str] = {}
        for name, words in self.words.items():
            if not name.strip():
                raise SettingsError(f"A concept has no name; its words are: {', '.join(words) or 'none'}.")
            for word in words:
                if not word.strip():
                    raise SettingsError(f"The concept '{name}' has an empty word.")
                if word.casefold() in owners:
                    other = owners[word.casefold()]
                    where = f"twice in '{name}'" if other == name else f"in '{other}' and again in '{name}'"
                    raise SettingsError(f"The word '{word}' is {where}; every word may stand for one concept only.")
                owners[word.casefold()] = name
        first = next(iter(self.words))
        for name, words in self.words.items():
            if len(words) != len(self.words[first]) or not words:
                raise SettingsError(
                    f"The concept '{name}' has {len(words)} words and '{first}' has {len(self.words[first])}; "
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
    def read(cls, source: str | Path) -> Concepts:
        """Read a file of concepts.

        Args:
            source: "paper" (the 34 concepts of the paper), "pocket" (those that the embedded model knows), a YAML or
                JSON file ``{name: [word, ...]}``, or a file in the authors' format: the concept's name on a line, then
                its words as ``1. word``, ``2. word``...

        Raises:
            SettingsError: the file cannot be read, or is wrong in a way that the message names.
        """
        if str(source) in SHIPPED:
            path: Any = DATA / SHIPPED[str(source)]
        else:
            path = Path(source)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(
                f"'{source}' cannot be read as concepts ({error}); give {', '.join(SHIPPED)}, a CSV, YAML or JSON file."
            ) from error
        if path.name.lower().endswith((".yaml", ".yml", ".json")):
            return cls(_from_mapping(text, str(source)))
        return cls(_from_lines(text.splitlines(), str(source)))


def _from_lines(lines: Iterable[str], source: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    name, before = "", 0
    for at, line in enumerate(lines, 1):
        row = line.strip().rstrip(",").strip().strip('"')
        numbered = _NUMBERED.fullmatch(row)
        if not row:
            continue
        if numbered is None:
            if row in found:
                raise SettingsError(f"{source}, line {at}: the concept '{row}' is there already.")
            name, before = row, 0
            found[name] = []
            continue
        number, word = int(numbered[1]), numbered[2].strip()
        # The numbers tell where a list begins: one that does not grow begins a list without a name.
        if not name or number <= before:
            raise SettingsError(f"{source}, line {at}: '{row}' begins a list, but no concept's name stands before it.")
        found[name].append(word)
        before = number
    if not found:
        raise SettingsError(f"{source} holds no concepts; write a name on a line, then '1. word', '2. word'...")
    return {name: tuple(words) for name, words in found.items()}


class _Strict(yaml.SafeLoader):  # type: ignore[misc]
    """YAML that refuses a name given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise SettingsError(f"The concept '{key}' is there twice.")
        return super().construct_mapping(node, deep)


def _from_mapping(text: str, source: str) -> dict[str, tuple[str, ...]]:
    try:
        content = yaml.load(text, _Strict)  # a SafeLoader
    except yaml.YAMLError as error:
        raise SettingsError(f"{source} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not all(isinstance(words, list) for words in content.values()):
        raise SettingsError(f"{source} must map every concept to a list of words, for example Animals: [cat, dog].")
    for name, words in content.items():
        for word in (name, *words):
            if not isinstance(word, str):
                raise SettingsError(f"{source}: {word!r} under '{name}' is not text; write it in quotes.")
    return {name: tuple(words) for name, words in content.items()}
