"""Learned words inside a model, for as long as a ``with`` lasts."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..errors import ModelError, SettingsError
from ..guidance import frozen
from .embedding import ExtendedEmbedding


@dataclass(eq=False)
class _Bound:
    """A word inside a model, and how everything is put back."""

    token: str
    rows: tuple[nn.Parameter, ...]
    over: bool = False
    undo: list[Callable[[], Any]] = field(default_factory=list)


_BOUND: WeakKeyDictionary[nn.Module, list[_Bound]] = WeakKeyDictionary()  # by the model's first text encoder


@contextmanager
def bound(model: Any, token: str, rows: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let a model read a learned word.

    `token` in a prompt then stands for all rows, one after the other. They are live: what an optimizer does to them is
    seen by the next pass, and gradients reach nothing else in the text encoders, whose weights are frozen meanwhile.
    Nothing is resized: a table is wrapped, a tokenizer gets a copy of its backend, and at the end the originals are
    back, also after an exception. Words may be bound inside each other and end in any order; one that ends while a
    later one is bound stays until that ends. Modules are not switched between training and evaluation.

    Args:
        model: a `Model`, or a live diffusers pipeline.
        token: see `Concept`.
        rows: for each text encoder of the model, in its order, [n, width].

    Raises:
        SettingsError: the rows do not fit the text encoders, or the word is taken.
        ModelError: the model has no text encoder that words can be bound to.
    """
    readers, rows = readers_of(model), tuple(rows)
    if not readers or not all(getattr(tokenizer, "is_fast", False) for tokenizer, _ in readers):
        kind = type(getattr(model, "pipeline", model)).__name__
        raise ModelError(f"'{kind}' has no text encoder with a fast tokenizer to bind '{token}' to.")
    check_token(token)
    check_fit(token, rows, readers)
    if any(token in tokenizer.get_added_vocab() for tokenizer, _ in readers):
        raise SettingsError(
            f"The model already has a word '{token}'; load one of them under another name, for example "
            f"token='{token[:-1]}-2>'."
        )
    names = [token, *(f"{token}_{i}" for i in range(1, len(rows[0])))]  # as diffusers names them
    stack = _BOUND.setdefault(readers[0][1], [])
    with ExitStack() as frozen_meanwhile:
        own = _Bound(token, rows)
        stack.append(own)
        try:
            for tokenizer in {id(tokenizer): tokenizer for tokenizer, _ in readers}.values():
                own.undo.append(_taught(tokenizer, names))
            for (tokenizer, encoder), learned in zip(readers, rows, strict=True):
                own.undo += _extended(tokenizer, encoder, learned, names[0])
                frozen_meanwhile.enter_context(frozen(encoder))
            yield
        finally:
            own.over = True
            while stack and stack[-1].over:
                for put_back in reversed(stack.pop().undo):
                    put_back()


def learned(model: Any) -> dict[str, str]:
    """The words that are bound to a model, each with a hash of its vectors; to be stored with what they drew."""
    found = {}
    for own in (own for _, encoder in readers_of(model) for own in _BOUND.get(encoder, ())):
        digest = hashlib.sha256()
        for rows in own.rows:
            digest.update(rows.detach().float().cpu().contiguous().numpy().tobytes())
        found[own.token] = digest.hexdigest()[:16]
    return found


def readers_of(model: Any) -> list[tuple[Any, Any]]:
    """The tokenizers and text encoders of a model or a diffusers pipeline, in their order."""
    pipeline = getattr(model, "pipeline", model)
    places = (("tokenizer", "text_encoder"), ("tokenizer", "bert"), ("tokenizer_2", "text_encoder_2"))
    pairs = [(getattr(pipeline, one, None), getattr(pipeline, other, None)) for one, other in places]
    found = {id(pair[1]): pair for pair in pairs if None not in pair}  # an encoder may have two names
    return list(found.values())


def check_token(token: str) -> None:
    """
    Raises:
        SettingsError: this is no placeholder in lower case.
    """
    if not re.fullmatch(r"<[^<>\s]+>", token):
        raise SettingsError(f"'{token}' cannot name a learned word; write it in angle brackets, for example '<cat>'.")
    if token != token.lower():
        raise SettingsError(
            f"The token '{token}' has upper-case letters, which tokenizers do not tell apart; use '{token.lower()}'."
        )


def check_fit(token: str, rows: Sequence[Tensor], readers: Sequence[tuple[Any, Any]]) -> None:
    """
    Raises:
        SettingsError: the rows were learned for other text encoders.
    """
    if len(rows) != len(readers):
        plural = "s" * (len(rows) != 1)
        raise SettingsError(
            f"'{token}' was learned for {len(rows)} text encoder{plural}; this model has {len(readers)}."
        )
    for (_, encoder), own in zip(readers, rows, strict=True):
        width = encoder.get_input_embeddings().embedding_dim
        if own.shape[1] != width:
            raise SettingsError(
                f"The vectors of '{token}' have {own.shape[1]} dimensions; this text encoder has {width}. They were "
                "learned for another model."
            )


def _taught(tokenizer: Any, names: list[str]) -> Callable[[], Any]:
    """Teach the names to a copy of the tokenizer's backend; returns what puts the original back."""
    before = tokenizer._tokenizer
    tokenizer._tokenizer = copy.deepcopy(before)
    tokenizer.add_tokens(names)

    return partial(setattr, tokenizer, "_tokenizer", before)


def _extended(tokenizer: Any, encoder: Any, rows: nn.Parameter, name: str) -> list[Callable[[], Any]]:
    """Give the encoder the rows of a word; returns what takes them away."""
    table = encoder.get_input_embeddings()
    encoder.set_input_embeddings(ExtendedEmbedding(table, rows, tokenizer.convert_tokens_to_ids(name)))
    undo: list[Callable[[], Any]] = [partial(encoder.set_input_embeddings, table)]
    for module in encoder.modules():
        # Old CLIP configurations name a wrong end token, and their models pool at the largest id: now the word's.
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id
            undo.append(partial(setattr, module, "eos_token_id", 2))
    return undo
