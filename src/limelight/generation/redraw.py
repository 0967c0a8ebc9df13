"""An image once more, from the settings inside its PNG."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from PIL import Image

from ..errors import FileError, LimelightError, SettingsError
from ..guidance.base import Guidance
from ..guidance.names import NAMES
from ..guidance.presets import preset
from ..models.base import Model
from ..models.loading import load, with_scheduler
from ..models.memory import Offload
from ..models.schedulers import SCHEDULERS
from ..utils.files import json_text, user_path
from ..utils.images import open_image, psnr
from ..utils.reading import from_json, reading
from ..utils.torch import DTYPES
from .generate import generate
from .loop import Step
from .plan import placing
from .result import Result

_SAMPLING = ("steps", "guidance_scale", "negative", "height", "width", "eta")
_NEEDED = ("prompt", "subjects", "seed", "model", "guidance", *_SAMPLING, "clip_skip", "scheduler", "dtype")


def redraw(
    path: str | os.PathLike[str],
    model: Model | None = None,
    *,
    device: str | None = None,
    offload: Offload | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Result:
    """Generate an image again: the same model, settings and seed, which every PNG of limelight holds.

    Args:
        path: a PNG that `Result.save` or a command has written.
        model: by default the one that made it is opened.
        device, offload: where to open it, see `limelight.load`.
        on_step: see `limelight.generate`.

    Raises:
        FileError: the file cannot be read, or holds no settings.
        SettingsError: it does not hold all that the image depends on, for example given latents; or the model is
            another one.

    Examples:
        >>> import tempfile
        >>> model, folder = limelight.load("pocket", device="cpu"), tempfile.mkdtemp()
        >>> result = limelight.generate(model, "a cat and a dog", steps=1)
        >>> again = limelight.redraw(result.save(folder)[0], model)
        >>> again.images[0] == result.images[0]
        True
    """
    settings = read_settings(path)
    reason = _lacking(settings)
    if reason:
        raise SettingsError(f"'{path}' cannot be generated again: {reason}.")

    if model is None:
        model = model_of(settings, device, offload)
    _check_model(path, settings, model)
    place = settings.get("place") or None
    return generate(
        model,
        settings["prompt"],
        subjects=settings["subjects"],
        seeds=settings["seed"],
        guidance=_guidance(path, settings["guidance"], place, model),
        place=place,
        on_step=on_step,
        **{name: settings[name] for name in _SAMPLING},
        clip_skip=settings["clip_skip"] or 0,
        true_cfg_scale=settings.get("true_cfg_scale", 1.0),
    )


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings inside a PNG.

    Raises:
        FileError: the file cannot be read, or holds none.
    """
    file = user_path(path)
    with reading(file, "an image of limelight"), Image.open(file) as image:
        text = image.info.get("limelight")
        if text is None:
            raise FileError(
                f"'{path}' holds no settings of limelight. Name a PNG as limelight has written it; other programs "
                "remove the settings."
            )
        found: dict[str, Any] = from_json(dict[str, Any], text)
    return found


def _lacking(settings: Mapping[str, Any]) -> str:
    """Why the settings are not enough; empty where they are."""
    if "seeds" in settings:
        return "it is a sheet of several images; name one of them"
    if "cross_steps" in settings:
        return f"it was made by editing; run limelight edit '{settings.get('source')}' '{settings.get('prompt')}'"

    for name in _NEEDED:
        if name not in settings:
            return f"its settings lack '{name}'"
    for name in ("latents", "conditioning"):
        if settings.get(name):
            return f"it was made of given {name}, which are not in the file"
    if settings.get("edits"):
        return "its attention was edited, and edits are not in the file as a whole"
    return ""


def model_of(
    settings: Mapping[str, Any], device: str | None = None, offload: Offload | None = None, *, source: str | None = None
) -> Model:
    """Open the model of an image, with its scheduler, its kind of numbers and its weights as they were kept.

    Args:
        settings: those inside its PNG, see `read_settings`.
        device, offload: see `limelight.load`.
        source: where the model lies now; by default where it lay.
    """
    dtype = getattr(torch, settings["dtype"]) if settings.get("dtype") in DTYPES else None
    quantize = settings.get("quantize")
    model = load(source or settings["model"], device=device, dtype=dtype, quantize=quantize, offload=offload)
    model.name = settings["model"]  # a place is no other model
    if type(model.scheduler).__name__ == settings.get("scheduler"):
        return model
    for name, scheduler in SCHEDULERS.items():
        if scheduler == settings.get("scheduler"):
            return with_scheduler(model, name)
    return model


def _check_model(path: str | os.PathLike[str], settings: Mapping[str, Any], model: Model) -> None:
    """Refuse another model, scheduler or learned words than those of the image."""
    words, missing = settings.get("learned", {}), []
    for word, of in words.items():
        if model.learned.get(word) != of:
            missing.append(word)
    if missing:
        raise SettingsError(
            f"'{path}' needs the learned words {', '.join(missing)} as they were. Bind them first, on the command line "
            "with --word FILE."
        )

    for name, here in (("model", model.name), ("scheduler", type(model.scheduler).__name__)):
        if settings[name] != here:
            raise SettingsError(f"'{path}' was made with the {name} '{settings[name]}', and this one is '{here}'.")
    if settings.get("quantize") != model.quantize:
        raise SettingsError(
            f"'{path}' was made with quantize={settings.get('quantize')!r}, and the model with {model.quantize!r}."
        )


def _guidance(path: str | os.PathLike[str], stored: Any, place: Any, model: Model) -> Guidance | None:
    """The guidance whose settings are those of the image."""
    if stored is None:
        return None
    if place is not None and _settings(placing(None, model, [place])) == stored:
        return None
    for name in NAMES:
        for found in (preset(name, model), _changed(preset(name, model), stored)):
            if found is not None and _settings(placing(found, model, [place or {}])) == stored:
                return found
    raise SettingsError(
        f"'{path}' cannot be generated again: its guidance is none of {', '.join(NAMES)}. Generate it with your own."
    )


def _settings(guidance: Guidance | None) -> Any:
    """The settings of a guidance as JSON has them."""
    return None if guidance is None else json.loads(json_text(guidance.settings()))


def _changed(guidance: Guidance, stored: Mapping[str, Any]) -> Guidance | None:
    """A guidance with the stored values of its plain fields; None where they do not fit."""
    changes: dict[str, Any] = {}
    for field in fields(guidance):
        if field.name not in ("objective", "thresholds", "noise_search") and field.name in stored:
            value = stored[field.name]
            changes[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        thresholds = {_step(key): value for key, value in stored["thresholds"].items()}
        return replace(guidance, **changes, thresholds=thresholds)
    except (LimelightError, LookupError, TypeError, ValueError):
        return None


def _step(key: str) -> float | int:
    """A step, or a fraction of the schedule, as the settings write it."""
    return int(key) if key.isdecimal() else float(key)


def difference(path: str | os.PathLike[str], result: Result) -> str:
    """How far an image is from that of the file, as a sentence."""
    there, here = open_image(path), result.images[0]
    if there.size != here.size:
        return f"Another size than '{path}': the file was changed."
    decibels = psnr(there, here)
    if math.isinf(decibels):
        return f"The same image as '{path}', pixel by pixel."

    stored, now = read_settings(path).get("versions") or {}, result.settings["versions"]
    changes = []
    for name, version in now.items():
        if stored.get(name) != version:
            changes.append(f"{name} {stored.get(name)} there, {version} now")
    why = ", ".join(changes) or "another device, number of threads or number of images at once rounds differently"
    return f"As near to '{path}' as {decibels:.1f} dB (PSNR): {why}."
