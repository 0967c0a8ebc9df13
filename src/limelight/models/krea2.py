"""Krea 2: checkpoints of diffusers' `Krea2Pipeline`.

Krea, "Krea 2", 2026, as diffusers 0.42 has it.

Text and image are one sequence, text first: the prompt, padding up to 507 tokens that is not read, and the end of the
chat template. What the template says before the prompt is read by the text encoder alone. The guidance scale is one
less than elsewhere: at 0 there is no unconditional branch.
"""

from __future__ import annotations

from torch import Tensor

from ..prompts.prompt import Prompt, Stream
from .base import About
from .qwen_image import OneFrame
from .transformer import States, Transformer, encoded_by, packed, unpacked

_LENGTH = 512


class Krea2(OneFrame):
    """Krea 2: one text stream of hidden states of several layers, which the denoiser merges before its blocks."""

    about = About.family("Krea2")
    mask = "mask"
    # Merging lets the text's tokens attend to each other, so that words beside the prompt would change it.
    can = Transformer.can - {"also", "heads"}

    def branches(self, guidance_scale: float) -> int:
        return 2 if guidance_scale > 0 else 1

    @property
    def guidance_scale(self) -> float:
        return 0.0 if self.pipeline.config.is_distilled else super().guidance_scale

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels) // 4

    @property
    def default_size(self) -> tuple[int, int]:
        return 1024, 1024  # of the pipeline

    @property
    def streams(self) -> tuple[Stream, ...]:
        pipeline = self.pipeline
        dropped: int = pipeline.prompt_template_encode_start_idx
        length = _LENGTH + dropped - pipeline.prompt_template_encode_num_suffix_tokens
        template = f"{pipeline.prompt_template_encode_prefix}{{}}"
        return (Stream(pipeline.tokenizer, length, template=template, dropped=dropped),)

    @property
    def text_shape(self) -> tuple[int, ...]:
        return _LENGTH, self.denoiser.config.num_text_layers, self.denoiser.config.text_hidden_dim

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, mask = encoded_by(self.pipeline, prompt.text, device=self.device)
        return {"encoder_hidden_states": states, "mask": mask}

    def _shift(self, size: tuple[int, int], steps: int) -> float:
        return 1.15 if self.pipeline.config.is_distilled else super()._shift(size, steps)

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        text, (height, width) = states["encoder_hidden_states"], latents.shape[-2:]
        places = self.pipeline.prepare_position_ids(text.shape[1], height // 2, width // 2, text.device)
        prediction = self.denoiser(
            hidden_states=packed(latents),
            encoder_hidden_states=text,
            timestep=(timestep / self.scheduler.config.num_train_timesteps).to(latents.dtype),
            position_ids=places,
            encoder_attention_mask=states["mask"] > 0,
            return_dict=False,
        )[0]
        return unpacked(prediction, height, width)

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(states["encoder_hidden_states"].shape[1], None), 0

    def _combined(self, unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
        return conditional + guidance_scale * (conditional - unconditional)
