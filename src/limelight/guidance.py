"""When and how far an objective moves the latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from .errors import ModelError, SettingsError
from .heads.relevance import Relevance, relevance_for
from .models.base import Conditioning, Layer, Model
from .objectives import Objective, Score, Subjects, excite, excite_by_heads
from .probe import Probe


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Move the latents against the gradient of an attention objective during the first part of the schedule.

    In the fields below a float is a fraction of the schedule (0..1) and an int a number of steps.

    Attributes:
        objective: what a picture still lacks, see `limelight.objectives`.
        until: latents are moved in the steps before this one.
        thresholds: step -> presence in 0..1 that the weakest subject must reach there; an image below it is refined
            (moved again, at most `max_refinements` times).
        scale: how far: the step is scale * sqrt(decay) times the gradient.
        relative: the step's length is scale * sqrt(decay) times that of the latents, whatever the gradient's. The
            sharpening softmax leaves almost no gradient where a subject has almost no attention: a step in proportion
            to it, as published, then never comes to help.
        decay: `decay` falls linearly from the first to the second of these over the whole schedule.
        resolution: height and width of the maps to read, or one side of square ones; None lets the model choose.
        max_refinements: limit of refinement moves at one threshold.
        every: of the steps before `until`, every how many-th is guided, beginning with the first.
        enough: an image whose weakest subject has this presence, 0..1, is not moved in that step. At 1, as published,
            every image is.
        checkpoint: keep only the inputs of the denoiser's blocks for the gradient and run them a second time: less
            memory, about a third more time for a gradient step, the same pictures. For large ones.
    """

    objective: Objective = field(default=excite, compare=False)
    until: float | int = 0.5
    thresholds: Mapping[float | int, float] = field(default_factory=dict)
    scale: float = 20.0
    relative: bool = False
    decay: tuple[float, float] = (1.0, 0.5)
    resolution: int | tuple[int, int] | None = None
    max_refinements: int = 20
    every: int = 1
    enough: float = 1.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.every, Integral) or self.every < 1:
            raise SettingsError(f"every={self.every} must be a whole number of steps, at least 1.")
        if not 0 <= self.enough <= 1:
            raise SettingsError(f"enough={self.enough} must be a presence between 0 and 1.")
        for name in ("until", "scale", "max_refinements"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"{name}={getattr(self, name)} must be a number that is not negative.")
        if not all(0 <= value < float("inf") for value in self.decay):
            raise SettingsError(f"decay={self.decay} must be two numbers that are not negative.")
        for key in (self.until, *self.thresholds):
            if not isinstance(key, Integral) and not 0 <= key <= 1:
                raise SettingsError(
                    f"{key} is no fraction of the schedule: write 0.0 to 1.0, or a whole number of steps."
                )
        for key, value in self.thresholds.items():
            if not 0 <= value <= 1 or key < 0:
                raise SettingsError(f"The threshold {{{key}: {value}}} must map a step to a presence between 0 and 1.")

    def reading(self, model: Model, latent_size: tuple[int, int]) -> tuple[Objective, tuple[Layer, ...]]:
        """The objective for one model and picture size, and the layers whose maps it reads."""
        return self.objective, layers_to_read(model, latent_size, self.resolution)

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        objective = getattr(self.objective, "func", self.objective)
        return {
            "name": type(self).__name__,
            **vars(self),
            "objective": getattr(objective, "__name__", type(objective).__name__),
            "thresholds": {str(key): value for key, value in self.thresholds.items()},
        }


@dataclass(frozen=True, kw_only=True)
class AttendAndExcite(Guidance):
    """Attend-and-Excite with the paper's values: every subject owns a place of the picture.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826

    Attributes:
        smooth: blur the maps before taking their maximum.
        own_tokens: take the softmax over the prompt's own tokens alone; None lets the model choose, see `excite`.
        concepts: of each subject, by a word of it, e.g. {"cat": "Animals"}, or one for all: then the maps are weighted
            by head, see `limelight.objectives.excite_by_heads`, and `resolution` is their shorter side, by default 8.
        heads: the head relevance vectors or their file; None takes those that are shipped for the model.
    """

    objective: Objective = field(init=False, repr=False, compare=False)
    thresholds: Mapping[float | int, float] = field(default_factory=lambda: {0: 0.05, 0.2: 0.5, 0.4: 0.8})
    smooth: bool = True
    own_tokens: bool | None = None
    concepts: Mapping[str, str] | str | None = None
    heads: Relevance | str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objective", partial(excite, smooth=self.smooth, own_tokens=self.own_tokens))
        if self.heads is not None and not self.concepts:
            raise SettingsError("heads needs the concepts of the subjects, for example concepts={'cat': 'Animals'}.")
        if self.concepts and isinstance(self.resolution, Sequence):
            raise SettingsError(
                f"With concepts, resolution={self.resolution} must be one number: the maps' shorter side."
            )

    def reading(self, model: Model, latent_size: tuple[int, int]) -> tuple[Objective, tuple[Layer, ...]]:
        if not self.concepts:
            return super().reading(model, latent_size)
        relevance = relevance_for(model, self.heads)
        for concept in [self.concepts] if isinstance(self.concepts, str) else self.concepts.values():
            relevance.index(concept)
        assert not isinstance(self.resolution, Sequence)
        objective = partial(
            excite_by_heads,
            relevance=relevance,
            concepts=self.concepts,
            side=self.resolution or 8,
            smooth=self.smooth,
            own_tokens=self.own_tokens,
        )
        return objective, tuple(layer for layer in model.layers if layer.kind == "cross")

    def settings(self) -> dict[str, Any]:
        heads = self.heads.facts.get("model", "given") if isinstance(self.heads, Relevance) else self.heads
        return {**super().settings(), "heads": None if heads is None else str(heads)}

    @classmethod
    def suited(cls, model: Model, **changes: Any) -> AttendAndExcite:
        """The settings that suit a model, with changes of your own: the paper's, or what its family or folder says."""
        try:
            suited = cls(**model.about.attend_and_excite)
        except TypeError as error:
            raise ModelError(
                f"The guidance settings in the limelight.json of '{model.name}' do not fit: {error}."
            ) from error
        return replace(suited, **changes)

    @classmethod
    def fast(cls, model: Model | None = None, **changes: Any) -> AttendAndExcite:
        """At most a tenth more work than plain sampling: the first seventh of the steps alone, without refinement.

        Of 50 steps 7 are guided. On the embedded model that cures as many pictures as guidance to the middle
        (docs/results.md, "How little guidance cures as much").

        Args:
            model: with the scale of the step that suits it.
            changes: of your own.
        """
        base = cls() if model is None else cls.suited(model)
        spare = {"until": 0.14, "thresholds": {}}
        return replace(base, **{**spare, **changes})


def layers_to_read(
    model: Model, latent_size: tuple[int, int], resolution: int | tuple[int, int] | None = None
) -> tuple[Layer, ...]:
    """The cross-attention layers of one map size.

    Args:
        resolution: height and width of the maps, or one side of square ones; None takes the model's `guided_scale`.

    Raises:
        SettingsError: no layer has that size (the message lists those that exist), or the maps have a single pixel.
    """
    cross = [layer for layer in model.layers if layer.kind == "cross"]
    if resolution is None:
        found = tuple(layer for layer in cross if layer.scale == model.guided_scale)
    else:
        wanted = tuple(resolution) if isinstance(resolution, Sequence) else (resolution, resolution)
        found = tuple(layer for layer in cross if layer.size(latent_size) == wanted)
    if not found:
        sizes = sorted({layer.size(latent_size) for layer in cross}, reverse=True)
        listed = ", ".join(f"{h}x{w}" for h, w in sizes)
        named = "x".join(map(str, wanted))
        raise SettingsError(f"No layer has maps of {named} for this picture; there are: {listed}.")
    if min(found[0].size(latent_size)) < 2:
        raise SettingsError("The picture is too small: its attention maps would be a single pixel wide.")
    return found


def check_order(scheduler: Any) -> None:
    """Refuse schedulers of second order.

    Raises:
        SettingsError: guidance cannot work with this scheduler.
    """
    if scheduler.order > 1:
        raise SettingsError(
            f"The scheduler {type(scheduler).__name__} evaluates the denoiser twice a step and discards what "
            "guidance moves in between; use one of first order, for example DDIM or Euler."
        )


@dataclass(frozen=True, eq=False)
class Move:
    """What guidance did before one denoising step.

    Attributes:
        latents: [images, channels, height, width], moved.
        loss: objective per image [images] at the last evaluation, before the last move.
        presence: the same for each subject [images, subjects], in 0..1; NaN where an image has fewer subjects.
        refinements: refinement moves per image [images], int64.
    """

    latents: Tensor
    loss: Tensor
    presence: Tensor
    refinements: Tensor

    def forget(self) -> Move:
        """The same without its latents, which a long run need not keep."""
        return replace(self, latents=self.latents[:0])

    def facts(self, images: slice = slice(None), subjects: int | None = None) -> dict[str, list[Any]]:
        """Loss, presence of the first `subjects` subjects and refinements of some images, as plain numbers."""
        return {
            "loss": self.loss[images].tolist(),
            "presence": self.presence[images, :subjects].tolist(),
            "refinements": self.refinements[images].tolist(),
        }


class Steering:
    """A guidance at work on one batch of images."""

    def __init__(
        self,
        guidance: Guidance,
        model: Model,
        conditioning: Conditioning,
        subjects: Subjects,
        steps: int,
        timesteps: Tensor,
        latent_size: tuple[int, int],
    ) -> None:
        if len(subjects) != len(conditioning.prompts) or not all(subjects):
            raise SettingsError("Guidance needs the subjects of every image.")
        check_order(model.scheduler)
        self.guidance, self.model, self.conditioning, self.subjects = guidance, model, conditioning, subjects
        self.objective, self.layers = guidance.reading(model, latent_size)
        self.until = step_of(guidance.until, steps)
        self.thresholds: dict[int, float] = {}
        for key, value in guidance.thresholds.items():
            # In short schedules thresholds can fall on one step; the gentlest holds.
            at = step_of(key, steps)
            self.thresholds[at] = min(value, self.thresholds.get(at, 1.0))
        first, last = guidance.decay
        decay = torch.linspace(first, last, len(timesteps), dtype=torch.float64)
        self.sizes = (guidance.scale * decay.sqrt()).tolist()
        self.floor = 1 - guidance.enough

    def update(self, index: int, timestep: Tensor, latents: Tensor) -> Move | None:
        """Move the latents of step `index`; None when nothing is to be done there."""
        guided, threshold = index < self.until and index % self.guidance.every == 0, self.thresholds.get(index)
        if not guided and threshold is None:
            return None
        rows, size = torch.arange(len(latents), device=latents.device), self.sizes[index]
        (loss, presence), gradient = self._evaluate(latents, timestep, rows)
        refinements = torch.zeros_like(rows)
        # Only here does the host wait for the device: which images are below the threshold?
        active = rows[loss > 1 - threshold] if threshold is not None else rows[:0]
        for _ in range(self.guidance.max_refinements):
            if not len(active):
                break
            latents = latents.index_add(0, active, self._descent(latents, loss, gradient, size)[active])
            refinements[active] += 1
            # As published, an image makes one more move after the first loss that satisfies it.
            again = loss[active] > 1 - threshold  # type: ignore[operator]
            if guided or bool(again.any()):
                moved = active if guided else active[again]
                (loss[moved], presence[moved]), gradient[moved] = self._evaluate(latents, timestep, moved)
            active = active[again]
        if guided:
            latents = latents + self._descent(latents, loss, gradient, size)
        return Move(latents, loss, presence, refinements)

    def _descent(self, latents: Tensor, loss: Tensor, gradient: Tensor, size: float) -> Tensor:
        """The move against the gradient; none for images that lack nothing."""
        if self.guidance.relative:
            gradient = F.normalize(gradient.flatten(1), eps=1e-30).view_as(gradient)
            size = size * torch.linalg.vector_norm(latents, dim=(1, 2, 3), keepdim=True)
        return -size * gradient * (loss > self.floor)[:, None, None, None]

    def _evaluate(self, latents: Tensor, timestep: Tensor, rows: Tensor) -> tuple[Score, Tensor]:
        """Score of some images and its gradient with respect to their latents."""
        conditioning, subjects, denoiser = self.conditioning.only_conditional(), self.subjects, self.model.denoiser
        if len(rows) < len(latents):
            chosen = rows.tolist()
            conditioning, subjects, latents = conditioning.rows(chosen), [subjects[i] for i in chosen], latents[rows]
        recompute = recomputing(denoiser, self.layers[-1]) if self.guidance.checkpoint else nullcontext()
        with torch.enable_grad(), frozen(denoiser), recompute, Probe(self.model, self.layers) as probe:
            variable = latents.detach().clone().requires_grad_()
            self.model.predict(variable, timestep, conditioning, until=self.layers[-1])
            score = self.objective(probe.take(variable, conditioning.prompts), subjects)
            # One image's latents do not touch another's loss, so the sum's gradient is each one's own.
            (gradient,) = torch.autograd.grad(score.loss.sum(), variable)
        most = max(len(spans) for spans in self.subjects)  # images that are not looked at may have more
        presence = F.pad(score.presence.detach(), (0, most - score.presence.shape[1]), value=float("nan"))
        return Score(score.loss.detach(), presence), gradient


def step_of(value: float | int, steps: int) -> int:
    """A fraction of the schedule, or a number of steps, as the latter."""
    return int(value) if isinstance(value, Integral) else int(value * steps + 0.5)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient with respect to weights: saves their inputs from being kept for the backward pass."""
    thawed = [p for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


@contextmanager
def recomputing(denoiser: Any, last: Layer | None = None) -> Iterator[None]:
    """Gradient checkpointing of the denoiser's blocks, as diffusers places it, whether or not it was on before.

    Args:
        last: the layer after which the pass stops, if it does.
    """
    end = None if last is None else denoiser.get_submodule(last.name.rpartition(".")[0])

    def run(block: nn.Module, *inputs: Any) -> Any:
        # The pass ends inside this block, which therefore cannot be run a second time.
        return block(*inputs) if block is end else recomputed(block, *inputs, use_reentrant=False)

    before = [
        (module, module.gradient_checkpointing, getattr(module, "_gradient_checkpointing_func", None))
        for module in denoiser.modules()
        if hasattr(module, "gradient_checkpointing")
    ]
    denoiser.enable_gradient_checkpointing(run)
    try:
        yield
    finally:
        for module, switched, function in before:
            module.gradient_checkpointing, module._gradient_checkpointing_func = switched, function
