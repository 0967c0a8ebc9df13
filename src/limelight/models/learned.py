"""Learned words that are bound to a model at the moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..prompts.prompt import Prompt


@dataclass(eq=False)
class BoundWord:
    """A word inside a model, and how everything is put back.

    Attributes:
        changes: of the denoiser's layers, see `limelight.textual_inversion.low_rank`.
        everywhere: they are made in images of any prompt, as training needs it to keep them small there.
        ids: its tokens.
        columns: which states of the pass that runs are its own [images, tokens]; None between passes, and where no
            image of the pass is changed.
        images: in which images of that pass the layers are changed [images].
    """

    token: str
    rows: tuple[Tensor, ...]
    changes: Mapping[str, Tensor] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    everywhere: bool = False
    columns: Tensor | None = None
    images: Tensor | None = None
    over: bool = False
    undo: list[Callable[[], Any]] = field(default_factory=list)

    def find(self, prompts: Sequence[Prompt], states: Tensor) -> None:
        """Note where it is in a pass, see `read_words`."""
        places = [[i for i, token in enumerate(prompt.ids) if token in self.ids] for prompt in prompts]
        if not any(places) and not self.everywhere:
            return
        self.columns = torch.zeros(states.shape[:2], dtype=torch.bool, device=states.device)
        for row, found in zip(self.columns[-len(prompts) :], places, strict=True):
            row[found] = True
        here = self.columns[-len(prompts) :].any(dim=1) | self.everywhere
        self.images = here.repeat(
            len(states) // len(prompts)
        )  # of both branches, or guidance would multiply the change


BOUND: WeakKeyDictionary[nn.Module, list[BoundWord]] = WeakKeyDictionary()  # by the model's first text encoder


def learned(model: Any) -> dict[str, str]:
    """The words that are bound to a model, each with a hash of its vectors; to be stored with what is generated."""
    found = {}
    for _, encoder in readers_of(model):
        for own in BOUND.get(encoder, ()):
            digest = hashlib.sha256()
            for rows in (*own.rows, *own.changes.values()):
                digest.update(rows.detach().float().cpu().contiguous().numpy().tobytes())
            found[own.token] = digest.hexdigest()[:16]
    return found


@contextmanager
def read_words(model: Any, prompts: Sequence[Prompt], states: Tensor) -> Iterator[None]:
    """Tell words with changes of the denoiser where they are in a pass.

    Args:
        prompts: of the images, which are the last rows.
        states: the encoded prompts [rows, tokens, width].
    """
    readers = readers_of(model)
    words = [own for own in BOUND.get(readers[0][1], ()) if own.changes] if readers else []
    for own in words:
        own.find(prompts, states)
    try:
        yield
    finally:
        for own in words:
            own.columns = own.images = None


def readers_of(model: Any) -> list[tuple[Any, Any]]:
    """The tokenizers and text encoders of a model or a diffusers pipeline, in their order."""
    pipeline = getattr(model, "pipeline", model)
    found = {}
    for name, other in (("tokenizer", "text_encoder"), ("tokenizer", "bert"), ("tokenizer_2", "text_encoder_2")):
        tokenizer, encoder = getattr(pipeline, name, None), getattr(pipeline, other, None)
        if tokenizer is not None and encoder is not None:
            found[id(encoder)] = tokenizer, encoder  # an encoder may have two names
    return list(found.values())
