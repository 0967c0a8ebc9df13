"""How well pictures fit their prompts, by CLIP and BLIP models of transformers: functions of feature tensors.

The measures are those of Hila Chefer et al., "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
Diffusion Models", 2023, https://arxiv.org/abs/2301.13826: CLIP similarity of the picture to the whole prompt, to that
part of the prompt which it shows least, and of a caption of the picture to the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .models import POCKET
from .suites import DATA

# The prompts with which CLIP was evaluated on ImageNet: Alec Radford et al., "Learning Transferable Visual Models From
# Natural Language Supervision", 2021, https://arxiv.org/abs/2103.00020
TEMPLATES = tuple((DATA / "imagenet_templates.txt").read_text().splitlines())


class Clip:
    """Features of pictures and texts by a `CLIPModel`.

    Args:
        source: "pocket", a folder in transformers' layout, or a hub id such as "openai/clip-vit-base-patch16".
    """

    def __init__(self, source: str | Path = "pocket", device: str | torch.device = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        where = POCKET / "clip" if source == "pocket" else source
        self.model = CLIPModel.from_pretrained(where, dtype=torch.float32).to(device).eval()
        self.processor = CLIPProcessor.from_pretrained(where)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit features [images, width]."""
        inputs = self.processor.image_processor(list(images), return_tensors="pt").to(self.model.device)
        return _unit(self.model.get_image_features(**inputs))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features [texts, width]."""
        inputs = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return _unit(self.model.get_text_features(**inputs.to(self.model.device)))

    def prompt(self, text: str) -> Tensor:
        """The mean feature of a text in all of CLIP's templates, unit length [width]."""
        return _unit(self.texts(in_templates(text)).mean(dim=0))


class Captioner:
    """Captions by a `BlipForConditionalGeneration`.

    Args:
        source: "pocket", a folder in transformers' layout, or a hub id such as "Salesforce/blip-image-captioning-base".
    """

    def __init__(self, source: str | Path = "pocket", device: str | torch.device = "cpu") -> None:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        where = POCKET / "captioner" if source == "pocket" else source
        self.model: Any = BlipForConditionalGeneration.from_pretrained(where, dtype=torch.float32).to(device).eval()
        self.processor = BlipProcessor.from_pretrained(where)

    @torch.inference_mode()
    def captions(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption a picture."""
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.model.device)
        most = min(20, self.model.config.text_config.max_position_embeddings - 1)
        ids = self.model.generate(**inputs, max_new_tokens=most, num_beams=1, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


def in_templates(text: str) -> list[str]:
    """A text in all of CLIP's templates; where a template and the text both bring an article, one of them stays."""
    return [re.sub(r"\b(?:a|the) (an? |the )", r"\1", template.format(text)) for template in TEMPLATES]


def parts(prompt: str) -> list[str]:
    """A prompt cut at "and" and "with"."""
    return re.split(r" and | with ", prompt)


def image_text(clip: Clip, images: Tensor, prompt: str) -> Tensor:
    """Cosine similarity of pictures (features [images, width]) to a prompt, [images] in -1..1."""
    return images @ clip.prompt(prompt)


def minimum_object(clip: Clip, images: Tensor, prompt: str) -> Tensor:
    """Similarity to that part of the prompt which each picture shows least, [images] in -1..1."""
    return torch.stack([image_text(clip, images, part) for part in parts(prompt)]).amin(dim=0)


def text_text(clip: Clip, captions: Sequence[str], prompt: str) -> Tensor:
    """Similarity of captions to a prompt, [captions] in -1..1."""
    return clip.texts(captions) @ clip.prompt(prompt)


def _unit(features: Any) -> Tensor:
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)
