"""Chroma: checkpoints of diffusers' `ChromaPipeline`, FLUX.1 schnell without its distillation and without CLIP.

Lodestone Rock, "Chroma", 2025, https://huggingface.co/lodestones/Chroma1-HD
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..prompts.prompt import Prompt, Stream
from .base import About
from .flux import sequence
from .sites import AttentionSite
from .transformer import States, Transformer, encoded_by, unpacked


class Chroma(Transformer):
    """Chroma: the sequence of FLUX.1, text first, with a mask of the padding and a second branch."""

    about = About.family("Chroma")
    mask = "mask"

    @property
    def _family_sites(self) -> tuple[AttentionSite, ...]:
        return tuple(site for site in self.text_sites if site.group == "double") or super()._family_sites

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (Stream(self.pipeline.tokenizer, 512),)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return self.streams[0].length, self.denoiser.config.joint_attention_dim

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, _, mask, *_ = encoded_by(
            self.pipeline, prompt.text, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "mask": mask}

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        inputs = sequence(latents, timestep, states["encoder_hidden_states"])
        mask = states["mask"]
        pixels = mask.new_ones(len(mask), inputs["hidden_states"].shape[1])
        mask = torch.cat([mask, pixels], dim=1)
        return unpacked(self.denoiser(**inputs, attention_mask=mask, return_dict=False)[0], *latents.shape[-2:])

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(states["encoder_hidden_states"].shape[1], None), 0
