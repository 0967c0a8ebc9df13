"""FLUX.2 dev: checkpoints of diffusers' `Flux2Pipeline`; what FLUX.2 klein has in common with it.

Black Forest Labs, "FLUX.2: Frontier Visual Intelligence", 2025, https://bfl.ai/blog/flux-2

Text and image are one sequence, text first: the prompt inside a chat template, filled up to 512 tokens on the left. The
filling is read as well. The guidance scale is an input. A latent pixel is what the autoencoder makes of 16 x 16 pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import PromptError
from ..prompts.prompt import Prompt, Stream
from .base import About
from .transformer import States, Transformer, encoded_by

LENGTH = 512


class Flux2(Transformer):
    """FLUX.2 dev: 8 blocks with weights of their own for text and image, 48 without."""

    about = About.family("Flux2")
    patch = 1
    guided: ClassVar = (0.0, 1 / 3)  # the depth of FLUX.1's double blocks

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__(pipeline, name)
        self.pixels_per_latent = 2 * pipeline.vae_scale_factor

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return side, side

    @property
    def embeds_guidance(self) -> bool:
        return True

    @property
    def streams(self) -> tuple[Stream, ...]:
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        tokenizer = self.pipeline.tokenizer.tokenizer  # of a processor of texts and images
        (messages,) = format_input(["{}"], self.pipeline.system_message)
        template = self.pipeline.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        begins = bool(tokenizer.bos_token) and template.startswith(tokenizer.bos_token)
        return (Stream(tokenizer, LENGTH, template=template, adds=not begins, left=True),)

    def prompt(self, text: str) -> Prompt:
        if "[IMG]" in text:
            raise PromptError(f"The prompt '{text}' contains '[IMG]', which FLUX.2 leaves out; remove it.")
        return super().prompt(text)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return LENGTH, self.denoiser.config.joint_attention_dim

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, _ = encoded_by(self.pipeline, prompt.text, device=self.device)
        return {"encoder_hidden_states": states}

    def _shift(self, size: tuple[int, int], steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(self._tokens(size), steps)

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        text, (height, width) = states["encoder_hidden_states"], latents.shape[-2:]
        none = torch.zeros(1, dtype=torch.long)
        grid = torch.cartesian_prod(none, torch.arange(height), torch.arange(width), none)
        words = torch.cartesian_prod(none, none, none, torch.arange(text.shape[1]))
        prediction = self.denoiser(
            hidden_states=latents.flatten(2).mT.to(self.dtype),
            timestep=timestep.to(latents.dtype) / 1000,
            guidance=states["guidance"] if self.denoiser.config.guidance_embeds else None,
            encoder_hidden_states=text,
            txt_ids=words.to(text.device),
            img_ids=grid.to(text.device),
            return_dict=False,
        )[0]
        return prediction.mT.unflatten(2, (height, width))

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(states["encoder_hidden_states"].shape[1], None), 0

    # Its autoencoder normalises groups of 2 x 2 latents.

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents by channel."""
        vae = self.pipeline.vae
        mean, var = (x.view(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (var + vae.config.batch_norm_eps).sqrt()

    def _encoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.pipeline.vae.encode(pixels).latent_dist
        mean, std = self._statistics()
        own, spread = (self.pipeline._patchify_latents(x) for x in (found.mean, found.std))
        return (own - mean.to(own)) / std.to(own), spread / std.to(own)

    def _decoded(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics()
        latents = self.pipeline._unpatchify_latents(latents * std.to(latents) + mean.to(latents))
        return self.pipeline.vae.decode(latents, return_dict=False)[0]
