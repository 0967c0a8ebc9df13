"""The same run by diffusers' own pipeline: an independent implementation of the whole loop."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..utils.torch import exclusive, undone
from .base import Model


def reads_negative(model: Model) -> bool:
    """Whether the call of diffusers' pipeline takes a negative prompt."""
    return "negative_prompt" in inspect.signature(type(_pipeline(model)).__call__).parameters


@torch.no_grad()
def by_diffusers(
    model: Model,
    prompt: str,
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    size: tuple[int, int],
    negative: str = "",
) -> list[Image.Image]:
    """Generate an image by the pipeline's own call, from the noise of a seed.

    Args:
        model: of a diffusers pipeline. Its scheduler is taken.
        guidance_scale: strength of classifier-free guidance.
        size: height and width in pixels.
        negative: the negative prompt; empty where `reads_negative` says no.
    """
    pipeline = copy.copy(_pipeline(model))
    pipeline.scheduler = copy.deepcopy(model.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    accepted = inspect.signature(type(pipeline).__call__).parameters
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = model.own_options(guidance_scale, negative)  # type: ignore[attr-defined]
    noise = shared_noise(model, seed, size)
    if noise is not None:
        options["latents"] = noise
    options = {name: value for name, value in options.items() if name in accepted}

    with exclusive(model.denoiser):
        return pipeline(
            prompt=prompt, num_inference_steps=steps, height=size[0], width=size[1], generator=generator, **options
        ).images


def shared_noise(model: Model, seed: int, size: tuple[int, int]) -> Tensor | None:
    """The noise that both sides have to be given; None where equal seeds already give equal noise."""
    if type(_pipeline(model)).__name__ not in _NOISE_OF_THEIR_OWN:
        return None
    return model.noise([torch.Generator().manual_seed(seed)], *size)


# Pipelines that sample otherwise than from a generator on its device.
_NOISE_OF_THEIR_OWN = ("LDMTextToImagePipeline",)


def _pipeline(model: Model) -> Any:
    return model.pipeline  # type: ignore[attr-defined]


@contextmanager
def decoded_latents(model: Model) -> Iterator[list[Tensor]]:
    """Collect what the autoencoder is given to decode: finished latents, of limelight and of diffusers in one form."""
    vae, found = _pipeline(model).vae, list[Tensor]()
    decode: Callable[..., Any] = vae.decode

    def watched(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(latents.detach().double().cpu())
        return decode(latents, *args, **kwargs)

    own = {name: value for name, value in vars(vae).items() if name == "decode"}

    def put_back() -> None:
        vars(vae).pop("decode", None)
        vars(vae).update(own)

    with exclusive(vae), undone(put_back):
        vae.decode = watched
        yield found


@contextmanager
def rounded(model: Model, seed: int = 0) -> Iterator[None]:
    """Change the last digit of every prediction of the denoiser: what rounding alone may do to a run."""
    from torch.utils._pytree import tree_map

    generator, denoiser = torch.Generator().manual_seed(seed), model.denoiser

    def changed(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        sign = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
        return value + value * sign * torch.finfo(value.dtype).eps

    handle = denoiser.register_forward_hook(lambda module, inputs, output: tree_map(changed, output))
    with undone(handle.remove):
        yield
