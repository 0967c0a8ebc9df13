"""The one check of all numeric options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from ..errors import SettingsError


def check_finite(**options: Any) -> None:
    """Refuse options that hold NaN or infinity, which would give black images or switch something off in silence.

    Args:
        options: by name: numbers, tensors, or lists and dicts of such at any depth; what is no number passes.

    Raises:
        SettingsError: one holds a number that is not finite.
    """
    for name, value in options.items():
        if not _finite(value):
            shown = "" if hasattr(value, "isfinite") else f"={value!r}"
            raise SettingsError(f"{name}{shown} must be finite; NaN and infinity have no meaning here.")


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
