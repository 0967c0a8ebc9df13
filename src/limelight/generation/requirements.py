"""What a guided run will need: weights, memory and work, counted without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..guidance.base import Guidance, Score, Steering, Subjects, reading, reads, step_of
from ..guidance.presets import preset
from ..models.base import Conditioning
from ..models.memory import weight_bytes
from ..models.pipeline_model import PipelineModel, cast
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt
from ..prompts.subjects import Subject
from ..utils.counting import Count, counted
from ..utils.progress import quiet_loading

SUBJECTS = [[Subject((2,)), Subject((5,))]]
_POSITIONS = 16  # of the prompt whose maps are read


@dataclass(frozen=True)
class Requirements:
    """What a guided run of one image will need.

    Attributes:
        weights: part -> bytes.
        one: a pass of the denoiser for one image, whose work is F.
        step: an ordinary step, with as many passes as the model has branches at its own guidance scale.
        guiding, checkpointed: a gradient step; the second with gradient checkpointing.
        decoding: of the finished latents.
        steps, guided: of the run, and how many of them are guided.
    """

    weights: Mapping[str, int]
    one: Count
    step: Count
    guiding: Count
    checkpointed: Count
    decoding: Count
    steps: int
    guided: int

    def passes(self, count: Count) -> float:
        """The work of a count in F."""
        return count.work / self.one.work

    def memory(self, *counts: Count, offload: str | None = None) -> int:
        """The most bytes of a run that does these, an ordinary step and decoding.

        Args:
            offload: "model" has one part at a time on the device; None all of them.
        """
        most = max(count.peak for count in (self.step, *counts))
        denoiser, *others = self.weights.values()
        if offload is None:
            return denoiser + sum(others) + max(most, self.decoding.peak)
        return max(denoiser + most, self.weights.get("vae", 0) + self.decoding.peak, *others)

    @property
    def plain(self) -> float:
        """The work of a plain run in F."""
        return self.steps * self.passes(self.step)

    @property
    def run(self) -> float:
        """The work of a guided run in F."""
        return self.plain + self.guided * self.passes(self.guiding)


def required(
    model: PipelineModel,
    guidance: Guidance | None = None,
    *,
    size: tuple[int, int] | None = None,
    steps: int = 50,
    quantize: str | None = None,
) -> Requirements:
    """Count what a guided run of one image needs, without running it.

    Memory is of tensors alone: what a graphics card's own software takes, and gaps between tensors, come on top. A
    refinement, or a look at the plain run first, is more work than is counted here, and no more memory.

    Args:
        model: of `limelight.models.blueprint.blueprint`.
        guidance: by default the recommended one.
        size: height and width in pixels; by default the model's own.
        steps: of the run.
        quantize: see `limelight.load`.

    Raises:
        SettingsError: the guidance does not fit the model or the size.

    Examples:
        >>> from limelight.models.blueprint import blueprint
        >>> needs = required(blueprint("pocket"))
        >>> list(needs.weights), needs.guided
        (['unet', 'text_encoder', 'vae'], 25)
    """
    guidance = guidance or preset("recommended", model)
    passes = Passes(model, size or model.default_size)
    layers = guidance.layers(model, passes.latent_size)
    with quiet_loading():
        one = counted(passes.forward)
        return Requirements(
            weights={name: weight_bytes(part, name, quantize) for name, part in model.parts.items()},
            one=one,
            step=one if passes.conditioning.unconditional is None else counted(passes.both),
            guiding=counted(passes.gradient(guidance, layers)),
            checkpointed=counted(passes.gradient(replace(guidance, checkpoint=True), layers)),
            decoding=counted(passes.decode),
            steps=steps,
            guided=-(-min(step_of(guidance.until, steps), steps) // guidance.every),
        )


class Passes:
    """Passes of a model without weights, for one image of a height and width in pixels."""

    def __init__(self, model: PipelineModel, size: tuple[int, int]) -> None:
        from diffusers import DDIMScheduler

        # A scheduler that takes latents as they are, whatever the step.
        self.model = model if model.flows else model.for_one_run(DDIMScheduler())
        unit, scale = model.pixels_per_latent, model.guidance_scale
        self.latent_size = size[0] // unit, size[1] // unit
        shape, device = (1, model.channels, *self.latent_size), model.device
        self.latents = torch.empty(shape, dtype=model.noise_dtype, device=device)
        self.timestep = torch.tensor(500, device=device)

        positions = tuple(range(_POSITIONS))
        blank = Prompt("a cat and a dog", positions, ("",) * _POSITIONS, 6, (), places=positions)
        states = model.blank()
        both = Conditioning((blank,), states, states if model.branches(scale) == 2 else None)
        self.conditioning = self.model.prepare(both, scale)

    @torch.no_grad()
    def forward(self) -> None:
        """One pass of the conditional branch."""
        self.model.predict(self.latents, self.timestep, self.conditioning.only_conditional())

    @torch.no_grad()
    def both(self) -> None:
        """Both branches."""
        self.model.predict(self.latents, self.timestep, self.conditioning)

    @torch.no_grad()
    def decode(self) -> None:
        """The autoencoder's pass."""
        vae, dtype = self.model.pipeline.vae, self.model._image_dtype
        with cast(vae, dtype):
            self.model._decoded(self.latents.to(dtype))

    def gradient(self, guidance: Guidance, layers: Sequence[AttentionSite]) -> Callable[[], Any]:
        """One gradient step through these layers, ready to run, without the objective's own work."""
        own = Guidance(objective=_watching(guidance), checkpoint=guidance.checkpoint)
        steering = Steering(own, self.model, self.conditioning, SUBJECTS, 50, torch.arange(50), layers)
        rows = torch.arange(1)
        return lambda: steering.evaluate(self.latents, self.timestep, rows)


def _watching(guidance: Guidance) -> Any:
    """An objective that reads the attention that another one reads, and has no work of its own."""

    @reading(*reads(guidance.objective))
    def total(maps: AttentionMaps, subjects: Subjects) -> Score:
        loss: Tensor = torch.stack([p.flatten(1).sum(dim=1) for p in maps.layers.values()]).sum(dim=0)
        return Score(loss, loss[:, None].expand(-1, len(subjects[0])), {"neglect": loss})

    return total
