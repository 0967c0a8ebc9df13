"""Small helpers around torch modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient with respect to weights: saves their inputs from being kept for the backward pass."""
    thawed = [p for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each of its parts back into the mode that it had."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def recomputing(denoiser: Any, last: str | None = None) -> Iterator[None]:
    """Gradient checkpointing of the denoiser's blocks, as diffusers places it, whether or not it was on before.

    Args:
        last: the name of the attention module after which the pass stops, if it does.
    """
    end = None if last is None else denoiser.get_submodule(last.rpartition(".")[0])

    def run(block: nn.Module, *inputs: Any) -> Any:
        # The pass ends inside this block, which therefore cannot be run a second time.
        return block(*inputs) if block is end else recomputed(block, *inputs, use_reentrant=False)

    before = [
        (module, module.gradient_checkpointing, getattr(module, "_gradient_checkpointing_func", None))
        for module in denoiser.modules()
        if hasattr(module, "gradient_checkpointing")
    ]
    denoiser.enable_gradient_checkpointing(run)
    try:
        yield
    finally:
        for module, switched, function in before:
            module.gradient_checkpointing, module._gradient_checkpointing_func = switched, function
