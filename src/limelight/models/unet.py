"""Families whose denoiser is a UNet2DConditionModel: Stable Diffusion 1.x, 2.x and XL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, SettingsError
from ..prompts.prompt import Prompt, parse
from ..utils.torch import exclusive
from .base import About, Conditioning
from .learned import read_words
from .pipeline_model import PipelineModel, stop_after
from .sites import AttentionSite

ATTACH = "Open it with diffusers; `limelight.attach` steers such pipelines."


class UNet(PipelineModel):
    """What all families with a `UNet2DConditionModel` share, see `PipelineModel`."""

    adds: ClassVar[str | None] = None
    """What the denoiser reads besides the prompt, as its configuration calls it (`addition_embed_type`)."""
    guided_side: ClassVar[int] = 8
    """Least side of the maps that guidance reads, at the default size."""

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__(pipeline, name)
        self.sites = unet_sites(pipeline.unet)
        self._check_tokenizer()
        if not self.text_sites:
            raise ModelError(f"The denoiser of '{name}' does not read a prompt: it has no cross-attention.")
        if not self.denoiser.config.sample_size:
            raise ModelError(
                f"The denoiser of '{name}' does not say which size it was trained on: `sample_size` in its config.json "
                f"is {self.denoiser.config.sample_size!r}. Write the side of its latents there, for example 64."
            )

        self.guided_scale = guided_scale(self.sites, min(self._latent_size), self.guided_side)

    @property
    def word_layers(self) -> dict[str, bool]:
        found = {}
        for site in self.text_sites:
            block, _, attention = site.name.rpartition(".")
            for name, module in self.denoiser.get_submodule(block).named_modules():
                if isinstance(module, nn.Linear):
                    found[f"{block}.{name}"] = name in (f"{attention}.to_k", f"{attention}.to_v")
        return found

    def _check_tokenizer(self) -> None:
        if self.pipeline.tokenizer is None:  # of a blueprint, which reads no prompts
            return
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

        channels = latents.get("out_channels", 3)  # those of consistency models do not say
        if channels != 3 or not latents.scaling_factor:
            raise ModelError(
                f"The autoencoder of '{self.name}' makes no ordinary images: out_channels={channels}, "
                f"scaling_factor={latents.scaling_factor}; they must be 3 and a number."
            )

    @property
    def embeds_guidance(self) -> bool:  # as latent consistency models do
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

    def _check_clip_skip(self, clip_skip: int) -> None:
        depth = self.pipeline.text_encoder.config.num_hidden_layers
        if clip_skip and not 0 <= clip_skip < depth - 1:
            raise SettingsError(f"clip_skip={clip_skip} does not fit a text encoder of {depth} layers.")

    @property
    def _context(self) -> str:
        return f"{self._length} tokens of width {self.denoiser.config.cross_attention_dim}"

    def blank(self) -> dict[str, Tensor]:
        config, text = self.denoiser.config, getattr(self.pipeline.text_encoder, "config", None)
        length = getattr(text, "max_position_embeddings", None) or 77
        states = {"encoder_hidden_states": self._empty(length, config.cross_attention_dim)}
        if config.addition_embed_type == "text_time":
            added = 6 * config.addition_time_embed_dim
            width = config.projection_class_embeddings_input_dim - added
            states |= {"text_embeds": self._empty(width), "time_ids": self._empty(6)}
        return states

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
        words = read_words(self, conditioning.prompts, states)
        with exclusive(self.denoiser), words, stop_after(self.denoiser, until):
            prediction = self.denoiser(
                scaled, timestep, states, timestep_cond=scale, added_cond_kwargs=added or None, return_dict=False
            )[0]

        if until is not None:
            return None
        if branches == 1:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)


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


def guided_scale(layers: Sequence[AttentionSite], side: int, least: int = 8) -> int:
    """The deepest level whose cross-attention maps, at the default size, still have `least` pixels a side.

    With 8 that is 16 x 16 for Stable Diffusion 1.x and 2.x at 512 pixels, where the paper takes them. The middle block
    is a level of its own only in name.
    """
    scales = sorted({layer.scale for layer in layers if layer.reads_text and layer.group != "mid"})
    return max((s for s in scales if side / s >= least), default=scales[0])
