"""A table of words with some more rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExtendedEmbedding(nn.Module):
    """An embedding table that is left as it is, and learned rows for the ids after it.

    The rows are no part of the module tree: they belong to whoever learns or binds them, and what is done to the text
    encoder (`half`, `requires_grad_`, `state_dict`, ...) is not done to them.

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
