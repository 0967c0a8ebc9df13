"""What `Result.save` has written, opened again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ..attention.maps import AttentionMaps, join
from ..attention.recording import StepMaps
from ..errors import FileError
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt
from ..utils.files import json_text, user_path
from ..utils.images import open_image
from ..utils.reading import Record, from_json, reading
from ..utils.tensors import read_tensors


class _Facts(Record):
    """What the file of tensors says beside them."""

    prompt: Prompt
    sites: list[AttentionSite]
    latent_size: tuple[int, int]
    steps: int


class _Trace(Record):
    """The content of the JSON file."""

    settings: dict[str, Any]
    trace: list[dict[str, Any]]


class SavedImage(NamedTuple):
    """One image of a result.

    Attributes:
        steps: the maps of every single step, none where they were not recorded.
        settings: without the seed.
    """

    image: Image.Image
    latents: Tensor
    maps: AttentionMaps
    steps: list[AttentionMaps]
    trace: list[dict[str, Any]]
    settings: dict[str, Any]
    seed: int


def tensors_of(latents: Tensor, maps: AttentionMaps, steps: StepMaps, index: int) -> dict[str, Tensor]:
    """The tensors of one image by their names in its file."""
    found = {"latents": latents[index]}
    for layer, p in maps.layers.items():
        found[f"maps.{layer.name}"] = p[index]
    for number in range(len(steps)):
        for layer, p in steps[number].layers.items():
            found[f"steps.{number}.{layer.name}"] = p[index]
    return found


def facts_of(maps: AttentionMaps, steps: StepMaps, index: int) -> dict[str, str]:
    """What is needed to find words in these tensors again: metadata of the file."""
    sites = dict.fromkeys(steps[0].layers) if len(steps) else {}
    sites |= dict.fromkeys(maps.layers)
    prompt = maps.prompts[index]
    facts = {
        "prompt": asdict(prompt),
        "sites": list(map(asdict, sites)),
        "latent_size": maps.latent_size,
        "steps": len(steps),
        "words": prompt.read,  # for readers of the file that know nothing of prompts
    }
    return {"limelight": json_text(facts)}  # one entry: safetensors writes several in any order


def read_saved(path: str | os.PathLike[str]) -> list[SavedImage]:
    """The images of one result, by their seeds.

    Args:
        path: a folder that holds one result, or one image.

    Raises:
        FileError: nothing is there, several results are, or a file is damaged or of an older limelight.
    """
    folder = user_path(path)
    if not folder.is_dir():
        return [_read_image(folder)]

    images = sorted(image for image in folder.glob("*.png") if image.with_suffix(".safetensors").exists())
    if not images:
        raise FileError(f"'{path}' holds no result; name a folder that Result.save or limelight generate has written.")
    results: dict[str, list[Path]] = {}
    for image in images:
        settings = _read_trace(image).settings
        results.setdefault(json.dumps({**settings, "seed": None}, sort_keys=True), []).append(image)
    if len(results) > 1:
        first = ", ".join(own[0].name for own in list(results.values())[:4])
        raise FileError(f"'{path}' holds {len(results)} results; name one of their images, for example: {first}.")
    return sorted(map(_read_image, images), key=lambda saved: saved.seed)


def joined_trace(images: Sequence[SavedImage]) -> tuple[dict[str, Any], ...]:
    """The rows of several images as those of one result."""
    rows = []
    for same in zip(*(saved.trace for saved in images), strict=True):
        row: dict[str, Any] = {}
        for name in same[0]:
            row[name] = same[0][name] if name in ("step", "timestep") else [_undefined(own[name]) for own in same]
        rows.append(row)
    return tuple(rows)


def joined_steps(images: Sequence[SavedImage]) -> StepMaps:
    """The single steps of several images."""
    if not images[0].steps:
        return StepMaps()
    return StepMaps([[join(step) for step in zip(*(saved.steps for saved in images), strict=True)]])


def _undefined(value: Any) -> Any:
    """A value of a trace, where what is not defined is NaN again."""
    if isinstance(value, list):
        return list(map(_undefined, value))
    return float("nan") if value is None else value


class _ReadTrace(NamedTuple):
    settings: dict[str, Any]
    trace: list[dict[str, Any]]


def _read_trace(path: Path) -> _ReadTrace:
    """The settings and the trace of an image."""
    file = path.with_suffix(".json")
    with reading(file, "the settings of an image"):
        found: dict[str, Any] = from_json(_Trace, file.read_bytes())
    return _ReadTrace(found["settings"], found["trace"])


def _read_image(path: Path) -> SavedImage:
    """One image and its files."""
    image, (settings, trace) = open_image(path), _read_trace(path)
    file = path.with_suffix(".safetensors")
    with reading(file, "the maps of an image"):
        tensors, metadata = read_tensors(file)
        if "limelight" not in metadata:
            raise FileError(
                f"'{file}' was written by an older limelight, without the words of its maps. Generate it again: "
                f"limelight redraw '{path}'."
            )
        facts = from_json(_Facts, metadata["limelight"])
        seed = settings.pop("seed")
        maps = _maps(facts, tensors, "maps.")
        steps = [_maps(facts, tensors, f"steps.{number}.") for number in range(facts["steps"])]
        return SavedImage(image, tensors["latents"][None], maps, steps, trace, settings, int(seed))


def _maps(facts: Mapping[str, Any], tensors: Mapping[str, Tensor], start: str) -> AttentionMaps:
    """The maps whose names have the same start.

    Raises:
        ValueError: they do not fit the prompt or the layers.
    """
    prompt, size = facts["prompt"], tuple(facts["latent_size"])
    positions = [position for word in prompt.words for position in word.positions]
    layers = {}
    for site in facts["sites"]:
        p = tensors.get(start + site.name)
        if p is None:
            continue
        height, width = site.size(size)
        if p.ndim != 3 or p.shape[1] != height * width or max(positions, default=0) >= p.shape[2]:
            raise ValueError(f"the maps of '{site.name}' do not fit its prompt")
        layers[site] = p[None]
    return AttentionMaps(layers, size, (prompt,))
