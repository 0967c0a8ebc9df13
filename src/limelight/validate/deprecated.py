"""diffusers' deprecated Attend-and-Excite pipeline, on the parts of a model at hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..guidance.attend_and_excite import AttendAndExcite
from ..models.base import Model
from ..models.stable_diffusion import StableDiffusion
from ..utils.progress import quiet_loading
from ..utils.torch import exclusive, undone

SCALE = 20.0
PROMPT, SUBJECTS = "a cat and a dog", ("cat", "dog")


@dataclass(frozen=True)
class Published:
    """Attend-and-Excite as both sides can do it: without refinement, which blows the last digit up to the first.

    Attributes:
        steps: of the schedule; the first half is guided.
        scale: of the gradient.
    """

    steps: int
    scale: float = SCALE

    @property
    def guided(self) -> int:
        return max(self.steps // 2, 1)

    @property
    def ours(self) -> AttendAndExcite:
        """The same for `limelight.generate`."""
        return AttendAndExcite(until=self.guided, thresholds={}, scale=self.scale, own_tokens=False)

    def theirs(self, model: Model, seed: int, guidance_scale: float, size: tuple[int, int]) -> list[Image.Image]:
        """Images of diffusers' pipeline."""
        prompt = model.prompt(PROMPT)
        latent_size = size[0] // model.pixels_per_latent, size[1] // model.pixels_per_latent
        layers = self.ours.layers(model, latent_size)
        with _pipeline(model) as pipeline:
            return pipeline(
                PROMPT,
                token_indices=[prompt.find(word)[0] for word in SUBJECTS],
                height=size[0],
                width=size[1],
                num_inference_steps=self.steps,
                guidance_scale=guidance_scale,
                generator=torch.Generator().manual_seed(seed),
                max_iter_to_alter=self.guided,
                thresholds={},
                scale_factor=self.scale,
                attn_res=layers[0].size(latent_size),
            ).images


def has_deprecated(model: Model) -> bool:
    """Whether diffusers' pipeline is for this family: Stable Diffusion 1.x and 2.x."""
    return isinstance(model, StableDiffusion) and not model.embeds_guidance


@contextmanager
def _pipeline(model: Any) -> Iterator[Any]:
    """The pipeline, whose processors and gradients are taken off the denoiser at the end."""
    from diffusers import StableDiffusionAttendAndExcitePipeline

    names = ("vae", "text_encoder", "tokenizer", "unet")
    parts = {name: getattr(model.pipeline, name) for name in names}
    unet = model.denoiser
    processors = dict(unet.attn_processors)
    before = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]

    def put_back() -> None:
        unet.set_attn_processor(dict(processors))
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)

    with exclusive(unet), quiet_loading(), warnings.catch_warnings(), undone(put_back):
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionAttendAndExcitePipeline(
            **parts,
            scheduler=copy.deepcopy(model.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        yield pipeline
