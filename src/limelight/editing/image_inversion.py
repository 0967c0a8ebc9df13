"""From a real image to the noise that gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import DDIMInverseScheduler, DDIMScheduler
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import SettingsError
from ..generation.arguments import check_model
from ..generation.batches import check_latents
from ..generation.loop import denoise
from ..generation.plan import negatives, warn_of_prompts
from ..models.base import Conditioning, Model
from ..prompts.prompt import Prompt
from ..utils.images import ImageSource, open_image
from ..utils.numbers import MOST_SIDE, MOST_STEPS, check_finite, check_whole
from ..utils.torch import check_gradients


@dataclass(frozen=True, eq=False)
class Inversion:
    """The noise of an image, and what else a model needs to give the image back.

    Attributes:
        noise: latents to start from, [1, channels, height, width].
        prompt: what the image shows.
        steps: number of denoising steps.
        size: height and width in pixels.
        unconditional: for null-text inversion, the unconditional branch of each step; else None.
        image: what was inverted, cut to the size.
        error: root mean square difference between the image's latents and those that the model gives back, in units of
            the latents' own (about 1).
    """

    noise: Tensor
    prompt: str
    steps: int
    size: tuple[int, int]
    unconditional: tuple[Mapping[str, Tensor], ...] | None
    error: float
    image: Image.Image | None = None

    def check(self, prompt: str, steps: int, size: tuple[int, int]) -> None:
        """Compare the inversion with what an edit asks for.

        Raises:
            SettingsError: they differ.
        """
        for name, own, asked in (
            ("prompt", self.prompt, prompt),
            ("steps", self.steps, steps),
            ("size", "{}x{}".format(*self.size), "{}x{}".format(*size)),
        ):
            if own != asked:
                raise SettingsError(f"The image was inverted with {name} '{own}', the edit asks for '{asked}'.")

    def conditioning(self, encoded: Conditioning, passes: int) -> list[Conditioning]:
        """The conditioning of each step, for any number of rows.

        Args:
            encoded: the encoded prompts, one row per image; null-text inversion replaces their unconditional branch.
            passes: denoiser passes of the schedule.
        """
        if self.unconditional is None or encoded.unconditional is None:
            return [encoded] * passes

        rows, steps = len(encoded.prompts), []
        for branch in self.unconditional:
            unconditional = {name: value.expand(rows, *value.shape[1:]) for name, value in branch.items()}
            steps.append(Conditioning(encoded.prompts, encoded.conditional, unconditional))
        return steps


@dataclass(frozen=True, kw_only=True)
class InversionSettings:
    """How an image is inverted. Each is described in `invert_image`."""

    steps: int
    guidance_scale: float
    negative: str
    null_text: bool
    size: tuple[int, int]
    iterations: int = 10


def invert_image(
    model: Model,
    image: ImageSource,
    prompt: str,
    *,
    steps: int = 50,
    guidance_scale: float | None = None,
    negative: str | None = "",
    null_text: bool = False,
    iterations: int = 10,
    size: tuple[int, int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Inversion:
    """Find the noise from which a model generates a given image, by DDIM run backwards.

    Jiaming Song, Chenlin Meng, Stefano Ermon, "Denoising Diffusion Implicit Models", 2020,
    https://arxiv.org/abs/2010.02502. Strong guidance leads away from the image; null-text inversion corrects that by
    learning the unconditional branch of every step: Ron Mokady, Amir Hertz, Kfir Aberman, Yael Pritch, Daniel
    Cohen-Or, "Null-text Inversion for Editing Real Images using Guided Diffusion Models", 2022,
    https://arxiv.org/abs/2211.09794

    Args:
        model: with a DDIM scheduler.
        image: a file, a PIL image, an array or a tensor, see `limelight.utils.images.open_image`; it is cut to the
            shape of `size` around its middle.
        prompt: what it shows.
        steps, guidance_scale, negative: of the run that is to give the image back.
        null_text: learn the unconditional branch, which needs a `guidance_scale` above 1.
        iterations: of that learning, at most, per step.
        size: height and width in pixels; by default the model's own.
        on_step: called with 0, 1, ... after every step backwards, and again after every step that `null_text` learns.

    Raises:
        SettingsError: the scheduler is not DDIM, `null_text` has no branch to learn, or the image is none.
        FileError: the image cannot be read.

    Warns:
        UnknownWords, LostWords, UnsupportedMarkup: as `limelight.generate`.

    Examples:
        >>> model = limelight.load("pocket", device="cpu", scheduler="ddim")
        >>> image = limelight.generate(model, "a red car", steps=2).images[0]
        >>> inversion = limelight.invert_image(model, image, "a red car", steps=2)
        >>> inversion.steps, inversion.size
        (2, (128, 128))
        >>> result = limelight.edit(model, "a red car", "a blue car", image=inversion, steps=2)
    """
    check_model(model)
    check_finite(guidance_scale=guidance_scale)
    check_whole(MOST_STEPS, steps=steps, iterations=iterations)
    size = size or model.default_size
    check_whole(MOST_SIDE, height=size[0], width=size[1])
    scale, (negative,) = model.scale_or_own(guidance_scale), negatives(negative, 1)
    settings = InversionSettings(
        steps=steps,
        guidance_scale=scale,
        negative=negative,
        null_text=null_text,
        size=size,
        iterations=iterations,
    )
    read = model.prompt(prompt)
    warn_of_prompts(model, [read], [model.negative_in_use(scale, negative)])
    return invert(model, image, read, settings, on_step)


@torch.inference_mode(False)
@torch.no_grad()
def invert(
    model: Model,
    image: ImageSource,
    prompt: Prompt,
    settings: InversionSettings,
    on_step: Callable[[int], None] | None = None,
) -> Inversion:
    """`invert_image`, without its warnings."""
    check_ddim(model)
    if settings.null_text and settings.guidance_scale <= 1:
        raise SettingsError(
            f"null_text learns the unconditional branch, and guidance_scale={settings.guidance_scale} has none; give a "
            "guidance_scale above 1, for example 7.5."
        )

    model, steps, guidance_scale = model.for_one_run(), settings.steps, settings.guidance_scale
    negative = model.negative_in_use(guidance_scale, settings.negative)
    encoded = model.encode([prompt], negative, settings.size)
    if settings.null_text and encoded.unconditional is None:
        raise SettingsError(
            f"null_text learns the unconditional branch, and '{model.name}' has none: it reads the guidance scale as a "
            "number. Leave out null_text."
        )
    # Not `fit_image`, whose bicubic filter gives other pixels.
    height, width = settings.size
    fitted = ImageOps.fit(open_image(image), (width, height), Image.Resampling.LANCZOS)
    latents = model.latents([fitted])

    path = backwards(model, latents, encoded.only_conditional(), steps, on_step)
    learned = None
    if settings.null_text:
        learned = _null_text(model, path, encoded, settings, on_step)

    # Give the image back, to measure the error.
    inversion = Inversion(path[-1], prompt.text, steps, settings.size, learned, 0.0, fitted)
    conditioning = inversion.conditioning(encoded, steps)
    for step in denoise(model, conditioning, inversion.noise, steps=steps, guidance_scale=guidance_scale):
        final = step.latents
    check_latents(model, final, guidance_scale)
    return replace(inversion, error=(final - latents).float().square().mean().sqrt().item())


def check_ddim(model: Model) -> None:
    """Refuse a model that cannot be run backwards.

    Raises:
        SettingsError: its scheduler is not DDIM.
    """
    if not isinstance(model.scheduler, DDIMScheduler):
        raise SettingsError(
            f"An image can be inverted with DDIM, not with {type(model.scheduler).__name__}; load the model with "
            "scheduler='ddim'."
        )


def backwards(
    model: Model,
    latents: Tensor,
    encoded: Conditioning,
    steps: int,
    on_step: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Run DDIM backwards: the latents of the image, and those after every step, the last of which are noise.

    Args:
        encoded: without an unconditional branch.
    """
    scheduler = DDIMInverseScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(steps, device=model.device)

    path = [latents]
    for index, timestep in enumerate(scheduler.timesteps):
        prediction = model.predict(path[-1], timestep, encoded)
        path.append(scheduler.step(prediction, timestep, path[-1], return_dict=False)[0])
        if on_step:
            on_step(index)
    return path


def _null_text(
    model: Model,
    path: list[Tensor],
    encoded: Conditioning,
    settings: InversionSettings,
    on_step: Callable[[int], None] | None,
) -> tuple[Mapping[str, Tensor], ...]:
    """Learn the unconditional branch of each step that leads along `path`, from its end to its beginning."""
    assert encoded.unconditional is not None
    steps, guidance_scale = settings.steps, settings.guidance_scale
    conditional, fixed = encoded.only_conditional(), encoded.unconditional
    latents, states = path[-1], fixed["encoder_hidden_states"].float()
    learned: list[Mapping[str, Tensor]] = []

    def branch(states: Tensor) -> dict[str, Tensor]:
        return {**fixed, "encoder_hidden_states": states.to(model.dtype)}

    def stepped(latents: Tensor, timestep: Tensor, towards: Tensor, states: Tensor) -> Tensor:
        away = model.predict(latents, timestep, Conditioning(encoded.prompts, branch(states)))
        assert away is not None  # no `until` was given
        return model.step(away + guidance_scale * (towards - away), timestep, latents, ())

    for index, timestep in enumerate(model.timesteps(steps)):
        wanted = path[-2 - index].float()
        towards = model.predict(latents, timestep, conditional)
        assert towards is not None

        check_gradients(model.denoiser)
        states = states.clone().requires_grad_()
        # The authors' values: a rate that falls, and a loss below which a step is good enough.
        optimizer = torch.optim.Adam([states], lr=1e-2 * (1 - index / (2 * steps)))
        for _ in range(settings.iterations):
            with torch.enable_grad():
                loss = F.mse_loss(stepped(latents, timestep, towards, states).float(), wanted)
                (states.grad,) = torch.autograd.grad(loss, [states])
            optimizer.step()
            if loss.item() < 1e-5 + 1e-3 * index / steps:
                break

        states = states.detach()
        latents = stepped(latents, timestep, towards, states)
        learned.append(branch(states))
        if on_step:
            on_step(index)
    return tuple(learned)
