"""Open a text-to-image model: `load`."""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ModelError, SettingsError
from ..utils.progress import quiet_loading
from .base import About, Model
from .latent_diffusion import LatentDiffusion
from .schedulers import SCHEDULERS
from .stable_diffusion import StableDiffusion, StableDiffusionXL
from .unet import UNet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Pipeline class -> the adapter that drives it. A new family is one more line here.
FAMILIES: dict[str, type[UNet]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "LDMTextToImagePipeline": LatentDiffusion,
}
POCKET = Path(str(importlib.resources.files("limelight") / "pocket"))


def load(
    source: str | Path | DiffusionPipeline | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    scheduler: str | None = None,
) -> Model:
    """Open a text-to-image model.

    Threads may share the model: see `limelight.generate`. A learned word that one thread binds is there for all.

    Args:
        source: None or "pocket" is the small model inside this package, which needs no download; otherwise a folder in
            diffusers' layout, a hub id such as "CompVis/stable-diffusion-v1-4", or a live diffusers pipeline.
        device: by default CUDA, MPS or CPU, whichever is there first; a live pipeline stays where it is.
        dtype: by default float16 on CUDA and float32 elsewhere; a live pipeline keeps its own.
        scheduler: one of `SCHEDULERS`, set up for this model's noise levels; by default the model's own.

    Raises:
        ModelError: nothing is there, it cannot be reached, or its family is not supported.
        SettingsError: the device does not exist here, or the scheduler is unknown.

    Examples:
        >>> model = limelight.load("pocket", device="cpu", scheduler="ddim")
        >>> model.name, model.default_size
        ('pocket', (128, 128))
    """
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise SettingsError(f"Unknown scheduler '{scheduler}'. Choose one of: {', '.join(SCHEDULERS)}.")
    with quiet_loading():
        model = _live(source, device, dtype) if _is_pipeline(source) else _stored(source, device, dtype)
    if scheduler is not None:
        import diffusers

        model.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(model.scheduler.config)
    return model


def _is_pipeline(source: Any) -> bool:
    from diffusers import DiffusionPipeline  # seconds, which `import limelight` need not cost

    return isinstance(source, DiffusionPipeline)


def _live(pipeline: Any, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
    """The model of a pipeline that is open already, on its device and in its dtype if there are no wishes."""
    name = getattr(pipeline.config, "_name_or_path", None) or type(pipeline).__name__
    _check_family(type(pipeline).__name__, name)
    if device is not None:
        _move(pipeline, _device(device))
    if dtype is not None:
        pipeline.to(dtype)
    return FAMILIES[type(pipeline).__name__](pipeline, name)


def _stored(source: Any, device: str | torch.device | None, dtype: torch.dtype | None) -> Model:
    """The model of a folder or of the hub."""
    where = _device(device)
    dtype = dtype or (torch.float16 if where.type == "cuda" else torch.float32)
    name = "pocket" if source is None else str(source)
    source = POCKET if source in (None, "pocket") else source
    pipeline = _move(_open(source, name, dtype), where)
    model = FAMILIES[type(pipeline).__name__](pipeline, name)
    model.about = _about(Path(source).expanduser() / "limelight.json") or model.about
    return model


def _about(path: Path) -> About | None:
    """What a model's folder says about it, if it says anything."""
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text("utf-8"))
        words = facts.get("words")

        presets = {name: dict(value) for name, value in facts.items() if isinstance(value, dict)}
        for settings in presets.values():
            if "thresholds" in settings:  # JSON has text keys only
                settings["thresholds"] = {float(at): float(value) for at, value in settings["thresholds"].items()}

        if presets.get("attend_and_excite", {}).pop("relative", False):  # before 0.2 there were two rules
            presets["attend_and_excite"]["step_rule"] = "relative"
        if "inversion" in presets:  # its name before 0.2
            presets["textual_inversion"] = presets.pop("inversion")
        return About(None if words is None else frozenset(words), presets)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"'{path}' cannot be read: {error}.") from error


def _open(source: Any, name: str, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of a folder or of the hub, with safe weights alone."""
    import diffusers
    from safetensors import SafetensorError

    folder = os.path.expanduser(source)
    is_id = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)
    if not os.path.isdir(folder) and not is_id:
        raise ModelError(f"'{name}' is neither a folder nor a hub id (owner/name); 'pocket' is always there.")

    where = str(folder) if os.path.isdir(folder) else str(source)
    family = _family(where, name)
    options = {"dtype": dtype, "use_safetensors": True, **FAMILIES[family].loading}
    try:
        with _no_alarm():
            return getattr(diffusers, family).from_pretrained(where, **options)
    except UnpicklingError as error:
        raise ModelError(
            f"'{name}' has a weight file that holds more than weights, which could be a program; get its safetensors."
        ) from error
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"'{name}' cannot be read as a model: {reason}") from error


def _family(where: str, name: str) -> str:
    """The pipeline class that the model's index names, which must be a supported one."""
    from diffusers import DiffusionPipeline

    try:
        family = str(DiffusionPipeline.load_config(where)["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if os.path.isdir(where):
            raise ModelError(f"'{name}' is not a model folder: it has no readable model_index.json.") from error
        raise ModelError(
            f"'{name}' cannot be fetched from the hub; check the name and the connection, log in with `hf auth login` "
            "if it is private or gated, or give a folder."
        ) from error

    _check_family(family, name)
    return family


@contextmanager
def _no_alarm() -> Iterator[None]:
    """Without diffusers' alarm about weight files older than safetensors: they are opened with `weights_only=True`."""

    def other(record: logging.LogRecord) -> bool:
        return re.search("safetensors|unsafe serialization", record.getMessage()) is None

    log = logging.getLogger("diffusers.models.modeling_utils")
    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _check_family(pipeline: str, name: str) -> None:
    if pipeline not in FAMILIES:
        raise ModelError(f"'{name}' is a {pipeline}, which is not supported; supported: {', '.join(FAMILIES)}.")


def _device(wanted: str | torch.device | None) -> torch.device:
    """The wanted device, or the best one."""
    there = _device_types()
    try:
        device = torch.device(wanted or there[0])
    except RuntimeError as error:
        raise SettingsError(f"Unknown device '{wanted}'. Choose one of: cuda, mps, cpu.") from error

    beyond = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type not in there or beyond:
        raise SettingsError(f"The device '{wanted}' is not there; use {' or '.join(there)}.")
    return device


def _device_types() -> list[str]:
    """The kinds of device that this machine has, the fastest first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, available in there.items() if available]


def _move(pipeline: DiffusionPipeline, device: torch.device) -> DiffusionPipeline:
    try:
        return pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model does not fit into the memory of '{device}'; use a smaller one or the CPU."
        ) from error
