"""The models inside this package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from ..errors import ModelError

POCKET = Path(str(importlib.resources.files("limelight") / "pocket"))
EMBEDDED = {"pocket": POCKET, "pocket-dit": POCKET.with_name("pocket_dit")}
"""Folders by name; the second one is not shipped yet."""


def folder_of(source: Any) -> Any:
    """The folder of an embedded model's name, or of "pocket" for None; any other source as it is.

    Raises:
        ModelError: the model of this name is not shipped.
    """
    name = "pocket" if source is None else str(source)
    folder = EMBEDDED.get(name)
    if folder is None:
        return source
    if not folder.is_dir():
        raise ModelError(f"'{name}' is not shipped with this version of limelight; 'pocket' is.")
    return folder
