"""Tensors in safetensors files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, on the CPU, and its metadata."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def tensor_file(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a file. The tensors may be anywhere, be views, and share memory."""
    return save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata)
