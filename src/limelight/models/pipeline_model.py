"""What all families share that wrap a diffusers pipeline: where its parts are, encoding, noise, the autoencoder."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import LimelightError, ModelError, SettingsError
from ..prompts.prompt import Prompt, aligned
from ..utils.reading import cause
from ..utils.torch import exclusive, remove_hook, undone
from .base import Conditioning, Model
from .sites import AttentionSite

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class PipelineModel(Model):
    """A diffusers pipeline as a model. The pipeline itself is left as it was.

    Args:
        pipeline: weights are used as they are, on the device and in the dtype that they have.
        name: how the model was asked for.
    """

    denoised_by: ClassVar[str] = "unet"
    """The pipeline's module that predicts."""
    patch: ClassVar[int] = 1
    """Latent pixels along an axis that the denoiser reads as one."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline, self.name = pipeline, name
        self.denoiser = getattr(pipeline, self.denoised_by)
        self.scheduler = copy.deepcopy(pipeline.scheduler)
        for method in ("set_timesteps", "step", "scale_model_input"):  # what `attach` may have put on the pipeline's
            vars(self.scheduler).pop(method, None)
        self.pixels_per_latent = pipeline.vae_scale_factor
        self._stowed: list[Any] = []

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        names = (self.denoised_by, *_ENCODERS, "vae")
        found = {name: getattr(self.pipeline, name, None) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def device(self) -> torch.device:
        # Asking the pipeline takes ten milliseconds; it alone knows where offloaded modules run.
        offloaded = getattr(self.denoiser, "_hf_hook", None) is not None
        return self.pipeline._execution_device if offloaded else next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    def own_options(self, guidance_scale: float, negative: str) -> dict[str, Any]:
        """What the pipeline's own call takes for the same run, besides prompt, steps, size and generators."""
        options: dict[str, Any] = {"guidance_scale": guidance_scale}
        if self.branches(guidance_scale) == 2:
            options["negative_prompt"] = negative
        return options

    @abstractmethod
    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        """Encode one prompt: keyword tensors of the denoiser, first axis 1."""

    @abstractmethod
    def blank(self) -> dict[str, Tensor]:
        """States of one prompt as `_states` has them, without values: to count passes with."""

    def _empty(self, *shape: int) -> Tensor:
        """A tensor of one row without values."""
        return torch.empty(1, *shape, dtype=self.dtype, device=self.device)

    def encode(
        self,
        prompts: Sequence[Prompt],
        negative: str | Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        *,
        clip_skip: int = 0,
        gradient: bool = False,
    ) -> Conditioning:
        self._check_clip_skip(clip_skip)

        def rows(wanted: Sequence[Prompt], negative: bool) -> dict[str, Tensor]:
            # Equal prompts (one prompt, many seeds) are encoded once.
            states = {
                p.text: self._states(p, size or self.default_size, negative, clip_skip) for p in dict.fromkeys(wanted)
            }
            names = next(iter(states.values()))
            return {name: joined([states[p.text][name] for p in wanted]).to(self.dtype) for name in names}

        texts = self._negative_texts(negative, len(prompts))
        with exclusive(self.denoiser), self._fetched(), torch.set_grad_enabled(gradient):
            conditional = rows(prompts, False)
            unconditional = None
            if texts is not None:
                parsed = {text: self.prompt(text) for text in dict.fromkeys(texts)}
                unconditional = rows([parsed[text] for text in texts], True)
        return Conditioning(aligned(prompts), conditional, unconditional)

    @abstractmethod
    def _check_clip_skip(self, clip_skip: int) -> None:
        """Refuse a number of left out layers that the text encoder has not."""

    def _negative_texts(self, negative: str | Sequence[str] | None, images: int) -> list[str] | None:
        """The negative prompt of each image; None where there is no unconditional branch."""
        texts = [negative] * images if isinstance(negative, str) else negative
        if texts is None:
            return None
        self.check_negative(texts)
        return list(texts) if self.reads_negative else None

    @contextmanager
    def _fetched(self) -> Iterator[None]:
        """Bring what is stowed away to the device for a while."""

        def put_back() -> None:
            for encoder in self._stowed:
                encoder.to("cpu")

        with undone(put_back):
            for encoder in self._stowed:
                encoder.to(self.device)
            yield

    def stow(self, away: bool = True) -> bool:
        with exclusive(self.denoiser):
            return self._stow(away)

    def _stow(self, away: bool) -> bool:
        if not away:
            while self._stowed:
                self._stowed.pop().to(self.device)
            return False
        if self._stowed or self.device.type == "cpu":
            return False

        for name in _ENCODERS:
            encoder = getattr(self.pipeline, name, None)
            # Where diffusers itself offloads, its hooks know best.
            if encoder is not None and getattr(encoder, "_hf_hook", None) is None:
                self._stowed.append(encoder)
                encoder.to("cpu")
        return bool(self._stowed)

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        unit, side = self.pixels_per_latent, self.pixels_per_latent * self.patch
        if height % side or width % side or height <= 0 or width <= 0:
            raise SettingsError(
                f"The size {height}x{width} does not fit this model; both sides must be multiples of {side}."
            )
        shape = (1, self.channels, height // unit, width // unit)
        # On the generator's device and in the pipeline's dtype, as diffusers does: equal seeds give equal images.
        noise = [torch.randn(shape, generator=g, device=g.device, dtype=self.noise_dtype) for g in generators]
        return torch.cat(noise).to(self.device)

    def timesteps(self, steps: int, size: tuple[int, int] | None = None) -> Tensor:
        try:
            if steps < 1:
                raise ValueError
            self.scheduler.set_timesteps(device=self.device, **self._schedule(steps, size or self.default_size))
        except (ValueError, ZeroDivisionError, IndexError) as error:
            known = self.scheduler.config.num_train_timesteps
            raise SettingsError(f"steps={steps} does not fit the schedule; it must be 1 to {known}.") from error
        return self.scheduler.timesteps

    def _schedule(self, steps: int, size: tuple[int, int]) -> dict[str, Any]:
        """What the scheduler's `set_timesteps` is given for images of a height and width in pixels."""
        return {"num_inference_steps": steps}

    def start(self, noise: Tensor) -> Tensor:
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def noised(self, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        times = timestep.expand(len(latents))
        if hasattr(self.scheduler, "scale_noise"):  # of flow matching
            return self.scheduler.scale_noise(latents, times, noise)
        return self.scheduler.add_noise(latents, noise, times)

    def step(
        self,
        prediction: Tensor,
        timestep: Tensor,
        latents: Tensor,
        generators: Sequence[torch.Generator],
        eta: float = 0.0,
    ) -> Tensor:
        accepted = inspect.signature(self.scheduler.step).parameters
        extra: dict[str, Any] = {"generator": list(generators) or None} if "generator" in accepted else {}
        if eta and "eta" not in accepted:
            raise SettingsError(f"eta={eta} is DDIM's; the scheduler {type(self.scheduler).__name__} has none.")
        if "eta" in accepted:
            extra["eta"] = eta  # also 0: some schedulers have a default of their own
        try:
            return self.scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
        except ValueError as error:  # of a setting in its file that no library checks when it is read
            raise ModelError(f"The scheduler of '{self.name}' cannot be used: {cause(error)}.") from error

    @property
    def channels(self) -> int:
        """Of the latents."""
        return int(self.denoiser.config.in_channels)

    def least_memory(self, size: tuple[int, int]) -> int:
        vae = self.pipeline.vae
        if getattr(vae, "use_tiling", False):
            return 0
        # Input and output of the autoencoder's last convolution before the pixels.
        channels = (vae.config.get("block_out_channels") or (0,))[0]
        return 2 * int(channels) * size[0] * size[1] * self._image_dtype.itemsize

    @property
    def _image_dtype(self) -> torch.dtype:
        """The SDXL autoencoder overflows in float16 and says so in its configuration."""
        vae = self.pipeline.vae
        return torch.float32 if vae.dtype == torch.float16 and vae.config.get("force_upcast") else vae.dtype

    @torch.no_grad()
    def posterior(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        vae, dtype = self.pipeline.vae, self._image_dtype
        pixels = self.pipeline.image_processor.preprocess(list(images)).to(self.device, dtype)
        with exclusive(self.denoiser), cast(vae, dtype):
            mean, std = self._encoded(pixels)
        return mean.to(self.dtype), std.to(self.dtype)

    def _encoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the autoencoder makes of pixels: mean and standard deviation of the latents."""
        config, found = self.pipeline.vae.config, self.pipeline.vae.encode(pixels).latent_dist
        shift = config.get("shift_factor") or 0.0
        return (found.mean - shift) * config.scaling_factor, found.std * config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        vae, dtype = self.pipeline.vae, self._image_dtype
        with exclusive(self.denoiser), cast(vae, dtype):
            pixels = self._decoded(latents.to(dtype))
            self.pipeline.maybe_free_model_hooks()  # with CPU offload, the autoencoder leaves the device again
        if not bool(pixels.isfinite().all()):
            raise _black(self.name, dtype)
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    def _decoded(self, latents: Tensor) -> Tensor:
        """What the autoencoder makes of latents: pixels."""
        config = self.pipeline.vae.config
        latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return self.pipeline.vae.decode(latents, return_dict=False)[0]

    def describe(self) -> dict[str, str]:
        return {
            "model": self.name,
            "family": type(self.pipeline).__name__,
            "scheduler": type(self.scheduler).__name__,
            "prediction": self.scheduler.config.get("prediction_type", "epsilon"),
            "size": "{}x{}".format(*self.default_size),
            "parameters": f"{sum(p.numel() for p in self.denoiser.parameters()) / 1e6:.1f} M in the denoiser",
            "attention layers": f"{len(self.sites)} ({sum(x.reads_text for x in self.sites)} to the prompt)",
            "context": self._context,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @property
    @abstractmethod
    def _context(self) -> str:
        """What the denoiser reads of a prompt, for `describe`."""


def _black(name: str, dtype: torch.dtype) -> LimelightError:
    """Why an autoencoder gives values that are not finite."""
    what = f"The autoencoder of '{name}' overflows in {str(dtype).removeprefix('torch.')}, and the image would be black"
    if dtype.itemsize < 4:
        return ModelError(f"{what}. Load the model with dtype=torch.float32.")
    return SettingsError(f"{what}: the latents are too large. Lower guidance_scale, or the scale of the guidance.")


@contextmanager
def cast(module: Any, dtype: torch.dtype) -> Iterator[None]:
    """Let a module compute in a dtype for the time of a ``with``."""
    with exclusive(module):  # models of other denoisers may share it
        before = module.dtype
        if dtype == before:
            yield
            return
        with undone(lambda: module.to(before)):
            module.to(dtype)
            yield


def joined(rows: Sequence[Tensor]) -> Tensor:
    """Rows of images as one tensor; texts of different lengths are filled up with zeros at their end."""
    if rows[0].ndim > 1:
        longest = max(row.shape[1] for row in rows)
        rows = [F.pad(row, (0, 0) * (row.ndim - 2) + (0, longest - row.shape[1])) for row in rows]
    return torch.cat(list(rows))


class _Reached(Exception):  # noqa: N818 - not an error
    """The pass has come to the layer that it was asked to stop after."""


@contextmanager
def stop_after(denoiser: torch.nn.Module, layer: AttentionSite | None) -> Iterator[None]:
    """End this thread's pass of the denoiser quietly once the layer has run; None lets it run through."""
    if layer is None:
        yield
        return
    module, thread = denoiser.get_submodule(layer.name), get_ident()

    def stop(_module: Any, _inputs: Any, _output: Any) -> None:
        if get_ident() == thread:
            raise _Reached

    with undone(partial(remove_hook, module, stop)):
        try:
            module.register_forward_hook(stop)
            yield
        except _Reached:
            pass
