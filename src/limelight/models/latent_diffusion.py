"""Latent diffusion with a BERT text encoder: checkpoints of diffusers' `LDMTextToImagePipeline`.

Robin Rombach, Andreas Blattmann, Dominik Lorenz, Patrick Esser, Björn Ommer, "High-Resolution Image Synthesis with
Latent Diffusion Models", 2021, https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import PromptError
from ..prompts.prompt import Prompt, Word
from ..utils.torch import evaluating
from .base import About
from .unet import UNet


class LatentDiffusion(UNet):
    """Latent diffusion at 256 pixels: ``CompVis/ldm-text2im-large-256``.

    Its text encoder sees the whole prompt in both directions and, unmasked, the padding as well; it was trained with
    the denoiser. Prompts are read in lower case, as WordPiece.
    """

    # Its files are older than safetensors; diffusers and transformers open such with `weights_only=True`.
    loading: ClassVar[dict[str, Any]] = {"use_safetensors": None}
    unused = ("to_logits.",)
    # 16 x 16 maps, as in prompt-to-prompt's own notebook for this model: on 8 x 8, which lie as deep as Stable
    # Diffusion's, the blur leaves too few cells to keep two subjects apart.
    guided_side = 16
    about = About.family("LatentDiffusion")
    vectors = ()

    def __init__(self, pipeline: Any, name: str) -> None:
        from diffusers.image_processor import VaeImageProcessor

        # Its parts under the names that they have in every other pipeline; the caller's own keeps its names.
        renamed = copy.copy(pipeline)
        renamed.text_encoder, renamed.vae = pipeline.bert, pipeline.vqvae
        renamed.image_processor = VaeImageProcessor(vae_scale_factor=pipeline.vae_scale_factor)
        super().__init__(renamed, name)

    def prompt(self, text: str) -> Prompt:
        """
        Raises:
            PromptError: the tokenizer knows none of its words.
        """
        prompt = super().prompt(text)
        read = [word for word in prompt.words if word.positions]
        if read and all(self._unread(prompt, word) for word in read):
            raise PromptError(
                f"'{self.name}' can read no word of '{text}'; write it in words of the language that it was trained "
                "in, or look whether its tokenizer's files are those of its text encoder."
            )
        return prompt

    def unknown(self, prompt: Prompt) -> tuple[str, ...]:
        unread = [word.text for word in prompt.words if self._unread(prompt, word)]
        return tuple(dict.fromkeys((*super().unknown(prompt), *unread)))

    def _unread(self, prompt: Prompt, word: Word) -> bool:
        return any(prompt.ids[i] == self.pipeline.tokenizer.unk_token_id for i in word.positions)

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        encoder, ids = self.pipeline.text_encoder, torch.tensor([prompt.ids], device=self.device)
        # A live encoder may be in training mode, and unlike the original's it has dropout there.
        with evaluating(encoder):
            if not clip_skip:
                return {"encoder_hidden_states": encoder(ids)[0]}
            hidden = encoder(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        return {"encoder_hidden_states": encoder.model.layer_norm(hidden)}
