"""Stable Diffusion 3 and 3.5: checkpoints of diffusers' `StableDiffusion3Pipeline`.

Patrick Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024,
https://arxiv.org/abs/2403.03206

Image and text are one sequence, the image first. The text is read twice: by two CLIP encoders, whose tokens share 77
positions, and behind them by T5, which a checkpoint may lack. A word has positions in both.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..errors import ModelError
from ..prompts.prompt import Prompt, Stream, parse_streams
from .base import About
from .transformer import States, Transformer, encoded_by

_T5_LENGTH = 256  # diffusers' own, at most; padding up to it is read as well


class StableDiffusion3(Transformer):
    """Stable Diffusion 3 and 3.5. Some blocks of 3.5 medium have a second attention, of pixels alone."""

    about = About.family("StableDiffusion3")
    can = Transformer.can | {"attach"}
    attention: ClassVar = {"attn": "cross", "attn2": "self"}
    guided = (1 / 6, 2 / 3)  # as in JEDI (https://arxiv.org/abs/2505.19166): blocks 4 to 15 of 24
    together = True
    even_sigmas = False
    shifts = (0.5, 1.16)

    @property
    def streams(self) -> tuple[Stream, ...]:
        pipeline = self.pipeline
        clip = pipeline.tokenizer_max_length
        first = Stream(pipeline.tokenizer, clip)
        if pipeline.text_encoder_3 is None:
            return (first,)
        return first, Stream(pipeline.tokenizer_3, self._t5_length, first=clip)

    @property
    def _t5_length(self) -> int:
        tokenizer = self.pipeline.tokenizer_3
        return _T5_LENGTH if tokenizer is None else min(_T5_LENGTH, tokenizer.model_max_length)

    def own_options(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        return {**super().own_options(guidance_scale, negative), "max_sequence_length": self._t5_length}

    def prompt(self, text: str) -> Prompt:
        prompt = super().prompt(text)
        first, second = (
            parse_streams(text, [Stream(tokenizer, self.pipeline.tokenizer_max_length)])
            for tokenizer in (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        )
        if first.words != second.words:
            raise ModelError(f"The two CLIP tokenizers of '{self.name}' split '{text}' differently.")
        return prompt

    @property
    def text_shape(self) -> tuple[int, ...]:
        return self.pipeline.tokenizer_max_length + self._t5_length, self.denoiser.config.joint_attention_dim

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        states, _, pooled, _ = encoded_by(
            self.pipeline,
            prompt.text,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._t5_length,
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        return self.denoiser(hidden_states=latents, timestep=timestep, return_dict=False, **states)[0]

    def _places(self, pixels: int, states: States) -> tuple[slice, int]:
        return slice(0, pixels), pixels
