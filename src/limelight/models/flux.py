"""FLUX.1: checkpoints of diffusers' `FluxPipeline`, "dev" and "schnell".

Black Forest Labs, "FLUX", 2024, https://github.com/black-forest-labs/flux

Text and image are one sequence, text first. Only T5's tokens are in it; CLIP's reading of the prompt is a single vector
without words. The guidance scale is an input of "dev", which was distilled with it; "schnell" has none. Beside it, a
negative prompt has a branch of its own where `true_cfg_scale` is above 1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor

from ..errors import SettingsError
from ..prompts.prompt import Prompt, Stream
from .base import About, Conditioning
from .flux_sequence import FluxSequence
from .transformer import States, encoded_by, unpacked


class Flux(FluxSequence):
    """FLUX.1: one text stream, 19 blocks with weights of their own for text and image, 38 without."""

    about = About.family("Flux")
    can = FluxSequence.can | {"attach"}

    @property
    def embeds_guidance(self) -> bool:
        return True

    @property
    def reads_negative(self) -> bool:
        return self.true_cfg_scale > 1

    def branches(self, guidance_scale: float) -> int:
        return 2 if self.true_cfg_scale > 1 else 1

    def with_true_cfg(self, scale: float) -> Self:
        if scale < 1:
            raise SettingsError(f"true_cfg_scale={scale} must be 1, which is without a negative prompt, or more.")
        own = copy.copy(self)
        own.true_cfg_scale = scale
        return own

    def check_negative(self, texts: Iterable[str]) -> None:
        refused = next(filter(None, texts), None)
        if refused is not None and not self.reads_negative:
            raise SettingsError(
                f"'{self.name}' has no negative prompt unless true_cfg_scale is above 1. Set true_cfg_scale, for "
                f"example to 4, or leave out negative={refused!r}."
            )

    @property
    def guidance_scale(self) -> float:
        return super().guidance_scale if self._distilled else 1.0

    @property
    def _distilled(self) -> bool:
        """Whether the guidance scale is read, as in "dev"."""
        return bool(self.denoiser.config.guidance_embeds)

    @property
    def streams(self) -> tuple[Stream, ...]:
        # The authors' lengths; padding up to them is read as well.
        return (Stream(self.pipeline.tokenizer_2, 512 if self._distilled else 256),)

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        (stream,) = self.streams
        states, pooled, _ = encoded_by(
            self.pipeline, prompt.text, device=self.device, max_sequence_length=stream.length
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def own_options(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        (stream,) = self.streams
        options: dict[str, Any] = {"guidance_scale": guidance_scale, "max_sequence_length": stream.length}
        if self.reads_negative:
            options |= {"true_cfg_scale": self.true_cfg_scale, "negative_prompt": negative}
        return options

    def prepare(self, conditioning: Conditioning, guidance_scale: float) -> Conditioning:
        if not self._distilled and guidance_scale > 1:
            raise SettingsError(
                f"'{self.name}' was distilled to need no guidance scale and reads none; leave out "
                f"guidance_scale={guidance_scale}."
            )
        return super().prepare(conditioning, guidance_scale)

    def _call(self, latents: Tensor, timestep: Tensor, states: States) -> Tensor:
        prediction = self.denoiser(
            **self._sequence(latents, timestep, states),
            guidance=states["guidance"] if self._distilled else None,
            pooled_projections=states["pooled_projections"],
            return_dict=False,
        )[0]
        return unpacked(prediction, *latents.shape[-2:])

    def _combined(self, unconditional: Tensor, conditional: Tensor, guidance_scale: float) -> Tensor:
        return super()._combined(unconditional, conditional, self.true_cfg_scale)
