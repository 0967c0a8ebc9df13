"""Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ModelError
from ..prompts.prompt import Prompt, parse
from .base import About
from .unet import ATTACH, UNet


class StableDiffusion(UNet):
    """Stable Diffusion 1.x and 2.x: checkpoints of `StableDiffusionPipeline`."""

    loading: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        encoder, ids = self.pipeline.text_encoder, torch.tensor([prompt.ids], device=self.device)
        mask = None
        if getattr(encoder.config, "use_attention_mask", None):
            mask = (torch.arange(len(prompt.ids), device=self.device) <= prompt.end).long()[None]
        if not clip_skip:
            return {"encoder_hidden_states": encoder(ids, attention_mask=mask)[0]}
        hidden = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        return {"encoder_hidden_states": getattr(encoder, "text_model", encoder).final_layer_norm(hidden)}


class StableDiffusionXL(UNet):
    """Stable Diffusion XL: checkpoints of `StableDiffusionXLPipeline`, read by two text encoders.

    An empty negative prompt is the zero embedding where the checkpoint asks for it, as in diffusers without one.
    """

    # Maps are latent/4 here as well (32 x 32 at 1024 pixels, `guided_scale`), but the mean of 60 layers, not of 5, and
    # flatter: public ports of Attend-and-Excite to XL take larger steps and otherwise the paper's values.
    about = About.family("StableDiffusionXL")
    adds = "text_time"

    def check_inputs(self) -> None:
        super().check_inputs()
        embedding, pooled = self.denoiser.config.addition_time_embed_dim, self.pipeline.text_encoder_2.config
        wanted, given = self.denoiser.add_embedding.linear_1.in_features, 6 * embedding + pooled.projection_dim
        if wanted != given:  # the refiner's, which reads a score of beauty instead of a size
            raise ModelError(
                f"The denoiser of '{self.name}' reads {wanted} numbers beside the prompt, not the {given} of the base "
                f"model. {ATTACH}"
            )

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        pipeline, states = self.pipeline, []
        for tokenizer, encoder in (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        ):
            # Both read the same words at the same positions; they differ in how they pad.
            read = prompt if tokenizer is pipeline.tokenizer else parse(prompt.text, tokenizer, self._length)
            if read.words != prompt.words:
                raise ModelError(f"The two tokenizers of '{self.name}' split '{prompt.text}' differently.")
            output = encoder(torch.tensor([read.ids], device=self.device), output_hidden_states=True)
            states.append(output.hidden_states[-(clip_skip + 2)])

        pooled, hidden = output[0], torch.cat(states, dim=-1)
        if negative and not prompt.text and pipeline.config.force_zeros_for_empty_prompt:
            pooled, hidden = torch.zeros_like(pooled), torch.zeros_like(hidden)

        # Original size, crop corner and target size: the image as if it had never been cropped.
        time_ids = torch.tensor([[*size, 0, 0, *size]], device=self.device)
        return {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": time_ids}
