"""Attention maps of an image that exists.

The image gets noise of several strengths, and one conditional pass reads what each word of a prompt attends to in each
of them, as text-to-image models see an image while they generate it. Inversion instead leads to the very noise that the
model would make the image from: Jiaming Song, Chenlin Meng, Stefano Ermon, "Denoising Diffusion Implicit Models", 2020,
https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..attention.passengers import Passengers
from ..attention.probe import Probe
from ..attention.recording import Recorder, StepMaps
from ..errors import SettingsError
from ..generation.arguments import check_model
from ..generation.loop import Record, Step, layers_to_record
from ..generation.plan import beside, check_also, checked, warn_of_prompts
from ..generation.provenance import provenance
from ..generation.result import Result
from ..models.base import Conditioning, Model
from ..prompts.prompt import Prompt
from ..utils.files import digest
from ..utils.images import ImageSource, open_image
from ..utils.numbers import check_sampling
from ..utils.torch import exclusive, seeded
from .image_inversion import backwards, check_ddim


@dataclass(frozen=True, eq=False, kw_only=True)
class _Reading:
    """How an image is read. Each is described in `read_image`."""

    steps: int
    seed: int
    size: tuple[int, int]
    record: Record
    also: tuple[str, ...]
    on_step: Callable[[Step], None] | None


def read_image(
    model: Model,
    image: ImageSource,
    prompt: str,
    *,
    steps: int = 10,
    exact: bool = False,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    record: Record = True,
    also: str | Sequence[str] = (),
    on_step: Callable[[Step], None] | None = None,
) -> Result:
    """Find where the words of a prompt are in an image that exists, for example in a photo.

    Args:
        model: see `limelight.load`; of any family. `exact` needs a DDIM scheduler.
        image: a file, a PIL image, an array or a tensor, see `limelight.utils.images.open_image`; it is cut to the
            shape of the model's images around its middle.
        prompt: what it shows.
        steps: how many strengths of noise are read, those of a schedule of so many steps; with `exact`, the steps of
            the inversion.
        exact: take the noise that DDIM run backwards finds for the image instead of random noise: twice the passes.
        seed: of the noise that is added.
        height, width: in pixels; by default the model's own.
        record, also: as in `limelight.generate`; the single steps of "steps" and "all" are the strengths of noise, the
            strongest first.
        on_step: called after every pass that is read.

    Returns:
        The image in `images`, its own latents, and its maps.

    Raises:
        SettingsError: a setting is out of range, the image is none, or `exact` lacks DDIM.
        PromptError: a word of `also` is in the prompt.
        FileError: the image cannot be read.

    Warns:
        UnknownWords, LostWords, UnsupportedMarkup: as `limelight.generate`.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> image = limelight.generate(model, "a cat and a dog", steps=2).images[0]
        >>> result = limelight.read_image(model, image, "a cat and a dog", steps=2)
        >>> tuple(result.maps["cat"].shape), tuple(result.maps.box("cat").shape)
        ((1, 8, 8), (1, 4))
    """
    check_model(model)
    size = model.size_or_own(height, width)
    check_sampling(steps=steps, height=size[0], width=size[1])
    if record not in (True, "mean", "steps", "all"):
        raise SettingsError(f"record={record!r} must be True, 'steps' or 'all': maps are all that is read.")
    (seed,) = checked(seed)
    reading = _Reading(steps=steps, seed=seed, size=size, record=record, also=beside(also), on_step=on_step)
    parsed = model.prompt(prompt)
    check_also(model, [parsed], reading.also)
    warn_of_prompts(model, [parsed, *map(model.prompt, reading.also)])

    # Not `fit_image`, so that the pixels are those of `invert_image`.
    fitted = ImageOps.fit(open_image(image), (size[1], size[0]), Image.Resampling.LANCZOS)
    latents = model.latents([fitted])
    maps, single = _read(model, latents, parsed, exact, reading).result(latents, [parsed])
    settings = {
        "prompt": prompt,
        "subjects": [],
        "image": digest(fitted.tobytes()),
        "noise": "inverted" if exact else "added",
        "steps": steps,
        "height": size[0],
        "width": size[1],
        **({"also": list(reading.also)} if reading.also else {}),
        **provenance(model),
    }
    return Result([fitted], latents, maps, (), settings, (seed,), (), StepMaps(single))


@torch.inference_mode(False)
@torch.no_grad()
def _read(model: Model, latents: Tensor, prompt: Prompt, exact: bool, reading: _Reading) -> Recorder:
    """Read one conditional pass of the image's latents at each strength of noise."""
    model = model.for_one_run()
    size = (latents.shape[-2], latents.shape[-1])
    layers = layers_to_record(model, size, None, reading.record)
    recorder = Recorder(reading.record, layers_to_record(model, size, None, True))
    encoded = model.prepare(model.encode([prompt], size=reading.size), model.guidance_scale)
    passengers = Passengers.of(model, reading.also, layers) if reading.also else None

    path, before = (_inverted if exact else _noised)(model, latents, encoded, reading), perf_counter()
    for index, (timestep, noisy) in enumerate(path):
        own = model.for_one_run()  # a schedule remembers the first timestep that it sees
        with exclusive(own.denoiser):
            further = passengers.beside(noisy, timestep, encoded) if passengers else None
            with Probe(own, layers, beside=further) as probe:
                own.predict(noisy, timestep, encoded, guidance_scale=model.guidance_scale, until=layers[-1])
                maps = probe.take(noisy, encoded.prompts)
        recorder.add(maps)

        now = perf_counter()
        if reading.on_step:
            reading.on_step(Step(index, len(path), timestep.item(), noisy, None, maps, now - before))
        before = now
    return recorder


_Path = list[tuple[Tensor, Tensor]]
"""Timesteps, the noisiest first, and the latents at each."""


def _noised(model: Model, latents: Tensor, encoded: Conditioning, reading: _Reading) -> _Path:
    """The latents with noise of their own for each timestep."""
    (generator,), path = seeded([reading.seed]), []
    for timestep in model.timesteps(reading.steps, reading.size).unique_consecutive():
        noise = model.noise([generator], *reading.size)
        path.append((timestep, model.for_one_run().noised(latents, noise, timestep)))
    return path


def _inverted(model: Model, latents: Tensor, encoded: Conditioning, reading: _Reading) -> _Path:
    """The latents on the way to the noise that the model makes the image from."""
    check_ddim(model)
    with exclusive(model.denoiser):
        noisier = backwards(model, latents, encoded, reading.steps)
    timesteps = model.timesteps(reading.steps, reading.size)
    return list(zip(timesteps, reversed(noisier[1:]), strict=True))
