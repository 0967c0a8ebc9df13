"""Rows of scores: a dictionary per image."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeVar

Row = dict[str, Any]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def grouped(values: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    """Values by their key, in the order in which the keys come first.

    Examples:
        >>> grouped(["cat", "dog", "cow"], lambda word: word[0])
        {'c': ['cat', 'cow'], 'd': ['dog']}
    """
    found: dict[K, list[V]] = {}
    for value in values:
        found.setdefault(key(value), []).append(value)
    return found


def column(rows: Iterable[Row], name: str) -> list[Any]:
    """The known values of a column: those that are not None."""
    return [row[name] for row in rows if row[name] is not None]


def mean(rows: Iterable[Row], name: str) -> float | None:
    """The mean of the known values of a column; None where none is."""
    values = column(rows, name)
    if not values:
        return None
    return sum(values) / len(values)


def by_subset(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Rows by their subset; first, as "all", the whole."""
    parts: dict[str, Sequence[Row]] = {"all": rows}
    return parts | grouped(rows, itemgetter("subset")) | parts
