"""The page, the JSON and the Markdown of a validation."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..utils.files import json_text, write
from ..utils.html import data_url, rendered
from ..utils.reading import reading
from .context import Settings
from .machine import versions
from .outcome import Outcome, Table
from .stages import STAGES

PAGE = importlib.resources.files("limelight.validate") / "templates" / "validation.html.jinja"
FORMAT = 1
OPTIONS = ("device", "dtype", "scheduler", "steps", "height", "width")
"""Settings that the command line has options of, besides the backbones."""


def write_report(folder: Path, settings: Settings, done: Mapping[str, Outcome]) -> Path:
    """Write the three files, and return the path of the page.

    Raises:
        FileError: the folder cannot be written.
        MissingDependency: jinja2 is not installed.
    """
    ordered = {name: done[name] for name in STAGES if name in done}
    facts = document(settings, ordered)
    text = json_text(facts, indent=1).encode() + b"\n"
    write(folder / "validation.json", text)
    block = markdown(facts, ordered)
    write(folder / "validation.md", block.encode())
    page = _page(folder, facts, ordered, block, hashlib.sha256(text).hexdigest()[:16])
    write(folder / "validation.html", page.encode())
    return folder / "validation.html"


def document(settings: Settings, done: Mapping[str, Outcome]) -> dict[str, Any]:
    """Everything that is known, as plain values."""
    load = done.get("load")
    facts = {} if load is None else load.facts
    return {
        "format": FORMAT,
        "model": settings.source,
        "weights": facts.get("weights"),
        "hardware": facts.get("hardware", {}),
        "versions": versions(),
        "settings": {**asdict(settings), "backbones": settings.measured_by},
        "stages": [outcome.record() for outcome in done.values()],
    }


def command(settings: Mapping[str, Any]) -> str:
    """The command line that validates so again, without its folder.

    Args:
        settings: as `document` has them.
    """
    words, plain = ["limelight", "validate", settings["source"]], Settings(source=settings["source"])
    own = {**plain.measured_by, **{name: getattr(plain, name) for name in OPTIONS}}
    given = {**settings["backbones"], **{name: settings[name] for name in OPTIONS}}
    for name, value in given.items():
        if value != own[name]:
            words += [f"--{name}", str(value)]
    return shlex.join([*words, "--budget", f"{settings['budget']:g}s"])


def markdown(facts: Mapping[str, Any], done: Mapping[str, Outcome]) -> str:
    """A short block to paste into an issue."""
    hardware = facts["hardware"]
    where = hardware.get("GPU") or hardware.get("processor", "unknown")
    libraries = ", ".join(f"{name} {facts['versions'][name]}" for name in ("limelight", "torch", "diffusers"))
    lines = [
        f"**{_plain(command(facts['settings']))}** (weights `{facts['weights']}`)",
        "",
        f"{_plain(where)}; {libraries}",
        "",
        "| stage | verdict | finding | seconds |",
        "|---|---|---|---|",
    ]
    for name, outcome in done.items():
        lines.append(f"| {name} | {outcome.verdict} | {_plain(outcome.summary)} | {outcome.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _plain(text: object) -> str:
    """Text of others in a cell of Markdown: on one line, and no character means anything there or in HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(str(text).split()))


def _page(folder: Path, facts: Mapping[str, Any], done: Mapping[str, Outcome], block: str, digest: str) -> str:
    images = {}
    for outcome in done.values():
        for figure in outcome.figures:
            images[figure.file] = _inline(folder / figure.file)
    values = {
        "facts": facts,
        "command": command(facts["settings"]),
        "settings": {**facts["settings"], "budget": f"{facts['settings']['budget']:g} s"},
        "done": done,
        "stages": STAGES,
        "images": images,
        "block": block,
        "digest": digest,
        "numeric": _numeric,
    }
    return rendered(PAGE, values, what="The page", extra="eval")


def _inline(path: Path) -> str:
    """An image as a data URL."""
    with reading(path, "an image", "remove the file of its stage in stages/, and validate again"):
        return data_url(path.read_bytes())


def _numeric(table: Table) -> list[bool]:
    """Which columns of a table hold numbers."""
    found = []
    for i in range(len(table.columns)):
        cells = [row[i] for row in table.rows if row[i]]
        found.append(i > 0 and bool(cells) and all(re.match(r"[-+]?[\d.]", cell) for cell in cells))
    return found
