"""The families that limelight drives: what each is made of and, with it, what works on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .base import FEATURES, Feature
from .chroma import Chroma
from .flux import Flux
from .flux2 import Flux2
from .flux2_klein import Flux2Klein
from .krea2 import Krea2
from .latent_diffusion import LatentDiffusion
from .lumina2 import Lumina2
from .pipeline_model import PipelineModel
from .pixart import PixArtSigma
from .qwen_image import QwenImage
from .sana import Sana
from .stable_diffusion import StableDiffusion, StableDiffusionXL
from .stable_diffusion_3 import StableDiffusion3
from .z_image import ZImage


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: its name.
        adapter: the class that drives it.
        parts: what its pipeline is made of: part -> class, or None where several will do.
        optional: the parts that a checkpoint may lack.
    """

    title: str
    adapter: type[PipelineModel]
    parts: Mapping[str, str | None]
    optional: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts that every checkpoint has."""
        return tuple(part for part in self.parts if part not in self.optional)

    def is_made_of(self, classes: Mapping[str, str]) -> bool:
        """Whether the parts of a pipeline, each with its class, are those of this family."""
        named = {part: self.parts.get(part) or cls for part, cls in classes.items()}
        return set(self.needed) <= classes.keys() <= self.parts.keys() and named == classes


# Class of diffusers' pipeline -> what drives it. A new family is one more entry here.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(
        "Stable Diffusion 1.x, 2.x",
        StableDiffusion,
        {
            "unet": "UNet2DConditionModel",
            "vae": None,
            "text_encoder": "CLIPTextModel",
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "StableDiffusionXLPipeline": Family(
        "Stable Diffusion XL",
        StableDiffusionXL,
        {
            "unet": "UNet2DConditionModel",
            "vae": None,
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "tokenizer": None,
            "tokenizer_2": None,
            "scheduler": None,
        },
    ),
    "LDMTextToImagePipeline": Family(
        "Latent diffusion",
        LatentDiffusion,
        {
            "unet": "UNet2DConditionModel",
            "vqvae": None,
            "bert": "LDMBertModel",
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "FluxPipeline": Family(
        "FLUX.1",
        Flux,
        {
            "transformer": "FluxTransformer2DModel",
            "vae": None,
            "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
            "tokenizer": None,
            "tokenizer_2": None,
            "scheduler": None,
        },
    ),
    "StableDiffusion3Pipeline": Family(
        "Stable Diffusion 3, 3.5",
        StableDiffusion3,
        {
            "transformer": "SD3Transformer2DModel",
            "vae": None,
            "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection",
            "text_encoder_3": "T5EncoderModel",
            "tokenizer": None,
            "tokenizer_2": None,
            "tokenizer_3": None,
            "scheduler": None,
        },
        optional=("text_encoder_3", "tokenizer_3"),
    ),
    "QwenImagePipeline": Family(
        "Qwen-Image",
        QwenImage,
        {
            "transformer": "QwenImageTransformer2DModel",
            "vae": None,
            "text_encoder": "Qwen2_5_VLForConditionalGeneration",
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "ZImagePipeline": Family(
        "Z-Image",
        ZImage,
        {
            "transformer": "ZImageTransformer2DModel",
            "vae": None,
            "text_encoder": None,
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "PixArtSigmaPipeline": Family(
        "PixArt-Sigma",
        PixArtSigma,
        {
            "transformer": "PixArtTransformer2DModel",
            "vae": None,
            "text_encoder": "T5EncoderModel",
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "SanaPipeline": Family(
        "Sana",
        Sana,
        {
            "transformer": "SanaTransformer2DModel",
            "vae": "AutoencoderDC",
            "text_encoder": None,
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "ChromaPipeline": Family(
        "Chroma",
        Chroma,
        {
            "transformer": "ChromaTransformer2DModel",
            "vae": None,
            "text_encoder": "T5EncoderModel",
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "Flux2Pipeline": Family(
        "FLUX.2 dev",
        Flux2,
        {
            "transformer": "Flux2Transformer2DModel",
            "vae": "AutoencoderKLFlux2",
            "text_encoder": "Mistral3ForConditionalGeneration",
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "Flux2KleinPipeline": Family(
        "FLUX.2 klein",
        Flux2Klein,
        {
            "transformer": "Flux2Transformer2DModel",
            "vae": "AutoencoderKLFlux2",
            "text_encoder": "Qwen3ForCausalLM",
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "Lumina2Pipeline": Family(
        "Lumina-Image 2.0",
        Lumina2,
        {
            "transformer": "Lumina2Transformer2DModel",
            "vae": None,
            "text_encoder": None,
            "tokenizer": None,
            "scheduler": None,
        },
    ),
    "Krea2Pipeline": Family(
        "Krea 2",
        Krea2,
        {
            "transformer": "Krea2Transformer2DModel",
            "vae": None,
            "text_encoder": None,
            "tokenizer": None,
            "scheduler": None,
        },
    ),
}


_QUOTED = "its denoiser reads the quoted text of a prompt alone, so that words have no maps"
_EMBEDDED = "its denoiser reads the embedding of an image and no words, so that words have no maps"
_REWRITTEN = (
    "a language model rewrites the prompt, and the words that the denoiser reads are those of the new text; rewrite "
    "prompts yourself, and generate them by another model"
)
_REASONS = {
    "GlmImage": _QUOTED,
    "KandinskyV22": _EMBEDDED,
    "ErnieImage": _REWRITTEN,
    "LongCatImage": _REWRITTEN,
}


def why_not(pipeline: str) -> str | None:
    """The reason for which no word can be read in a pipeline of a class, where there is one."""
    for family, reason in _REASONS.items():
        if pipeline.startswith(family):
            return reason
    return None


def features() -> dict[str, dict[Feature, bool]]:
    """What works on which family: title -> feature -> whether it does.

    Examples:
        >>> from limelight.models.families import features
        >>> features()["FLUX.1"]["steer"], features()["FLUX.1"]["learn"]
        (True, False)
    """
    return {
        family.title: {feature: feature in family.adapter.can for feature in FEATURES} for family in FAMILIES.values()
    }
