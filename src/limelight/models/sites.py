"""Attention layers of a denoiser: where attention can be read and edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

Group = Literal["down", "mid", "up", "double", "single", "block"]


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of a denoiser.

    Attributes:
        name: the module's path inside the denoiser, e.g. ``up_blocks.1.attentions.0.transformer_blocks.0.attn2``.
        kind: ``cross`` (pixels attend to the prompt) or ``self`` (pixels attend to pixels).
        group: the side of the U in which it lies; in transformers "double" where image and text have weights of their
            own, "single" where they share them, "block" where they meet in cross-attention alone.
        heads: number of attention heads.
        scale: latent pixels per map pixel along an axis; 4 means that 64 x 64 latents have 16 x 16 maps.
        joint: whether image positions attend to the prompt and to each other in one softmax, so that the probabilities
            of the prompt sum to less than 1.
    """

    name: str
    kind: Literal["cross", "self"]
    group: Group
    heads: int
    scale: int
    joint: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether image positions attend to the prompt here."""
        return self.kind == "cross"

    def size(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of this layer's maps for latents of the given height and width."""
        return -(-latent_size[0] // self.scale), -(-latent_size[1] // self.scale)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where an attention layer has the image and the prompt, in one pass of the denoiser.

    With it joint attention, in which image and text are one sequence, and cross-attention look the same: probabilities
    [images, heads, pixels, columns].

    Attributes:
        pixels: which rows of the queries are image positions, row by row; int64 [images, positions] where they are
            others in every image.
        columns: int64 [images, columns], which key belongs to each column of the prompt, -1 where none does; None:
            every key is a column.
        call: which of the layer's attention calls is meant, counted from 0.
        text: which key is the text's first token.
    """

    pixels: slice | Tensor = field(default_factory=partial(slice, None))
    columns: Tensor | None = None
    call: int = 0
    text: int = 0


WHOLE = Layout()
"""All queries are image positions, and all keys columns: the layers of a UNet, and those of pixels alone."""


def head_slices(sites: Sequence[AttentionSite]) -> dict[AttentionSite, slice]:
    """Where each site has its heads in a vector of the heads of all of them."""
    found, first = {}, 0
    for site in sites:
        found[site] = slice(first, first + site.heads)
        first += site.heads
    return found
