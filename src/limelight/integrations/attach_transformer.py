"""Guidance on foreign pipelines of transformer families: img2img, inpainting, ControlNet of FLUX.1, SD3, Qwen-Image.

The denoiser is called once for both branches (Stable Diffusion 3), or once for each, the conditional branch first. Both
get the moved latents. They are tokens of 2 x 2 latent pixels where the denoiser takes such.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, PromptError
from ..models.base import Conditioning
from ..models.families import FAMILIES
from ..models.pipeline_model import stop_after
from ..models.sites import AttentionSite
from ..models.transformer import layout_of, packed, unpacked
from ..prompts.prompt import aligned
from .attach import Asked, Attached, Replayed, asked_of, kept_weights


class AttachedTransformer(Attached):
    """A guidance at work inside a foreign pipeline with a transformer."""

    def _foreign(self, pipeline: Any) -> Any:
        return _foreign(pipeline)

    def wrapped(self) -> list[tuple[Any, str, Any]]:
        pipeline, scheduler = self.model.pipeline, self.model.scheduler
        return [
            (pipeline, "check_inputs", self._check_inputs),
            (pipeline, "encode_prompt", self._encode_prompt),
            (scheduler, "set_timesteps", self._set_timesteps),
            (scheduler, "step", self._step),
        ]

    def _check_inputs(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """The begin of a call of the pipeline."""
        self._begin_call()
        return original(*args, **kwargs)

    def _encode_prompt(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Read the prompts; a second encoding in a call is that of the negative prompt."""
        if self._is_mine() and not self._prompts:
            asked = asked_of(original, args, kwargs, self.model.prompt)
            if not asked.named:
                raise PromptError(
                    f"'{self.model.name}' was given prompt_embeds alone, in which no words can be found; give a prompt."
                )
            self._check_one_text(asked)
            self._take(asked)
        return original(*args, **kwargs)

    def _check_one_text(self, asked: Asked) -> None:
        """Refuse texts of their own for the other text encoders: the words would be found in the wrong tokens.

        Raises:
            PromptError: there is one.
        """
        arguments = asked.arguments
        for name in ("prompt_2", "prompt_3"):
            if arguments.get(name) not in (None, "", arguments["prompt"]):
                raise PromptError(
                    f"'{self.model.name}' was given {name}={arguments[name]!r}, which is not its prompt, and attach() "
                    f"finds words in one text alone. Leave out {name}."
                )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _before_denoiser(self, denoiser: Any, args: Any, kwargs: Any = None) -> tuple[Any, Any] | None:
        # Without kwargs: the hook was taken off while another thread was about to call it.
        if kwargs is None or not self._is_mine() or self._busy:
            return None
        inputs = self._inputs_of(denoiser, args, kwargs)
        if not self._pending:  # the first pass of a step
            self._steer(dict(inputs))
        if self._moved is None:
            return None

        sample, moved = inputs["hidden_states"], self._moved
        branches = len(sample) // len(moved)
        inputs["hidden_states"] = self.model.with_tail(torch.cat([moved] * branches), sample)
        return (), inputs

    def _steer(self, inputs: dict[str, Any]) -> None:
        """Move the latents of a step whose first pass has these inputs."""
        pipeline, sample = self.model.pipeline, inputs["hidden_states"]
        branches = len(sample) // self._images if self._images else 0
        other = (
            getattr(pipeline.transformer, "is_cache_enabled", False),
            getattr(pipeline, "do_perturbed_attention_guidance", False),
        )
        if branches not in (1, 2) or len(sample) != branches * self._images or any(other):
            raise ModelError(
                f"'{type(pipeline).__name__}' runs its denoiser in a way that cannot be steered: a feature cache, or "
                "other branches than a negative and a positive prompt."
            )
        self.model.take(inputs, self._images)
        latents = self.model.latents_of(sample[-self._images :]).clone()

        with self._at_work():
            _, timesteps = self._schedule(inputs["timestep"])  # those of the denoiser are fractions
            move = self._update(latents, timesteps[self._index])
        if move is None:
            return
        self._moved = self.model.tokens_of(move.latents)
        self._after = None if move.after is None else self.model.tokens_of(move.after)

    def _schedule(self, timestep: Tensor) -> tuple[int, Tensor]:
        steps = int(self.model.pipeline.num_timesteps)
        return steps, self.model.scheduler.timesteps[-steps:]


def _foreign(pipeline: Any) -> Any:
    """A pipeline's denoiser as a model of its family.

    Raises:
        ModelError: it is of no family that can be steered inside another pipeline.
    """
    name, cls = type(pipeline).__name__, type(pipeline.transformer).__name__
    can = [family for family in FAMILIES.values() if "attach" in family.adapter.can]
    found = [family for family in can if family.parts.get("transformer") == cls]
    missing = [part for part in ("scheduler", "check_inputs", "encode_prompt") if not hasattr(pipeline, part)]
    if not found or missing:
        titles = ", ".join(family.title for family in can)
        raise ModelError(f"'{name}' cannot be steered by attach(); it steers pipelines of: {titles}.")

    kind = type("_Foreign", (_Transformer, found[0].adapter), {})
    return kind(pipeline, name)


class _Transformer(Replayed):
    """The transformer of a pipeline."""

    pipeline: Any
    patch: int
    _pass: Any
    _places: Any

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__(pipeline, name)  # type: ignore[call-arg]
        self._adopt(pipeline)

    def take(self, inputs: dict[str, Any], images: int) -> None:
        """Remember the inputs of the pipeline's own pass; the conditional rows are its last.

        Raises:
            ModelError: its sequence holds more than one image.
        """
        sample = inputs["hidden_states"]
        self._remember(inputs, len(sample), images)
        if _has_references(inputs):
            raise ModelError(
                f"'{type(self.pipeline).__name__}' has other images in its sequence (references) and cannot be steered."
            )
        self._grid = _grid(inputs, self.patch)

    def latents_of(self, sample: Tensor) -> Tensor:
        """The denoiser's input as latents, without an inpainting mask or a control image behind them."""
        if sample.ndim == 4:
            return sample[:, : self._latent_channels]
        return unpacked(sample[..., : 4 * self._latent_channels], *self._grid)

    def tokens_of(self, latents: Tensor) -> Tensor:
        """The opposite of `latents_of`."""
        return packed(latents) if self._inputs["hidden_states"].ndim == 3 else latents

    def with_tail(self, moved: Tensor, sample: Tensor) -> Tensor:
        """Moved latents, or their tokens, with what stands behind them in the denoiser's input."""
        if sample.ndim == 4:
            return torch.cat([moved.to(sample.dtype), sample[:, self._latent_channels :]], dim=1)
        return torch.cat([moved.to(sample.dtype), sample[..., 4 * self._latent_channels :]], dim=-1)

    @property
    def _latent_channels(self) -> int:
        """Of the latents alone: a denoiser that reads a mask or a control image beside them has more."""
        config = self.pipeline.vae.config
        return int(config.get("latent_channels") or config.z_dim)

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float = 1.0,
        until: AttentionSite | None = None,
    ) -> Tensor | None:
        rows, inputs = self._again(conditioning, latents.device)
        sample = inputs["hidden_states"]
        inputs["hidden_states"] = self.with_tail(self.tokens_of(latents), sample)
        if "img_shapes" in inputs:
            inputs["img_shapes"] = inputs["img_shapes"][: len(rows)]
        pixels = (latents.shape[-2] // self.patch) * (latents.shape[-1] // self.patch)
        where, first = self._places(pixels, inputs)
        self._pass.layout = layout_of(aligned(conditioning.prompts), where, first, latents.device)
        with stop_after(self.denoiser, until), kept_weights(self.denoiser):
            return self.denoiser(**inputs)[0]
        return None


def _has_references(inputs: dict[str, Any]) -> bool:
    """Whether the sequence holds other images beside the one that is generated."""
    if "img_shapes" in inputs:
        return len(_shapes(inputs)) > 1
    return "img_ids" in inputs and bool(inputs["img_ids"][..., 0].any())  # FLUX.1 numbers its images, the own is 0


def _shapes(inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Frames, height and width of the images in the sequence, in tokens."""
    first = inputs["img_shapes"][0]
    return first if isinstance(first, list) else [first]  # diffusers' ControlNet pipelines give no list


def _grid(inputs: dict[str, Any], patch: int) -> tuple[int, int]:
    """Height and width of the latents."""
    if inputs["hidden_states"].ndim == 4:
        return inputs["hidden_states"].shape[-2:]
    if "img_shapes" in inputs:
        ((_, height, width),) = _shapes(inputs)
    else:
        height, width = (int(side) + 1 for side in inputs["img_ids"][..., 1:].flatten(0, -2).amax(dim=0))
    return height * patch, width * patch
