"""Images of other things, which a word's changes of the denoiser are to leave as they are.

Nataniel Ruiz, Yuanzhen Li, Varun Jampani, Yael Pritch, Michael Rubinstein, Kfir Aberman, "DreamBooth: Fine Tuning
Text-to-Image Diffusion Models for Subject-Driven Generation", 2022, https://arxiv.org/abs/2208.12242: the model draws
images of the class before it is trained, and learns them along with those of the subject. Here a quarter of them show
the class, where one is named, and the others one thing or two that are likely to be beside the word in its own images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..generation.generate import generate
from ..models.base import Model
from .config import TrainingConfig

STEPS = 25
# Subjects of the benchmark of Hila Chefer et al., "Attend-and-Excite", 2023, https://arxiv.org/abs/2301.13826
OTHERS = tuple(
    "cat backpack dog car bird chair bear crown lion balloon horse bowl elephant clock monkey apple frog bench turtle "
    "suitcase rabbit glasses mouse bow".split()
)


@dataclass(frozen=True, eq=False)
class Prior:
    """Latents [images, channels, height, width] and what they show."""

    latents: Tensor
    prompts: tuple[str, ...]

    @classmethod
    def draw(cls, model: Model, config: TrainingConfig) -> Prior:
        """Let a model draw `config.prior_images` images, with the seeds 0, 1, 2, ..."""
        prompts = tuple(_prompt(i, config.init) for i in range(config.prior_images))
        side: dict[str, Any] = {"height": config.size, "width": config.size}
        options: dict[str, Any] = {"steps": STEPS, "subjects": (), "record": False, **side}
        latents = [
            model.latents(generate(model, prompt, seeds=i, **options).images) for i, prompt in enumerate(prompts)
        ]
        return cls(torch.cat(latents), prompts)


def _prompt(i: int, init: str | None) -> str:
    """What the i-th image shows."""
    others = [word for word in OTHERS if word != init]
    first, second = others[i % len(others)], others[(i + 7) % len(others)]
    if i % 2:
        return f"a {first}"
    return f"a {first} and a {second}" if i % 4 or init is None else f"a {init}"
