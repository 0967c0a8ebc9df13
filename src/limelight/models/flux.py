"""FLUX.1: checkpoints of diffusers' `FluxPipeline`, "dev" and "schnell".

Black Forest Labs, "FLUX", 2024, https://github.com/black-forest-labs/flux

Text and image are one sequence, text first. Only T5's tokens are in it; CLIP's reading of the prompt is a single vector
without words. The guidance scale is an input of "dev", which was distilled with it; "schnell" has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError
from ..prompts.prompt import Prompt, Stream
from .base import About, Conditioning
from .sites import AttentionSite
from .transformer import States, Transformer, encoded_by, packed, unpacked


class Flux(Transformer):
    """FLUX.1: one text stream, 19 blocks with weights of their own for text and image, 38 without."""

    about = About.family("Flux")
    can = Transformer.can | {"attach"}

    @property
    def _family_sites(self) -> tuple[AttentionSite, ...]:
        # As in FOCUS (https://arxiv.org/abs/2510.02315).
        return tuple(site for site in self.text_sites if site.group == "double") or super()._family_sites

    @property
    def embeds_guidance(self) -> bool:
        return True

    @property
    def guidance_scale(self) -> float:
        return super().guidance_scale if self._distilled else 1.0

    @property
    def _distilled(self) -> bool:
        """Whether the guidance scale is read, as in "dev"."""
        return bool(self.denoiser.config.guidance_embeds)

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    @property
    def streams(self) -> tuple[Stream, ...]:
        # The authors' lengths; padding up to them is read as well.
        return (Stream(self.pipeline.tokenizer_2, 512 if self._distilled else 256),)

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        (stream,) = self.streams
        states, pooled, _ = encoded_by(
            self.pipeline, prompt.text, device=self.device, max_sequence_length=stream.length
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def own_options(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        (stream,) = self.streams
        return {"guidance_scale": guidance_scale, "max_sequence_length": stream.length}

    def prepare(self, conditioning: Conditioning, guidance_scale: float) -> Conditioning:
        if not self._distilled and guidance_scale > 1:
            raise SettingsError(
                f"'{self.name}' was distilled to need no guidance scale and reads none; leave out "
                f"guidance_scale={guidance_scale}."
            )
        return super().prepare(conditioning, guidance_scale)

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        prediction = self.denoiser(
            **sequence(latents, timestep, states["encoder_hidden_states"]),
            guidance=states["guidance"] if self._distilled else None,
            pooled_projections=states["pooled_projections"],
            return_dict=False,
        )[0]
        return unpacked(prediction, *latents.shape[-2:])

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(states["encoder_hidden_states"].shape[1], None), 0


def sequence(latents: Tensor, timestep: Tensor, text: Tensor) -> dict[str, Tensor]:
    """The arguments of the denoiser that say what its sequence holds, and where."""
    height, width = latents.shape[-2:]
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(height // 2.0), torch.arange(width // 2.0))
    return {
        "hidden_states": packed(latents),
        "timestep": timestep.to(latents.dtype) / 1000,
        "encoder_hidden_states": text,
        "img_ids": grid.to(text),
        "txt_ids": text.new_zeros(text.shape[1], 3),
    }
