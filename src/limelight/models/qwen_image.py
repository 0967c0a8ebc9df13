"""Qwen-Image: checkpoints of diffusers' `QwenImagePipeline`.

Chenfei Wu et al., "Qwen-Image Technical Report", 2025, https://arxiv.org/abs/2508.02324

Text and image are one sequence, text first: the prompt, and the end of the chat template around it. What the template
says before the prompt is read by the text encoder alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..prompts.prompt import Prompt, Stream
from .base import About
from .transformer import USUAL_LENGTH, States, Transformer, encoded_by, packed, unpacked


class OneFrame(Transformer):
    """What has the autoencoder of Qwen-Image: one of videos, of which an image is the only frame."""

    def _statistics(self, like: Tensor) -> tuple[Any, Any]:
        """Mean and standard deviation of the autoencoder's latents by channel."""
        config = self.pipeline.vae.config
        mean, std = (torch.tensor(x).view(1, -1, 1, 1).to(like) for x in (config.latents_mean, config.latents_std))
        return mean, std

    def _encoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.pipeline.vae.encode(pixels[:, :, None]).latent_dist
        mean, std = self._statistics(found.mean)
        return (found.mean[:, :, 0] - mean) / std, found.std[:, :, 0] / std

    def _decoded(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        return self.pipeline.vae.decode((latents * std + mean)[:, :, None], return_dict=False)[0][:, :, 0]


class QwenImage(OneFrame):
    """Qwen-Image: one text stream inside a chat template; texts are as long as they are, and each branch runs alone."""

    about = About.family("QwenImage")
    mask = "mask"
    can = Transformer.can | {"attach"}
    ragged = True

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    def own_options(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        options = super().own_options(guidance_scale, negative)
        options["true_cfg_scale"] = options.pop("guidance_scale")
        return options

    @property
    def streams(self) -> tuple[Stream, ...]:
        pipeline = self.pipeline
        dropped: int = pipeline.prompt_template_encode_start_idx
        length = pipeline.tokenizer_max_length + dropped
        return (Stream(pipeline.tokenizer, length, template=pipeline.prompt_template_encode, dropped=dropped),)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return USUAL_LENGTH, self.denoiser.config.joint_attention_dim

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, _ = encoded_by(self.pipeline, prompt.text, device=self.device)
        return {"encoder_hidden_states": states, "mask": states.new_ones(states.shape[:2])}

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        height, width = latents.shape[-2:]
        mask = states["mask"] > 0
        prediction = self.denoiser(
            hidden_states=packed(latents),
            timestep=timestep.to(latents.dtype) / 1000,
            encoder_hidden_states=states["encoder_hidden_states"],
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            return_dict=False,
        )[0]
        return unpacked(prediction, height, width)

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(states["encoder_hidden_states"].shape[1], None), 0

    def _combined(self, unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
        """By classifier-free guidance, with every image token as long as that of the conditional branch."""
        own, combined = packed(conditional), packed(super()._combined(unconditional, conditional, guidance_scale))
        length = torch.linalg.vector_norm(own, dim=-1, keepdim=True)
        combined = combined * (length / torch.linalg.vector_norm(combined, dim=-1, keepdim=True))
        return unpacked(combined, *conditional.shape[-2:])
