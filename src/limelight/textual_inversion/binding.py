"""Learned words inside a model, for as long as a ``with`` lasts."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, PromptWarning, SettingsError
from ..models.base import Model
from ..models.learned import BOUND, BoundWord, readers_of
from ..utils.numbers import amount
from ..utils.torch import frozen
from .low_rank import changed, check_changes


@contextmanager
def bound(
    model: Any, token: str, rows: Sequence[nn.Parameter], changes: Mapping[str, Tensor] = MappingProxyType({})
) -> Iterator[BoundWord]:
    """Let a model read a learned word.

    `token` in a prompt then stands for all rows, one after the other. They are live: what an optimizer does to them is
    seen by the next pass, and gradients reach nothing else in the text encoders, whose weights are frozen meanwhile.
    Nothing is resized: a table is wrapped, a tokenizer gets a copy of its backend, and at the end the originals are
    back, also after an exception. Words may be bound inside each other and end in any order; one that ends while a
    later one is bound stays until that ends. Modules are not switched between training and evaluation.

    Args:
        model: a `Model`, or a live diffusers pipeline.
        token: see `LearnedWord`.
        rows: for each text encoder of the model, in its order, [n, width].
        changes: see `limelight.textual_inversion.low_rank`; as live as the rows.

    Raises:
        SettingsError: the rows do not fit the text encoders, the changes the layers, or the word is taken.
        ModelError: the model has no text encoder that words can be bound to, or is a pipeline and there are changes.

    Warns:
        PromptWarning: the word takes more than half of what the model reads.
    """
    readers, rows = readers_of(model), tuple(rows)
    _check_readers(model, token, readers)
    check_fit(token, rows, readers)
    _check_room(token, len(rows[0]), readers)
    check_changes(token, model, changes)

    names = [token, *(f"{token}_{i}" for i in range(1, len(rows[0])))]  # as diffusers names them
    stack = BOUND.setdefault(readers[0][1], [])
    tokenizers = {id(tokenizer): tokenizer for tokenizer, _ in readers}  # encoders may share one
    with ExitStack() as meanwhile:
        own = BoundWord(token, rows, changes)
        try:
            stack.append(own)
            for tokenizer in tokenizers.values():
                _teach(tokenizer, names, own.undo)
            for (tokenizer, encoder), learned in zip(readers, rows, strict=True):
                _extend(tokenizer, encoder, learned, names[0], own.undo)
                meanwhile.enter_context(frozen(encoder))
            own.ids = tuple(readers[0][0].convert_tokens_to_ids(names))
            meanwhile.enter_context(changed(model, own, changes))
            yield own
        finally:
            own.over = True
            while stack and stack[-1].over:
                for put_back in reversed(stack.pop().undo):
                    put_back()


def _check_readers(model: Any, token: str, readers: Sequence[tuple[Any, Any]]) -> None:
    """Check that a token can be bound.

    Raises:
        ModelError: the model has no text encoder with a fast tokenizer.
        SettingsError: the token is not a placeholder, or the model has it already.
    """
    if isinstance(model, Model):
        model.require("learn")
    if not readers or not all(getattr(tokenizer, "is_fast", False) for tokenizer, _ in readers):
        kind = type(getattr(model, "pipeline", model)).__name__
        raise ModelError(f"'{kind}' has no text encoder with a fast tokenizer to bind '{token}' to.")

    check_token(token)
    if any(token in tokenizer.get_added_vocab() for tokenizer, _ in readers):
        raise SettingsError(
            f"The model already has a word '{token}'; load one of them under another name, for example "
            f"token='{token[:-1]}-2>'."
        )


def check_token(token: str) -> None:
    """Check that a token is a placeholder.

    Raises:
        SettingsError: it is not in angle brackets and lower case, or not valid text.
    """
    try:
        token.encode()
    except UnicodeEncodeError:
        raise SettingsError(f"{token!r} cannot name a learned word: a character in it is half of a pair.") from None
    if not re.fullmatch(r"<[^<>\s]+>", token):
        raise SettingsError(f"'{token}' cannot name a learned word; write it in angle brackets, for example '<cat>'.")
    if token != token.lower():
        raise SettingsError(
            f"The token '{token}' has upper-case letters, which tokenizers do not tell apart; use '{token.lower()}'."
        )


def check_fit(token: str, rows: Sequence[Tensor], readers: Sequence[tuple[Any, Any]]) -> None:
    """Check that vectors fit text encoders.

    Raises:
        SettingsError: the rows were learned for other text encoders.
    """
    if len(rows) != len(readers):
        raise SettingsError(
            f"'{token}' was learned for {amount(len(rows), 'text encoder')}; this model has {len(readers)}."
        )
    for (_, encoder), own in zip(readers, rows, strict=True):
        width = encoder.get_input_embeddings().embedding_dim
        if own.shape[1] != width:
            raise SettingsError(
                f"The vectors of '{token}' have {own.shape[1]} dimensions; this text encoder has {width}. They were "
                "learned for another model."
            )


def _check_room(token: str, count: int, readers: Sequence[tuple[Any, Any]]) -> None:
    """Check that a model can read all vectors of a word, and other words besides.

    Raises:
        SettingsError: there are more vectors than tokens of a prompt.
    """
    room = min(_room(tokenizer, encoder) for tokenizer, encoder in readers)
    if count > room:
        raise SettingsError(
            f"'{token}' has {count} vectors, and this model reads {room:g} tokens of a prompt: it could never be read. "
            "Learn fewer vectors."
        )
    if count > room / 2:
        warnings.warn(
            PromptWarning(
                f"'{token}' has {count} vectors; of the {room:g} tokens that this model reads of a prompt, "
                f"{room - count:g} are left for all other words."
            ),
            stacklevel=6,  # past the two context managers
        )


def _room(tokenizer: Any, encoder: Any) -> float:
    """How many tokens of a prompt's own a text encoder reads."""
    positions = getattr(encoder.config, "max_position_embeddings", None) or math.inf
    return min(tokenizer.model_max_length, positions) - tokenizer.num_special_tokens_to_add()


def _teach(tokenizer: Any, names: list[str], undo: list[Callable[[], Any]]) -> None:
    """Add the names to a copy of the tokenizer's backend; what puts the original back is in `undo` before."""
    before = tokenizer._tokenizer
    undo.append(partial(setattr, tokenizer, "_tokenizer", before))
    tokenizer._tokenizer = copy.deepcopy(before)
    tokenizer.add_tokens(names)


def _extend(tokenizer: Any, encoder: Any, rows: nn.Parameter, name: str, undo: list[Callable[[], Any]]) -> None:
    """Give the encoder the rows of a word; what takes them away is in `undo` before."""
    table = encoder.get_input_embeddings()
    undo.append(partial(encoder.set_input_embeddings, table))
    encoder.set_input_embeddings(ExtendedEmbedding(table, rows, tokenizer.convert_tokens_to_ids(name)))
    for module in encoder.modules():
        # Old CLIP configurations name a wrong end token, and their models pool at the largest id: now the word's.
        if getattr(module, "eos_token_id", None) == 2:
            undo.append(partial(setattr, module, "eos_token_id", 2))
            module.eos_token_id = tokenizer.eos_token_id


class ExtendedEmbedding(nn.Module):
    """An embedding table that is left as it is, and learned rows for the ids after it.

    The rows are not part of the module tree: they belong to the code that learns or binds them, and what is done to the
    text encoder (`half`, `requires_grad_`, `state_dict`, ...) is not done to them.

    Args:
        base: ids -> [..., width]; a table, or another `ExtendedEmbedding`. No gradient reaches it.
        rows: [n, width], float32; looked up in the dtype and on the device of what `base` gives.
        first: id of the first row; by default the first that `base` does not have.
    """

    def __init__(self, base: nn.Module, rows: nn.Parameter, first: int | None = None) -> None:
        super().__init__()
        known: Any = base
        self.base, self.first = base, known.num_embeddings if first is None else first
        self._rows = (rows,)  # in a tuple, where torch does not look for parameters
        self.num_embeddings, self.embedding_dim = self.first + len(rows), known.embedding_dim

    @property
    def rows(self) -> nn.Parameter:
        return self._rows[0]

    @property
    def weight(self) -> Tensor:
        """The table, for code that asks for its dtype or device."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, ids: Tensor) -> Tensor:
        """ids: any shape. Returns [..., width]."""
        learned = ids >= self.first
        known = self.base(ids.masked_fill(learned, 0))
        base = known if isinstance(self.base, ExtendedEmbedding) else known.detach()
        own = (ids - self.first).clamp(min=0).to(known.device)
        return torch.where(learned.to(known.device)[..., None], F.embedding(own, self.rows.to(known)), base)
