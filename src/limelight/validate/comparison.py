"""Two validations side by side."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from ..utils.files import user_path
from ..utils.reading import Record, from_json, reading
from .outcome import OutcomeRecord


class Document(Record):
    """A validation.json."""

    format: Literal[1]
    model: str
    weights: str | None
    hardware: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    stages: list[OutcomeRecord]


@dataclass(frozen=True)
class Comparison:
    """What two validations say.

    Attributes:
        differ: what they were not both run with: name -> the two values.
        verdicts: stage -> the two verdicts; "" where one has no such stage.
        numbers: (stage, name) -> the two values, of the stages that both have.
    """

    differ: dict[str, tuple[str, str]]
    verdicts: dict[str, tuple[str, str]]
    numbers: dict[tuple[str, str], tuple[float | None, float | None]]


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Comparison:
    """Compare two files validation.json.

    Raises:
        FileError: one cannot be read.
    """
    a, b = _read(first), _read(second)
    stages = [{stage["stage"]: stage for stage in document["stages"]} for document in (a, b)]
    verdicts = {}
    numbers: dict[tuple[str, str], tuple[float | None, float | None]] = {}
    for name in dict.fromkeys([*stages[0], *stages[1]]):
        ours, theirs = stages[0].get(name), stages[1].get(name)
        verdicts[name] = ours["verdict"] if ours else "", theirs["verdict"] if theirs else ""
        if ours and theirs:
            for key in dict.fromkeys([*ours["numbers"], *theirs["numbers"]]):
                numbers[name, key] = ours["numbers"].get(key), theirs["numbers"].get(key)
    return Comparison(_differences(a, b), verdicts, numbers)


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    file = user_path(path)
    with reading(file, "a validation", "give a validation.json"):
        found: dict[str, Any] = from_json(Document, file.read_bytes())
    return found


def _differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Model, weights, machine, versions and settings in which they differ."""
    flat = []
    for document in (a, b):
        own = {"model": document["model"], "weights": document["weights"]}
        flat.append({**own, **document["hardware"], **document["versions"], **document["settings"]})
    found = {}
    for name in dict.fromkeys([*flat[0], *flat[1]]):
        ours, theirs = flat[0].get(name), flat[1].get(name)
        if ours != theirs and name != "source":  # it is the model's name
            found[name] = str(ours), str(theirs)
    return found
