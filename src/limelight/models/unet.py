"""Families whose denoiser is a UNet2DConditionModel: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import copy
import inspect
import math
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
from ..prompts.prompt import Prompt, parse
from ..utils.reading import cause
from ..utils.torch import exclusive, remove_hook, undone
from .base import About, Conditioning, Model
from .sites import AttentionSite

ATTACH = "Open it with diffusers; `limelight.attach` steers such pipelines."


class UNet(Model):
    """What all families with a `UNet2DConditionModel` share. The pipeline itself is left as it was.

    Args:
        pipeline: weights are used as they are, on the device and in the dtype that they have.
        name: how the model was asked for.
    """

    loading: ClassVar[dict[str, Any]] = {}
    """Arguments of `from_pretrained` for this family, besides the common ones."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Beginnings of weights on which no image depends: a model may lack them."""
    adds: ClassVar[str | None] = None
    """What the denoiser reads besides the prompt, as its configuration calls it (`addition_embed_type`)."""
    guided_side: ClassVar[int] = 8
    """Least side of the maps that guidance reads, at the default size."""

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline, self.name = pipeline, name
        self.denoiser = pipeline.unet
        self.scheduler = copy.deepcopy(pipeline.scheduler)
        for method in ("set_timesteps", "step", "scale_model_input"):  # what `attach` may have put on the pipeline's
            vars(self.scheduler).pop(method, None)

        self.sites = unet_sites(pipeline.unet)
        self.pixels_per_latent = pipeline.vae_scale_factor
        self._stowed: list[Any] = []

        self._check_tokenizer()
        if not self.text_sites:
            raise ModelError(f"The denoiser of '{name}' does not read a prompt: it has no cross-attention.")
        if not self.denoiser.config.sample_size:
            raise ModelError(
                f"The denoiser of '{name}' does not say which size it was trained on: `sample_size` in its config.json "
                f"is {self.denoiser.config.sample_size!r}. Write the side of its latents there, for example 64."
            )

        self.guided_scale = _guided_scale(self.sites, min(self._latent_size), self.guided_side)

    def _check_tokenizer(self) -> None:
        known, trained = len(self.pipeline.tokenizer), self.pipeline.text_encoder.config.vocab_size
        if known < trained:
            raise ModelError(
                f"The tokenizer of '{self.name}' knows {known} of {trained} tokens; its files are incomplete."
            )

    def check_inputs(self) -> None:
        """Check that the denoiser asks for nothing that cannot be given to it.

        Raises:
            ModelError: it reads class labels, images, masks or the like, or has other latents than its autoencoder.
        """
        config, latents = self.denoiser.config, self.pipeline.vae.config
        reads = {
            f"{config.in_channels} channels where the autoencoder has {latents.latent_channels} (a mask or an image)": (
                config.in_channels != latents.latent_channels
            ),
            "class labels": config.class_embed_type is not None or config.num_class_embeds is not None,
            "images or other embeddings beside the prompt (an IP-Adapter, for example)": (
                config.encoder_hid_dim_type is not None
            ),
            f"other additions than this family ({config.addition_embed_type})": config.addition_embed_type != self.adds,
            "places of objects (GLIGEN)": config.attention_type != "default",
        }
        for what, wanted in reads.items():
            if wanted:
                raise ModelError(f"The denoiser of '{self.name}' reads {what}, which is not supported. {ATTACH}")

        if latents.out_channels != 3 or not latents.scaling_factor:
            raise ModelError(
                f"The autoencoder of '{self.name}' makes no ordinary images: out_channels={latents.out_channels}, "
                f"scaling_factor={latents.scaling_factor}; they must be 3 and a number."
            )

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        names = ("unet", "text_encoder", "text_encoder_2", "vae")
        found = {name: getattr(self.pipeline, name, None) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def embeds_guidance(self) -> bool:
        """Whether the denoiser reads the guidance scale as a number, as latent consistency models do, and has no
        unconditional branch."""
        return self.denoiser.config.time_cond_proj_dim is not None

    @property
    def guidance_scale(self) -> float:
        if self.embeds_guidance and "generate" not in self.about.presets:
            return float(About.family("LatentConsistency").preset("generate")["guidance_scale"])
        return super().guidance_scale

    def prepare(self, conditioning: Conditioning, guidance_scale: float) -> Conditioning:
        self.check_inputs()  # an IP-Adapter may have come since the model was opened
        if not self.embeds_guidance:
            return conditioning
        states = conditioning.conditional["encoder_hidden_states"]
        scale = self._embedded(guidance_scale, len(states)).to(states.device)
        return Conditioning(conditioning.prompts, {**conditioning.conditional, "timestep_cond": scale})

    def _embedded(self, guidance_scale: float, images: int) -> Tensor:
        """A guidance scale as the input of a denoiser that was distilled with it, [images, width].

        Chenlin Meng et al., "On Distillation of Guided Diffusion Models", 2023, https://arxiv.org/abs/2210.03142, as
        in latent consistency models, whose scale is less by 1: sines and cosines of 1000 times that.
        """
        width = self.denoiser.config.time_cond_proj_dim
        rates = torch.exp(torch.arange(width // 2) * (-math.log(10000.0) / (width // 2 - 1)))
        angles = 1000 * torch.tensor(guidance_scale - 1.0) * rates
        embedded = F.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))
        return embedded.to(self.dtype).expand(images, -1)

    @property
    def device(self) -> torch.device:
        # Asking the pipeline takes ten milliseconds; it alone knows where offloaded modules run.
        offloaded = getattr(self.denoiser, "_hf_hook", None) is not None
        return self.pipeline._execution_device if offloaded else next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipeline.unet.dtype

    @property
    def default_size(self) -> tuple[int, int]:
        height, width = self._latent_size
        return height * self.pixels_per_latent, width * self.pixels_per_latent

    @property
    def _latent_size(self) -> tuple[int, int]:
        return _pair(self.denoiser.config.sample_size)

    @property
    def _length(self) -> int:
        return min(self.pipeline.tokenizer.model_max_length, self.pipeline.text_encoder.config.max_position_embeddings)

    def prompt(self, text: str) -> Prompt:
        # Tokenizers remember how they were last called.
        with exclusive(self.pipeline.tokenizer):
            return parse(text, self.pipeline.tokenizer, self._length)

    @abstractmethod
    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        """Encode one prompt: keyword tensors of the denoiser, first axis 1."""

    def encode(
        self,
        prompts: Sequence[Prompt],
        negative: str | Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        *,
        clip_skip: int = 0,
        gradient: bool = False,
    ) -> Conditioning:
        depth = self.pipeline.text_encoder.config.num_hidden_layers
        if not 0 <= clip_skip < depth - 1:
            raise SettingsError(f"clip_skip={clip_skip} does not fit a text encoder of {depth} layers.")

        def rows(wanted: Sequence[Prompt], negative: bool) -> dict[str, Tensor]:
            # Equal prompts (one prompt, many seeds) are encoded once.
            states = {
                p.text: self._states(p, size or self.default_size, negative, clip_skip) for p in dict.fromkeys(wanted)
            }
            names = next(iter(states.values()))
            return {name: torch.cat([states[p.text][name] for p in wanted]).to(self.dtype) for name in names}

        texts = self._negative_texts(negative, len(prompts))
        with exclusive(self.denoiser), self._fetched(), torch.set_grad_enabled(gradient):
            conditional = rows(prompts, False)
            unconditional = None
            if texts is not None:
                parsed = {text: self.prompt(text) for text in dict.fromkeys(texts)}
                unconditional = rows([parsed[text] for text in texts], True)
        return Conditioning(tuple(prompts), conditional, unconditional)

    def _negative_texts(self, negative: str | Sequence[str] | None, images: int) -> list[str] | None:
        """The negative prompt of each image; None where there is no unconditional branch."""
        texts = [negative] * images if isinstance(negative, str) else negative
        if texts is None or not self.embeds_guidance:
            return None if texts is None else list(texts)

        refused = next(filter(None, texts), None)
        if refused is not None:
            raise SettingsError(
                f"'{self.name}' reads the guidance scale as a number and has no negative prompt; leave out "
                f"negative={refused!r}."
            )
        return None

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

        for name in ("text_encoder", "text_encoder_2"):
            encoder = getattr(self.pipeline, name, None)
            # Where diffusers itself offloads, its hooks know best.
            if encoder is not None and getattr(encoder, "_hf_hook", None) is None:
                self._stowed.append(encoder)
                encoder.to("cpu")
        return bool(self._stowed)

    def timesteps(self, steps: int) -> Tensor:
        try:
            if steps < 1:
                raise ValueError
            self.scheduler.set_timesteps(steps, device=self.device)
        except (ValueError, ZeroDivisionError, IndexError) as error:
            known = self.scheduler.config.num_train_timesteps
            raise SettingsError(f"steps={steps} does not fit the schedule; it must be 1 to {known}.") from error
        return self.scheduler.timesteps

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        unit = self.pixels_per_latent
        if height % unit or width % unit or height <= 0 or width <= 0:
            raise SettingsError(
                f"The size {height}x{width} does not fit this model; both sides must be multiples of {unit}."
            )
        shape = (1, self.denoiser.config.in_channels, height // unit, width // unit)
        # On the generator's device and in the model's dtype, as diffusers does: equal seeds give equal images.
        noise = [torch.randn(shape, generator=g, device=g.device, dtype=self.dtype) for g in generators]
        return torch.cat(noise).to(self.device)

    def start(self, noise: Tensor) -> Tensor:
        return noise * self.scheduler.init_noise_sigma

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float = 1.0,
        until: AttentionSite | None = None,
    ) -> Tensor | None:
        branches = 1 if conditioning.unconditional is None else 2
        scaled = self.scheduler.scale_model_input(torch.cat([latents] * branches), timestep)
        added = dict(conditioning.joined)
        states, scale = added.pop("encoder_hidden_states"), added.pop("timestep_cond", None)
        if self.embeds_guidance and scale is None:
            scale = self._embedded(guidance_scale, len(states)).to(states.device)
        with exclusive(self.denoiser), stop_after(self.denoiser, until):
            prediction = self.denoiser(
                scaled, timestep, states, timestep_cond=scale, added_cond_kwargs=added or None, return_dict=False
            )[0]

        if until is not None:
            return None
        if branches == 1:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

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
    def _image_dtype(self) -> torch.dtype:
        """The SDXL autoencoder overflows in float16 and says so in its configuration."""
        vae = self.pipeline.vae
        return torch.float32 if vae.dtype == torch.float16 and vae.config.force_upcast else vae.dtype

    @torch.no_grad()
    def posterior(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        vae, dtype = self.pipeline.vae, self._image_dtype
        pixels = self.pipeline.image_processor.preprocess(list(images)).to(self.device, dtype)
        with exclusive(self.denoiser), _cast(vae, dtype):
            found = vae.encode(pixels).latent_dist
        mean, std = ((x * vae.config.scaling_factor).to(self.dtype) for x in (found.mean, found.std))
        return mean, std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        vae, dtype = self.pipeline.vae, self._image_dtype
        latents = latents.to(dtype) / vae.config.scaling_factor
        with exclusive(self.denoiser), _cast(vae, dtype):
            pixels = vae.decode(latents, return_dict=False)[0]
            self.pipeline.maybe_free_model_hooks()  # with CPU offload, the autoencoder leaves the device again
        if not bool(pixels.isfinite().all()):
            raise _black(self.name, dtype)
        return self.pipeline.image_processor.postprocess(pixels, output_type="pil")

    def describe(self) -> dict[str, str]:
        config = self.denoiser.config
        return {
            "model": self.name,
            "family": type(self.pipeline).__name__,
            "scheduler": type(self.scheduler).__name__,
            "prediction": self.scheduler.config.get("prediction_type", "epsilon"),
            "size": "{}x{}".format(*self.default_size),
            "parameters": f"{sum(p.numel() for p in self.denoiser.parameters()) / 1e6:.1f} M in the denoiser",
            "attention layers": f"{len(self.sites)} ({sum(x.reads_text for x in self.sites)} to the prompt)",
            "context": f"{self._length} tokens of width {config.cross_attention_dim}",
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def _black(name: str, dtype: torch.dtype) -> LimelightError:
    """Why an autoencoder gives values that are not finite."""
    what = f"The autoencoder of '{name}' overflows in {str(dtype).removeprefix('torch.')}, and the image would be black"
    if dtype.itemsize < 4:
        return ModelError(f"{what}. Load the model with dtype=torch.float32.")
    return SettingsError(f"{what}: the latents are too large. Lower guidance_scale, or the scale of the guidance.")


@contextmanager
def _cast(module: Any, dtype: torch.dtype) -> Iterator[None]:
    with exclusive(module):  # models of other denoisers may share it
        before = module.dtype
        if dtype == before:
            yield
            return
        with undone(lambda: module.to(before)):
            module.to(dtype)
            yield


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def unet_sites(unet: Any) -> tuple[AttentionSite, ...]:
    """The attention layers of a UNet2DConditionModel in execution order, from its module tree alone."""
    depth = len(unet.down_blocks)
    found: list[AttentionSite] = []

    def collect(block: Any, path: str, group: str, scale: int) -> None:
        for name, module in block.named_modules():
            if name.endswith((".attn1", ".attn2")):
                kind = "cross" if module.is_cross_attention else "self"
                found.append(AttentionSite(f"{path}.{name}", kind, group, module.heads, scale))  # type: ignore[arg-type]

    for i, block in enumerate(unet.down_blocks):
        collect(block, f"down_blocks.{i}", "down", 2**i)
    if unet.mid_block is not None:
        collect(unet.mid_block, "mid_block", "mid", 2 ** (depth - 1))
    for i, block in enumerate(unet.up_blocks):
        collect(block, f"up_blocks.{i}", "up", 2 ** (depth - 1 - i))
    return tuple(found)


def text_states(conditioning: Conditioning) -> Tensor:
    """The encoded prompts of the conditional branch, [images, tokens, width]."""
    return conditioning.conditional["encoder_hidden_states"]


def text_keys(denoiser: torch.nn.Module, site: AttentionSite, states: Tensor) -> Tensor:
    """The keys that a cross-attention layer makes of encoded tokens.

    Args:
        denoiser: the model's, with the layer in it.
        site: a layer that reads text.
        states: encoded tokens [tokens, width], see `text_states`.

    Returns:
        [tokens, heads, width of a head].
    """
    module: Any = denoiser.get_submodule(site.name)
    if module.norm_cross:
        states = module.norm_encoder_hidden_states(states[None])[0]
    keys = module.to_k(states).unflatten(-1, (site.heads, -1))
    return keys if module.norm_k is None else module.norm_k(keys)


def projections(denoiser: torch.nn.Module, site: AttentionSite) -> Iterator[Tensor]:
    """The parameters that make an attention layer's queries, then those that make its keys."""
    module: Any = denoiser.get_submodule(site.name)
    yield from module.to_q.parameters()
    yield from module.to_k.parameters()


def _guided_scale(layers: Sequence[AttentionSite], side: int, least: int = 8) -> int:
    """The deepest level whose cross-attention maps, at the default size, still have `least` pixels a side.

    With 8 that is 16 x 16 for Stable Diffusion 1.x and 2.x at 512 pixels, where the paper takes them. The middle block
    is a level of its own only in name.
    """
    scales = sorted({layer.scale for layer in layers if layer.reads_text and layer.group != "mid"})
    return max((s for s in scales if side / s >= least), default=scales[0])


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
