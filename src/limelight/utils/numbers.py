"""The checks of all numeric options, and numbers as messages write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from ..errors import SettingsError

MOST_SIDE, MOST_STEPS, MOST_IMAGES = 8192, 10_000, 10_000
"""Upper limits: pixels of a side, denoising steps, and images (or workers) at once. What is beyond was mistyped."""


def check_finite(**options: Any) -> None:
    """Refuse options that hold NaN or infinity, which would give black images or switch something off in silence.

    Args:
        options: by name: numbers, tensors, or lists and dicts of such at any depth; what is no number passes.

    Raises:
        SettingsError: one holds a number that is not finite.
    """
    for name, value in options.items():
        if not _finite(value):
            given = "" if hasattr(value, "isfinite") else f"={shown(value)}"
            raise SettingsError(f"{name}{given} must be finite; NaN and infinity have no meaning here.")


def check_whole(most: int, least: int = 1, **options: Any) -> None:
    """Refuse options that are not whole numbers within limits; None passes.

    Raises:
        SettingsError: one is something else.
    """
    for name, value in options.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and least <= value <= most):
            raise SettingsError(f"{name}={shown(value)} must be a whole number from {least} to {most}.")


def check_sampling(
    *, steps: Any, height: Any = None, width: Any = None, guidance_scale: Any = None, batch: Any = None
) -> None:
    """Refuse numbers that no model can generate with, before one is loaded.

    Raises:
        SettingsError: one is out of its range.
    """
    check_whole(MOST_STEPS, steps=steps)
    check_whole(MOST_SIDE, height=height, width=width)
    check_whole(MOST_IMAGES, batch=batch)
    check_finite(guidance_scale=guidance_scale)


def parse_seeds(text: str) -> list[int]:
    """Parse seeds as they are typed: "0-3,7" is [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    unreadable = SettingsError(f"Cannot read '{text}' as seeds. Write for example 0-3,7.")
    for part in text.strip("[] ").split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:\s*-\s*(\d{1,19}))?\s*", part)
        if match is None:
            raise unreadable
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= 2**63:
            raise unreadable
        if len(seeds) + last - first >= MOST_IMAGES:
            raise SettingsError(f"'{text}' is too many seeds. Give at most {MOST_IMAGES} at once.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def shown(value: Any, most: int = 80) -> str:
    """A value as messages show it, however large it is."""
    try:
        text = repr(value)
    except ValueError:  # Python writes numbers of at most 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."


def amount(count: int, thing: str) -> str:
    """A count with its noun: "1 prompt", "2 prompts"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _finite(value: Any) -> bool:
    if isinstance(value, Real):
        return isinstance(value, int) or math.isfinite(value)
    if isinstance(value, Mapping):
        return _finite(list(value)) and _finite(list(value.values()))
    if hasattr(value, "isfinite"):  # a tensor
        return bool(value.isfinite().all())
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return all(map(_finite, value))
    return True
