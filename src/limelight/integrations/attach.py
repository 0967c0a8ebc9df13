"""Guidance on diffusers pipelines that limelight does not drive: img2img, inpainting, ControlNet, IP-Adapter, LoRA."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, PromptError
from ..guidance.attend_and_excite import AttendAndExcite
from ..guidance.base import Guidance, Move, Steering, check_order
from ..models.base import Conditioning
from ..models.sites import AttentionSite
from ..models.unet import UNet, stop_after
from ..prompts.prompt import Prompt
from ..prompts.subjects import Subject, SubjectChoice, per_prompt, resolve
from ..utils.torch import exclusive, remove_hook, undone


@contextmanager
def attach(
    pipeline: Any, *, subjects: SubjectChoice | Sequence[SubjectChoice] = "auto", guidance: Guidance | None = None
) -> Iterator[Attached]:
    """Steer every call of a diffusers pipeline with a UNet, for as long as the ``with`` lasts.

        >>> import limelight
        >>> pipe = limelight.load("pocket", device="cpu").pipeline
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with limelight.attach(pipe, subjects=["cat", "dog"]) as attached:
        ...     image = pipe("a cat and a dog", num_inference_steps=2).images[0]
        >>> [row["step"] for row in attached.trace]
        [0, 1]

    The pipeline keeps its own loop. Before each of its denoiser passes the latents are moved as in
    `limelight.generate`; fractions of the schedule are of the steps that the pipeline really takes (an img2img of
    strength 0.5 takes half).
    What a ControlNet adds was computed from the latents before the move. Only this pipeline is steered: do not call
    another one that shares its denoiser inside the ``with``, in the same thread. Other threads may use the denoiser
    meanwhile; but two threads cannot call this pipeline at once, since it has one scheduler. A learned word is found by
    its name, with all its vectors, whether it was bound (``word.bind(pipeline)``) or loaded into the pipeline.

    Args:
        pipeline: a live pipeline. Whatever is loaded into it (LoRA, IP-Adapter, textual inversion) stays in force.
        subjects: the guided words, see `limelight.generate`; for a list of prompts one such list each. With
            `prompt_embeds` instead of a prompt there are no words: give token indices.
        guidance: by default `AttendAndExcite()`.

    Raises:
        ModelError: the pipeline has no UNet, runs it in a way that cannot be steered (a feature cache, say), or was
            called by another thread in the middle of a call.
        SettingsError: its scheduler is of second order.
        PromptError: a subject is not in the prompt.
    """
    attached = Attached(pipeline, subjects, guidance or AttendAndExcite())
    scheduler, unet = pipeline.scheduler, pipeline.unet
    wrapped = [
        (pipeline, "encode_prompt", attached._encode_prompt),
        (scheduler, "set_timesteps", attached._set_timesteps),
        (scheduler, "scale_model_input", attached._scale),
        (scheduler, "step", attached._step),
    ]
    before = [vars(owner).get(name) for owner, name, _ in wrapped]
    hook = attached._before_denoiser

    def put_back() -> None:
        remove_hook(unet, hook)
        for (owner, name, _), own in zip(wrapped, before, strict=True):
            vars(owner).pop(name, None)
            if own is not None:
                setattr(owner, name, own)

    with undone(put_back):
        unet.register_forward_pre_hook(hook, with_kwargs=True)
        for owner, name, around in wrapped:
            # On this instance alone; without the attribute the class's own method is back.
            setattr(owner, name, _around(getattr(owner, name), around))
        yield attached


def _around(original: Any, around: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    # Pipelines ask a scheduler's step for its parameters.
    wrapper.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return wrapper


class Attached:
    """A guidance at work inside a foreign pipeline."""

    def __init__(self, pipeline: Any, subjects: SubjectChoice | Sequence[SubjectChoice], guidance: Guidance) -> None:
        self.subjects, self.guidance = subjects, guidance
        self.model = _Foreign(pipeline)
        self._thread, self._overtaken, self._lock = get_ident(), set[int](), RLock()
        self._forget()

    @property
    def trace(self) -> tuple[dict[str, Any], ...]:
        """What guidance did in the last call: rows as in `Result.trace`."""
        return tuple({"step": index, "timestep": t, **move.facts()} for index, t, move in self._moves)

    def _forget(self) -> None:
        self._moves: list[tuple[int, float, Move]] = []
        self._prompts: list[Prompt] = []
        self._steering: Steering | None = None
        self._latents: Tensor | None = None
        self._moved: Tensor | None = None
        self._images, self._index, self._busy, self._pending = 0, 0, False, False

    def _is_mine(self) -> bool:
        """Whether the thread is that of the call that is steered.

        Raises:
            ModelError: another thread has begun a call since, which moves the same scheduler.
        """
        with self._lock:
            if get_ident() not in self._overtaken:
                return get_ident() == self._thread
        raise ModelError(
            f"'{type(self.model.pipeline).__name__}' was called by another thread in the middle of this call, and both "
            "use one scheduler. Let one call end before the next, or give each thread its own pipeline and scheduler."
        )

    def _begin_call(self) -> None:
        with self._lock:
            self._overtaken.add(self._thread)
            self._thread = get_ident()
            self._overtaken.discard(self._thread)
            self._forget()

    def _encode_prompt(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Read the prompts at the begin of a call of the pipeline."""
        self._begin_call()
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        prompt, embedded = given.get("prompt"), given.get("prompt_embeds")
        self._listed, self._named = not isinstance(prompt, str), prompt is not None

        if prompt is None:
            # Embeddings alone do not show the words, nor where they end.
            blank = replace(self.model.prompt(""), padded=False)
            self._prompts = [blank] * (1 if embedded is None else len(embedded))
        else:
            texts = prompt if self._listed else [prompt]
            self._prompts = [self.model.read(text) for text in texts]
        self._images = len(self._prompts) * int(given.get("num_images_per_prompt") or 1)

        return original(*args, **kwargs)

    def _set_timesteps(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        self._is_mine()  # or an error
        return original(*args, **kwargs)

    def _scale(self, original: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._is_mine() and not self._busy:
            self._latents = sample
        return original(sample, *args, **kwargs)

    def _step(self, original: Any, output: Any, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self._is_mine():
            return original(output, timestep, sample, *args, **kwargs)
        if self._moved is not None:
            sample, self._moved = self._moved.to(sample.dtype), None
        self._index, self._pending = self._index + 1, False
        return original(output, timestep, sample, *args, **kwargs)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _before_denoiser(self, unet: Any, args: Any, kwargs: Any = None) -> tuple[Any, Any] | None:
        # Without kwargs: the hook was taken off while another thread was about to call it.
        if kwargs is None or not self._is_mine() or self._busy:
            return None
        inputs = inspect.signature(type(unet).forward).bind(unet, *args, **kwargs).arguments
        inputs.pop("self")
        inputs.update(inputs.pop("kwargs", {}))
        sample = inputs["sample"]
        latents, branches = self._read_latents(unet, sample)

        self.model.take(inputs, branches, latents.shape[1])
        self._busy = True
        try:
            with exclusive(unet):
                scaled = self._move(latents, inputs["timestep"], inputs["encoder_hidden_states"].shape[1], branches)
        finally:
            self._busy = False
        if scaled is None:
            return None

        inputs["sample"] = torch.cat([scaled.to(sample.dtype), sample[:, latents.shape[1] :]], dim=1)
        return (), dict(inputs)

    def _read_latents(self, unet: Any, sample: Tensor) -> tuple[Tensor, int]:
        """The unscaled latents of this pass, one row per image, and the number of branches.

        Raises:
            ModelError: the pass is not one of the passes that can be steered.
        """
        pipeline, images = self.model.pipeline, self._images
        branches = len(sample) // images if images else 0
        expected = 2 if getattr(pipeline, "do_classifier_free_guidance", branches == 2) else 1
        latents = self._latents
        obstacles = (
            self._pending,  # a second pass of the same step
            branches != expected,
            images * branches != len(sample),
            latents is not None and len(latents) not in (images, len(sample)),
            getattr(pipeline, "do_perturbed_attention_guidance", False),
            getattr(unet, "is_cache_enabled", False),
        )
        if latents is None or any(obstacles):
            raise ModelError(
                f"'{type(pipeline).__name__}' runs its denoiser in a way that cannot be steered: a feature cache, "
                "several passes a step, or other branches than a negative and a positive prompt."
            )
        return latents[-images:].clone(), branches

    def _move(self, latents: Tensor, timestep: Tensor, tokens: int, branches: int) -> Tensor | None:
        """Move the latents and scale them for the denoiser, once per branch; None where nothing is to be done."""
        if self._steering is None:
            self._steering = self._begin(latents, timestep, tokens)
        move = self._steering.update(self._index, timestep, latents)
        self._pending = True
        if move is None:
            return None

        self._moved = move.latents
        self._moves.append((self._index, float(timestep), move.forget()))
        return self.model.scheduler.scale_model_input(torch.cat([move.latents] * branches), timestep)

    def _begin(self, latents: Tensor, timestep: Tensor, tokens: int) -> Steering:
        """Prepare the steering at the first pass of a call."""
        copies = len(latents) // len(self._prompts)  # images of one prompt lie side by side
        prompts: list[Prompt] = []
        subjects: list[tuple[Subject, ...]] = []
        for prompt, of_prompt in zip(self._prompts, self._resolved(tokens), strict=True):
            prompts += [prompt] * copies
            subjects += [of_prompt] * copies
        steps, timesteps = self._schedule(timestep)

        conditioning = Conditioning(tuple(prompts), {"rows": torch.arange(len(latents))})
        layers = self.guidance.layers(self.model, (latents.shape[-2], latents.shape[-1]))
        return Steering(self.guidance, self.model, conditioning, subjects, steps, timesteps, layers)

    def _resolved(self, tokens: int) -> list[tuple[Subject, ...]]:
        """The subjects of each prompt."""
        # One list of subjects for one prompt, a list of lists for a list of prompts.
        listed = len(self._prompts) > 1 or (self._listed and _nested(self.subjects))
        asked = per_prompt(self.subjects, len(self._prompts), listed)
        if not self._named:
            return [_indices(subjects, tokens) for subjects in asked]
        return [resolve(prompt, subjects)[1] for prompt, subjects in zip(self._prompts, asked, strict=True)]

    def _schedule(self, timestep: Tensor) -> tuple[int, Tensor]:
        """The number of steps that the pipeline takes from here, and their timesteps.

        Raises:
            ModelError: the timestep is not in the scheduler's list.
        """
        scheduler, pipeline = self.model.scheduler, self.model.pipeline
        ahead = scheduler.timesteps.tolist()
        if float(timestep) not in ahead:
            raise ModelError(
                f"'{type(pipeline).__name__}' cannot be steered: its denoiser runs at timestep {float(timestep):g}, "
                "which is not in its scheduler's list."
            )

        left = len(ahead) - ahead.index(float(timestep))
        if left == len(ahead) and not getattr(pipeline, "denoising_end", None):
            return scheduler.num_inference_steps, scheduler.timesteps
        # Pipelines that take a part of the schedule say how much.
        left = min(left, getattr(pipeline, "num_timesteps", left))
        return left, scheduler.timesteps[-left:]


class _Foreign(UNet):
    """A pipeline's denoiser, called again with the inputs that the pipeline gave it."""

    def __init__(self, pipeline: Any) -> None:
        name = type(pipeline).__name__
        needed = ("unet", "tokenizer", "text_encoder", "scheduler", "encode_prompt")
        if not all(hasattr(pipeline, part) for part in needed):
            raise ModelError(
                f"'{name}' has no UNet with a text encoder; attach() steers pipelines of Stable Diffusion."
            )
        super().__init__(pipeline, name)
        self.scheduler = pipeline.scheduler  # the live one: its steps are the pipeline's
        check_order(self.scheduler)

    def read(self, text: str) -> Prompt:
        """Parse a prompt and check that the pipeline reads the same tokens."""
        prompt, tokenizer = self.prompt(text), self.pipeline.tokenizer
        convert = getattr(self.pipeline, "maybe_convert_prompt", None)
        if any(word.learned for word in prompt.words):
            ids = tokenizer(convert(text, tokenizer) if convert else text, verbose=False)["input_ids"]
            if tuple(ids[:-1][: prompt.end]) != prompt.ids[: prompt.end]:
                names = ", ".join(word.text for word in prompt.words if word.learned)
                raise PromptError(
                    f"'{type(self.pipeline).__name__}' does not read every vector of {names}; write learned words in "
                    "lower case, or learn one vector for each."
                )
        return prompt

    def take(self, inputs: dict[str, Any], branches: int, channels: int) -> None:
        """Remember the inputs of the pipeline's own pass; the conditional rows are its last."""
        self._inputs, self._batch = dict(inputs), len(inputs["sample"])
        self._first = self._batch - self._batch // branches
        self._tail = inputs["sample"][:, channels:]  # an inpainting mask and image

    def _states(self, prompt: Prompt, size: tuple[int, int], negative: bool, clip_skip: int) -> dict[str, Tensor]:
        raise ModelError("An attached pipeline encodes its prompts itself.")

    def predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float = 1.0,
        until: AttentionSite | None = None,
    ) -> Tensor | None:
        rows = (conditioning.conditional["rows"] + self._first).to(latents.device)
        inputs = {name: _pick(value, self._batch, rows) for name, value in self._inputs.items()}
        scaled = self.scheduler.scale_model_input(latents, timestep).to(self._inputs["sample"].dtype)
        inputs["sample"] = torch.cat([scaled, self._tail[rows]], dim=1)
        with stop_after(self.denoiser, until):
            return self.denoiser(**inputs)[0]
        return None


def _pick(value: Any, batch: int, rows: Tensor) -> Any:
    """The given rows of every tensor that has one per row of the batch."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[rows]
    if isinstance(value, dict):
        return {key: _pick(entry, batch, rows) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_pick(entry, batch, rows) for entry in value)
    return value


def _nested(subjects: Any) -> bool:
    """Whether these are lists of subjects, one per prompt, and not one list of words."""
    return bool(subjects) and all(not isinstance(entry, str | int) or entry == "auto" for entry in subjects)


def _indices(subjects: Any, tokens: int) -> tuple[Subject, ...]:
    """Check the token indices that are given as subjects where the words are unknown."""
    spans = []
    for subject in subjects:
        span = [subject] if isinstance(subject, int) else subject
        if isinstance(subject, str) or not all(isinstance(i, int) for i in span):
            raise PromptError("Without a prompt there are no words to find; give the subjects as token indices.")
        if not all(1 <= i < tokens - 1 for i in span):
            raise PromptError(f"The token indices {list(span)} must be between 1 and {tokens - 2}.")
        spans.append(Subject(tuple(span)))
    return tuple(spans)
