"""Equal output with diffusers' own pipelines, the independent implementation of both loops."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionPipeline,
)

import limelight
from tests.conftest import POCKET
from tests.tiny import BETAS

PROMPT = "a cat and a dog"
TOKENS = [2, 5]
# Some of these random weights reach on the way, others only after the last try.
REFINE = {0: 0.5, 3: 0.5}


def noise_for(seed: int, model: limelight.Model) -> torch.Tensor:
    height, width = model.default_size
    return model.noise([torch.Generator().manual_seed(seed)], height, width)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize(("scheduler", "guidance_scale"), [("ddim", 1.0), ("pndm", 7.5)])
def test_plain_equals_stable_diffusion(tiny_pipeline, scheduler, guidance_scale):
    pipeline = tiny_pipeline(scheduler)
    expected = pipeline(
        PROMPT,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        negative_prompt="a frog",
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    result = limelight.generate(
        limelight.load(pipeline), PROMPT, seeds=3, steps=4, guidance_scale=guidance_scale, negative="a frog"
    )
    assert difference(result.latents, expected) < 1e-8


@pytest.mark.parametrize(("negative", "size"), [("", (64, 64)), ("a frog", (48, 80))])
def test_plain_equals_stable_diffusion_xl(tiny_xl, negative, size):
    expected = tiny_xl(
        PROMPT,
        num_inference_steps=3,
        negative_prompt=negative or None,
        height=size[0],
        width=size[1],
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    model = limelight.load(tiny_xl)
    result = limelight.generate(model, PROMPT, seeds=3, steps=3, negative=negative, height=size[0], width=size[1])
    assert difference(result.latents, expected) < 1e-8


@pytest.mark.parametrize(
    ("scheduler", "thresholds", "seed"),
    [("ddim", {}, 0), ("pndm", {}, 1), ("ddim", REFINE, 0)],  # pndm refined: tests/integrations/test_diffusers.py
    ids=["ddim", "pndm", "refined"],
)
def test_guided_equals_attend_and_excite(tiny_pipeline, scheduler, thresholds, seed):
    pipeline = tiny_pipeline(scheduler, cls=StableDiffusionAttendAndExcitePipeline)
    model = limelight.load(tiny_pipeline(scheduler))
    noise = noise_for(seed, model)
    expected = pipeline(
        PROMPT,
        token_indices=TOKENS,
        num_inference_steps=4,
        max_iter_to_alter=2,
        thresholds=thresholds,
        scale_factor=20,
        attn_res=(8, 8),
        latents=noise.clone(),
        output_type="latent",
    ).images
    guidance = limelight.AttendAndExcite(thresholds=thresholds, until=2, resolution=8)
    result = limelight.generate(
        model, PROMPT, subjects=["cat", "dog"], guidance=guidance, steps=4, latents=noise, seeds=seed
    )
    plain = limelight.generate(model, PROMPT, steps=4, latents=noise, seeds=seed)
    assert difference(result.latents, expected) < 1e-8
    assert difference(result.latents, plain.latents) > 1e-3
    tries = [row["refinements"][0] for row in result.trace]
    assert any(tries) == bool(thresholds)
    if thresholds:
        assert any(0 < n < 20 for n in tries), "one that stops on the way"


def test_one_step_in_float32(tiny_pipeline):
    pipeline = tiny_pipeline("ddim", torch.float32, cls=StableDiffusionAttendAndExcitePipeline)
    model = limelight.load(tiny_pipeline("ddim", torch.float32))
    noise = noise_for(0, model)
    options = {"num_inference_steps": 1, "max_iter_to_alter": 1, "thresholds": {}, "attn_res": (8, 8)}
    expected = pipeline(PROMPT, token_indices=TOKENS, latents=noise.clone(), output_type="latent", **options).images
    guidance = limelight.AttendAndExcite(thresholds={}, until=1, resolution=8)
    result = limelight.generate(model, PROMPT, subjects=TOKENS, guidance=guidance, steps=1, latents=noise)
    assert difference(result.latents, expected) < 1e-5


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_pocket_equals_diffusers(guided):
    cls = StableDiffusionAttendAndExcitePipeline if guided else StableDiffusionPipeline
    pipeline = cls.from_pretrained(POCKET, dtype=torch.float64, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    model = limelight.load(StableDiffusionPipeline.from_pretrained(POCKET, dtype=torch.float64))
    noise = noise_for(5, model)
    extra = (
        {
            "token_indices": TOKENS,
            "max_iter_to_alter": 2,
            "thresholds": {},  # twenty tries blow the last digit up to the first on this model
            "attn_res": (8, 8),
            "scale_factor": 2,
        }
        if guided
        else {}
    )
    expected = pipeline(PROMPT, num_inference_steps=4, latents=noise.clone(), output_type="latent", **extra).images
    guidance = limelight.AttendAndExcite(thresholds={}, scale=2) if guided else None
    result = limelight.generate(model, PROMPT, subjects=["cat", "dog"], guidance=guidance, steps=4, latents=noise)
    assert difference(result.latents, expected) < 1e-8


def test_same_seed_same_picture_as_diffusers(tiny_pipeline):
    pipeline = tiny_pipeline()
    expected = pipeline(PROMPT, num_inference_steps=3, generator=torch.Generator().manual_seed(9)).images[0]
    result = limelight.generate(limelight.load(pipeline), PROMPT, steps=3, seeds=9)
    assert result.images[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("thresholds", "scheduler"),
    [({}, None), ({0: 0.3, 1: 0.3}, EulerAncestralDiscreteScheduler)],
    ids=["unrefined-ddim", "refined-ancestral"],
)
def test_a_batch_equals_its_singles(tiny_pipeline, thresholds, scheduler):
    pipeline = tiny_pipeline()
    if scheduler:
        pipeline.scheduler = scheduler(**BETAS)
    tiny = limelight.load(pipeline)
    guidance = limelight.AttendAndExcite(thresholds=thresholds, resolution=8, max_refinements=4)
    options = {"subjects": ["cat", "dog"], "guidance": guidance, "steps": 3}
    batch = limelight.generate(tiny, PROMPT, seeds=[0, 1, 2], **options)
    tries = [set(row["refinements"]) for row in batch.trace]
    assert any(len(each) > 1 for each in tries) == bool(thresholds), "some images go on without the others"
    for row, seed in enumerate([0, 1, 2]):
        single = limelight.generate(tiny, PROMPT, seeds=seed, **options)
        assert difference(batch.latents[row], single.latents[0]) < 1e-8
        for ours, theirs in zip(batch.trace, single.trace, strict=True):
            assert ours["refinements"][row] == theirs["refinements"][0]
            assert ours["loss"][row] == pytest.approx(theirs["loss"][0], abs=1e-9)
