"""What made an image, to be stored with it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import re
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..models.base import Model


def provenance(model: Model) -> dict[str, Any]:
    """The model, its scheduler, number type, learned words and quantization (if any), and the libraries' versions."""
    return {
        "model": model.name,
        "scheduler": type(model.scheduler).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        **({"learned": words} if (words := model.learned) else {}),
        **({"quantize": model.quantize} if model.quantize else {}),
        "versions": {name: importlib.metadata.version(name) for name in ("limelight", "diffusers", "torch")},
    }


def given(value: object) -> str | None:
    """How a setting that is no plain value stands in a result."""
    if value is None:
        return None
    return "given"


def exact_provenance(model: Model) -> dict[str, Any]:
    """All that the numbers of a run depend on: `provenance`, the weights, the scheduler's settings and the device."""
    scheduler = model.scheduler
    plain = {}
    for name, value in dict(scheduler.config).items():
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # DPM-Solver's "lambda_min_clipped" is -inf, for which JSON has no word
        if isinstance(value, str | int | float | bool) and not name.startswith("_"):
            plain[name] = value
    return {
        **provenance(model),
        "weights": fingerprint(model),
        "scheduler": {"class": type(scheduler).__name__, **plain},
        "device": model.device.type,
    }


# Module -> what `_state` said of it when it was hashed, and its hash.
_HASHED: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()


def fingerprint(model: Model) -> str:
    """Sixteen hexadecimal digits of all weights that an image depends on: denoiser, text encoders, autoencoder, LoRAs.

    Reading all of them takes about a second per gigabyte. A second call looks only whether the tensors are the same,
    unchanged as far as torch knows and by a sample of their values, and then takes what the first call found.
    Learned words are not weights of the model: see `Model.learned`.
    """
    found = hashlib.sha256()
    for name, module in model.parts.items():
        state = _state(module)
        before, digest = _HASHED.get(module, ("", ""))
        if state != before:
            digest = _digest(module)
            _HASHED[module] = state, digest
        found.update(f"{name} {digest}\n".encode())
    return found.hexdigest()[:16]


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a module and every value that it keeps beside them, also where they are offloaded."""
    for path, part in module.named_modules():
        name = re.sub(r"(\.base)+$", "", path)  # of a table that a learned word wraps
        offloaded = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
        for key, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if key not in part._non_persistent_buffers_set:
                value = offloaded[key] if value.is_meta and offloaded else value
                inner = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else ()  # quantized
                yield from ((f"{name}.{key}.{own}", getattr(value, own)) for own in inner)
                if not inner:
                    yield f"{name}.{key}", value


def _adapters(module: nn.Module) -> str:
    """The strength of each LoRA that is at work."""
    found = []
    for name, part in module.named_modules():
        scaling = getattr(part, "scaling", None)
        if isinstance(scaling, dict):
            state = [getattr(part, field, None) for field in ("active_adapters", "disable_adapters", "merged_adapters")]
            found.append(f"{name} {sorted(scaling.items())} {state}")
    return "\n".join(found)


def _digest(module: nn.Module) -> str:
    """A hash of all values, the same on every device."""
    found = hashlib.sha256(_adapters(module).encode())
    for name, value in _weights(module):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(_bytes(value))
    return found.hexdigest()


def _state(module: nn.Module) -> str:
    """What changes when weights do: which tensors they are, torch's count of their changes, some of their values."""
    found, samples = hashlib.sha256(_adapters(module).encode()), []
    for name, value in _weights(module):
        count = "" if value.is_inference() else value._version
        found.update(f"{name} {value.data_ptr()} {count} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().flatten()
        # Some tools (LoRA's merging, say) write to `.data`, which torch does not count.
        samples.append(flat[:: max(1, len(flat) // 32)].double())
    if samples:
        found.update(_bytes(torch.cat(samples)))
    return found.hexdigest()


def _bytes(value: Tensor) -> Any:
    """The values in the main memory, as something that can be hashed."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
