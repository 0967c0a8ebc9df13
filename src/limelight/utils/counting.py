"""Work and memory of a piece of work, counted on torch's meta device: no weights, no data, no machine's noise."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .torch import undone


class Flops(TorchDispatchMode):
    """Counts floating-point operations. (torch's own counter follows modules, which diffusers' gradient breaks.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were made while it was on and were there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            storage = made.untyped_storage() if isinstance(made, Tensor) else None
            if storage is None or storage._cdata in given or storage._cdata in self._known:
                continue
            self._known.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def fused() -> Iterator[None]:
    """Let attention on the meta device be as on a graphics card: one operation that keeps no probabilities."""
    original = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        if has_torch_function((query, key, value)):  # a probe answers
            return handle_torch_function(attend, (query, key, value), query, key, value, *args, **options)
        if query.device.type != "meta":
            return original(query, key, value, *args, **options)
        return _fused(query, key, value, *args, **options)

    with undone(partial(setattr, F, "scaled_dot_product_attention", original)):
        F.scaled_dot_product_attention = attend
        yield


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.device, query.dtype).expand(*query.shape[:3], key.shape[2])
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    output: Tensor = attend(query, key, value, attn_mask, keep, dropout_p, is_causal, scale=scale)[0]
    return output


class Count(NamedTuple):
    """What a run takes.

    Attributes:
        work: floating-point operations.
        peak: the most bytes that it has at once above what was there before.
    """

    work: int
    peak: int


def counted(run: Callable[[], Any]) -> Count:
    """Run once on the meta device and say what it takes."""
    with fused(), Flops() as flops, Peak() as memory:
        run()
    return Count(flops.total, memory.most)
