"""When and how far an objective moves the latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SettingsError
from .models.base import Conditioning, Layer, Model
from .objectives import Objective, Score, Subjects, excite
from .probe import Probe


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Move the latents against the gradient of an attention objective during the first part of the schedule.

    In the fields below a float is a fraction of the schedule and an int a number of steps.

    Attributes:
        objective: what a picture still lacks, see `limelight.objectives`.
        until: latents are moved in the steps before this one.
        thresholds: step -> presence in 0..1 that the weakest subject must reach there; an image below it is refined
            (moved again, at most `max_refinements` times).
        scale: how far: the step is scale * sqrt(decay) times the gradient.
        decay: `decay` falls linearly from the first to the second of these over the whole schedule.
        resolution: height and width of the maps to read, or one side of square ones; None lets the model choose.
        max_refinements: limit of refinement moves at one threshold.
    """

    objective: Objective = excite
    until: float | int = 0.5
    thresholds: Mapping[float | int, float] = field(default_factory=dict)
    scale: float = 20.0
    decay: tuple[float, float] = (1.0, 0.5)
    resolution: int | tuple[int, int] | None = None
    max_refinements: int = 20

    def __post_init__(self) -> None:
        for name in ("until", "scale", "max_refinements"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name}={getattr(self, name)} must not be negative.")
        for key, value in self.thresholds.items():
            if not 0 <= value <= 1 or key < 0:
                raise SettingsError(f"The threshold {{{key}: {value}}} must map a step to a presence between 0 and 1.")

    def layers(self, model: Model, latent_size: tuple[int, int]) -> tuple[Layer, ...]:
        """The cross-attention layers whose maps this guidance reads.

        Raises:
            SettingsError: `resolution` names a size that no layer has; the message lists those that exist.
        """
        cross = [layer for layer in model.layers if layer.kind == "cross"]
        if self.resolution is None:
            return tuple(layer for layer in cross if layer.scale == model.guided_scale)
        wanted = (self.resolution, self.resolution) if isinstance(self.resolution, int) else tuple(self.resolution)
        found = tuple(layer for layer in cross if layer.size(latent_size) == wanted)
        if not found:
            sizes = sorted({layer.size(latent_size) for layer in cross}, reverse=True)
            listed = ", ".join(f"{h}x{w}" for h, w in sizes)
            raise SettingsError(f"No layer has maps of {wanted[0]}x{wanted[1]} for this picture; there are: {listed}.")
        return found

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        values = {name: value for name, value in vars(self).items() if name != "objective"}
        return {
            "guidance": type(self).__name__,
            **values,
            "thresholds": {str(k): v for k, v in self.thresholds.items()},
        }


@dataclass(frozen=True, kw_only=True)
class AttendAndExcite(Guidance):
    """Attend-and-Excite with the paper's values: every subject owns a place of the picture.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826

    Attributes:
        smooth: blur the maps before taking their maximum.
    """

    objective: Objective = field(init=False, repr=False)
    thresholds: Mapping[float | int, float] = field(default_factory=lambda: {0: 0.05, 0.2: 0.5, 0.4: 0.8})
    smooth: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objective", partial(excite, smooth=self.smooth))


@dataclass(frozen=True)
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
        self.guidance, self.model, self.conditioning, self.subjects = guidance, model, conditioning, subjects
        self.layers = guidance.layers(model, latent_size)
        self.until = _steps(guidance.until, steps)
        self.thresholds = {_steps(key, steps): value for key, value in guidance.thresholds.items()}
        first, last = guidance.decay
        decay = torch.linspace(first, last, len(timesteps), dtype=torch.float64)
        self.sizes = (guidance.scale * decay.sqrt()).tolist()

    def update(self, index: int, timestep: Tensor, latents: Tensor) -> Move | None:
        """Move the latents of step `index`; None when nothing is to be done there."""
        guided, threshold = index < self.until, self.thresholds.get(index)
        if not guided and threshold is None:
            return None
        (loss, presence), gradient = self._evaluate(latents, timestep, None)
        rows = torch.arange(len(latents), device=latents.device)
        refinements, size = torch.zeros_like(rows), self.sizes[index]
        # Only here does the host wait for the device: which images are below the threshold?
        active = rows[loss > 1 - threshold] if threshold is not None else rows[:0]
        for _ in range(self.guidance.max_refinements):
            if not len(active):
                break
            latents = latents.index_add(0, active, _descent(loss, gradient, size)[active])
            refinements[active] += 1
            # As published, an image makes one more move after the first loss that satisfies it.
            again = loss[active] > 1 - threshold  # type: ignore[operator]
            if guided or bool(again.any()):
                moved = active if guided else active[again]
                (loss[moved], presence[moved]), gradient[moved] = self._evaluate(latents[moved], timestep, moved)
            active = active[again]
        if guided:
            latents = latents + _descent(loss, gradient, size)
        return Move(latents, loss, presence, refinements)

    def _evaluate(self, latents: Tensor, timestep: Tensor, rows: Tensor | None) -> tuple[Score, Tensor]:
        """Score of some images (None: all) and its gradient with respect to their latents."""
        conditioning, subjects = self.conditioning.only_conditional(), self.subjects
        if rows is not None:
            conditioning, subjects = self.conditioning.rows(rows), [self.subjects[i] for i in rows.tolist()]
        with torch.enable_grad(), _frozen(self.model.denoiser), Probe(self.model, self.layers) as probe:
            variable = latents.detach().clone().requires_grad_()
            self.model.predict(variable, timestep, conditioning, until=self.layers[-1])
            score = self.guidance.objective(probe.take(variable, conditioning.prompts), subjects)
            # One image's latents do not touch another's loss, so the sum's gradient is each one's own.
            (gradient,) = torch.autograd.grad(score.loss.sum(), variable)
        return Score(score.loss.detach(), score.presence.detach()), gradient


def _descent(loss: Tensor, gradient: Tensor, size: float) -> Tensor:
    """The move against the gradient; none for images whose loss is zero."""
    return -size * gradient * (loss > 0)[:, None, None, None]


def _steps(value: float | int, steps: int) -> int:
    return round(value * steps) if isinstance(value, float) else value


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradient with respect to weights: saves their inputs from being kept for the backward pass."""
    thawed = [p for p in module.parameters() if p.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)
