"""Attention layers of a denoiser: where attention can be read and edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AttentionSite:
    """One attention layer of a denoiser.

    Attributes:
        name: the module's path inside the denoiser, e.g. ``up_blocks.1.attentions.0.transformer_blocks.0.attn2``.
        kind: ``cross`` (pixels attend to the prompt) or ``self`` (pixels attend to pixels).
        group: the side of the U in which it lies.
        heads: number of attention heads.
        scale: latent pixels per map pixel along an axis; 4 means that 64 x 64 latents have 16 x 16 maps.
    """

    name: str
    kind: Literal["cross", "self"]
    group: Literal["down", "mid", "up"]
    heads: int
    scale: int

    @property
    def reads_text(self) -> bool:
        """Whether image positions attend to the prompt here."""
        return self.kind == "cross"

    def size(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of this layer's maps for latents of the given height and width."""
        return -(-latent_size[0] // self.scale), -(-latent_size[1] // self.scale)


def head_slices(sites: Sequence[AttentionSite]) -> dict[AttentionSite, slice]:
    """Where each site has its heads in a vector of the heads of all of them."""
    found, first = {}, 0
    for site in sites:
        found[site] = slice(first, first + site.heads)
        first += site.heads
    return found
