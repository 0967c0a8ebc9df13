"""A finished generation, and its files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..attention.recording import StepMaps
from ..errors import SettingsError
from ..utils.files import png, slug, write
from ..utils.images import grid


@dataclass(frozen=True, eq=False)
class Result:
    """Images and how they came about.

    Attributes:
        images: one per seed.
        latents: the finished latents [images, channels, height, width].
        maps: mean attention over the run, by word; without any layers with record=False.
        trace: one row per step in which guidance acted, with "step", "timestep" and, per image, "loss", "presence" (of
            each subject, 0..1) and "refinements".
        settings: everything that the images depend on, but for the seed.
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

    def grid(self, columns: int = 8) -> Image.Image:
        """All images in rows of at most `columns`, in the order of the seeds.

        Raises:
            SettingsError: `columns` is below 1.
        """
        if columns < 1:
            raise SettingsError(f"columns={columns} must be at least 1.")
        return grid([self.images[i : i + columns] for i in range(0, len(self.images), columns)])

    def save(self, folder: str | os.PathLike[str], name: str | None = None) -> list[Path]:
        """Write for each seed a PNG, its latents and maps (safetensors), and its settings and trace (JSON).

        Args:
            folder: made if absent.
            name: start of the file names; by default the prompt's words. It is reduced to letters, digits and hyphens.

        Returns:
            The images' paths. Each PNG holds its settings in the text chunk "limelight".

        Raises:
            FileError: the folder cannot be written.
        """
        folder, stem = Path(folder), slug(name or self.settings["prompt"])
        paths = []
        for i, (image, seed) in enumerate(zip(self.images, self.seeds, strict=True)):
            settings = {**self.settings, "seed": seed}
            trace = [{k: v[i] if isinstance(v, list) else v for k, v in row.items()} for row in self.trace]
            tensors = {"latents": self.latents[i]}
            tensors |= {f"maps.{layer.name}": p[i] for layer, p in self.maps.layers.items()}

            path = folder / f"{stem}-{seed}.png"
            write(path, png(settings, image))
            write(path.with_suffix(".safetensors"), save({k: v.contiguous().cpu() for k, v in tensors.items()}))
            write(path.with_suffix(".json"), json.dumps({"settings": settings, "trace": trace}, indent=1).encode())
            paths.append(path)
        return paths
