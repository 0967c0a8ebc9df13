"""The only code that touches attention: it records the probabilities of chosen layers and may edit them.

While a chosen attention module runs, calls of ``scaled_dot_product_attention`` are answered here. No attention
processor is replaced, so whatever else is installed on the model (LoRA, IP-Adapter) stays in force, and all other
layers keep their fused kernels.

Where every key is a column of the prompt (`Layout.columns` is None), the probabilities are made explicitly, with the
softmax in float32. Elsewhere a matrix of all of them would take gigabytes: the columns are read by the fused kernel
itself, as its product with one-hot values, and an edit adds what it changes, times the values of those columns, to the
layer's output. Both are exact and keep the gradient; an edit that changes nothing changes nothing to the last bit.

The matrix between image positions is edited by its queries and keys (`limelight.attention.edits.Edit`), which in joint
attention leaves the keys of the text as they are: Joonghyuk Shin et al., "Exploring Multimodal Diffusion Transformers
for Enhanced Prompt-based Image Editing", 2025, https://arxiv.org/abs/2508.07519
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode

from ..errors import ProbeError
from ..models.base import Model
from ..models.processors import describe_attention
from ..models.sites import AttentionSite, Layout
from ..prompts.prompt import Prompt
from ..utils.torch import remove_hook
from .call import Call, Rows, at, put
from .edits import Edit, Target, target, touches
from .maps import AttentionMaps

_KERNEL = "_attention_backend"
Answer = Callable[["AttentionSite", Call, Layout], Tensor]
"""``answer(layer, call, layout)``: the output of an attention call."""
Queries = Callable[["AttentionSite", Tensor, float], None]
"""``queries(layer, queries, scale)``: queries [images, heads, pixels, width], and what their products with keys are
multiplied by."""


@dataclass(frozen=True, eq=False)
class Beside:
    """Words that are not in the prompts of a pass, see `limelight.attention.passengers`.

    Attributes:
        keys: of their tokens in some layers, [images, heads, tokens, width] each.
        columns: those of each word behind a prompt's, see `AttentionMaps.also`.
    """

    keys: Mapping[AttentionSite, Tensor]
    columns: Mapping[str, tuple[int, ...]]


class Probe:
    """Watch and edit the attention of some layers, for as long as the ``with`` lasts.

    Examples:
        >>> import torch
        >>> model = limelight.load("pocket", device="cpu")
        >>> timestep = model.timesteps(50)[0]
        >>> conditioning = model.encode([model.prompt("a cat and a dog")])
        >>> latents = model.start(model.noise([torch.Generator().manual_seed(0)], 64, 64))
        >>> with torch.no_grad(), limelight.Probe(model) as probe:
        ...     prediction = model.predict(latents, timestep, conditioning)
        ...     maps = probe.take(latents, conditioning.prompts)
        >>> "cat" in maps, len(maps.layers) == len(model.text_sites)
        (True, True)

    Only the passes of the thread that entered it are watched and edited. The probabilities keep their gradient. Where
    both branches of classifier-free guidance run as one batch, only the conditional rows are recorded and edited: the
    last `images` of the batch.

    Args:
        model: the model to watch.
        layers: layers of `model.sites` to record; by default every cross-attention layer, () records none.
        edits: applied one after the other to the probabilities of the layers that they touch, after recording; those
            that change queries and keys come before the others.
        images: how many rows of the batch are conditional, counted from its end; by default all.
        step: the index of the step, passed to the edits.
        queries: called with the queries of every cross-attention layer; that alone leaves its attention fused.
        beside: words that are not in the prompt; their probabilities, in one softmax with the others, stand behind the
            recorded columns. A layer's output is that without them.
        answer: gives the output of the recorded layers, of which then nothing is recorded.
    """

    def __init__(
        self,
        model: Model,
        layers: Iterable[AttentionSite] | None = None,
        *,
        edits: Sequence[Edit] = (),
        images: int | None = None,
        step: int = 0,
        queries: Queries | None = None,
        beside: Beside | None = None,
        answer: Answer | None = None,
    ) -> None:
        cross = model.text_sites
        self.model = model
        self.layers = cross if layers is None else tuple(layers)
        self.images, self.step, self.queries = images, step, queries
        self.beside, self.answer = beside or Beside({}, {}), answer
        acting = {layer: [edit for edit in edits if touches(edit, layer, step)] for layer in model.sites}
        self._edits, self._injections = _changing(acting, "probabilities"), _changing(acting, "pixels")
        self._scores = _changing(acting, "text")
        self._explicit = frozenset((*self.layers, *self._edits))
        others = cross if queries else ()
        self._watched = tuple(dict.fromkeys((*self.layers, *self._edits, *self._injections, *self._scores, *others)))
        self._seen: dict[AttentionSite, Tensor | None] = {}
        self._ran: set[AttentionSite] = set()
        self._hooks: list[tuple[nn.Module, Any]] = []
        self._kernels: list[tuple[Any, dict[str, Any]]] = []  # processors, and what each says about its kernel
        self._entered: dict[AttentionSite, _Intercept] = {}
        self._open, self._thread = False, 0

    def __enter__(self) -> Probe:
        _sweep()
        self._open, self._thread = True, get_ident()
        try:
            if self._watched:
                _EAGER.hold(self)
            for layer in self._watched:
                self._watch(self.model.denoiser.get_submodule(layer.name), layer)
            return self
        except BaseException:
            self._leave()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._leave()
        finally:
            self._leave()  # again: an interrupt may have come in the middle

    def __del__(self) -> None:
        if getattr(self, "_open", False):  # an interrupt came before the first line of `__exit__`
            self._leave()

    def _leave(self) -> None:
        """Put everything back; what is done already is left out."""
        for module, hook in self._hooks:
            remove_hook(module, hook)
        for intercept in tuple(self._entered.values()):  # an interrupt (not an Exception) skips the forward hooks
            intercept.leave()
        self._entered.clear()
        self._seen.clear()
        for processor, own in reversed(self._kernels):
            vars(processor).pop(_KERNEL, None)
            vars(processor).update(own)
        _EAGER.release(self)
        self._open = False

    def _watch(self, module: nn.Module, layer: AttentionSite) -> None:
        processor = getattr(module, "processor", None)
        if hasattr(processor, _KERNEL):
            self._kernels.append((processor, {k: v for k, v in vars(processor).items() if k == _KERNEL}))
            setattr(processor, _KERNEL, "native")  # scaled_dot_product_attention, whatever diffusers was told to take

        probe = ref(self)  # the module must not keep it

        def enter(_module: nn.Module, _inputs: Any) -> None:
            own = probe()
            if own is not None and own._is_mine():
                own._ran.add(layer)
                own._entered[layer] = _Intercept(own, layer)
                own._entered[layer].__enter__()

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            own = probe()
            if own is not None and own._is_mine() and layer in own._entered:  # not in it: another hook raised before
                own._entered[layer].leave()
                own._entered.pop(layer, None)

        self._hooks += [(module, enter), (module, leave)]
        module.register_forward_pre_hook(enter)
        # always_call: the mode must be left when the module raises, too.
        module.register_forward_hook(leave, always_call=True)

    def _is_mine(self) -> bool:
        """Whether the pass that runs is of the thread that watches."""
        if get_ident() == self._thread:
            return True
        # On a GPU the backward pass runs checkpointed layers again, in a thread that is not Python's.
        within_backward = torch._C._current_graph_task_id() != -1
        return within_backward and isinstance(threading.current_thread(), threading._DummyThread)

    def see(self, layer: AttentionSite, probabilities: Tensor, injected: Tensor | None = None) -> Tensor:
        """Record one layer's probabilities [batch, heads, pixels, tokens], and edit them or those of the `injected`
        queries and keys; called while the layer runs.
        """
        images = self.images or probabilities.shape[0]
        conditional = probabilities[-images:]
        # A checkpointed layer runs again within the backward pass; its maps are the ones that were seen already.
        if torch._C._current_graph_task_id() == -1:
            self._seen[layer] = conditional if layer in self.layers else None
        if injected is not None:
            probabilities, conditional = injected, injected[-images:]
        if layer not in self._edits:
            return probabilities
        for edit in self._edits[layer]:
            conditional = edit(layer, conditional, self.step)
        return torch.cat([probabilities[:-images], conditional])

    def see_beside(self, layer: AttentionSite, call: Call, pixels: Rows) -> None:
        """Record behind the columns of one layer those of words that are not in the prompt; after `see`."""
        recorded = self._seen.get(layer)
        if layer in self.beside.keys and recorded is not None and torch._C._current_graph_task_id() == -1:
            rows = slice(len(call.query) - len(recorded), None)
            more = call.rows(rows).beside(self.beside.keys[layer], pixels)
            self._seen[layer] = torch.cat([recorded, more.to(recorded.dtype)], dim=-1)

    def inject(self, layer: AttentionSite, values: Tensor, images: int, pixels: Rows) -> Tensor:
        """Change the queries or keys [batch, heads, positions, width] of the image positions of the last `images`."""
        self._seen.setdefault(layer, None)
        conditional = values[-images:]
        for edit in self._injections[layer]:
            conditional = put(conditional, pixels, edit(layer, at(conditional, pixels), self.step))
        return torch.cat([values[:-images], conditional])

    def rescore(self, layer: AttentionSite, keys: Tensor) -> Tensor:
        """Change the prompt's keys [images, heads, tokens, width] of one layer, as image positions meet them."""
        self._seen.setdefault(layer, None)
        for edit in self._scores[layer]:
            keys = edit(layer, keys, self.step)
        return keys

    def hear(self, layer: AttentionSite, queries: Tensor, scale: float | None, pixels: Rows) -> bool:
        """Pass on one layer's queries of image positions; whether the layer is answered here as well."""
        if self.queries is not None and layer.reads_text:
            self._seen[layer] = None
            conditional = at(queries[-(self.images or queries.shape[0]) :], pixels)
            self.queries(layer, conditional, queries.shape[-1] ** -0.5 if scale is None else scale)
        return layer in self._explicit or layer in self._injections or layer in self._scores

    def take(self, latents: Tensor, prompts: Sequence[Prompt]) -> AttentionMaps:
        """The maps recorded since the last call, which are then forgotten.

        Args:
            latents: of the pass, [images, channels, height, width]; their size gives the maps'.
            prompts: one per image.

        Raises:
            ProbeError: a chosen layer was not seen.
        """
        missing = next((layer for layer in self._watched if layer not in self._seen), None)
        if missing is not None:
            raise ProbeError(f"The layer '{missing.name}' recorded no attention: {self._why(missing)}")
        recorded = {layer: p for layer, p in self._seen.items() if p is not None}
        self._seen, self._ran = {}, set()
        size = (latents.shape[-2], latents.shape[-1])
        return AttentionMaps(recorded, size, tuple(prompts), also=self.beside.columns)

    def _why(self, layer: AttentionSite) -> str:
        """Why a layer was not seen, and what to do."""
        if layer not in self._ran:
            return "this thread has not run it. Enter the probe in the thread that runs the denoiser."
        hidden = describe_attention(self.model.denoiser.get_submodule(layer.name))
        return (
            f"{hidden} does not call torch's scaled_dot_product_attention. Another tool has put it there; "
            "limelight.reset_attention(pipe) puts diffusers' own back."
        )


class _Eager:
    """Run compiled code eagerly for as long as any probe, of any thread, watches.

    Compiled code does not notice hooks, and a compiled gradient pass was wrong on CPU (torch 2.13).
    """

    def __init__(self) -> None:
        self._lock, self._holders = threading.RLock(), set[int]()
        self._before: Any = None  # the stance of the compiler

    def hold(self, holder: Any) -> None:
        from torch._dynamo import eval_frame

        with self._lock:
            self._holders.add(id(holder))
            if self._before is None:
                self._before = eval_frame._stance
                torch.compiler.set_stance("force_eager")

    def release(self, holder: Any) -> None:
        with self._lock:
            self._holders.discard(id(holder))
            if not self._holders and self._before is not None:
                from torch._dynamo import eval_frame

                eval_frame._set_stance(self._before)
                self._before = None


_EAGER = _Eager()


class _Intercept(TorchFunctionMode):
    """Answers scaled_dot_product_attention for one layer, with visible probabilities."""

    def __init__(self, probe: Probe, layer: AttentionSite) -> None:
        super().__init__()
        self.probe, self.layer, self.calls = probe, layer, 0

    def leave(self) -> None:
        """Take this mode off the stack, with what an interrupt left above it; nothing where it is not there."""
        while self in _get_current_function_mode_stack():
            _pop_mode()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.probe._open:
            return func(*args, **kwargs)
        self.calls += 1
        layout = self.probe.model.layout(self.layer)
        # Another call in the same layer is an adapter's (IP-Adapter attends to its image there), for example.
        if layout is None or self.calls != layout.call + 1:
            return func(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        if not self.probe.hear(self.layer, query, kwargs.get("scale"), layout.pixels):
            return func(*args, **kwargs)
        return self._answer(Call(*args, **kwargs), layout)

    def _answer(self, call: Call, layout: Layout) -> Tensor:
        if call.dropout_p or call.is_causal or call.enable_gqa:
            hidden = describe_attention(self.probe.model.denoiser.get_submodule(self.layer.name))
            raise ProbeError(
                f"The layer '{self.layer.name}' cannot be watched: {hidden} uses dropout, causal or grouped attention."
            )
        if self.probe.answer is not None:
            self.probe._seen[self.layer] = None
            return self.probe.answer(self.layer, call, layout)
        plain = self._injected(call, layout)
        changed = self._rescored(plain, layout)
        if self.layer not in self.probe._explicit:
            return self._fused(plain, changed, layout)
        if layout.columns is None:
            output = self._attend(call, changed)
        else:
            output = self._edited(self._fused(plain, changed, layout), call, changed, layout.pixels, layout.columns)
        self.probe.see_beside(self.layer, call, layout.pixels)
        return output

    def _injected(self, call: Call, layout: Layout) -> Call:
        """The call with the queries and keys of image positions that edits want."""
        if self.layer not in self.probe._injections:
            return call
        images = self.probe.images or len(call.query)
        query, key = (self.probe.inject(self.layer, x, images, layout.pixels) for x in (call.query, call.key))
        return replace(call, query=query, key=key)

    def _rescored(self, call: Call, layout: Layout) -> Call:
        """The call with the prompt's keys that edits want image positions to meet."""
        if self.layer not in self.probe._scores:
            return call
        images, text = self.probe.images or len(call.query), self._text(call, layout)
        key = call.key.clone()
        key[-images:, :, text] = self.probe.rescore(self.layer, key[-images:, :, text])
        return replace(call, key=key)

    def _text(self, call: Call, layout: Layout) -> Tensor:
        """The positions of the prompt's keys, int64 [positions]."""
        keys = torch.arange(call.key.shape[2], device=call.key.device)
        if not self.layer.joint:
            return keys
        if not isinstance(layout.pixels, slice):
            raise ProbeError(
                f"The edit of keys in '{self.layer.name}' needs texts of one length, and those of this batch differ. "
                "Generate the prompts one by one."
            )
        pixels = torch.zeros_like(keys, dtype=torch.bool)
        pixels[layout.pixels] = True
        return keys[~pixels]

    def _attend(self, call: Call, changed: Call) -> Tensor:
        """The output of a layer all of whose probabilities are seen."""
        kind = call.query.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            others = None if changed is call else changed.probabilities()
            probabilities = self.probe.see(self.layer, call.probabilities(), others)
            return probabilities.to(call.value.dtype) @ call.value

    def _fused(self, plain: Call, changed: Call, layout: Layout) -> Tensor:
        """The output of the fused kernel. Where image and text are one sequence, the text meets itself as before."""
        output = changed.attend()
        if changed is plain or not self.layer.joint:
            return output
        text = self._text(plain, layout)
        output = output.clone()
        output[:, :, text] = plain.some(text, torch.arange(plain.key.shape[2], device=text.device)).attend()
        return output

    def _edited(self, output: Tensor, call: Call, changed: Call, pixels: Rows, columns: Tensor) -> Tensor:
        """The output of a layer of whose probabilities only the prompt's columns are seen, in the conditional rows."""
        images = len(columns)
        rows = slice(len(output) - images, None)

        own = call.rows(rows).columns(pixels, columns)
        others = own if changed is call else changed.rows(rows).columns(pixels, columns)
        edited = self.probe.see(self.layer, own, others)
        if edited is others:
            return output
        moved = (edited - others) @ changed.rows(rows).values(columns).to(own.dtype)
        conditional = output[rows]
        conditional = put(conditional, pixels, at(conditional, pixels) + moved.to(output.dtype))
        return torch.cat([output[:-images], conditional])


def _changing(acting: Mapping[AttentionSite, Sequence[Edit]], what: Target) -> dict[AttentionSite, list[Edit]]:
    """The edits of each layer that change something, without the layers that have none."""
    chosen = {layer: [edit for edit in edits if target(edit) == what] for layer, edits in acting.items()}
    return {layer: edits for layer, edits in chosen.items() if edits}


def _sweep() -> None:
    """Take away modes of probes that have ended: torch puts a mode back late where an interrupt hits its own code.

    Until then such a mode does nothing.
    """
    while (modes := _get_current_function_mode_stack()) and isinstance(modes[-1], _Intercept):
        if modes[-1].probe._open:
            return
        _pop_mode()
