"""Learned words that are bound to a model at the moment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


@dataclass(eq=False)
class BoundWord:
    """A word inside a model, and how everything is put back."""

    token: str
    rows: tuple[nn.Parameter, ...]
    over: bool = False
    undo: list[Callable[[], Any]] = field(default_factory=list)


BOUND: WeakKeyDictionary[nn.Module, list[BoundWord]] = WeakKeyDictionary()  # by the model's first text encoder


def learned(model: Any) -> dict[str, str]:
    """The words that are bound to a model, each with a hash of its vectors; to be stored with what is generated."""
    found = {}
    for _, encoder in readers_of(model):
        for own in BOUND.get(encoder, ()):
            digest = hashlib.sha256()
            for rows in own.rows:
                digest.update(rows.detach().float().cpu().contiguous().numpy().tobytes())
            found[own.token] = digest.hexdigest()[:16]
    return found


def readers_of(model: Any) -> list[tuple[Any, Any]]:
    """The tokenizers and text encoders of a model or a diffusers pipeline, in their order."""
    pipeline = getattr(model, "pipeline", model)
    found = {}
    for name, other in (("tokenizer", "text_encoder"), ("tokenizer", "bert"), ("tokenizer_2", "text_encoder_2")):
        tokenizer, encoder = getattr(pipeline, name, None), getattr(pipeline, other, None)
        if tokenizer is not None and encoder is not None:
            found[id(encoder)] = tokenizer, encoder  # an encoder may have two names
    return list(found.values())
