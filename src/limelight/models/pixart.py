"""PixArt-Sigma: checkpoints of diffusers' `PixArtSigmaPipeline`.

Junsong Chen et al., "PixArt-Sigma: Weak-to-Strong Training of Diffusion Transformer for 4K Text-to-Image Generation",
2024, https://arxiv.org/abs/2403.04692

The image reads the text of T5 by cross-attention. Prompts are read in lower case. Images have the size that is asked
for: diffusers' own pipeline rounds it to one that was trained unless `use_resolution_binning=False`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..errors import ModelError
from ..prompts.prompt import Prompt, Stream
from .base import About
from .sites import Group
from .transformer import States, Transformer, encoded_by


class PixArtSigma(Transformer):
    """PixArt-Sigma: one text stream, read by cross-attention in every block."""

    about = About.family("PixArtSigma")
    mask = "encoder_attention_mask"
    stacks: ClassVar[Mapping[str, Group]] = {"transformer_blocks": "block"}
    attention: ClassVar = {"attn1": "self", "attn2": "cross"}
    joint = False
    together = True

    def check_inputs(self) -> None:
        if self.denoiser.config.use_additional_conditions:
            raise ModelError(
                f"The denoiser of '{self.name}' reads the size of the image besides the prompt (PixArt-alpha at 1024 "
                "pixels), which is not supported."
            )

    def own_options(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        options = super().own_options(guidance_scale, negative)
        return {**options, "use_resolution_binning": False, "clean_caption": False}

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.denoiser.config.sample_size * self.pixels_per_latent
        return side, side

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (Stream(self.pipeline.tokenizer, 300, lower=True),)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return 300, self.denoiser.config.caption_channels

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, mask, *_ = encoded_by(self.pipeline, prompt.text, device=self.device, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        scaled = self.scheduler.scale_model_input(latents, timestep[0])
        size = {"resolution": None, "aspect_ratio": None}
        prediction = self.denoiser(scaled, timestep=timestep, added_cond_kwargs=size, return_dict=False, **states)[0]
        return prediction[:, : self.channels]  # without the variance that it predicts as well

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(None), 0
