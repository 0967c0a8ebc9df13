"""Dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that have a value."""
    return {name: value for name, value in given.items() if value is not None}
