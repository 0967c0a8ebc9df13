"""Small helpers around torch modules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed

from ..errors import ModelError, SettingsError, meant

_LOCKS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def exclusive(shared: Any) -> Any:
    """The lock of a module, or of another object that models share: one thread at a time, which may take it again.

    Models that share a module share its lock. Code that is under the lock of a denoiser may take that of another part
    (an autoencoder, a text encoder), never the other way round.
    """
    shared = getattr(shared, "_orig_mod", shared)  # what torch.compile wraps
    # One step of the interpreter: a lock around it could stay locked after an interrupt.
    return _LOCKS.setdefault(shared, threading.RLock())


@contextmanager
def undone(undo: Callable[[], Any]) -> Iterator[None]:
    """Call `undo` at the end, whatever happens.

    Enter this before the change that is to be undone: an interrupt (Ctrl-C) can come between any two instructions.
    `undo` is called twice, so that an interrupt in the middle of the first call leaves nothing behind. It must
    therefore set a state, and not switch one.
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()


DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Names of the numbers that models compute with."""


def dtype_of(value: torch.dtype | str) -> torch.dtype:
    """A dtype by its name.

    Raises:
        SettingsError: it is not one of `DTYPES`.
    """
    if isinstance(value, torch.dtype):
        return value
    if value not in DTYPES:
        raise SettingsError(f"Unknown dtype '{value}'. Choose one of: {', '.join(DTYPES)}.{meant(value, DTYPES)}")
    found: torch.dtype = getattr(torch, value)
    return found


def seeded(seeds: Iterable[int]) -> list[torch.Generator]:
    """A generator of random numbers for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def remove_hook(module: nn.Module, hook: Any) -> None:
    """Take a forward hook off a module, by the function itself: an interrupt may have lost its handle."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, own in tuple(hooks.items()) if own is hook]:
            module._forward_pre_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)
            hooks.pop(key, None)  # last: an interrupted removal is found by it and goes on


class _Freeze:
    """Who wants a module frozen, and the weights to thaw when the last of them ends."""

    def __init__(self) -> None:
        self.holders: set[object] = set()
        self.weights: list[nn.Parameter] = []


_FREEZES: WeakKeyDictionary[nn.Module, _Freeze] = WeakKeyDictionary()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient with respect to weights: saves their inputs from being kept for the backward pass.

    Several holders may overlap, in threads or one after another: the weights thaw when the last one ends.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    lock, holder = exclusive(module), object()
    freeze = _FREEZES.setdefault(module, _Freeze())

    def release() -> None:
        with lock:
            freeze.holders.discard(holder)
            if not freeze.holders:
                for weight in freeze.weights:
                    weight.requires_grad_(True)
                freeze.weights.clear()

    with undone(release):
        with lock:
            freeze.holders.add(holder)
            freeze.weights += [weight for weight in module.parameters() if weight.requires_grad]
            for weight in freeze.weights:
                weight.requires_grad_(False)
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each of its parts back into the mode that it had."""
    training = [part for part in module.modules() if part.training]

    def put_back() -> None:
        for part in training:
            part.training = True

    with undone(put_back):
        module.eval()
        yield


def check_gradients(module: nn.Module) -> None:
    """Refuse a gradient pass through what is offloaded in groups: its weights are swapped behind the graph's back.

    Raises:
        ModelError: it is.
    """
    for part in module.modules():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        if "group_offloading" in hooks:
            raise ModelError(
                "The denoiser is offloaded in groups (enable_group_offload), under which gradients are wrong without "
                "an error. Open the model again without it, with limelight.load(..., offload='model') or 'sequential'."
            )


@contextmanager
def recomputing(denoiser: Any, last: str | None = None, *, on: bool = True) -> Iterator[None]:
    """Gradient checkpointing of the denoiser's blocks, as diffusers places it, whether or not it was on before.

    Args:
        last: the name of the attention module after which the pass stops, if it does.
        on: whether it is wanted; else nothing changes.

    Raises:
        ModelError: see `check_gradients`.
    """
    check_gradients(denoiser)
    if not on:
        yield
        return
    end = None
    if last is not None:
        end = denoiser.get_submodule(last.rpartition(".")[0])

    def run(block: nn.Module, *inputs: Any) -> Any:
        if block is end:  # the pass ends inside it, so that it cannot be run a second time
            return block(*inputs)
        return recomputed(block, *inputs, use_reentrant=False)

    before = [(module, _own(module)) for module in denoiser.modules() if hasattr(module, "gradient_checkpointing")]

    def put_back() -> None:
        for module, own in before:
            vars(module).update(own)  # first, so that an interrupt of the second call finds the state put back
            for name in set(_CHECKPOINTING) - set(own):
                vars(module).pop(name, None)

    with undone(put_back):
        denoiser.enable_gradient_checkpointing(run)
        yield


_CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")


def _own(module: nn.Module) -> dict[str, Any]:
    """What a module itself, not its class, says about gradient checkpointing."""
    return {name: vars(module)[name] for name in _CHECKPOINTING if name in vars(module)}
