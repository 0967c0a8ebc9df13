"""The models inside this package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

POCKET = Path(str(importlib.resources.files("limelight") / "pocket"))
EMBEDDED = {"pocket": POCKET, "pocket-256": POCKET, "pocket-dit": POCKET.with_name("pocket_dit")}
"""Folders by name."""
_APART = {"pocket-256": {"vae": POCKET.with_name("pocket_256")}}


def folder_of(source: Any) -> Any:
    """The folder of an embedded model's name, or of "pocket" for None; any other source as it is."""
    name = "pocket" if source is None else str(source)
    return EMBEDDED.get(name, source)


def home_of(part: str, name: str, folder: Path) -> Path:
    """The folder that holds a part's folder: the model's own, but where an embedded model differs from "pocket" in
    that part alone."""
    return _APART.get(name, {}).get(part, folder)
