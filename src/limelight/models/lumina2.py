"""Lumina-Image 2.0: checkpoints of diffusers' `Lumina2Pipeline`.

Qi Qin et al., "Lumina-Image 2.0: A Unified and Efficient Image Generative Framework", 2025,
https://arxiv.org/abs/2503.21758

Text and image are one sequence, text first and without padding, so that the image begins elsewhere behind every prompt.
A system prompt stands before the prompt, but not before the negative one. Time runs from 0 to 1, against the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..prompts.prompt import Prompt, Stream
from .base import About
from .sites import Group
from .transformer import USUAL_LENGTH, States, Transformer, encoded_by

_LENGTH = 256  # diffusers' own, with the system prompt


class Lumina2(Transformer):
    """Lumina-Image 2.0: one text stream behind a system prompt; each branch runs alone."""

    about = About.family("Lumina2")
    mask = "mask"
    ragged = True
    # A longer text moves the image's positions, so that words beside the prompt would change what they read.
    can = Transformer.can - {"also", "heads"}
    stacks: ClassVar[Mapping[str, Group]] = {"layers": "single"}

    @property
    def streams(self) -> tuple[Stream, ...]:
        template = f"{self.pipeline.system_prompt} <Prompt Start> {{}}"
        return (Stream(self.pipeline.tokenizer, _LENGTH, template=template),)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return USUAL_LENGTH, self.denoiser.config.cap_feat_dim

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        # The pipeline writes its system prompt before all but the negative one.
        states = encoded_by(self.pipeline, prompt.text, negative_prompt=prompt.text, device=self.device)
        text, mask = states[2:] if negative else states[:2]
        length = int(mask.sum())
        return {"encoder_hidden_states": text[:, :length], "mask": text.new_ones(1, length)}

    def _shift(self, size: tuple[int, int], steps: int) -> float:
        return self._linear_shift(self.channels)  # which diffusers' pipeline takes for the number of image tokens

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        prediction = self.denoiser(
            hidden_states=latents,
            timestep=1 - timestep / self.scheduler.config.num_train_timesteps,
            encoder_hidden_states=states["encoder_hidden_states"],
            encoder_attention_mask=(states["mask"] > 0).int(),
            return_dict=False,
        )[0]
        return -prediction

    def _places(self, pixels: int, states: States) -> tuple[slice | Tensor, int]:
        lengths = (states["mask"] > 0).sum(dim=1)
        if len(set(lengths.tolist())) == 1:
            return slice(int(lengths[0]), None), 0
        return lengths[:, None] + torch.arange(pixels, device=lengths.device), 0

    def _combined(self, unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
        """By classifier-free guidance, with every row of latents as long as that of the conditional branch."""
        combined = super()._combined(unconditional, conditional, guidance_scale)
        own, length = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (conditional, combined))
        return combined * (own / length)
