"""The one denoising loop."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from ..attention.edits import BindableEdit, Edit, bind_edits
from ..attention.maps import AttentionMaps
from ..attention.passengers import Passengers
from ..attention.probe import Beside, Probe
from ..errors import SettingsError
from ..guidance.base import Guidance, Move, Steering, Subjects, layers_to_read, score_of, step_of
from ..models.base import Conditioning, Model
from ..models.sites import AttentionSite
from ..utils.numbers import MOST_STEPS, check_finite, check_whole
from ..utils.torch import exclusive

Record = bool | Literal["mean", "steps", "all"]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of the loop.

    Attributes:
        index: 0, 1, ...
        count: how many steps there will be.
        timestep: the scheduler's.
        latents: after the step, [images, channels, height, width].
        move: what guidance did before it; None where it did nothing.
        maps: the attention of the conditional branch, if recorded.
        seconds: since the step before; on a GPU, whose work is only queued, not the time that it takes there.
    """

    index: int
    count: int
    timestep: float
    latents: Tensor
    move: Move | None
    maps: AttentionMaps | None
    seconds: float


@torch.inference_mode(False)
@torch.no_grad()
def denoise(
    model: Model,
    conditioning: Conditioning | Sequence[Conditioning],
    noise: Tensor,
    *,
    steps: int = 50,
    guidance_scale: float | None = None,
    guidance: Guidance | None = None,
    subjects: Subjects = (),
    edits: Sequence[Edit | BindableEdit] = (),
    record: Record = False,
    layers: Sequence[AttentionSite] | None = None,
    guided_layers: Sequence[AttentionSite] | None = None,
    generators: Sequence[torch.Generator] = (),
    eta: float = 0.0,
    passengers: Passengers | None = None,
) -> Generator[Step, Tensor | None, None]:
    """Denoise a batch, step by step; the last `Step` holds the finished latents.

    The caller may replace the latents after a step: ``loop.send(latents)`` instead of ``next(loop)``. Between steps
    the model is free for anything else; loops of one model may take turns, also in threads.

    Args:
        model: see `limelight.load`.
        conditioning: from `Model.encode`; or one for each step.
        noise: unit noise [images, channels, height, width], from `Model.noise`.
        steps: inference steps.
        guidance_scale: strength of classifier-free guidance, by default the model's own; unused without an
            unconditional branch.
        guidance: moves the latents before each step; None is the plain model.
        subjects: those of each image, see `limelight.prompts.subjects.resolve`. Needed with `guidance`.
        edits: attention edits in the conditional branch of every pass that predicts, see `limelight.heads.gains`.
        record: give every step its attention maps, at the resolution that guidance reads; "all" at every resolution.
        layers: those to record; by default `layers_to_record`.
        guided_layers: those that guidance reads; by default `layers_to_guide`.
        generators: one per image, for schedulers that add noise.
        eta: share of fresh noise in DDIM's steps, 0..1.
        passengers: words that are not in the prompts, which get maps as well.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> noise = model.noise([torch.Generator().manual_seed(0)], *model.default_size)
        >>> steps = limelight.denoise(model, model.encode([model.prompt("a cat")], ""), noise, steps=2)
        >>> [(step.index, tuple(step.latents.shape)) for step in steps]
        [(0, (1, 4, 16, 16)), (1, (1, 4, 16, 16))]
    """
    guidance_scale = model.scale_or_own(guidance_scale)
    check_finite(guidance_scale=guidance_scale, eta=eta)
    check_whole(MOST_STEPS, steps=steps)
    model = model.for_one_run()
    size = (noise.shape[-2], noise.shape[-1])
    timesteps = _timesteps(model, steps, size)
    encoded = _of_each_step(model, conditioning, guidance_scale, len(timesteps))
    if layers is None:
        layers = layers_to_record(model, size, guidance, record)
    steering = None
    if guidance:
        guided = guided_layers or layers_to_guide(model, size, guidance)
        steering = Steering(guidance, model, encoded[0], subjects, steps, timesteps, guided)
        run = {"steps": steps, "guidance_scale": guidance_scale, "edits": edits, "generators": generators, "eta": eta}
        _look(steering, encoded, noise, **run)
    acting = bind_edits(edits, model, encoded[0].prompts, len(timesteps))

    latents, before = model.start(noise), perf_counter()
    for index, (timestep, value) in enumerate(zip(timesteps, timesteps.tolist(), strict=True)):
        # The model is not held while the caller has the step.
        with exclusive(model.denoiser):
            move = None
            if steering:
                move = steering.update(index, timestep, latents)
            if move:
                latents = move.latents

            beside = _beside(passengers, latents, timestep, encoded[index])
            with Probe(model, layers, edits=acting, images=len(latents), step=index, beside=beside) as probe:
                prediction = model.predict(latents, timestep, encoded[index], guidance_scale=guidance_scale)
                maps = probe.take(latents, encoded[index].prompts)
            assert prediction is not None  # no `until` was given

            latents = _moved_after(model.step(prediction, timestep, latents, generators, eta), move)

        now = perf_counter()
        sent = yield Step(index, len(timesteps), value, latents, move, maps if record else None, now - before)
        if sent is not None:
            latents = sent
        before = now


def _look(steering: Steering, conditioning: Sequence[Conditioning], noise: Tensor, **run: Any) -> None:
    """Look where a plain run leads, and guide only what lacks something there, see `Guidance.look`.

    Args:
        run: the other options of `denoise`.
    """
    look = steering.guidance.look
    if look is not None:
        at = step_of(look, run["steps"])
        maps = maps_before(steering.model, conditioning, noise, at, steering.layers, **run)
        steering.guide_only_what_lacks(score_of(steering.objective, maps, steering.subjects))


@torch.no_grad()
def maps_before(
    model: Model,
    conditioning: Conditioning | Sequence[Conditioning],
    noise: Tensor,
    at: int,
    layers: Sequence[AttentionSite],
    **run: Any,
) -> AttentionMaps:
    """The maps of a plain run before a step, from a conditional pass that ends where the last of them is made.

    Args:
        at: index of the step.
        layers: those to read, in execution order.
        run: the other options of `denoise`; its generators stay as they are.

    Raises:
        SettingsError: the schedule has no such step.
    """
    model, run = model.for_one_run(), {**run, "generators": list(map(_copy, run["generators"]))}
    timesteps = _timesteps(model, run["steps"], (noise.shape[-2], noise.shape[-1]))
    if at >= len(timesteps):
        raise SettingsError(f"Step {at} lies beyond the schedule of {run['steps']} steps; look at an earlier one.")
    encoded = _of_each_step(model, conditioning, run["guidance_scale"], len(timesteps))[at]

    latents = model.start(noise)
    if at:
        with closing(denoise(model, conditioning, noise, **run)) as plain:
            latents = next(islice(plain, at - 1, None)).latents

    acting = bind_edits(run["edits"], model, encoded.prompts, len(timesteps))
    with exclusive(model.denoiser), Probe(model, layers, edits=acting, images=len(latents), step=at) as probe:
        model.predict(latents, timesteps[at], encoded.only_conditional(), until=layers[-1])
        return probe.take(latents, encoded.prompts)


def _beside(
    passengers: Passengers | None, latents: Tensor, timestep: Tensor, conditioning: Conditioning
) -> Beside | None:
    """The words beside the prompts in one pass."""
    return passengers.beside(latents, timestep, conditioning) if passengers else None


def _timesteps(model: Model, steps: int, size: tuple[int, int]) -> Tensor:
    """Start a schedule for latents of a height and width."""
    return model.timesteps(steps, (size[0] * model.pixels_per_latent, size[1] * model.pixels_per_latent))


def _copy(generator: torch.Generator) -> torch.Generator:
    """A generator that will give the same numbers."""
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def _moved_after(latents: Tensor, move: Move | None) -> Tensor:
    """The latents after a step, with what guidance adds to them only then."""
    if move is None or move.after is None:
        return latents
    return latents + move.after


def _of_each_step(
    model: Model, conditioning: Conditioning | Sequence[Conditioning], guidance_scale: float, steps: int
) -> list[Conditioning]:
    """The conditioning of every pass, with what else the denoiser reads in it."""
    if isinstance(conditioning, Conditioning):
        return [model.prepare(conditioning, guidance_scale)] * steps
    return [model.prepare(one, guidance_scale) for one in conditioning]


def layers_to_guide(model: Model, size: tuple[int, int], guidance: Guidance | None) -> tuple[AttentionSite, ...]:
    """The layers whose maps guidance reads; none without guidance."""
    if guidance is None:
        return ()
    return guidance.layers(model, size)


def layers_to_record(
    model: Model, size: tuple[int, int], guidance: Guidance | None, record: Record
) -> tuple[AttentionSite, ...]:
    """The layers whose maps a run keeps: those that guidance reads, or the model's own choice."""
    if not record:
        return ()
    if record == "all":
        return model.text_sites
    if guidance is not None:
        return guidance.recorded_layers(model, size)
    return layers_to_read(model, size)
