"""What a stage of a validation found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..utils.reading import Record, from_json

Verdict = Literal["passed", "failed", "measured", "skipped", "broken"]
"""Whether a claim holds; "measured" has numbers and no claim, "skipped" could not run, "broken" ended with an error."""
LEAST = 6
"""Prompts, edits or things that a verdict needs."""
FINAL = ("passed", "failed", "measured")
"""Outcomes that a resumed validation keeps; the others are tried again."""


class TableRecord(Record):
    """A table in JSON."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str


class FigureRecord(Record):
    """A figure in JSON."""

    title: str
    file: str


class OutcomeRecord(Record):
    """An outcome in JSON."""

    stage: str
    verdict: Verdict
    summary: str
    seconds: float
    tables: list[TableRecord]
    figures: list[FigureRecord]
    numbers: dict[str, float | None]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as people read them.

    Attributes:
        columns: titles; the first column names the row.
        note: what the numbers mean.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An image of the page.

    Attributes:
        file: its PNG, relative to the folder of the validation.
    """

    title: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage found.

    Attributes:
        summary: one sentence for people.
        numbers: by name, for `limelight validate compare`.
        facts: other plain values: hashes, names, settings.
        seconds: wall time.
    """

    verdict: Verdict
    summary: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    stage: str = ""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        return asdict(self)

    @classmethod
    def read(cls, text: bytes) -> Outcome:
        """An outcome from the text of its JSON.

        Raises:
            ValueError: it is none.
        """
        facts = dict(from_json(OutcomeRecord, text))
        tables = []
        for table in facts.pop("tables"):
            rows = tuple(map(tuple, table["rows"]))
            tables.append(Table(table["title"], tuple(table["columns"]), rows, table["note"]))
        figures = [Figure(figure["title"], figure["file"]) for figure in facts.pop("figures")]
        return cls(tables=tuple(tables), figures=tuple(figures), **facts)


def judged(gains: Iterable[tuple[float, float]], units: int = LEAST, *, every: bool = False) -> Verdict:
    """What intervals say about a claim.

    One that lies wholly on the wrong side of zero refutes it. One that contains zero, or touches it, says nothing.

    Args:
        gains: 95 % intervals (low, high) of differences, of which positive ones speak for the claim.
        units: how many prompts, edits or things they come from; fewer than `LEAST` say nothing.
        every: whether each of them must lie on the right side for the claim to hold, instead of one.
    """
    intervals = list(gains)
    if units < LEAST:
        return "measured"
    if any(high < 0 for _, high in intervals):
        return "failed"
    right = [low > 0 for low, _ in intervals]
    holds = bool(right) and all(right) if every else any(right)
    return "passed" if holds else "measured"


def number(value: float | None, digits: int = 3) -> str:
    """A number in a cell; empty where there is none."""
    if value is None:
        return ""
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"
