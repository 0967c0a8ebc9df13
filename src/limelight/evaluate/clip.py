"""How well images fit their prompts, by CLIP and BLIP models of transformers: functions of feature tensors.

The measures are those of Hila Chefer et al., "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
Diffusion Models", 2023, https://arxiv.org/abs/2301.13826: CLIP similarity of the image to the whole prompt, to that
part of the prompt which it shows least, and of a caption of the image to the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..models.embedded import POCKET
from ..utils.files import DATA
from ..utils.progress import quiet_loading

# The prompts with which CLIP was evaluated on ImageNet: Alec Radford et al., "Learning Transferable Visual Models From
# Natural Language Supervision", 2021, https://arxiv.org/abs/2103.00020
TEMPLATES = tuple((DATA / "imagenet_templates.txt").read_text().splitlines())

BEGINNING = "a picture of"
"""What the authors' script had captions begin with."""

# How models of others are read: no question whether to run a program of theirs; safetensors where there are some, and
# of older files only weights.
CODELESS: dict[str, Any] = {"trust_remote_code": False}
WEIGHTS: dict[str, Any] = {**CODELESS, "weights_only": True, "dtype": torch.float32}


class Clip:
    """Features of images and texts by a `CLIPModel`.

    Args:
        source: "pocket", a folder in transformers' layout, or a hub id such as "openai/clip-vit-base-patch16".
    """

    @quiet_loading()
    def __init__(self, source: str | Path = "pocket", device: str | torch.device = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        where = _embedded(source, "clip")
        self.model = CLIPModel.from_pretrained(where, **WEIGHTS).to(device).eval()
        self.processor = CLIPProcessor.from_pretrained(where, **CODELESS)
        self._known: dict[tuple[str, bool], Tensor] = {}

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit features [images, width]."""
        inputs = self.processor.image_processor(list(images), return_tensors="pt").to(self.model.device)
        return _unit(self.model.get_image_features(**inputs))

    @torch.inference_mode()
    def patches(self, images: Sequence[Image.Image]) -> Tensor:
        """What the last layer's attention knows each patch by, its keys: [images, patches, width]."""
        inputs = self.processor.image_processor(list(images), return_tensors="pt").to(self.model.device)
        vision = self.model.vision_model
        states, layer = vision(**inputs, output_hidden_states=True).hidden_states[-2], vision.encoder.layers[-1]
        return layer.self_attn.k_proj(layer.layer_norm1(states))[:, 1:]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit features [texts, width]."""
        inputs = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return _unit(self.model.get_text_features(**inputs.to(self.model.device)))

    def prompt(self, text: str, paper: bool = False) -> Tensor:
        """The mean feature of a text in all of CLIP's templates, unit length [width]. For `paper`: `in_templates`."""
        if (text, paper) not in self._known:
            self._known[text, paper] = _unit(self.texts(in_templates(text, paper)).mean(dim=0))
        return self._known[text, paper]


class Captioner:
    """Captions by a `BlipForConditionalGeneration`.

    Args:
        source: "pocket", a folder in transformers' layout, or a hub id such as "Salesforce/blip-image-captioning-base".
    """

    @quiet_loading()
    def __init__(self, source: str | Path = "pocket", device: str | torch.device = "cpu") -> None:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        where = _embedded(source, "captioner")
        self.model: Any = BlipForConditionalGeneration.from_pretrained(where, **WEIGHTS).to(device).eval()
        self.processor = BlipProcessor.from_pretrained(where, **CODELESS)

    @torch.inference_mode()
    def captions(self, images: Sequence[Image.Image], paper: bool = False) -> list[str]:
        """One caption an image; for `paper`, as the authors' script had them made: three beams, 10 to 30 tokens with
        the begin token, and begun with "a picture of", which is cut off again."""
        options: dict[str, Any] = {"num_beams": 1}
        inputs = self.processor(images=list(images), return_tensors="pt")
        if paper:
            begun = self.processor.tokenizer([BEGINNING] * len(images), return_tensors="pt")
            inputs |= {name: begun[name] for name in ("input_ids", "attention_mask")}
            options = {"num_beams": 3, "min_length": 10}
        # LAVIS' limit of 30 counts the begin token and the beginning; ours of 20 counts what follows the begin token.
        most = min(30 if paper else 21, self.model.config.text_config.max_position_embeddings)
        ids = self.model.generate(**inputs.to(self.model.device), max_length=most, do_sample=False, **options)
        found = map(str.strip, self.processor.batch_decode(ids, skip_special_tokens=True))
        if paper:
            return [text.removeprefix(BEGINNING).strip() for text in found]
        return list(found)


def in_templates(text: str, paper: bool = False) -> list[str]:
    """A text in all of CLIP's templates; where a template and the text both bring an article, one of them stays.

    For `paper`, as the authors' script did it: "a a" becomes "a" and then "the a" becomes "a" wherever they stand,
    within words too. So "my a dog" stays, and "a photo of the apple" becomes "a photo of apple".
    """
    if paper:
        return [template.format(text).replace("a a", "a").replace("the a", "a") for template in TEMPLATES]
    return [re.sub(r"\b(?:a|the) (an? |the )", r"\1", template.format(text)) for template in TEMPLATES]


def parts(prompt: str, paper: bool = False) -> list[str]:
    """Cut a prompt at "and" and "with".

    >>> parts("a cat and a dog with a hat")
    ['a cat', 'a dog', 'a hat']

    For `paper`, as the authors' script did it: cut at "and" alone where there is one, else at "with", only the first
    two parts; a prompt with neither has none, and no similarity at all.
    """
    if not paper:
        return re.split(r" and | with ", prompt)
    for joiner in (" and ", " with "):
        if joiner in prompt:
            return prompt.split(joiner)[:2]
    return []


def image_text(clip: Clip, images: Tensor, prompt: str, paper: bool = False) -> Tensor:
    """Cosine similarity of images (features [images, width]) to a prompt, [images] in -1..1."""
    return images @ clip.prompt(prompt, paper)


def minimum_object(clip: Clip, images: Tensor, prompt: str, paper: bool = False) -> Tensor:
    """Similarity to that part of the prompt which each image shows least, [images] in -1..1."""
    return torch.stack([image_text(clip, images, part, paper) for part in parts(prompt, paper)]).amin(dim=0)


def text_text(clip: Clip, captions: Sequence[str], prompt: str, paper: bool = False) -> Tensor:
    """Similarity of captions to a prompt, [captions] in -1..1."""
    return clip.texts(captions) @ clip.prompt(prompt, paper)


def image_image(images: Tensor, others: Tensor) -> Tensor:
    """Similarity of images to others, one by one (features [images, width] each), [images] in -1..1."""
    return (images * others).sum(dim=-1)


def image_similarity(images: Tensor, others: Tensor) -> Tensor:
    """How much images look like others: the mean cosine of all pairs (features [images, width], [others, width]), a
    scalar in -1..1.

    The measure of reconstruction of Rinon Gal et al., "An Image is Worth One Word: Personalizing Text-to-Image
    Generation using Textual Inversion", 2022, https://arxiv.org/abs/2208.01618. Of different images with themselves
    it is below 1.
    """
    return (images @ others.T).mean()


def text_similarity(clip: Clip, images: Tensor, prompt: str, token: str) -> Tensor:
    """Similarity of images (features [images, width]) to a prompt without its learned word, [images] in -1..1: the
    measure of editability of the same paper.
    """
    return images @ clip.texts([" ".join(prompt.replace(token, " ").split())])[0]


def _embedded(source: str | Path, kind: str) -> str | Path:
    """Where a model is: "pocket" is in this package."""
    if source == "pocket":
        return POCKET / kind
    return source


def _unit(features: Any) -> Tensor:
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)
