"""Guidance on diffusers pipelines that limelight does not drive: img2img, inpainting, ControlNet, IP-Adapter, LoRA."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, PromptError, SettingsError
from ..generation.plan import lost_words
from ..guidance.attend_and_excite import AttendAndExcite
from ..guidance.base import Guidance, Move, Steering, check_order
from ..models.base import Conditioning
from ..models.families import why_not
from ..models.pipeline_model import stop_after
from ..models.sites import AttentionSite
from ..models.unet import UNet
from ..prompts.prompt import Prompt, parse, unread
from ..prompts.subjects import Subject, SubjectChoice, per_prompt, resolve
from ..utils.torch import exclusive, remove_hook, undone


@contextmanager
def attach(
    pipeline: Any, *, subjects: SubjectChoice | Sequence[SubjectChoice] = "auto", guidance: Guidance | None = None
) -> Iterator[Attached]:
    """Steer every call of a diffusers pipeline with a UNet, or of FLUX.1, Stable Diffusion 3 or Qwen-Image, for as long
    as the ``with`` lasts.

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
        subjects: the guided words, see `limelight.generate`; for a list of prompts one such list each, or one for all.
            With `prompt_embeds` instead of a prompt there are no words: give token indices.
        guidance: by default `AttendAndExcite()`.

    Raises:
        ModelError: the pipeline has no such denoiser, runs it in a way that cannot be steered (a feature cache, say),
            was called by another thread in the middle of a call, or its weights were loaded inside
            `torch.inference_mode`.
        SettingsError: its scheduler is of second order, or the guidance searches for a noise.
        PromptError: a subject is not in the prompt.
    """
    if guidance is not None and guidance.noise_search is not None:
        raise SettingsError(
            "A noise search needs limelight.generate; an attached pipeline makes its own noise. Set noise_search=None."
        )
    if guidance is not None and guidance.look is not None:
        raise SettingsError(
            f"look={guidance.look} needs a run ahead, which attach cannot make in a pipeline. Set look=None."
        )
    reason = why_not(type(pipeline).__name__)
    if reason is not None:
        raise ModelError(f"'{type(pipeline).__name__}' cannot be steered by attach(): {reason}.")
    kind = Attached
    if getattr(pipeline, "transformer", None) is not None:
        from .attach_transformer import AttachedTransformer

        kind = AttachedTransformer
    attached = kind(pipeline, subjects, guidance or AttendAndExcite())
    denoiser = getattr(pipeline, attached.model.denoised_by)
    with _before_each_pass(denoiser, attached._before_denoiser), put_around(attached.wrapped()):
        yield attached


@contextmanager
def put_around(wrapped: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Replace methods (owner, name, what stands around it) for the time of a `with`."""
    before = [vars(owner).get(name) for owner, name, _ in wrapped]

    def put_back() -> None:
        for (owner, name, _), own in zip(wrapped, before, strict=True):
            vars(owner).pop(name, None)
            if own is not None:
                setattr(owner, name, own)

    with undone(put_back):
        for owner, name, around in wrapped:
            # On this instance alone; without the attribute the class's own method is back.
            setattr(owner, name, _around(getattr(owner, name), around))
        yield


@contextmanager
def _before_each_pass(unet: Any, hook: Any) -> Iterator[None]:
    """Call a forward pre-hook for the time of a `with`, also where ``unet.compile()`` has compiled the hooks away."""
    compiled = unet._compiled_call_impl
    if compiled is None:
        with undone(partial(remove_hook, unet, hook)):
            unet.register_forward_pre_hook(hook, with_kwargs=True)
            yield
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = hook(unet, args, kwargs) or (args, kwargs)
        return compiled(*args, **kwargs)

    with undone(partial(setattr, unet, "_compiled_call_impl", compiled)):
        unet._compiled_call_impl = call
        yield


def _around(original: Any, around: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    # Pipelines ask a scheduler's step for its parameters.
    wrapper.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return wrapper


@dataclass(frozen=True)
class Asked:
    """What a call of a pipeline's ``encode_prompt`` asks for.

    Attributes:
        arguments: of the call, by name.
        prompts: the parsed prompts; with `prompt_embeds` alone, stand-ins whose tokens are numbers.
        listed: whether they were given as a list.
        named: whether there are words.
        copies: images of each prompt.
    """

    arguments: Mapping[str, Any]
    prompts: list[Prompt]
    listed: bool
    named: bool
    copies: int


def asked_of(original: Any, args: Any, kwargs: Any, read: Callable[[str], Prompt]) -> Asked:
    """Read a call of ``encode_prompt``.

    Args:
        original: the method, with the arguments of its call.
        read: parses a prompt.
    """
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    prompt, embedded = given.get("prompt"), given.get("prompt_embeds")
    listed, prompts = not isinstance(prompt, str), list[Prompt]()
    if prompt is not None:
        prompts = list(map(read, prompt if listed else [prompt]))
    elif embedded is not None:
        prompts = [unread(embedded.shape[1])] * len(embedded)
    return Asked(given, prompts, listed, prompt is not None, int(given.get("num_images_per_prompt") or 1))


class Attached:
    """A guidance at work inside a foreign pipeline."""

    def __init__(self, pipeline: Any, subjects: SubjectChoice | Sequence[SubjectChoice], guidance: Guidance) -> None:
        self.subjects, self.guidance = subjects, guidance
        self.model = self._foreign(pipeline)
        self._thread, self._overtaken, self._lock = get_ident(), set[int](), RLock()
        self._forget()

    def _foreign(self, pipeline: Any) -> Any:
        """The pipeline's denoiser as a model."""
        return _Foreign(pipeline)

    def wrapped(self) -> list[tuple[Any, str, Any]]:
        """The methods of the pipeline and its scheduler that are put around: owner, name, what stands around it."""
        pipeline, scheduler = self.model.pipeline, self.model.scheduler
        return [
            (pipeline, "encode_prompt", self._encode_prompt),
            (scheduler, "set_timesteps", self._set_timesteps),
            (scheduler, "scale_model_input", self._scale),
            (scheduler, "step", self._step),
        ]

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
        self._after: Tensor | None = None
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
        asked = asked_of(original, args, kwargs, self.model.read)
        self._take(asked)

        encoded = original(*args, **kwargs)
        self._warn(encoded, asked.arguments.get("negative_prompt"))
        return encoded

    def _take(self, asked: Asked) -> None:
        """Begin to steer the prompts of a call."""
        self._listed, self._named, self._prompts = asked.listed, asked.named, asked.prompts
        self._images = len(asked.prompts) * asked.copies

    def _warn(self, encoded: Any, negative: str | Sequence[str] | None) -> None:
        """Warn of words that are lost, unless the pipeline reads long prompts in its own way."""
        if not self._named or encoded[0].shape[1] != len(self._prompts[0].ids):
            return
        texts = [negative] if isinstance(negative, str) else negative or ()
        for warning in lost_words(self.model, [*self._prompts, *map(self.model.prompt, texts)]):
            # Between: this method, the one put around, its wrapper, the pipeline's call and the decorator of that.
            warnings.warn(warning, stacklevel=6)

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
        result = original(output, timestep, sample, *args, **kwargs)
        if self._after is not None:
            result, self._after = _moved_by(result, self._after), None
        return result

    @torch.inference_mode(False)
    @torch.no_grad()
    def _before_denoiser(self, unet: Any, args: Any, kwargs: Any = None) -> tuple[Any, Any] | None:
        # Without kwargs: the hook was taken off while another thread was about to call it.
        if kwargs is None or not self._is_mine() or self._busy:
            return None
        inputs = self._inputs_of(unet, args, kwargs)
        sample = inputs["sample"]
        latents, branches = self._read_latents(unet, sample)

        self.model.take(inputs, branches, latents.shape[1])
        with self._at_work():
            move = self._update(latents, inputs["timestep"], inputs["encoder_hidden_states"].shape[1])
            if move is None:
                return None
            self._moved, self._after = move.latents, move.after
            scaled = self.model.scheduler.scale_model_input(torch.cat([move.latents] * branches), inputs["timestep"])

        inputs["sample"] = torch.cat([scaled.to(sample.dtype), sample[:, latents.shape[1] :]], dim=1)
        return (), inputs

    def _inputs_of(self, denoiser: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        """The inputs of a pass by name."""
        # Of a compiled denoiser's own signature nothing can be read.
        inputs = inspect.signature(type(self.model.denoiser).forward).bind(denoiser, *args, **kwargs).arguments
        inputs.pop("self")
        others = inputs.pop("kwargs", {})
        return {**inputs, **others}

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let guidance run the denoiser, and no other thread; its own passes are not steered."""
        self._busy = True
        try:
            with exclusive(self.model.denoiser):
                yield
        finally:
            self._busy = False

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

    def _update(self, latents: Tensor, timestep: Tensor, tokens: int = 0) -> Move | None:
        """Move the latents of a step, and keep what was done; None where nothing is to be done."""
        if self._steering is None:
            self._steering = self._begin(latents, timestep, tokens)
        move = self._steering.update(self._index, timestep, latents)
        self._pending = True
        if move is not None:
            self._moves.append((self._index, float(timestep), move.forget()))
        return move

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
        # One list of subjects for all prompts, a list of lists for a list of prompts.
        listed = (len(self._prompts) > 1 or self._listed) and _nested(self.subjects)
        asked = per_prompt(self.subjects, len(self._prompts), listed)
        if not self._named:
            return [_indices(subjects or (), tokens) for subjects in asked]
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


class Replayed:
    """A pipeline's denoiser, called again with the inputs that the pipeline gave it: a base of models."""

    denoiser: Any

    def _adopt(self, pipeline: Any) -> None:
        """Take over the live parts of a pipeline.

        Raises:
            ModelError: no gradient passes through its weights.
            SettingsError: its scheduler is of second order.
        """
        check_gradient(self.denoiser, type(pipeline).__name__)
        self.scheduler = pipeline.scheduler  # its steps are the pipeline's
        check_order(self.scheduler)

    def _remember(self, inputs: dict[str, Any], rows: int, images: int) -> None:
        """Keep the inputs of the pipeline's own pass of so many rows; the conditional ones are its last."""
        self._inputs, self._batch, self._first = inputs, rows, rows - images

    def _again(self, conditioning: Conditioning, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
        """The rows of some images in that pass, and its inputs for them alone."""
        rows = (conditioning.conditional["rows"] + self._first).to(device)
        return rows, {name: pick(value, self._batch, rows) for name, value in self._inputs.items()}


class _Foreign(Replayed, UNet):
    """The UNet of a pipeline."""

    def __init__(self, pipeline: Any) -> None:
        name = type(pipeline).__name__
        for part, what in _NEEDED.items():
            if getattr(pipeline, part, None) is None:
                raise ModelError(f"'{name}' has no {what}; attach() steers pipelines of Stable Diffusion.")
        self._tokenizer, self._encoder = _first_text(pipeline)
        super().__init__(pipeline, name)
        self.denoiser = getattr(pipeline.unet, "_orig_mod", pipeline.unet)  # what torch.compile has wrapped
        self._adopt(pipeline)

    def _check_tokenizer(self) -> None:
        """Nothing: the pipeline encodes its prompts itself, or is given embeddings."""

    @property
    def _length(self) -> int:
        length: int = self._tokenizer.model_max_length
        return length if self._encoder is None else min(length, self._encoder.config.max_position_embeddings)

    def prompt(self, text: str) -> Prompt:
        if self._tokenizer is None:
            raise PromptError(f"'{self.name}' has no tokenizer to read '{text}'; give prompt_embeds.")
        return parse(text, self._tokenizer, self._length)

    def read(self, text: str) -> Prompt:
        """Parse a prompt and check that the pipeline reads the same tokens."""
        prompt, tokenizer = self.prompt(text), self._tokenizer
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
        rows = len(inputs["sample"])
        self._remember(dict(inputs), rows, rows // branches)
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
        rows, inputs = self._again(conditioning, latents.device)
        scaled = self.scheduler.scale_model_input(latents, timestep).to(self._inputs["sample"].dtype)
        inputs["sample"] = torch.cat([scaled, self._tail[rows]], dim=1)
        with stop_after(self.denoiser, until), kept_weights(self.denoiser):
            return self.denoiser(**inputs)[0]
        return None


def check_gradient(denoiser: Any, name: str) -> None:
    """Refuse weights through which no gradient passes.

    Raises:
        ModelError: they are such.
    """
    if any(parameter.is_inference() for parameter in denoiser.parameters()):
        raise ModelError(
            f"The weights of '{name}' were loaded inside torch.inference_mode, and no gradient passes through such; "
            "load the pipeline outside of it."
        )


_NEEDED = {
    "unet": "UNet",
    "scheduler": "scheduler",
    "encode_prompt": "method encode_prompt, through which attach() sees the prompts",
}


def _first_text(pipeline: Any) -> tuple[Any, Any]:
    """The tokenizer that names the words, and its text encoder; each None where the pipeline has none.

    All tokenizers read the same words at the same positions. The refiner of Stable Diffusion XL has the second alone.
    """
    for tokenizer, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        found = getattr(pipeline, tokenizer, None)
        if found is not None:
            return found, getattr(pipeline, encoder, None)
    return None, None


@contextmanager
def kept_weights(denoiser: Any) -> Iterator[None]:
    """Keep the weights of this pass for its backward pass, where layerwise casting changes them after every layer."""
    if not any(hasattr(module, "_diffusers_hook") for module in denoiser.modules()):
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda tensor: tensor):
        yield


def _moved_by(result: Any, after: Tensor) -> Any:
    """The result of a scheduler's step with its latents moved."""
    if isinstance(result, tuple):
        return (result[0] + after.to(result[0].dtype), *result[1:])
    result.prev_sample = result.prev_sample + after.to(result.prev_sample.dtype)
    return result


def pick(value: Any, batch: int, rows: Tensor) -> Any:
    """The given rows of every tensor that has one per row of the batch."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[rows]
    if isinstance(value, dict):
        return {key: pick(entry, batch, rows) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pick(entry, batch, rows) for entry in value)
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
