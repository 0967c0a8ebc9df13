"""The machine and the libraries that a validation ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

import psutil
import torch

LIBRARIES = ("limelight", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow")


def hardware(device: torch.device) -> dict[str, str]:
    """The processor, the memory and the GPU, as people call them."""
    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": f"{os.cpu_count()}, {torch.get_num_threads()} threads in use",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "device": str(device),
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found["GPU"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return found


def versions() -> dict[str, str]:
    """The versions of the libraries that the numbers depend on."""
    found = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _processor() -> str:
    """The name of the processor."""
    with suppress(OSError):
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()
