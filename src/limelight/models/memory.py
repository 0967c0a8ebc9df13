"""Make models fit into memory: weights of 8 or 4 bits, and parts that wait in the main memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from ..errors import MissingDependency, ModelError, SettingsError, meant
from ..utils.progress import quiet_loading

Quantize = Literal["8bit", "4bit"]
Offload = Literal["model", "sequential"]
QUANTIZE: tuple[Quantize, ...] = ("8bit", "4bit")
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
        SettingsError: one is unknown, parts are to leave a device that is the CPU, or 4-bit weights are to be on
            another than CUDA or the CPU.
    """
    check_known(quantize, offload)
    if quantize == "4bit" and device.type not in ("cuda", "cpu"):
        raise SettingsError(f"quantize='4bit' needs bitsandbytes, which has no gradients on '{device}'. Use '8bit'.")
    if offload is not None and device.type == "cpu":
        raise SettingsError(
            f"offload='{offload}' keeps parts of a model in the main memory until a graphics card needs them, and the "
            "device is the CPU. Leave it out."
        )


def place(pipeline: Any, device: torch.device, quantize: str | None, offload: str | None) -> None:
    """Put an opened pipeline on a device, in less memory if that is wanted.

    Args:
        quantize: "8bit" keeps the weights of the linear layers of the denoiser and the text encoders as 8-bit integers
            with a scale per row, "4bit" as 4-bit floats with a scale per 64 of them. They are read in the model's
            dtype, and gradients go through them.
        offload: "model" keeps one part at a time on the device, "sequential" one layer.

    Raises:
        MissingDependency: torchao or bitsandbytes is not installed.
        ModelError: it does not fit.
    """
    if quantize is not None:
        _quantize(pipeline, quantize, device)
    try:
        if offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"The model does not fit into the memory of '{device}'. Load it with quantize='8bit' or '4bit', or with "
            "offload='model', use a smaller one or the CPU."
        ) from error


def weight_bytes(part: torch.nn.Module, name: str, quantize: str | None = None) -> int:
    """How many bytes the weights of a part take.

    Args:
        name: of the part in its pipeline.
        quantize: how they are kept, see `limelight.load`.
    """
    small = dict[torch.Tensor, float]()
    if quantize is not None and name.startswith(_QUANTIZED):
        small = {layer.weight: _BYTES[quantize] for _, _, layer in _layers(part)}
    total = 0.0
    for weight in part.parameters():
        total += weight.numel() * small.get(weight, weight.element_size())
    return round(total)


_BYTES = {"8bit": 1.0, "4bit": 0.5 + 1 / 64}  # of 64 weights in 4 bits one byte is their scale


def _layers(part: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """The layers of a part that are quantized, each with the module that holds it and its name there.

    Left out are those that the part's class wants whole, and those that share their weights with an embedding.
    """
    modules = list(part.modules())
    whole = getattr(part, "_keep_in_fp32_modules", None) or ()
    shared = {module.weight for module in modules if isinstance(module, torch.nn.Embedding)}
    for module in modules:
        for name, layer in tuple(module.named_children()):
            if type(layer) is torch.nn.Linear and name not in whole and layer.weight not in shared:
                yield module, name, layer


def _quantize(pipeline: Any, quantize: str, device: torch.device) -> None:
    change = _to_8_bit if quantize == "8bit" else _to_4_bit
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and name.startswith(_QUANTIZED):
            change(part, device)


def _to_8_bit(part: torch.nn.Module, device: torch.device) -> None:
    with _installed("8bit", "torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layers = {layer for _, _, layer in _layers(part)}
    quantize_(part, Int8WeightOnlyConfig(), filter_fn=lambda module, _name: module in layers)


def _to_4_bit(part: torch.nn.Module, device: torch.device) -> None:
    """Keep weights as NF4 of Tim Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
    https://arxiv.org/abs/2305.14314, one layer after the other on the device.
    """
    with _installed("4bit", "bitsandbytes"):
        from bitsandbytes.nn import Linear4bit, Params4bit

    for module, name, layer in tuple(_layers(part)):
        inputs, outputs, dtype = layer.in_features, layer.out_features, layer.weight.dtype
        small = Linear4bit(inputs, outputs, layer.bias is not None, dtype, quant_type="nf4", device="meta")
        small.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4").to(device)
        small.bias = layer.bias
        # Else the first pass repacks the weights on CPUs with bfloat16, and later ones have no gradient.
        small.support_avx512bf16_for_cpu = False
        setattr(module, name, small.train(layer.training))


@contextmanager
def _installed(quantize: str, package: str) -> Iterator[None]:
    """Import an optional package.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        with quiet_loading():
            yield
    except ImportError as error:
        raise MissingDependency(
            f"quantize='{quantize}' needs {package}. Install it: pip install 'limelight[memory]'."
        ) from error
