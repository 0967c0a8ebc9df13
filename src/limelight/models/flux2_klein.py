"""FLUX.2 klein: checkpoints of diffusers' `Flux2KleinPipeline`.

Black Forest Labs, "FLUX.2 [klein]: Towards Interactive Visual Intelligence", 2026,
https://bfl.ai/blog/flux2-klein-towards-interactive-visual-intelligence

The sequence of FLUX.2 dev, with the text filled up on the right. There is a second branch, which diffusers gives the
empty prompt alone, or none where the checkpoint was distilled to few steps.
"""

from __future__ import annotations

from ..errors import SettingsError
from ..prompts.prompt import Prompt, Stream
from .base import About, Conditioning
from .flux2 import LENGTH, Flux2
from .transformer import Transformer


class Flux2Klein(Flux2):
    """FLUX.2 klein, base and distilled."""

    about = About.family("Flux2Klein")

    @property
    def embeds_guidance(self) -> bool:
        return bool(self.pipeline.config.is_distilled)

    @property
    def guidance_scale(self) -> float:
        return 1.0 if self.embeds_guidance else super().guidance_scale

    @property
    def streams(self) -> tuple[Stream, ...]:
        tokenizer = self.pipeline.tokenizer
        template = tokenizer.apply_chat_template(
            [{"role": "user", "content": "{}"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return (Stream(tokenizer, LENGTH, template=template),)

    def prompt(self, text: str) -> Prompt:
        return Transformer.prompt(self, text)

    def prepare(self, conditioning: Conditioning, guidance_scale: float) -> Conditioning:
        if self.embeds_guidance and guidance_scale > 1:
            raise SettingsError(
                f"'{self.name}' was distilled to need no guidance scale and reads none; leave out "
                f"guidance_scale={guidance_scale}."
            )
        return super().prepare(conditioning, guidance_scale)
