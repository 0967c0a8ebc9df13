"""What FLUX.1 and Chroma have in common: text and image as one sequence, text first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sites import AttentionSite
from .transformer import States, Transformer, packed


class FluxSequence(Transformer):
    """Families with FLUX.1's sequence, latents and blocks."""

    @property
    def _family_sites(self) -> tuple[AttentionSite, ...]:
        # As in FOCUS (https://arxiv.org/abs/2510.02315).
        return tuple(site for site in self.text_sites if site.group == "double") or super()._family_sites

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    @property
    def text_shape(self) -> tuple[int, ...]:
        return self.streams[0].length, self.denoiser.config.joint_attention_dim

    def _sequence(self, latents: Tensor, timestep: Tensor, states: States) -> dict[str, Any]:
        """The arguments of the denoiser that say what its sequence holds, and where."""
        text, (height, width) = states["encoder_hidden_states"], latents.shape[-2:]
        grid = torch.cartesian_prod(torch.zeros(1), torch.arange(height // 2.0), torch.arange(width // 2.0))
        return {
            "hidden_states": packed(latents),
            "timestep": timestep.to(latents.dtype) / 1000,
            "encoder_hidden_states": text,
            "img_ids": grid.to(text),
            "txt_ids": text.new_zeros(text.shape[1], 3),
        }

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(states["encoder_hidden_states"].shape[1], None), 0
