"""When and how far an objective moves the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..attention.probe import Probe
from ..errors import SettingsError
from ..models.base import Conditioning, Model
from ..models.sites import AttentionSite
from ..utils.torch import frozen, recomputing

Subjects = Sequence[Sequence[tuple[int, ...]]]
"""For each image, for each subject: its token positions."""


class Score(NamedTuple):
    """A loss per image [images] and the presence of each of its subjects [images, subjects]."""

    loss: Tensor
    presence: Tensor


Objective = Callable[[AttentionMaps, Subjects], Score]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Move the latents against the gradient of an attention objective during the first part of the schedule.

    In the fields below a float is a fraction of the schedule (0..1) and an int a number of steps.

    Example:
        >>> from limelight.guidance.attend_and_excite import excite
        >>> guidance = limelight.Guidance(objective=excite, until=0.2, scale=10.0)
        >>> guidance.settings()["objective"], guidance.until
        ('excite', 0.2)

    Attributes:
        objective: what an image still lacks, see `Objective`.
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
            memory, about a third more time for a gradient step, the same images. For large ones.
    """

    objective: Objective = field(compare=False)
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
        _check_schedule((self.until, *self.thresholds))
        _check_thresholds(self.thresholds)

    def layers(self, model: Model, latent_size: tuple[int, int]) -> tuple[AttentionSite, ...]:
        """The layers whose maps the objective reads, for latents of the given height and width."""
        return layers_to_read(model, latent_size, self.resolution)

    def recorded_layers(self, model: Model, latent_size: tuple[int, int]) -> tuple[AttentionSite, ...]:
        """The layers whose maps are worth recording: of one size, those that the objective reads if it can be."""
        return self.layers(model, latent_size)

    def objective_for(self, model: Model) -> Objective:
        """The objective, with all that it needs to know of a model."""
        return self.objective

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        objective = getattr(self.objective, "func", self.objective)
        return {
            "name": type(self).__name__,
            **vars(self),
            "objective": getattr(objective, "__name__", type(objective).__name__),
            "thresholds": {str(key): value for key, value in self.thresholds.items()},
        }


def _check_schedule(keys: Sequence[float | int]) -> None:
    """Refuse what is neither a fraction of the schedule nor a number of steps."""
    for key in keys:
        if not isinstance(key, Integral) and not 0 <= key <= 1:
            raise SettingsError(
                f"{key} is not a fraction of the schedule; write 0.0 to 1.0, or a whole number of steps."
            )


def _check_thresholds(thresholds: Mapping[float | int, float]) -> None:
    """Refuse thresholds that do not map a step to a presence."""
    for key, value in thresholds.items():
        if not 0 <= value <= 1 or key < 0:
            raise SettingsError(f"The threshold {{{key}: {value}}} must map a step to a presence between 0 and 1.")


def layers_to_read(
    model: Model, latent_size: tuple[int, int], resolution: int | tuple[int, int] | None = None
) -> tuple[AttentionSite, ...]:
    """The cross-attention layers of one map size.

    Args:
        resolution: height and width of the maps, or one side of square ones; None takes the model's `guided_scale`.

    Raises:
        SettingsError: no layer has that size (the message lists those that exist), or the maps have a single pixel.
    """
    cross = model.text_sites
    if resolution is None:
        found = tuple(layer for layer in cross if layer.scale == model.guided_scale)
    else:
        found = _of_size(cross, latent_size, resolution)
    if min(found[0].size(latent_size)) < 2:
        raise SettingsError("The image is too small: its attention maps would be a single pixel wide.")
    return found


def _of_size(
    layers: Sequence[AttentionSite], latent_size: tuple[int, int], resolution: int | Sequence[int]
) -> tuple[AttentionSite, ...]:
    """The layers whose maps have this height and width, or this side."""
    wanted = tuple(resolution) if isinstance(resolution, Sequence) else (resolution, resolution)
    found = tuple(layer for layer in layers if layer.size(latent_size) == wanted)
    if not found:
        sizes = sorted({layer.size(latent_size) for layer in layers}, reverse=True)
        listed = ", ".join(f"{h}x{w}" for h, w in sizes)
        named = "x".join(map(str, wanted))
        raise SettingsError(f"No layer has maps of {named} for this image; there are: {listed}.")
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
    """A guidance at work on one batch of images.

    Args:
        guidance: what moves the latents.
        model: its scheduler must be of first order.
        conditioning: one row per image.
        subjects: for each image, for each subject, its token positions.
        steps: length of the schedule that the fractions in `guidance` refer to.
        timesteps: of the steps that are run.
        layers: those whose maps the objective reads, in execution order, see `Guidance.layers`.

    Raises:
        SettingsError: an image has no subjects, or the scheduler is of second order.
    """

    def __init__(
        self,
        guidance: Guidance,
        model: Model,
        conditioning: Conditioning,
        subjects: Subjects,
        steps: int,
        timesteps: Tensor,
        layers: Sequence[AttentionSite],
    ) -> None:
        if len(subjects) != len(conditioning.prompts) or not all(subjects):
            raise SettingsError("Guidance needs the subjects of every image.")
        check_order(model.scheduler)

        self.guidance, self.model, self.conditioning, self.subjects = guidance, model, conditioning, subjects
        self.objective, self.layers = guidance.objective_for(model), tuple(layers)
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
        recompute = recomputing(denoiser, self.layers[-1].name) if self.guidance.checkpoint else nullcontext()
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
