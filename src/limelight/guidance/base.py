"""When and how far an objective moves the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import starmap
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..attention.probe import Probe
from ..errors import SettingsError
from ..models.base import Conditioning, Model
from ..models.sites import AttentionSite
from ..prompts.subjects import Subject
from ..utils.numbers import check_finite
from ..utils.torch import frozen, recomputing

if TYPE_CHECKING:
    from .noise_search import NoiseSearch

Subjects = Sequence[Sequence[Subject]]
"""The subjects of each image."""


Function = TypeVar("Function", bound=Callable[..., Any])


class Score(NamedTuple):
    """What an objective says of a batch of images.

    Attributes:
        loss: [images]; its gradient moves the latents.
        presence: of each subject [images, subjects], 0..1, NaN where an image has fewer.
        parts: what is still wrong by name ("neglect", "mixing", "binding", "outside"), each [images], 0..1, 0 where
            nothing is. Gates and thresholds act on these and never on the loss, which may be of any scale and sign.
    """

    loss: Tensor
    presence: Tensor
    parts: Mapping[str, Tensor]

    def of(self, loss: Tensor, **parts: Tensor) -> Score:
        """The same presence with another loss, and further parts, which are cut to 0..1."""
        further = {name: part.detach().clamp(0, 1) for name, part in parts.items()}
        return Score(loss, self.presence, {**self.parts, **further})

    def lacking(self, limits: Mapping[str, float]) -> Tensor:
        """Which images have a part above its limit, 0 where none is named: bool [images]."""
        return torch.stack([part > limits.get(name, 0.0) for name, part in self.parts.items()]).any(dim=0)

    def each(self, change: Callable[[Tensor], Tensor]) -> Score:
        """The same change made to every tensor."""
        parts = {name: change(part) for name, part in self.parts.items()}
        return Score(change(self.loss), change(self.presence), parts)

    def detach(self) -> Score:
        """The same without a gradient."""
        return self.each(Tensor.detach)


class Objective(Protocol):
    """A function of maps and subjects that says what the images still lack.

    It reads cross-attention of one size, or what its attribute `reads` names: ("cross", "self"). With `remembers` it
    finds the maps of the last guided step in `AttentionMaps.before`. See `reading`.
    """

    def __call__(self, maps: AttentionMaps, subjects: Subjects) -> Score: ...


Kind = Literal["cross", "self"]


def score_of(objective: Objective, maps: AttentionMaps, subjects: Subjects) -> Score:
    """What an objective says, once it is clear that it is a score of these images.

    Raises:
        SettingsError: it is something else, or has another shape.
    """
    score, name = objective(maps, subjects), _name_of(objective)
    if not isinstance(score, Score):
        raise SettingsError(
            f"The objective '{name}' returned a {type(score).__name__}. Return limelight.guidance.base.Score(loss, "
            "presence, parts)."
        )
    if not score.parts:
        raise SettingsError(
            f"The objective '{name}' says of nothing what is wrong. Name at least one part, for example "
            "Score(loss, presence, {'neglect': loss.detach()})."
        )

    images = len(subjects)
    for part, value in {"loss": score.loss, **{f"parts['{key}']": part for key, part in score.parts.items()}}.items():
        if tuple(value.shape) != (images,):
            raise SettingsError(
                f"{part} of the objective '{name}' has the shape {list(value.shape)}; it must be [{images}], one "
                "number for each image."
            )
    most = max(map(len, subjects), default=0)
    if tuple(score.presence.shape) != (images, most):
        raise SettingsError(
            f"presence of the objective '{name}' has the shape {list(score.presence.shape)}; it must be "
            f"{[images, most]}, one number for each image and subject."
        )
    return score


def _name_of(objective: Any) -> str:
    found = _whole(objective)
    return getattr(found, "__name__", type(found).__name__)


def reading(*kinds: Kind, remembers: bool = False) -> Callable[[Function], Function]:
    """Declare what an objective reads besides the cross-attention of this step."""

    def declare(objective: Function) -> Function:
        objective.reads, objective.remembers = kinds, remembers  # type: ignore[attr-defined]
        return objective

    return declare


def reads(objective: Objective) -> tuple[Kind, ...]:
    """The kinds of attention that an objective reads; of a partial function, those of the whole one."""
    return getattr(_whole(objective), "reads", ("cross",))


def remembers(objective: Objective) -> bool:
    """Whether an objective compares the maps with those of the last guided step."""
    return getattr(_whole(objective), "remembers", False)


def _whole(objective: Any) -> Any:
    while isinstance(objective, partial):
        objective = objective.func
    return objective


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Move the latents against the gradient of an attention objective during the first part of the schedule.

    In the fields below a float is a fraction of the schedule (0..1) and an int a number of steps.

    Examples:
        >>> from limelight.guidance.attend_and_excite import excite
        >>> guidance = limelight.Guidance(objective=excite, until=0.2, scale=10.0)
        >>> guidance.settings()["objective"], guidance.until
        ('excite', 0.2)

    Attributes:
        objective: what an image still lacks, see `Objective`.
        until: latents are moved in the steps before this one.
        thresholds: step -> presence in 0..1 that the weakest subject must reach there; an image below it is refined
            (moved again, at most `max_refinements` times).
        scale: how far, see `step_rule`; `size` below is scale * sqrt(decay).
        step_rule: "gradient", as published, moves by size * gradient; "relative" by size times the length of the
            latents, in the gradient's direction; "sign" by size * sign(gradient). Losses differ in scale by factors of
            a hundred, and the sharpening softmax of Attend-and-Excite leaves almost no gradient where a subject has
            almost no attention: a step in proportion to it then never comes to help. "relative" serves every objective.
        when: "before" moves the latents that the step starts from. "after" takes the gradient there, too, but moves the
            latents that the step ends with: this steers the velocity of flow matching (Eric Tillmann Bill, Enis Simsar,
            Thomas Hofmann, "Optimal Control Meets Flow Matching: A Principled Route to Multi-Subject Fidelity", 2025,
            https://arxiv.org/abs/2510.02315), and has neither thresholds nor refinement.
        decay: `decay` falls linearly from the first to the second of these over the whole schedule.
        resolution: height and width of the maps to read, or one side of square ones; None lets the model choose.
        max_refinements: limit of refinement moves at one threshold.
        every: of the steps before `until`, every how many-th is guided, beginning with the first.
        enough: at this presence, 0..1, of its weakest subject an image lacks none. At 1, as published, one always does.
        targets: part of the score -> the value, 0..1, up to which nothing of it is wrong, for example
            ``{"mixing": 0.3}``; 0 for parts that are not named, and 1 - `enough` for "neglect". An image of which no
            part is wrong is not moved in that step.
        look: denoise plainly up to this step first: an image of which no part is wrong there stays the plain one, and
            only the others are guided, from the beginning. None guides all of them. This costs `look` of a plain run,
            and saves more than that where a gradient step is expensive and few images lack anything.
        noise_search: look for a better noise before the first step, see
            `limelight.guidance.noise_search.NoiseSearch`; `limelight.generate` does that, and no other caller.
        checkpoint: keep only the inputs of the denoiser's blocks for the gradient and run them a second time: less
            memory, about a third more time for a gradient step, the same images. For large ones.
    """

    objective: Objective = field(compare=False)
    until: float | int = 0.5
    thresholds: Mapping[float | int, float] = field(default_factory=dict)
    scale: float = 20.0
    step_rule: Literal["gradient", "relative", "sign"] = "gradient"
    when: Literal["before", "after"] = "before"
    decay: tuple[float, float] = (1.0, 0.5)
    resolution: int | tuple[int, int] | None = None
    max_refinements: int = 20
    every: int = 1
    enough: float = 1.0
    targets: Mapping[str, float] = field(default_factory=dict)
    look: float | int | None = None
    noise_search: NoiseSearch | None = None
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
        check_schedule((self.until, *self.thresholds))
        if self.look is not None:
            check_schedule((self.look,))
        _check_thresholds(self.thresholds)
        self._check_rule()
        # The settings of a partial objective; a subclass may make its own later.
        keywords = getattr(vars(self).get("objective"), "keywords", None)
        check_finite(**{**vars(self), "objective": keywords})

    def _check_rule(self) -> None:
        """Refuse unknown ways to move, and targets out of range."""
        if self.step_rule not in ("gradient", "relative", "sign"):
            raise SettingsError(f"Unknown step rule '{self.step_rule}'. Choose one of: gradient, relative, sign.")
        if self.when not in ("before", "after"):
            raise SettingsError(f"when='{self.when}' must be 'before' or 'after' the step.")
        if self.when == "after" and self.thresholds:
            raise SettingsError("Guidance after the step has no thresholds; set thresholds={}.")
        check_targets(self.targets)

    def layers(self, model: Model, latent_size: tuple[int, int]) -> tuple[AttentionSite, ...]:
        """The layers whose maps the objective reads, for latents of the given height and width, in execution order."""
        text = self.recorded_layers(model, latent_size)
        if "self" not in reads(self.objective):
            return text
        beside = {(site.group, site.scale) for site in text}
        between_pixels = [s for s in model.sites if s.kind == "self" and (s.group, s.scale) in beside]
        if not between_pixels:
            raise SettingsError(
                f"The objective reads how pixels attend to each other, and '{model.name}' has no attention layers of "
                "pixels alone; choose a guidance that reads words only, for example 'conform'."
            )
        return tuple(sorted({*text, *between_pixels}, key=model.sites.index))

    def recorded_layers(self, model: Model, latent_size: tuple[int, int]) -> tuple[AttentionSite, ...]:
        """The layers whose maps are worth recording: of one size, those that the objective reads if it can be."""
        return layers_to_read(model, latent_size, self.resolution)

    @property
    def limits(self) -> dict[str, float]:
        """Part of the score -> the largest value with which an image lacks nothing of it."""
        return limits_of(self.enough, self.targets)

    def objective_for(self, model: Model) -> Objective:
        """The objective, with all that it needs to know of a model."""
        return self.objective

    def check_scheduler(self, scheduler: Any) -> None:
        """Refuse schedulers that this guidance cannot work with, see `check_order`."""
        check_order(scheduler)

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        fields = dict(vars(self))
        search = fields.pop("noise_search")
        if search is not None:
            fields["noise_search"] = search.settings()
        return {
            "name": type(self).__name__,
            **fields,
            "objective": describe_objective(self.objective),
            "thresholds": {str(key): value for key, value in self.thresholds.items()},
            "targets": dict(self.targets),
        }


def limits_of(enough: float, targets: Mapping[str, float]) -> dict[str, float]:
    """The limits of parts of a score, see `Guidance.limits`."""
    return {"neglect": 1 - enough, **targets}


def check_targets(targets: Mapping[str, float]) -> None:
    """Refuse targets of parts of a score that are out of range.

    Raises:
        SettingsError: one is not in 0..1.
    """
    for name, value in targets.items():
        if not 0 <= value <= 1:
            raise SettingsError(f"The target of '{name}', {value}, must be between 0 and 1.")


def check_schedule(keys: Sequence[float | int]) -> None:
    """Refuse what is neither a fraction of the schedule nor a number of steps.

    Raises:
        SettingsError: one is neither.
    """
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


def describe_objective(objective: Any) -> Any:
    """An objective's name, with its settings if it has any, as plain values."""
    described = getattr(objective, "settings", None)
    if described is not None:
        return described()
    if isinstance(objective, partial):
        return {"name": _whole(objective).__name__, **objective.keywords}
    return getattr(objective, "__name__", type(objective).__name__)


def layers_to_read(
    model: Model, latent_size: tuple[int, int], resolution: int | tuple[int, int] | None = None
) -> tuple[AttentionSite, ...]:
    """The cross-attention layers of one map size.

    Args:
        resolution: height and width of the maps, or one side of square ones; None takes the model's `guided_scale`.

    Raises:
        SettingsError: no layer has that size (the message lists those that exist), or the maps have a single pixel.
    """
    found = model.guided_sites
    if resolution is not None:
        found = _of_size(model.text_sites, latent_size, resolution)
    if min(found[0].size(latent_size)) < 2:
        raise SettingsError("The image is too small: its attention maps would be a single pixel wide.")
    return found


def _of_size(
    layers: Sequence[AttentionSite], latent_size: tuple[int, int], resolution: int | Sequence[int]
) -> tuple[AttentionSite, ...]:
    """The layers whose maps have this height and width, or this side."""
    if not isinstance(resolution, Sequence):
        resolution = resolution, resolution
    by_size: dict[tuple[int, ...], list[AttentionSite]] = {}
    for layer in layers:
        by_size.setdefault(layer.size(latent_size), []).append(layer)

    wanted = tuple(resolution)
    if wanted not in by_size:
        listed = ", ".join(starmap("{}x{}".format, sorted(by_size, reverse=True)))
        named = "x".join(map(str, wanted))
        raise SettingsError(f"No layer has maps of {named} for this image; there are: {listed}.")
    return tuple(by_size[wanted])


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
        loss, presence, parts: of the last evaluation, before the last move, see `Score`.
        refinements: refinement moves per image [images], int64.
        after: what is added to the latents after the step, or None.
        plain: the score of the plain run, where guidance looked at it, see `Guidance.look`.
    """

    latents: Tensor
    loss: Tensor
    presence: Tensor
    parts: Mapping[str, Tensor]
    refinements: Tensor
    after: Tensor | None = None
    plain: Score | None = None

    def forget(self) -> Move:
        """The same without its latents, which a long run need not keep."""
        return replace(self, latents=self.latents[:0], after=None)

    def facts(self, images: slice = slice(None), subjects: int | None = None) -> dict[str, list[Any]]:
        """Loss, presence of the first `subjects` subjects and refinements of some images, as plain numbers."""
        return {
            "loss": self.loss[images].tolist(),
            "presence": self.presence[images, :subjects].tolist(),
            **{name: part[images].tolist() for name, part in self.parts.items()},
            "refinements": self.refinements[images].tolist(),
        }

    def plain_facts(self, images: slice = slice(None), subjects: int | None = None) -> dict[str, list[Any]]:
        """Presence and parts of the plain run, as `facts` has them; nothing where guidance did not look at it."""
        if self.plain is None:
            return {}
        parts = {f"plain_{name}": part[images].tolist() for name, part in self.plain.parts.items()}
        return {"plain_presence": self.plain.presence[images, :subjects].tolist(), **parts}


@dataclass(eq=False)
class _Stand:
    """Where a batch of images stands within one step.

    Attributes:
        latents: moved as often as they were until now.
        size: of a move.
        rows: the images that may be moved.
        score, gradient: of all images, before the next move.
        refinements: how many each image had, int64 [images].
    """

    latents: Tensor
    timestep: Tensor
    size: float
    rows: Tensor
    score: Score
    gradient: Tensor
    refinements: Tensor


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
        guidance.check_scheduler(model.scheduler)

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
        self._text = tuple(layer for layer in self.layers if layer.reads_text)
        self._plain: Score | None = None  # of the plain run, see `Guidance.look`
        self._seen: Tensor | None = None  # the maps of the last evaluation [images, 1, pixels, tokens]
        self._before: Tensor | None = None  # the same of the guided step before

    def guide_only_what_lacks(self, plain: Score) -> None:
        """Leave alone the images that lack nothing in a plain run, whose score is given."""
        self._plain = plain.detach()

    def update(self, index: int, timestep: Tensor, latents: Tensor) -> Move | None:
        """Move the latents of step `index`; None when nothing is to be done there."""
        guided, threshold = index < self.until and index % self.guidance.every == 0, self.thresholds.get(index)
        if not guided and threshold is None:
            return None

        at = self._begin(latents, timestep, self.sizes[index])
        if threshold is not None:
            self._refine(at, 1 - threshold, guided)
        self._before = self._seen

        after = None
        if guided and self.guidance.when == "after":
            after = self._descent(at)
        elif guided:
            at.latents = at.latents + self._descent(at)
        return Move(at.latents, *at.score, at.refinements, after, self._plain)

    def _begin(self, latents: Tensor, timestep: Tensor, size: float) -> _Stand:
        """The images before the first move of a step."""
        rows = torch.arange(len(latents), device=latents.device)
        refinements = torch.zeros_like(rows)
        if self._plain is None:
            return _Stand(latents, timestep, size, rows, *self.evaluate(latents, timestep, rows), refinements)

        rows = rows[self._plain.lacking(self.guidance.limits)]
        score, gradient = self._plain.each(Tensor.clone), torch.zeros_like(latents)
        if len(rows):
            found, gradient[rows] = self.evaluate(latents, timestep, rows)
            _update(score, rows, found)
        return _Stand(latents, timestep, size, rows, score, gradient, refinements)

    def _refine(self, at: _Stand, most: float, guided: bool) -> None:
        """Move the images whose neglect is above a threshold, until it is not.

        Args:
            guided: whether the step itself moves them, too, and needs the gradient after the last refinement.
        """
        # Only here does the host wait for the device: which images are above the threshold?
        active = at.rows[at.score.parts["neglect"][at.rows] > most]
        for _ in range(self.guidance.max_refinements):
            if not len(active):
                break
            at.latents = at.latents.index_add(0, active, self._descent(at)[active])
            at.refinements[active] += 1
            # As published, an image makes one more move after the first loss that satisfies it.
            left = active[at.score.parts["neglect"][active] > most]
            if not guided:
                active = left
            if len(active):
                found, at.gradient[active] = self.evaluate(at.latents, at.timestep, active)
                _update(at.score, active, found)
            active = left

    def _descent(self, at: _Stand) -> Tensor:
        """The move against the gradient; none for images that lack nothing."""
        gradient, size = at.gradient, at.size
        if self.guidance.step_rule == "sign":
            gradient = gradient.sign()
        elif self.guidance.step_rule == "relative":
            gradient = F.normalize(gradient.flatten(1), eps=1e-30).view_as(gradient)
            size = size * torch.linalg.vector_norm(at.latents, dim=(1, 2, 3), keepdim=True)
        return -size * gradient * at.score.lacking(self.guidance.limits)[:, None, None, None]

    def evaluate(self, latents: Tensor, timestep: Tensor, rows: Tensor) -> tuple[Score, Tensor]:
        """Score of some images and its gradient with respect to their latents."""
        conditioning, subjects, denoiser = self.conditioning.only_conditional(), self.subjects, self.model.denoiser
        if len(rows) < len(latents):
            chosen = rows.tolist()
            conditioning, subjects, latents = conditioning.rows(chosen), [subjects[i] for i in chosen], latents[rows]

        recompute = recomputing(denoiser, self.layers[-1].name, on=self.guidance.checkpoint)
        with torch.enable_grad(), frozen(denoiser), recompute, Probe(self.model, self.layers) as probe:
            variable = latents.detach().clone().requires_grad_()
            self.model.predict(variable, timestep, conditioning, until=self.layers[-1])
            maps = self._with_memory(probe.take(variable, conditioning.prompts), rows)
            score = score_of(self.objective, maps, subjects)
            gradient = None
            if score.loss.requires_grad:
                # One image's latents do not touch another's loss, so the sum's gradient is each one's own.
                (gradient,) = torch.autograd.grad(score.loss.sum(), variable, allow_unused=True)
        if gradient is None:
            raise SettingsError(
                f"The loss of the objective '{_name_of(self.objective)}' does not depend on the maps: it has no "
                "gradient. Compute it from the maps in torch, and leave out detach(), item() and numpy()."
            )

        score = score.detach()
        most = max(map(len, self.subjects))  # images that are not looked at may have more
        presence = F.pad(score.presence, (0, most - score.presence.shape[1]), value=float("nan"))
        return score._replace(presence=presence), gradient

    def _with_memory(self, maps: AttentionMaps, rows: Tensor) -> AttentionMaps:
        """The maps with those of the guided step before, where the objective asks for them."""
        if not remembers(self.objective):
            return maps

        now = torch.cat([maps.layers[layer].detach() for layer in self._text], dim=1).mean(dim=1, keepdim=True)
        if self._seen is None:
            self._seen = now.new_zeros(len(self.subjects), *now.shape[1:])
        self._seen = self._seen.index_copy(0, rows, now)
        if self._before is None:
            return maps
        return replace(maps, before=replace(maps, layers={self._text[0]: self._before[rows]}))


def _update(score: Score, rows: Tensor, found: Score) -> None:
    """Write the score of some images into that of all."""
    score.loss[rows], score.presence[rows] = found.loss, found.presence
    for name, part in found.parts.items():
        score.parts[name][rows] = part


def step_of(value: float | int, steps: int) -> int:
    """A fraction of the schedule, or a number of steps, as the latter."""
    if isinstance(value, Integral):
        return int(value)
    return int(value * steps + 0.5)
