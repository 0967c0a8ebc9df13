"""The noise that a pass starts from: of its seeds, given, or searched for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..guidance.base import Guidance, Score, Steering
from ..guidance.noise_search import FoundNoise
from ..models.base import Conditioning
from .plan import GenerationPlan


def initial_noise(plan: GenerationPlan, rows: range, generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise of some of the images of a plan.

    Args:
        rows: which of `plan.images`.
        generators: of these images, seeded.
    """
    noise = plan.model.noise(generators, *plan.settings.size)  # in any case: later noise must not repeat it
    if plan.settings.latents is not None:
        noise = plan.settings.latents[rows.start : rows.stop]
    return noise.to(plan.model.device, plan.model.noise_dtype)


@torch.inference_mode(False)
@torch.no_grad()
def searched(
    plan: GenerationPlan,
    rows: range,
    guidance: Guidance | None,
    conditioning: Conditioning,
    noise: Tensor,
    generators: Sequence[torch.Generator],
) -> FoundNoise | None:
    """Search for a better noise where the guidance asks for that, see `NoiseSearch`; else None.

    Further noises of an image come from its own generator, so that they belong to its seed.
    """
    if guidance is None or guidance.noise_search is None:
        return None

    model, settings, search = plan.model.for_one_run(), plan.settings, guidance.noise_search
    timesteps = model.timesteps(settings.steps, settings.size)
    exact = torch.promote_types(noise.dtype, torch.float32)
    watching = Guidance(objective=search.objective, resolution=guidance.resolution, checkpoint=guidance.checkpoint)
    steering = Steering(
        watching,
        model,
        model.prepare(conditioning, settings.guidance_scale),
        plan.subjects_of(rows),
        settings.steps,
        timesteps,
        watching.layers(model, (noise.shape[-2], noise.shape[-1])),
    )

    def evaluate(candidates: Tensor, chosen: Tensor) -> tuple[Score, Tensor]:
        every = noise.index_copy(0, chosen, candidates.to(noise.dtype))
        score, gradient = steering.evaluate(model.start(every), timesteps[0], chosen)
        return score, model.start(gradient).to(exact)

    def fresh(chosen: Sequence[int]) -> Tensor:
        return model.noise([generators[i] for i in chosen], *settings.size).to(model.device, exact)

    return search(noise.to(exact), evaluate, fresh)
