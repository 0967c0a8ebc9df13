"""What made an image, to be stored with it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Any

from ..models.base import Model


def provenance(model: Model) -> dict[str, Any]:
    """The model, its scheduler, number type and learned words (if any), and the versions of the libraries."""
    return {
        "model": model.name,
        "scheduler": type(model.scheduler).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        **({"learned": words} if (words := model.learned) else {}),
        "versions": {name: importlib.metadata.version(name) for name in ("limelight", "diffusers", "torch")},
    }


def exact_provenance(model: Model) -> dict[str, Any]:
    """All that the numbers of a run depend on: `provenance`, the weights, the scheduler's settings and the device."""
    scheduler = model.scheduler
    settings = {k: v for k, v in dict(scheduler.config).items() if isinstance(v, str | int | float | bool)}
    plain = {name: value for name, value in settings.items() if not name.startswith("_")}
    return {
        **provenance(model),
        "weights": fingerprint(model),
        "scheduler": {"class": type(scheduler).__name__, **plain},
        "device": model.device.type,
    }


def fingerprint(model: Model) -> str:
    """Sixteen hexadecimal digits that change with a training of the denoiser: of the first values of each weight."""
    found = hashlib.sha256()
    for name, value in model.denoiser.state_dict().items():
        found.update(name.encode() + str(tuple(value.shape)).encode())
        found.update(value.flatten()[:32].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
