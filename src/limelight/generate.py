"""The one denoising loop, and pictures from it."""

from __future__ import annotations

import importlib.metadata
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .errors import SettingsError
from .guidance import Guidance, Move, Steering, layers_to_read
from .maps import AttentionMaps, RunningMean
from .models.base import Conditioning, Model
from .objectives import Subjects
from .probe import Edit, Probe
from .result import Result
from .subjects import Subject, resolve


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
    """

    index: int
    count: int
    timestep: float
    latents: Tensor
    move: Move | None
    maps: AttentionMaps | None


@torch.inference_mode(False)
@torch.no_grad()
def denoise(
    model: Model,
    conditioning: Conditioning,
    noise: Tensor,
    *,
    steps: int = 50,
    guidance_scale: float = 7.5,
    guidance: Guidance | None = None,
    subjects: Subjects = (),
    edits: Sequence[Edit] = (),
    record: bool = False,
    generators: Sequence[torch.Generator] = (),
) -> Iterator[Step]:
    """Denoise a batch, step by step; the last `Step` holds the finished latents.

    Args:
        model: see `limelight.load`.
        conditioning: from `Model.encode`.
        noise: unit noise [images, channels, height, width], from `Model.noise`.
        steps: inference steps.
        guidance_scale: strength of classifier-free guidance; unused without an unconditional branch.
        guidance: moves the latents before each step; None is the plain model.
        subjects: for each image, for each subject, its token positions. Needed with `guidance`.
        edits: attention edits in the conditional branch of every pass that predicts.
        record: give every step its attention maps, at the resolution that guidance reads.
        generators: one per image, for schedulers that add noise.
    """
    timesteps = model.timesteps(steps)
    size = (noise.shape[-2], noise.shape[-1])
    steering = Steering(guidance, model, conditioning, subjects, steps, timesteps, size) if guidance else None
    recorded = layers_to_read(model, size, guidance.resolution if guidance else None) if record else ()
    latents = model.start(noise)
    for index, (timestep, value) in enumerate(zip(timesteps, timesteps.tolist(), strict=True)):
        move = steering.update(index, timestep, latents) if steering else None
        latents = move.latents if move else latents
        with Probe(model, recorded, edits=edits, images=len(latents), step=index) as probe:
            prediction = model.predict(latents, timestep, conditioning, guidance_scale=guidance_scale)
            maps = probe.take(latents, conditioning.prompts)
        assert prediction is not None  # no `until` was given
        latents = model.step(prediction, timestep, latents, generators)
        yield Step(index, len(timesteps), value, latents, move, maps if record else None)


def generate(
    model: Model,
    prompt: str,
    *,
    subjects: Sequence[Subject] | Literal["auto"] = "auto",
    seeds: int | Sequence[int] = 0,
    guidance: Guidance | None = None,
    steps: int = 50,
    guidance_scale: float = 7.5,
    negative: str = "",
    height: int | None = None,
    width: int | None = None,
    latents: Tensor | None = None,
    record: bool = True,
    edits: Sequence[Edit] = (),
    on_step: Callable[[Step], None] | None = None,
) -> Result:
    """Draw one picture of a prompt per seed, in one batch.

    Args:
        model: see `limelight.load`.
        prompt: what to draw.
        subjects: words ("cat"), phrases ("blue frog"), later occurrences ("dog#2") or token indices that `guidance`
            puts on stage. "auto" takes the prompt's nouns; the choice is in `Result.subjects`.
        seeds: one or several, not negative; noise depends on the seed alone, so a batch equals its single pictures.
        guidance: e.g. `AttendAndExcite()`; None is the plain model.
        steps: inference steps, at least 1.
        guidance_scale: strength of classifier-free guidance; at 1 or less there is no unconditional branch.
        negative: the negative prompt.
        height, width: in pixels; by default the model's own.
        latents: unit noise [seeds, channels, height, width] to start from instead of the seeds' own.
        record: keep the mean attention maps of the run as `Result.maps`.
        edits: attention edits, see `limelight.probe.Edit`.
        on_step: called after every step, e.g. for a progress bar.

    Raises:
        PromptError: a subject is not in the prompt.
        SettingsError: a setting is out of range.
    """
    seeds = tuple(operator.index(s) for s in (seeds if isinstance(seeds, Iterable) else (seeds,)))
    if not seeds:
        raise SettingsError("seeds is empty; give at least one, for example seeds=[0].")
    parsed = model.prompt(prompt)
    names, spans = resolve(parsed, subjects, needed=guidance is not None)
    height = model.default_size[0] if height is None else height
    width = model.default_size[1] if width is None else width
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = model.noise(generators, height, width)
    if latents is not None:
        if latents.shape != noise.shape:
            raise SettingsError(
                f"latents of shape {list(latents.shape)} do not fit {len(seeds)} seeds at {height}x{width}: "
                f"the shape must be {list(noise.shape)}."
            )
        noise = latents.to(noise)
    conditioning = model.encode([parsed] * len(seeds), negative if guidance_scale > 1 else None, (height, width))
    mean, moved, final = RunningMean(), [], noise
    for step in denoise(
        model,
        conditioning,
        noise,
        steps=steps,
        guidance_scale=guidance_scale,
        guidance=guidance,
        subjects=[spans] * len(seeds),
        edits=edits,
        record=record,
        generators=generators,
    ):
        final = step.latents
        if step.maps is not None:
            mean.add(step.maps)
        if step.move:
            moved.append((step.index, step.timestep, step.move.loss, step.move.presence, step.move.refinements))
        if on_step:
            on_step(step)
    settings = {
        "prompt": prompt,
        "negative": negative,
        "subjects": list(names),
        "steps": steps,
        "guidance_scale": guidance_scale,
        "height": height,
        "width": width,
        "latents": None if latents is None else "given",
        "guidance": guidance.settings() if guidance else None,
        "edits": [getattr(edit, "__name__", type(edit).__name__) for edit in edits],
        "model": model.name,
        "scheduler": type(model.scheduler).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: importlib.metadata.version(name) for name in ("limelight", "diffusers", "torch")},
    }
    # Read only now: a look at a number stops the device.
    trace = tuple(
        {
            "step": index,
            "timestep": timestep,
            "loss": loss.tolist(),
            "presence": presence.tolist(),
            "refinements": refinements.tolist(),
        }
        for index, timestep, loss, presence, refinements in moved
    )
    return Result(model.decode(final), final, mean.result(), trace, settings, seeds, names)
