"""Stage "load": what the model is, what it is made of, and that one image comes out."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..generation.generate import generate
from ..generation.provenance import fingerprint
from ..models.base import FEATURES, Model
from ..utils.files import user_path
from .context import Context
from .machine import hardware
from .outcome import Outcome, Table, number

PROMPT = "a cat and a dog"
STEPS = 2


def run(context: Context) -> Outcome:
    """Open the model, hash its weights, generate one image of two steps, and time the second one."""
    start = time.perf_counter()
    model = context.model
    opened = time.perf_counter() - start
    weights = fingerprint(model)
    image, seconds = _image(context, model)

    spread = torch.tensor(list(image.convert("L").tobytes()), dtype=torch.float32).std().item()
    lacks = [feature for feature in FEATURES if feature not in model.can]
    missing = f" Not on this family: {', '.join(lacks)}." if lacks else ""
    summary = f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')} on {model.device}.{missing}"
    if spread == 0:
        summary = "The image of two steps has one color: the model generates nothing."

    figure = context.figure("load", "image", f"“{PROMPT}” after {STEPS} steps, seed 0", image)
    return Outcome(
        verdict="passed" if spread else "failed",
        summary=summary,
        tables=(_facts(model), _parts(model), *_files(context.settings.source)),
        figures=(figure,),
        numbers={"seconds to open": opened, "seconds per step": seconds},
        facts={"weights": weights, "hardware": hardware(model.device)},
    )


def _image(context: Context, model: Model) -> tuple[Image.Image, float]:
    """An image, and the seconds that each of its steps takes after a first image that warms up."""
    height, width = context.size
    options: dict[str, Any] = {"steps": STEPS, "height": height, "width": width, "record": False}
    generate(model, PROMPT, **options)
    start = time.perf_counter()
    result = generate(model, PROMPT, **options)
    return result.images[0], (time.perf_counter() - start) / STEPS


def _facts(model: Model) -> Table:
    rows = tuple(model.describe().items())
    return Table("Model", ("", "value"), rows)


def _parts(model: Model) -> Table:
    """The modules whose weights shape an image."""
    rows = []
    for name, module in model.parts.items():
        weights = list(module.parameters())
        size = sum(p.numel() * p.element_size() for p in weights) / 2**30
        kinds = {str(p.dtype).removeprefix("torch.") for p in weights}
        count = f"{sum(p.numel() for p in weights) / 1e6:.1f} M"
        rows.append((name, type(module).__name__, count, number(size), ", ".join(sorted(kinds))))
    return Table("Parts", ("part", "class", "parameters", "GiB", "dtype"), tuple(rows))


def _files(source: str) -> tuple[Table, ...]:
    """The files of a folder or of a single file; nothing is known of those in the hub's cache."""
    path = user_path(source)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [Path(where, name) for where, _, names in os.walk(path) for name in sorted(names)]
    else:
        return ()

    rows = []
    for file in found:
        if file.suffix in (".safetensors", ".bin", ".ckpt", ".pt"):
            shown = file.relative_to(path).as_posix() if path.is_dir() else file.name
            rows.append((shown, f"{file.stat().st_size / 2**20:.1f}"))
    return (Table("Files of weights", ("file", "MiB"), tuple(rows)),)
