"""Stable Diffusion 1.x and 2.x: checkpoints of diffusers' StableDiffusionPipeline."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingsError
from ..prompt import Prompt, parse
from .base import Conditioning, Layer, Model

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class StableDiffusion(Model):
    """Drives a `StableDiffusionPipeline`'s parts; the pipeline itself is left as it was.

    Args:
        pipeline: weights are used as they are, on the device and in the dtype that they have.
        name: how the model was asked for.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, name: str) -> None:
        self.pipeline, self.name = pipeline, name
        self.denoiser = pipeline.unet
        self.scheduler = copy.deepcopy(pipeline.scheduler)
        self.layers = unet_layers(pipeline.unet)
        self.pixels_per_latent = pipeline.vae_scale_factor
        self.guided_scale = _guided_scale(self.layers, pipeline.unet.config.sample_size)

    @property
    def device(self) -> torch.device:
        return self.pipeline._execution_device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.unet.dtype

    @property
    def default_size(self) -> tuple[int, int]:
        side = self.pipeline.unet.config.sample_size * self.pixels_per_latent
        return side, side

    @property
    def _length(self) -> int:
        return min(self.pipeline.tokenizer.model_max_length, self.pipeline.text_encoder.config.max_position_embeddings)

    def prompt(self, text: str) -> Prompt:
        return parse(text, self.pipeline.tokenizer, self._length)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt], negative: str | None = None) -> Conditioning:
        def states(parsed: Sequence[Prompt]) -> Tensor:
            # Equal prompts (one prompt, many seeds) are encoded once.
            distinct = list(dict.fromkeys(p.ids for p in parsed))
            ids = torch.tensor(distinct, device=self.device)
            encoder = self.pipeline.text_encoder
            mask = None
            if getattr(encoder.config, "use_attention_mask", None):
                mask = torch.tensor([self._mask(p) for p in {p.ids: p for p in parsed}.values()], device=self.device)
            encoded = encoder(ids, attention_mask=mask)[0].to(self.dtype)
            return encoded[[distinct.index(p.ids) for p in parsed]]

        conditional = {"encoder_hidden_states": states(prompts)}
        if negative is None:
            return Conditioning(tuple(prompts), conditional)
        unconditional = {"encoder_hidden_states": states([self.prompt(negative)] * len(prompts))}
        return Conditioning(tuple(prompts), conditional, unconditional)

    @staticmethod
    def _mask(prompt: Prompt) -> list[int]:
        return [int(i <= prompt.end) for i in range(len(prompt.ids))]

    def timesteps(self, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps, device=self.device)
        return self.scheduler.timesteps

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        unit = self.pixels_per_latent
        if height % unit or width % unit or height <= 0 or width <= 0:
            raise SettingsError(
                f"The size {height}x{width} does not fit this model; both sides must be multiples of {unit}."
            )
        shape = (1, self.denoiser.config.in_channels, height // unit, width // unit)
        # Drawn where the generator is and in the model's dtype, as diffusers does: equal seeds give equal pictures.
        drawn = [torch.randn(shape, generator=g, device=g.device, dtype=self.dtype) for g in generators]
        return torch.cat(drawn).to(self.device)

    def start(self, noise: Tensor) -> Tensor:
        return noise * self.scheduler.init_noise_sigma

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float = 1.0,
        until: Layer | None = None,
    ) -> Tensor | None:
        branches = [conditioning.conditional]
        if conditioning.unconditional is not None:
            branches.insert(0, conditioning.unconditional)
        joined = {name: torch.cat([branch[name] for branch in branches]) for name in branches[0]}
        scaled = self.scheduler.scale_model_input(torch.cat([latents] * len(branches)), timestep)
        with _stop_after(self.denoiser, until):
            prediction = self.denoiser(scaled, timestep, **joined, return_dict=False)[0]
        if until is not None:
            return None
        if len(branches) == 1:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def step(
        self, prediction: Tensor, timestep: Tensor, latents: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        accepted = inspect.signature(self.scheduler.step).parameters
        extra: dict[str, Any] = {"generator": list(generators)} if "generator" in accepted else {}
        return self.scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        vae = self.pipeline.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    def describe(self) -> dict[str, str]:
        config = self.denoiser.config
        return {
            "model": self.name,
            "family": type(self.pipeline).__name__,
            "scheduler": type(self.scheduler).__name__,
            "prediction": self.scheduler.config.prediction_type,
            "size": "{}x{}".format(*self.default_size),
            "parameters": f"{sum(p.numel() for p in self.denoiser.parameters()) / 1e6:.1f} M in the denoiser",
            "attention layers": f"{len(self.layers)} ({sum(x.kind == 'cross' for x in self.layers)} to the prompt)",
            "context": f"{self._length} tokens of width {config.cross_attention_dim}",
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def unet_layers(unet: Any) -> tuple[Layer, ...]:
    """The attention layers of a UNet2DConditionModel in execution order, from its module tree alone."""
    depth = len(unet.down_blocks)
    found: list[Layer] = []

    def collect(block: Any, path: str, place: Any, scale: int) -> None:
        for name, module in block.named_modules():
            if name.endswith((".attn1", ".attn2")):
                kind = "cross" if module.is_cross_attention else "self"
                found.append(Layer(f"{path}.{name}", kind, place, module.heads, scale))  # type: ignore[arg-type]

    for i, block in enumerate(unet.down_blocks):
        collect(block, f"down_blocks.{i}", "down", 2**i)
    if unet.mid_block is not None:
        collect(unet.mid_block, "mid_block", "mid", 2 ** (depth - 1))
    for i, block in enumerate(unet.up_blocks):
        collect(block, f"up_blocks.{i}", "up", 2 ** (depth - 1 - i))
    return tuple(found)


def _guided_scale(layers: Sequence[Layer], side: int) -> int:
    """The deepest level whose cross-attention maps, at the default size, still have 8 pixels a side.

    That is 16 x 16 for Stable Diffusion 1.x and 2.x at 512 pixels, where the paper takes them. The middle block is a
    level of its own only in name.
    """
    scales = sorted({layer.scale for layer in layers if layer.kind == "cross" and layer.place != "mid"})
    return max((s for s in scales if side / s >= 8), default=scales[0])


class _Reached(Exception):  # noqa: N818 - not an error
    """The pass has come to the layer that it was asked to stop after."""


@contextmanager
def _stop_after(denoiser: torch.nn.Module, layer: Layer | None) -> Iterator[None]:
    if layer is None:
        yield
        return

    def stop(_module: Any, _inputs: Any, _output: Any) -> None:
        raise _Reached

    handle = denoiser.get_submodule(layer.name).register_forward_hook(stop)
    try:
        yield
    except _Reached:
        pass
    finally:
        handle.remove()
