"""From a real picture to the noise that gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import SettingsError
from ..generation.loop import denoise
from ..models.base import Conditioning, Model


@dataclass(frozen=True, eq=False)
class Inversion:
    """What gives a picture back.

    Attributes:
        noise: latents to begin with, [1, channels, height, width].
        prompt: what the picture shows.
        steps: of the schedule.
        size: height and width in pixels.
        unconditional: for null-text inversion, the unconditional branch of each step; else None.
        error: root mean square difference between the picture's latents and those that it is given back with, in units
            of the latents' own (about 1).
    """

    noise: Tensor
    prompt: str
    steps: int
    size: tuple[int, int]
    unconditional: tuple[Mapping[str, Tensor], ...] | None
    error: float

    def check(self, model: Model, prompt: str, steps: int, size: tuple[int, int]) -> None:
        """Raises SettingsError where an edit wants something else than what was inverted."""
        for name, own, asked in (
            ("prompt", self.prompt, prompt),
            ("steps", self.steps, steps),
            ("size", "{}x{}".format(*self.size), "{}x{}".format(*size)),
        ):
            if own != asked:
                raise SettingsError(f"The picture was inverted with {name} '{own}', the edit asks for '{asked}'.")

    def conditioning(self, encoded: Conditioning, passes: int) -> list[Conditioning]:
        """The conditioning of each step, for any number of rows."""
        if self.unconditional is None or encoded.unconditional is None:
            return [encoded] * passes
        rows = len(encoded.prompts)
        return [
            Conditioning(
                encoded.prompts,
                encoded.conditional,
                {name: value.expand(rows, *value.shape[1:]) for name, value in branch.items()},
            )
            for branch in self.unconditional
        ]


@torch.inference_mode(False)
@torch.no_grad()
def invert_image(
    model: Model,
    image: Image.Image,
    prompt: str,
    *,
    steps: int = 50,
    guidance_scale: float = 7.5,
    negative: str = "",
    null_text: bool = False,
    iterations: int = 10,
    size: tuple[int, int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Inversion:
    """The noise from which a model draws a given picture, by DDIM run backwards.

    Jiaming Song, Chenlin Meng, Stefano Ermon, "Denoising Diffusion Implicit Models", 2020,
    https://arxiv.org/abs/2010.02502. Strong guidance leads away from the picture; null-text inversion corrects that by
    learning the unconditional branch of every step: Ron Mokady, Amir Hertz, Kfir Aberman, Yael Pritch, Daniel
    Cohen-Or, "Null-text Inversion for Editing Real Images using Guided Diffusion Models", 2022,
    https://arxiv.org/abs/2211.09794

    Args:
        model: with a DDIM scheduler.
        image: cut to the shape of `size` around its middle, turned as its EXIF data say.
        prompt: what it shows.
        steps, guidance_scale, negative: of the drawing that is to give it back.
        null_text: learn the unconditional branch.
        iterations: of that learning, at most, per step.
        size: height and width in pixels; by default the model's own.
        on_step: called with 0, 1, ... after every step of the way back, and again on the way forth of `null_text`.

    Raises:
        SettingsError: the scheduler is not DDIM.
    """
    if not isinstance(model.scheduler, DDIMScheduler):
        raise SettingsError(
            f"A picture can be inverted with DDIM, not with {type(model.scheduler).__name__}; load the model with "
            "scheduler='ddim'."
        )
    size = size or model.default_size
    fitted = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size[1], size[0]), Image.Resampling.LANCZOS)
    latents = model.latents([fitted])
    encoded = model.encode([model.prompt(prompt)], negative if guidance_scale > 1 else None, size)
    backwards = DDIMInverseScheduler.from_config(model.scheduler.config)
    backwards.set_timesteps(steps, device=model.device)
    path = [latents]
    for index, timestep in enumerate(backwards.timesteps):
        prediction = model.predict(path[-1], timestep, encoded.only_conditional())
        path.append(backwards.step(prediction, timestep, path[-1], return_dict=False)[0])
        if on_step:
            on_step(index)
    learned = None
    if null_text and encoded.unconditional is not None:
        learned = _null_text(model, path, encoded, steps, guidance_scale, iterations, on_step)
    inversion = Inversion(path[-1], prompt, steps, size, learned, 0.0)
    for step in denoise(
        model, inversion.conditioning(encoded, steps), path[-1], steps=steps, guidance_scale=guidance_scale
    ):
        final = step.latents
    error = (final - latents).float().square().mean().sqrt().item()
    return Inversion(path[-1], prompt, steps, size, learned, error)


def _null_text(
    model: Model,
    path: list[Tensor],
    encoded: Conditioning,
    steps: int,
    guidance_scale: float,
    iterations: int,
    on_step: Callable[[int], None] | None,
) -> tuple[Mapping[str, Tensor], ...]:
    """The unconditional branch of each step that leads along `path`, from its end to its beginning."""
    assert encoded.unconditional is not None
    conditional, fixed = encoded.only_conditional(), encoded.unconditional
    latents, states = path[-1], fixed["encoder_hidden_states"].float()
    learned: list[Mapping[str, Tensor]] = []

    def branch(states: Tensor) -> dict[str, Tensor]:
        return {**fixed, "encoder_hidden_states": states.to(model.dtype)}

    def drawn(latents: Tensor, timestep: Tensor, towards: Tensor, states: Tensor) -> Tensor:
        away = model.predict(latents, timestep, Conditioning(encoded.prompts, branch(states)))
        assert away is not None  # no `until` was given
        return model.step(away + guidance_scale * (towards - away), timestep, latents, ())

    for index, timestep in enumerate(model.timesteps(steps)):
        wanted = path[-2 - index].float()
        towards = model.predict(latents, timestep, conditional)
        assert towards is not None
        states = states.clone().requires_grad_()
        # The authors' values: a rate that falls, and a loss below which a step is good enough.
        optimizer = torch.optim.Adam([states], lr=1e-2 * (1 - index / (2 * steps)))
        for _ in range(iterations):
            with torch.enable_grad():
                loss = F.mse_loss(drawn(latents, timestep, towards, states).float(), wanted)
                (states.grad,) = torch.autograd.grad(loss, [states])
            optimizer.step()
            if loss.item() < 1e-5 + 1e-3 * index / steps:
                break
        states = states.detach()
        latents = drawn(latents, timestep, towards, states)
        learned.append(branch(states))
        if on_step:
            on_step(index)
    return tuple(learned)
