"""Chroma: checkpoints of diffusers' `ChromaPipeline`, FLUX.1 schnell without its distillation and without CLIP.

Lodestone Rock, "Chroma", 2025, https://huggingface.co/lodestones/Chroma1-HD
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..prompts.prompt import Prompt, Stream
from .base import About
from .flux_sequence import FluxSequence
from .transformer import States, encoded_by, unpacked


class Chroma(FluxSequence):
    """Chroma: the sequence of FLUX.1, text first, with a mask of the padding and a second branch."""

    about = About.family("Chroma")
    mask = "mask"

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (Stream(self.pipeline.tokenizer, 512),)

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, _, mask, *_ = encoded_by(
            self.pipeline, prompt.text, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "mask": mask}

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        inputs = self._sequence(latents, timestep, states)
        mask = states["mask"]
        pixels = mask.new_ones(len(mask), inputs["hidden_states"].shape[1])
        mask = torch.cat([mask, pixels], dim=1)
        return unpacked(self.denoiser(**inputs, attention_mask=mask, return_dict=False)[0], *latents.shape[-2:])
