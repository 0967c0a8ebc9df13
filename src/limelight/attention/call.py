"""One call of ``scaled_dot_product_attention``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Rows = slice | Tensor
"""Positions: the same in every image, or int64 [images, positions]."""


def at(values: Tensor, rows: Rows) -> Tensor:
    """Values [images, heads, positions, width] at some positions."""
    if isinstance(rows, slice):
        return values[..., rows, :]
    return values.gather(2, _spread(rows, values))


def put(values: Tensor, rows: Rows, new: Tensor) -> Tensor:
    """A copy of values [images, heads, positions, width] with new ones at some positions."""
    if not isinstance(rows, slice):
        return values.scatter(2, _spread(rows, values), new)
    values = values.clone()
    values[:, :, rows] = new
    return values


def _spread(rows: Tensor, values: Tensor) -> Tensor:
    return rows[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3])


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of a call of ``scaled_dot_product_attention``: tensors [batch, heads, positions, width]."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def attend(self) -> Tensor:
        """What the fused kernel answers."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, self.attn_mask, scale=self.scale)

    def probabilities(self) -> Tensor:
        """All of them, [batch, heads, queries, keys], at least in float32."""
        work = torch.promote_types(self.query.dtype, torch.float32)
        scale = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
        logits = (self.query.to(work) * scale) @ self.key.to(work).transpose(-1, -2)
        if self.attn_mask is not None and self.attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~self.attn_mask, float("-inf"))
        elif self.attn_mask is not None:
            logits = logits + self.attn_mask
        return logits.softmax(dim=-1)

    def rows(self, index: slice) -> Call:
        """The same call for some rows of the batch."""
        mask = self.attn_mask
        if mask is not None and mask.ndim == 4 and len(mask) == len(self.query):
            mask = mask[index]
        return replace(self, query=self.query[index], key=self.key[index], value=self.value[index], attn_mask=mask)

    def columns(self, pixels: Rows, columns: Tensor) -> Tensor:
        """The probabilities of some queries for the keys of `columns` [images, columns], at least in float32."""
        mask = self.attn_mask
        if mask is not None and mask.shape[-2] > 1:
            mask = at(mask, pixels)
        keys = torch.arange(self.key.shape[2], device=columns.device)
        one_hot = (columns[:, None, None, :] == keys[:, None]).to(self.query.dtype)
        # As wide as the heads where there are fewer columns, which is what the fastest kernels ask for.
        width = max(self.query.shape[-1], -(-columns.shape[1] // 8) * 8)
        one_hot = F.pad(one_hot, (0, width - columns.shape[1])).expand(-1, self.key.shape[1], -1, -1)
        read = replace(self, query=at(self.query, pixels), value=one_hot, attn_mask=mask).attend()
        return read[..., : columns.shape[1]].to(torch.promote_types(read.dtype, torch.float32))

    def values(self, columns: Tensor) -> Tensor:
        """The values of the keys of `columns`, zero where there is none."""
        there = (columns >= 0)[:, None, :, None]
        index = columns.clamp(min=0)[:, None, :, None].expand(-1, self.value.shape[1], -1, self.value.shape[3])
        return self.value.gather(2, index) * there

    def some(self, queries: Tensor, keys: Tensor) -> Call:
        """The same call for the queries and keys at some positions alone, int64 [positions] each."""
        mask = self.attn_mask
        if mask is not None:
            mask = mask[..., keys] if mask.shape[-2] == 1 else mask[..., queries, :][..., keys]
        return replace(
            self,
            query=self.query[:, :, queries],
            key=self.key[:, :, keys],
            value=self.value[:, :, keys],
            attn_mask=mask,
        )

    def beside(self, keys: Tensor, pixels: Rows) -> Tensor:
        """The probabilities of some queries for further keys, in one softmax with those of the call.

        Args:
            keys: [images, heads, further keys, width].
            pixels: which queries.

        Returns:
            [images, heads, queries, further keys], at least in float32.
        """
        images, count = len(self.query), keys.shape[2]
        mask = self.attn_mask
        if mask is not None:  # as visible as what is seen best
            seen = mask.new_ones(()) if mask.dtype == torch.bool else mask.amax()
            mask = torch.cat([mask, seen.expand(*mask.shape[:-1], count)], dim=-1)
        keys = torch.cat([self.key, keys.to(self.key).expand(images, -1, -1, -1)], dim=2)
        last = torch.arange(keys.shape[2] - count, keys.shape[2], device=keys.device)
        return replace(self, key=keys, attn_mask=mask).columns(pixels, last.expand(images, -1))

    def masked(self, visible: Tensor) -> Call:
        """The same call with another mask: which keys each query sees, bool [queries, keys]."""
        return replace(self, attn_mask=visible)
