"""Make models fit into memory: 8-bit weights, and parts that wait in the main memory."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ..errors import MissingDependency, ModelError, SettingsError, meant
from ..utils.progress import quiet_loading

Quantize = Literal["8bit"]
Offload = Literal["model", "sequential"]
QUANTIZE: tuple[Quantize, ...] = ("8bit",)
OFFLOAD: tuple[Offload, ...] = ("model", "sequential")
_QUANTIZED = ("unet", "transformer", "text_encoder", "bert")
"""Beginnings of the names of the parts whose linear layers are quantized."""


def check_known(quantize: str | None, offload: str | None) -> None:
    """Refuse ways to save memory that do not exist.

    Raises:
        SettingsError: one is unknown.
    """
    for name, value, known in (("quantize", quantize, QUANTIZE), ("offload", offload, OFFLOAD)):
        if value is not None and value not in known:
            raise SettingsError(f"Unknown {name}='{value}'. Choose one of: {', '.join(known)}.{meant(value, known)}")


def check_memory(quantize: str | None, offload: str | None, device: torch.device) -> None:
    """Refuse ways to save memory that do not exist, or not here.

    Raises:
        SettingsError: one is unknown, or parts are to leave a device that is the CPU.
    """
    check_known(quantize, offload)
    if offload is not None and device.type == "cpu":
        raise SettingsError(
            f"offload='{offload}' keeps parts of a model in the main memory until a graphics card needs them, and the "
            "device is the CPU. Leave it out."
        )


def place(pipeline: Any, device: torch.device, quantize: str | None, offload: str | None) -> None:
    """Put an opened pipeline on a device, in less memory if that is wanted.

    Args:
        quantize: "8bit" keeps the weights of the linear layers of the denoiser and the text encoders as 8-bit integers
            with a scale per row. They are read in the model's dtype, and gradients go through them.
        offload: "model" keeps one part at a time on the device, "sequential" one layer.

    Raises:
        MissingDependency: torchao is not installed.
        ModelError: it does not fit.
    """
    if quantize is not None:
        _quantize(pipeline)
    try:
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model does not fit into the memory of '{device}'. Load it with quantize='8bit' or offload='model', "
            "use a smaller one or the CPU."
        ) from error


def weight_bytes(part: torch.nn.Module, name: str, quantize: str | None = None) -> int:
    """How many bytes the weights of a part take.

    Args:
        name: of the part in its pipeline.
        quantize: how they are kept, see `limelight.load`.
    """
    small = set[torch.Tensor]()
    if quantize is not None and name.startswith(_QUANTIZED):
        small = {module.weight for module in part.modules() if isinstance(module, torch.nn.Linear)}
    total = 0
    for weight in part.parameters():
        total += weight.numel() * (1 if weight in small else weight.element_size())
    return total


def _quantize(pipeline: Any) -> None:
    try:
        with quiet_loading():
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise MissingDependency(
            "quantize='8bit' needs torchao. Install it: pip install 'limelight[memory]'."
        ) from error

    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and name.startswith(_QUANTIZED):
            quantize_(part, Int8WeightOnlyConfig())
