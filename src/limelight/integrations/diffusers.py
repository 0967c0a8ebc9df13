"""Names that other libraries' scripts use."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..errors import PromptError, SettingsError
from ..generation.loop import Step, denoise
from ..generation.plan import warn_of_prompts
from ..guidance.attend_and_excite import AttendAndExcite
from ..models.base import Conditioning
from ..models.stable_diffusion import StableDiffusion
from ..prompts.prompt import Prompt, unread
from ..prompts.subjects import Subject


class _Lent(StableDiffusion):
    """The pipeline as a model. It encodes its prompts itself, and needs nothing for that where embeddings are given."""

    def _check_tokenizer(self) -> None:
        """Accept any: the embeddings of a text encoder may have rows that stand for no token."""


@dataclass(frozen=True, kw_only=True)
class _Deprecated(AttendAndExcite):
    """The guidance of the deprecated pipeline, which runs with every scheduler."""

    def check_scheduler(self, scheduler: Any) -> None:
        if scheduler.order > 1:
            warnings.warn(
                f"The scheduler {type(scheduler).__name__} evaluates the denoiser twice a step and discards what "
                "guidance moves in between, as in diffusers; one of first order (DDIM, Euler) makes full use of it.",
                stacklevel=6,
            )


@dataclass(frozen=True, eq=False)
class _Request:
    """The checked arguments of a call, one entry per image.

    Attributes:
        model: the pipeline as a limelight model.
        prompts: parsed; empty prompts where embeddings were given.
        subjects: of each image.
        size: height and width in pixels.
        guidance_scale: strength of classifier-free guidance; 1 or less means a single branch.
    """

    model: StableDiffusion
    prompts: tuple[Prompt, ...]
    subjects: tuple[tuple[Subject, ...], ...]
    size: tuple[int, int]
    guidance_scale: float

    @property
    def two_branches(self) -> bool:
        return self.guidance_scale > 1 and not self.model.embeds_guidance

    def negatives(self, negative: str | Sequence[str] | None) -> list[str]:
        """The negative prompts that are read.

        Raises:
            SettingsError: the model reads none.
        """
        texts = [negative] if isinstance(negative, str) else list(negative or ())
        if any(texts) and self.model.embeds_guidance:
            raise SettingsError(
                f"The model reads the guidance scale as a number and has no negative prompt; leave out {negative!r}."
            )
        return texts if self.two_branches else []


class StableDiffusionAttendAndExcitePipeline(StableDiffusionPipeline):  # type: ignore[misc]  # untyped
    """Takes the place of diffusers' deprecated pipeline of that name: old scripts change one import.

        from limelight.integrations.diffusers import StableDiffusionAttendAndExcitePipeline

    Same arguments and, with DDIM and PNDM, the same images. Besides, `scale_model_input` is honoured (Euler, LMS),
    several images per prompt work, maps need not be square, `thresholds` may be empty, `max_iter_to_alter` may be None
    (guide to the end), and it is faster. New code uses `limelight.generate`, which takes words.

    Every scheduler works. Those of second order (Heun, KDPM2) discard a part of the guidance, as in diffusers; a
    warning says so.

    Attention is watched through torch's scaled_dot_product_attention: for the time of a call, other attention
    processors (sliced, say) give way to `AttnProcessor2_0`.
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor"]  # noqa: RUF012 - as diffusers has it

    def __init__(
        self,
        vae: AutoencoderKL,  # `from_pipe` hands over what has these types
        text_encoder: Any,
        tokenizer: Any,
        unet: UNet2DConditionModel,
        scheduler: Any,
        safety_checker: Any,
        feature_extractor: Any,
        requires_safety_checker: bool = True,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            requires_safety_checker=requires_safety_checker,
        )

    def register_modules(self, **modules: Any) -> None:
        """Register the components; the deprecated pipeline has no `image_encoder`."""
        modules.pop("image_encoder", None)
        super().register_modules(**modules)

    def register_attention_control(self) -> None:
        """Do nothing: attention is watched without processors of its own. For scripts that call it."""

    def get_indices(self, prompt: str) -> dict[int, str]:
        """Every token of a prompt by its index."""
        return dict(enumerate(self.tokenizer.convert_ids_to_tokens(self.tokenizer(prompt).input_ids)))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        token_indices: Sequence[int] | Sequence[Sequence[int]] = (),
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[[int, Any, Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        max_iter_to_alter: int | None = 25,
        thresholds: Mapping[float | int, float] | None = None,
        scale_factor: float = 20,
        attn_res: int | tuple[int, int] | None = (16, 16),
        clip_skip: int | None = None,
    ) -> Any:
        """Generate images; every entry of `token_indices` is a guided subject. See diffusers for the arguments.

        Of `cross_attention_kwargs` the "scale" of LoRA weights counts, also in the passes of a refinement, where the
        deprecated pipeline forgets it. As there, a token index below 1 counts from the end.

        `guidance_scale` None is the model's own: 7.5, of latent consistency models 8.5.

        Raises:
            PromptError: neither or both of `prompt` and `prompt_embeds` are given, or `token_indices` do not fit.
            SettingsError: an argument is out of range or not supported.

        Warns:
            LostWords, UnsupportedMarkup: as `limelight.generate`.
        """
        lora_scale = _lora_scale(cross_attention_kwargs)
        if not isinstance(callback_steps, Integral) or callback_steps < 1:
            raise SettingsError(f"callback_steps={callback_steps} must be a whole number, at least 1.")
        model = _Lent(self, "pipeline")
        guidance_scale = model.scale_or_own(guidance_scale)
        self._check_given(prompt, prompt_embeds, negative_prompt_embeds, guidance_scale)
        parsed = _parsed(model, prompt, prompt_embeds)
        indices = _indices(token_indices, len(parsed))
        request = _request(model, parsed, indices, num_images_per_prompt, (height, width), guidance_scale)
        warn_of_prompts(model, parsed, request.negatives(negative_prompt), frames=1)

        if clip_skip:  # diffusers' own way does not work with current transformers
            conditioning = self._skip_layers(request, prompt, negative_prompt, clip_skip)
        else:
            embeds = (prompt_embeds, negative_prompt_embeds)
            conditioning = self._encode(request, prompt, negative_prompt, num_images_per_prompt, embeds)
        if latents is None:
            latents = self._noise(request, generator)
        guidance = _Deprecated(
            until=num_inference_steps + 1 if max_iter_to_alter is None else math.ceil(max_iter_to_alter),
            thresholds=_thresholds(thresholds),
            scale=scale_factor,
            resolution=_oriented(attn_res, request.size),
            own_tokens=False,
        )

        loop = denoise(
            request.model,
            conditioning,
            latents.to(request.model.device, request.model.dtype),
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance=guidance,
            subjects=request.subjects,
            generators=_generators(generator, len(request.prompts)),
            eta=eta if "eta" in inspect.signature(self.scheduler.step).parameters else 0.0,
        )
        with _watchable(self.unet), _lora_scaled(self.unet, lora_scale):
            final = self._run(request.model, loop, latents, num_inference_steps, callback, callback_steps)

        images, flagged = self._decode(request.model, final, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, flagged
        return StableDiffusionPipelineOutput(images, flagged)

    def _check_given(
        self, prompt: Any, embeds: Tensor | None, negative_embeds: Tensor | None, guidance_scale: float
    ) -> None:
        """Refuse a call whose prompts the pipeline cannot encode."""
        if (prompt is None) == (embeds is None):
            raise PromptError("Give either prompt or prompt_embeds.")
        if self.text_encoder is not None and self.tokenizer is not None:
            return
        if prompt is not None:
            raise PromptError("The pipeline has no text encoder to read the prompt; give prompt_embeds.")
        if negative_embeds is None and guidance_scale > 1:
            raise PromptError(
                "The pipeline has no text encoder for the empty negative prompt; give negative_prompt_embeds, or "
                "guidance_scale=1."
            )

    def _skip_layers(
        self, request: _Request, prompt: Any, negative_prompt: str | list[str] | None, clip_skip: int
    ) -> Conditioning:
        """Encode without the last layers of the text encoder."""
        if prompt is None or not isinstance(negative_prompt, str | None):
            raise SettingsError("clip_skip needs a prompt and at most one negative prompt.")
        model = request.model
        conditioning = model.encode(request.prompts, None, request.size, clip_skip=clip_skip)
        if not request.two_branches:
            return conditioning

        # As in diffusers, the negative prompt skips nothing.
        empty = model.encode([model.prompt(negative_prompt or "")] * len(request.prompts), None, request.size)
        return replace(conditioning, unconditional=empty.conditional)

    def _encode(
        self,
        request: _Request,
        prompt: Any,
        negative_prompt: str | list[str] | None,
        copies: int,
        embeds: tuple[Tensor | None, Tensor | None],
    ) -> Conditioning:
        """Encode by the pipeline itself, so that LoRA and textual inversion count."""
        positive, negative = self.encode_prompt(
            prompt,
            request.model.device,
            copies,
            request.two_branches,
            negative_prompt,
            prompt_embeds=embeds[0],
            negative_prompt_embeds=embeds[1],
        )
        conditioning = Conditioning(request.prompts, {"encoder_hidden_states": positive})
        if request.two_branches:
            return replace(conditioning, unconditional={"encoder_hidden_states": negative})
        return conditioning

    def _noise(self, request: _Request, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        model = request.model
        shape = model.noise([torch.Generator()], *request.size).shape[1:]  # says what is wrong with a size
        return randn_tensor((len(request.prompts), *shape), generator=generator, device=model.device, dtype=model.dtype)

    def _run(
        self,
        model: StableDiffusion,
        loop: Iterable[Step],
        latents: Tensor,
        steps: int,
        callback: Callable[[int, Any, Tensor], None] | None,
        callback_steps: int,
    ) -> Tensor:
        """Take every step of the loop, call back, and return the last latents."""
        timesteps, order = model.timesteps(steps), self.scheduler.order
        with self.progress_bar(total=steps) as bar:
            for step in loop:
                latents = step.latents
                # As in diffusers: nothing after the warm-up steps that some schedulers add, nor inside of a step.
                done = step.index + 1
                if done < step.count and (done <= step.count - steps * order or done % order):
                    continue
                bar.update()
                if callback is not None and step.index % callback_steps == 0:
                    callback(step.index // order, timesteps[step.index], step.latents)
        return latents

    def _decode(
        self, model: StableDiffusion, latents: Tensor, output_type: str | None
    ) -> tuple[Any, list[bool] | None]:
        """The images, and which of them the safety checker hides (None without a checker)."""
        if output_type == "latent":
            return latents, None
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        pixels, flagged = self.run_safety_checker(pixels, model.device, model.dtype)
        shown = [not hidden for hidden in flagged or [False] * len(pixels)]
        return self.image_processor.postprocess(pixels, output_type=output_type, do_denormalize=shown), flagged


def _parsed(model: _Lent, prompt: str | list[str] | None, embeds: Tensor | None) -> list[Prompt]:
    """The prompts; without words where there are only embeddings."""
    if embeds is not None:
        return [unread(embeds.shape[1])] * len(embeds)
    texts = [prompt] if isinstance(prompt, str) else prompt or []
    return list(map(model.prompt, texts))


def _request(
    model: _Lent,
    parsed: Sequence[Prompt],
    indices: list[Sequence[int]],
    copies: int,
    size: tuple[int | None, int | None],
    guidance_scale: float,
) -> _Request:
    """Find the subjects, for `copies` images of each prompt side by side."""
    prompts: list[Prompt] = []
    subjects: list[tuple[Subject, ...]] = []
    for prompt, of_prompt in zip(parsed, indices, strict=True):
        found = _positions(of_prompt, len(prompt.ids) - 1)
        prompts += [prompt] * copies
        subjects += [tuple(Subject((position,)) for position in found)] * copies

    sides = (size[0] or model.default_size[0], size[1] or model.default_size[1])
    return _Request(model, tuple(prompts), tuple(subjects), sides, guidance_scale)


def _indices(token_indices: Sequence[int] | Sequence[Sequence[int]], prompts: int) -> list[Sequence[int]]:
    """One list of token indices per prompt; a flat list belongs to the only prompt."""
    listed: list[Any] = list(token_indices)
    if listed and isinstance(listed[0], Integral):
        listed = [listed]
    if len(listed) != prompts or not all(listed):
        raise PromptError(f"token_indices must hold a list of indices for each of {prompts} prompts.")
    return listed


def _positions(indices: Sequence[int], last: int) -> tuple[int, ...]:
    """The token positions of the subjects, each once: the weakest counts, and twice the same is as weak as once.

    Maps are those of the tokens 1 to `last` - 1, and indices into them are Python's.

    Raises:
        PromptError: an index is out of range.
    """
    found = []
    for index in indices:
        position = int(index) if index >= 1 else int(index) + last - 1
        if not 1 <= position < last:
            raise PromptError(f"Token index {index} is not between 1 and {last - 1}.")
        if index < 1:
            warnings.warn(
                f"Token index {index} is not a token of the prompt; as in diffusers, it counts from the end and is "
                f"index {position}.",
                stacklevel=4,
            )
        found.append(position)
    return tuple(dict.fromkeys(found))


def _thresholds(given: Mapping[float | int, float] | None) -> dict[float | int, float]:
    """Thresholds by step, by default diffusers'; 1 and more are never reached, and 0 and less always are."""
    if given is None:
        return {0: 0.05, 10: 0.5, 20: 0.8}
    return {int(step) if float(step).is_integer() else step: min(max(value, 0.0), 1.0) for step, value in given.items()}


def _lora_scale(kwargs: Mapping[str, Any] | None) -> float | None:
    """The scale of LoRA weights; no other argument means anything here."""
    others = [name for name in kwargs or () if name != "scale"]
    if others:
        raise SettingsError(
            f"cross_attention_kwargs has {', '.join(map(repr, others))}, which cannot be passed on; 'scale' alone can."
        )
    return (kwargs or {}).get("scale")


@contextmanager
def _lora_scaled(unet: Any, scale: float | None) -> Iterator[None]:
    """Scale the UNet's LoRA weights for the time of a `with`."""
    if scale is None or not USE_PEFT_BACKEND:
        yield
        return
    scale_lora_layers(unet, scale)
    try:
        yield
    finally:
        unscale_lora_layers(unet, scale)


@contextmanager
def _watchable(unet: Any) -> Iterator[None]:
    """Let the UNet attend by torch's scaled_dot_product_attention for the time of a `with`."""
    before = unet.attn_processors
    wanted = dict(before)
    for name, processor in before.items():
        if not type(processor).__name__.endswith("2_0"):
            wanted[name] = AttnProcessor2_0()
    if wanted == before:
        yield
        return

    try:
        unet.set_attn_processor(wanted)
        yield
    finally:
        unet.set_attn_processor(before)


def _generators(generator: torch.Generator | list[torch.Generator] | None, images: int) -> list[torch.Generator]:
    if isinstance(generator, list):
        return generator
    if generator is None:
        return []
    return [generator] * images


def _oriented(attn_res: int | tuple[int, int] | None, size: tuple[int, int]) -> int | tuple[int, int] | None:
    """Height and width: scripts that know diffusers' order give the longer side of a wide image first."""
    if attn_res is None or isinstance(attn_res, int):
        return attn_res
    short, long = sorted(attn_res)
    if size[0] <= size[1]:
        return short, long
    return long, short
