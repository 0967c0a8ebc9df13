"""Z-Image: checkpoints of diffusers' `ZImagePipeline`.

Z-Image Team, "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer", 2025,
https://arxiv.org/abs/2511.22699

Image and text are one sequence, the image first, each filled up to a multiple of 32 tokens. Its time runs from 0 to 1,
against the noise, and its guidance scale is one less than elsewhere: at 0 there is no unconditional branch.
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

_MULTIPLE = 32  # of tokens


class ZImage(Transformer):
    """Z-Image: one text stream inside a chat template; texts are as long as they are, and each branch runs alone."""

    about = About.family("ZImage")
    mask = "mask"
    ragged = True
    # A longer text moves the image's positions, so that words beside the prompt would change what they read.
    can = Transformer.can - {"also", "heads"}
    stacks: ClassVar[Mapping[str, Group]] = {"layers": "single"}
    attention: ClassVar = {"attention": "cross"}

    def branches(self, guidance_scale: float) -> int:
        return 2 if guidance_scale > 0 else 1

    @property
    def channels(self) -> int:
        return int(self.denoiser.in_channels)

    @property
    def noise_dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def default_size(self) -> tuple[int, int]:
        return 1024, 1024  # of the pipeline

    @property
    def streams(self) -> tuple[Stream, ...]:
        tokenizer = self.pipeline.tokenizer
        template = tokenizer.apply_chat_template(
            [{"role": "user", "content": "{}"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return (Stream(tokenizer, 512, template=template),)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return USUAL_LENGTH, self.denoiser.config.cap_feat_dim

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        (text,), _ = encoded_by(self.pipeline, prompt.text, device=self.device, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": text[None], "mask": text.new_ones(1, len(text))}

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        rows = zip(states["encoder_hidden_states"], states["mask"] > 0, strict=True)
        texts = [row[there] for row, there in rows]
        images = list(latents.to(self.dtype)[:, :, None])
        prediction = torch.stack(self.denoiser(images, (1000 - timestep) / 1000, texts, return_dict=False)[0])[:, :, 0]
        return -prediction.to(torch.promote_types(prediction.dtype, torch.float32))

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(0, pixels), pixels + -pixels % _MULTIPLE

    def _combined(self, unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
        return conditional + guidance_scale * (conditional - unconditional)
