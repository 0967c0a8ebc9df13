"""The methods that can be compared, by the names that people type."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingsError
from ..guidance import AttendAndExcite, Guidance
from ..models import Model
from ..suites import Case


@dataclass(frozen=True)
class Method:
    """A way to draw a case.

    Attributes:
        guidance: None draws plainly.
        prompt: what is drawn of a case.
    """

    guidance: Guidance | None = None
    prompt: Callable[[Case], str] = lambda case: case.prompt

    def settings(self) -> dict[str, Any]:
        return {"guidance": None if self.guidance is None else self.guidance.settings()}


def _plain(model: Model) -> Method:
    return Method()


def _source(model: Model) -> Method:
    """The picture that is to be edited, of a suite of edits."""
    return Method(prompt=lambda case: case.prompt if case.source is None else case.source)


def _attend_and_excite(model: Model, **changes: Any) -> Method:
    return Method(AttendAndExcite.suited(model, **changes))


def _fast(model: Model, **changes: Any) -> Method:
    return Method(AttendAndExcite.fast(model, **changes))


# A new method is one more line: a function of the model and of the settings that the user changes.
METHODS: Mapping[str, Callable[..., Method]] = {
    "plain": _plain,
    "source": _source,
    "attend-and-excite": _attend_and_excite,
    "attend-and-excite-fast": _fast,
}


def parse(label: str) -> tuple[str, dict[str, Any]]:
    """A method as it is typed, "attend-and-excite" or "attend-and-excite:scale=10:until=0.3": its name and settings.

    Raises:
        SettingsError: nobody knows it, or it cannot be read.
    """
    name, *changes = label.split(":")
    if name not in METHODS:
        raise SettingsError(f"'{name}' is no method; use {', '.join(METHODS)}.")
    settings = {}
    for change in changes:
        setting, sign, value = change.partition("=")
        try:
            settings[setting] = json.loads(value)
        except ValueError:
            sign = ""
        if not sign:
            raise SettingsError(f"'{change}' in '{label}' is no setting; write for example {name}:scale=10:until=0.3.")
    return name, settings


def build(label: str, model: Model) -> Method:
    """The method of a label for a model.

    Raises:
        SettingsError: it has no such setting, or not with this value.
    """
    name, settings = parse(label)
    try:
        return METHODS[name](model, **settings)
    except TypeError as error:
        raise SettingsError(f"'{label}' does not fit: {error}.") from error
