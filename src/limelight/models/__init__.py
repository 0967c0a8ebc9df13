"""Model families, and the one way in: `load`."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ModelError, SettingsError
from .base import Conditioning, Layer, Model
from .unet import StableDiffusion

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Conditioning", "Layer", "Model", "load"]

# Pipeline class -> the adapter that drives it. A new family is one more line here.
FAMILIES: dict[str, type[StableDiffusion]] = {"StableDiffusionPipeline": StableDiffusion}


POCKET = Path(str(importlib.resources.files("limelight") / "pocket"))


def load(
    source: str | Path | DiffusionPipeline | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Open a text-to-image model.

    Args:
        source: None or "pocket" is the small model inside this package, which needs no download; otherwise a folder in
            diffusers' layout, a hub id such as "CompVis/stable-diffusion-v1-4", or a live diffusers pipeline.
        device: by default CUDA, MPS or CPU, whichever is there first; a live pipeline stays where it is.
        dtype: by default float16 on CUDA and float32 elsewhere; a live pipeline keeps its own.

    Raises:
        ModelError: nothing is there, it cannot be reached, or its family is not supported.
        SettingsError: the device does not exist here.
    """
    from diffusers import DiffusionPipeline  # seconds, which `import limelight` need not cost

    if isinstance(source, DiffusionPipeline):
        pipeline, name = source, getattr(source.config, "_name_or_path", None) or type(source).__name__
        _check_family(type(pipeline).__name__, name)
        pipeline.to(*(x for x in (device, dtype) if x is not None))
    else:
        device = _device(device)
        dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        name = "pocket" if source is None else str(source)
        pipeline = _open(POCKET if source in (None, "pocket") else source, name, dtype).to(device)
    return FAMILIES[type(pipeline).__name__](pipeline, name)


def _open(source: Any, name: str, dtype: torch.dtype) -> DiffusionPipeline:
    from diffusers import DiffusionPipeline, StableDiffusionPipeline

    folder = Path(source).expanduser()
    is_id = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith(".")
    if not folder.exists() and not is_id:
        raise ModelError(f"'{name}' is neither a folder nor a hub id (owner/name); 'pocket' is always there.")
    where = str(folder) if folder.exists() else str(source)
    try:
        config = DiffusionPipeline.load_config(where)
    except (OSError, ValueError) as error:
        if folder.exists():
            raise ModelError(f"'{name}' is no model folder: it has no readable model_index.json.") from error
        raise ModelError(
            f"'{name}' cannot be fetched from the hub; check the name and the connection, or give a folder."
        ) from error
    _check_family(config["_class_name"], name)
    options: dict[str, Any] = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    try:
        return StableDiffusionPipeline.from_pretrained(where, **options, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"'{name}' cannot be read as a model: {str(error).splitlines()[0]}") from error


def _check_family(pipeline: str, name: str) -> None:
    if pipeline not in FAMILIES:
        raise ModelError(f"'{name}' is a {pipeline}, which is not supported; supported: {', '.join(FAMILIES)}.")


def _device(wanted: str | torch.device | None) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    try:
        device = torch.device(wanted or next(name for name in there if there[name]))
    except RuntimeError as error:
        raise SettingsError(f"'{wanted}' is no device; use cuda, mps or cpu.") from error
    if not there.get(device.type, True):
        raise SettingsError(
            f"The device '{wanted}' is not available here; use {' or '.join(k for k in there if there[k])}."
        )
    return device
