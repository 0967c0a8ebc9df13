"""A finished generation, and its files."""

from __future__ import annotations

import io
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from safetensors.torch import save
from torch import Tensor

from .errors import SettingsError
from .maps import AttentionMaps, StepMaps


@dataclass(frozen=True, eq=False)
class Result:
    """Pictures and how they came about.

    Attributes:
        images: one per seed.
        latents: the finished latents [images, channels, height, width].
        maps: mean attention over the run, by word; without any layers with record=False.
        trace: one row per step in which guidance acted, with "step", "timestep" and, per image, "loss", "presence" (of
            each subject, 0..1) and "refinements".
        settings: everything that the pictures depend on, but for the seed.
        seeds: one per image.
        subjects: as they were given or guessed.
        steps: the maps of every single step, with record="steps" or "all".
    """

    images: list[Image.Image]
    latents: Tensor
    maps: AttentionMaps
    trace: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    subjects: tuple[Any, ...]
    steps: StepMaps = field(default_factory=StepMaps)

    def save(self, folder: str | os.PathLike[str], name: str | None = None) -> list[Path]:
        """Write for each seed a PNG, its latents and maps (safetensors), and its settings and trace (JSON).

        Args:
            folder: made if absent.
            name: start of the file names; by default the prompt's words. It is reduced to letters, digits and hyphens.

        Returns:
            The pictures' paths. Each PNG holds its settings in the text chunk "limelight".

        Raises:
            SettingsError: the folder cannot be written.
        """
        folder, stem = Path(folder), slug(name or self.settings["prompt"])
        pictures = []
        for i, (image, seed) in enumerate(zip(self.images, self.seeds, strict=True)):
            settings = {**self.settings, "seed": seed}
            trace = [{k: v[i] if isinstance(v, list) else v for k, v in row.items()} for row in self.trace]
            tensors = {"latents": self.latents[i]}
            tensors |= {f"maps.{layer.name}": p[i] for layer, p in self.maps.layers.items()}
            path = folder / f"{stem}-{seed}.png"
            write(path, png(settings, image))
            write(path.with_suffix(".safetensors"), save({k: v.contiguous().cpu() for k, v in tensors.items()}))
            write(path.with_suffix(".json"), json.dumps({"settings": settings, "trace": trace}, indent=1).encode())
            pictures.append(path)
        return pictures


def png(settings: dict[str, Any], image: Image.Image) -> bytes:
    """A PNG with its settings inside."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("limelight", json.dumps(settings, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        SettingsError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without its bytes
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise SettingsError(f"'{path}' cannot be written: {error.strerror or error}.") from error


def slug(text: str, length: int = 80) -> str:
    """Text as a harmless file name of at most `length` bytes: lower-case letters and digits, joined by hyphens."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    return "-".join(words).encode()[:length].decode(errors="ignore").strip("-") or "untitled"


def grid(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] | None = None, gap: int = 4) -> Image.Image:
    """Pictures of one size in rows and columns on white, with a label above each row."""
    width, height = rows[0][0].size
    head = 18 if labels else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap + head) + gap), "white")
    for y, row in enumerate(rows):
        top = gap + y * (height + gap + head)
        if labels:
            ImageDraw.Draw(sheet).text((gap, top), labels[y], fill="black", font=ImageFont.load_default(13))
        for x, image in enumerate(row):
            sheet.paste(image, (gap + x * (width + gap), top + head))
    return sheet
