"""Sana: checkpoints of diffusers' `SanaPipeline`.

Enze Xie et al., "SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers", 2024,
https://arxiv.org/abs/2410.10629

The image reads the text of Gemma by cross-attention; its attention to itself is linear and has no maps. Prompts are
read in lower case, behind an instruction that does not reach the denoiser. Images have the size that is asked for:
diffusers' own pipeline rounds it to one that was trained unless `use_resolution_binning=False`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..prompts.prompt import Prompt, Stream
from .base import About
from .sites import Group
from .transformer import States, Transformer, encoded_by

_LENGTH = 300  # of the text that the denoiser reads: the first token, and the last 299 of the instruction and prompt


class Sana(Transformer):
    """Sana: one text stream, read by cross-attention in every block."""

    about = About.family("Sana")
    mask = "encoder_attention_mask"
    stacks: ClassVar[Mapping[str, Group]] = {"transformer_blocks": "block"}
    attention: ClassVar = {"attn2": "cross"}
    joint = False
    together = True
    even_sigmas = False
    patch = 1

    def own_options(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        options = super().own_options(guidance_scale, negative)
        return {**options, "use_resolution_binning": False}

    @property
    def noise_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.denoiser.config.sample_size * self.pixels_per_latent
        return side, side

    @property
    def _instruction(self) -> list[str]:
        """What the pipeline writes before every prompt but the negative one."""
        parameters = inspect.signature(type(self.pipeline).__call__).parameters
        return list(parameters["complex_human_instruction"].default)

    @property
    def streams(self) -> tuple[Stream, ...]:
        instruction, tokenizer = "\n".join(self._instruction), self.pipeline.tokenizer
        dropped = len(tokenizer.encode(instruction)) - 2
        template = f"{instruction}{{}}"
        return (Stream(tokenizer, _LENGTH + dropped, template=template, dropped=dropped, lower=True),)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return _LENGTH, self.denoiser.config.caption_channels

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, mask, *_ = encoded_by(
            self.pipeline,
            prompt.text,
            device=self.device,
            do_classifier_free_guidance=False,
            complex_human_instruction=None if negative else self._instruction,
        )
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        time = timestep * self.denoiser.config.timestep_scale
        prediction = self.denoiser(latents.to(self.dtype), timestep=time, return_dict=False, **states)[0]
        return prediction[:, : self.channels].to(torch.promote_types(prediction.dtype, torch.float32))

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(None), 0

    def _encoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.pipeline.vae.encode(pixels, return_dict=False)[0] * self.pipeline.vae.config.scaling_factor
        return latents, torch.zeros_like(latents)
