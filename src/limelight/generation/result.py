"""A finished generation, and its files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load
from torch import Tensor

from ..attention.maps import AttentionMaps, join
from ..attention.recording import StepMaps
from ..errors import FileError, SettingsError
from ..utils.files import digest, json_text, png, slug, user_path, write, write_new
from ..utils.images import grid
from ..utils.reading import reading
from ..utils.tensors import tensor_file
from .saved import facts_of, joined_steps, joined_trace, read_saved, tensors_of
from .sentences import measured, sentences


@dataclass(frozen=True, eq=False)
class Result:
    """Images and how they came about.

    Attributes:
        images: one per seed.
        latents: the finished latents [images, channels, height, width].
        maps: mean attention over the run, by word; without any layers with record=False.
        trace: one row per step in which guidance acted, with "step", "timestep" and, per image, "loss", "presence" (of
            each subject, 0..1), the parts of the score by name and "refinements". The first row has "searches" where
            the noise was searched for, too: the gradient passes of that. With `Guidance.look` it has "plain_presence"
            and "plain_" with each part: those of the plain run at the step that was looked at.
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

    @property
    def kind(self) -> str:
        """How the images were made: "guided", "edited" (attention edits alone) or "plain"."""
        if self.settings.get("guidance"):
            return "guided"
        return "edited" if self.settings.get("edits") else "plain"

    def sentences(self) -> tuple[str, ...]:
        """What guidance did, one sentence per seed; none without guidance.

        "seed 0: nothing to fix at step 5 (cat 0.55, dog 0.62)": the plain run lacks nothing there, and the image is
        that one.
        "seed 1: monkey 0.00 -> 0.58 at step 5, fixed": the presence in the attention (0..1), or a part of the score, in
        the plain run and in the guided one, at the same step; "fixed" where there no part is wrong any more. Without
        `Guidance.look` nothing is known of the plain run, and the sentence has the presences at the last guided step.
        "...; perhaps missing: dog 0.02 in the mean over the run, of up to 0.26": of a subject whose noun has less than
        a quarter of the attention of another one in `maps`, whatever was seen early. Where there is none, "not yet
        fixed", and a presence near 0, are followed by "in the end none seems to be missing".
        """
        return sentences(self.trace, self.settings, self.seeds, self.subjects, self._peaks())

    def measured(self, index: int) -> tuple[Mapping[str, Any], ...]:
        """The rows of the trace of one image; of one that lacks nothing and stays plain the step that was looked at."""
        return measured(self.trace, self.settings, index) if self.trace else ()

    def _peaks(self) -> list[list[float]]:
        """For each image the largest attention to each subject's noun, its last word; none without maps."""
        if not self.maps.layers or not self.subjects:
            return []
        size = max(layer.size(self.maps.latent_size) for layer in self.maps.layers)
        nouns = [name.split()[-1] if isinstance(name, str) else name for name in self.subjects]
        return torch.stack([self.maps.map(noun, size).amax(dim=(1, 2)) for noun in nouns], dim=1).tolist()

    def grid(self, columns: int = 8) -> Image.Image:
        """The prompt, and all images with their seeds in rows of at most `columns`.

        Raises:
            SettingsError: `columns` is below 1.
        """
        if columns < 1:
            raise SettingsError(f"columns={columns} must be at least 1.")
        rows, captions = [], []
        for i in range(0, len(self.images), columns):
            rows.append(self.images[i : i + columns])
            captions.append([f"seed {seed}" for seed in self.seeds[i : i + columns]])
        return grid(rows, title=self.settings["prompt"], captions=captions)

    def _repr_png_(self) -> bytes:
        """The `grid`, as notebooks show a result."""
        return png(self.settings, self.grid())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Result:
        """Open what `save` or `limelight generate` has written, with its maps by word, in the order of the seeds.

        Args:
            path: a folder that holds one result, or an image of a folder that holds several; this opens that one image.

        Raises:
            FileError: nothing is there, several results are, or a file is damaged or of an older limelight.

        Examples:
            >>> import tempfile
            >>> model, folder = limelight.load("pocket", device="cpu"), tempfile.mkdtemp()
            >>> _ = limelight.generate(model, "a cat and a dog", seeds=[0, 1], steps=1).save(folder)
            >>> again = limelight.Result.load(folder)
            >>> again.seeds, tuple(again.maps["cat"].shape)
            ((0, 1), (2, 8, 8))
        """
        images = read_saved(path)
        settings = images[0].settings
        return cls(
            [saved.image for saved in images],
            torch.cat([saved.latents for saved in images]),
            join([saved.maps for saved in images]),
            joined_trace(images),
            settings,
            tuple(saved.seed for saved in images),
            tuple(settings["subjects"]),
            joined_steps(images),
        )

    def save(self, folder: str | os.PathLike[str], name: str | None = None) -> list[Path]:
        """Write for each seed a PNG, its latents and maps (safetensors), and its settings and trace (JSON).

        The maps are the mean over the run and, where they were recorded, those of the single steps; the words that they
        are of stand in the file's metadata. `load` opens them again.

        The names of the three end with the seed and a short hash of the settings, so that the same inputs have the same
        names. Files that are there are never replaced: another result of the same settings (of other given latents,
        say) has a hash of its content, and a result that is there, but for rounding, is not written again.

        Args:
            folder: made if absent; "~" is the home folder.
            name: start of the file names; by default the prompt's words. It is reduced to letters, digits and hyphens.

        Returns:
            The images' paths. Each PNG holds its settings in the text chunk "limelight".

        Raises:
            FileError: the folder cannot be written.
        """
        folder, stem = user_path(folder), slug(name or self.settings["prompt"])
        paths = []
        for index, seed in enumerate(self.seeds):
            settings = {**self.settings, "seed": seed}
            tensors = tensors_of(self.latents, self.maps, self.steps, index)
            files = self._files(index, settings, tensors)
            path = folder / f"{stem}-{seed}-{digest(json_text([settings, sorted(tensors)]).encode())}.png"
            if not _may_write(path, tensors["latents"]):
                path = folder / f"{stem}-{seed}-{digest(*files.values())}.png"

            for kind, content in files.items():
                if not path.with_suffix(kind).exists():
                    write(path.with_suffix(kind), content)
            paths.append(path)
        return paths

    def _files(self, index: int, settings: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, bytes]:
        """The files of one image by their suffix, the image last: where it is, the others are, too."""
        trace = []
        for row in self.trace:
            own = dict(row)
            for name, value in row.items():
                if isinstance(value, list):
                    own[name] = _known(value[index])
            trace.append(own)
        return {
            ".safetensors": tensor_file(tensors, facts_of(self.maps, self.steps, index)),
            ".json": json_text({"settings": settings, "trace": trace}, indent=1).encode(),
            ".png": png(settings, self.images[index]),
        }

    def save_grid(self, folder: str | os.PathLike[str]) -> Path:
        """Write the grid as a PNG, with the settings, the seeds and the `kind` inside.

        Args:
            folder: made if absent.

        Returns:
            Its path, whose name holds the words of the prompt and a short hash.

        Raises:
            FileError: the folder cannot be written.
        """
        settings = {**self.settings, "seeds": list(self.seeds), "rows": [self.kind]}
        stem = f"{slug(self.settings['prompt'], 70)}-grid"
        return write_new(user_path(folder), stem, "png", png(settings, self.grid()))

    def save_all(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the files of every image, see `save`, and the grid.

        Args:
            folder: made if absent.

        Returns:
            The paths of the images, whose names hold the words of the prompt and the `kind`; the grid is the last.

        Raises:
            FileError: the folder cannot be written.
        """
        stem = slug(self.settings["prompt"], 70)
        return [*self.save(folder, f"{stem} {self.kind}"), self.save_grid(folder)]


def _known(value: Any) -> Any:
    """A value of the trace for JSON, where what is not defined (NaN) is null."""
    if isinstance(value, list):
        return [_known(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _may_write(path: Path, latents: Tensor) -> bool:
    """Whether no other result has the name of an image: its latents there are these, but for rounding."""
    tensors = path.with_suffix(".safetensors")
    if not tensors.exists():
        return not path.exists()
    try:
        with reading(tensors):
            there = load(tensors.read_bytes())["latents"]
    except FileError:
        return False
    # A pass of more images rounds differently.
    return there.shape == latents.shape and bool((there.double() - latents.double()).square().mean().sqrt() < 1e-3)
