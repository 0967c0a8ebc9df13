"""Maps of pipelines that limelight does not drive: those of its own loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from PIL import Image

import limelight
from limelight import ModelError, ProbeError

PROMPT = "a cat and a dog"
CALL = {"num_inference_steps": 3, "output_type": "latent"}


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_the_maps_are_those_of_the_own_loop(tiny_pipeline, scale):
    pipeline = tiny_pipeline()
    expected = limelight.generate(
        limelight.load(pipeline), PROMPT, seeds=3, steps=3, guidance_scale=scale, record="steps"
    )
    plain = pipeline(PROMPT, **CALL, guidance_scale=scale, generator=seeded()).images
    with limelight.watch(pipeline) as watched:
        same = pipeline(PROMPT, **CALL, guidance_scale=scale, generator=seeded()).images
    assert torch.allclose(same, plain, atol=1e-8)
    for word in ("cat", "dog"):
        assert torch.allclose(watched.maps[word], expected.maps[word], atol=1e-8)
        for i in range(3):
            assert torch.allclose(watched.steps[i][word], expected.steps[i][word], atol=1e-3)
    assert not pipeline.unet._forward_hooks
    assert "encode_prompt" not in vars(pipeline)


def test_several_prompts_and_images(tiny_pipeline):
    pipeline = tiny_pipeline()
    with limelight.watch(pipeline) as watched:
        with pytest.raises(ProbeError, match="Nothing was watched yet"):
            _ = watched.maps
        pipeline(["a dog and a cat", PROMPT], num_images_per_prompt=2, **CALL)
        assert [prompt.text for prompt in watched.maps.prompts] == ["a dog and a cat"] * 2 + [PROMPT] * 2
        pipeline("a car", **CALL)  # a new call begins anew
    assert (list(watched.maps), watched.maps["car"].shape[0], len(watched.steps)) == (["a", "car"], 1, 3)


def test_a_part_of_the_schedule_and_a_scheduler_of_second_order(tiny_pipeline):
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    pipeline = StableDiffusionImg2ImgPipeline(**tiny_pipeline().components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    with limelight.watch(pipeline) as watched:
        pipeline(PROMPT, image=image, strength=0.5, num_inference_steps=6, output_type="latent")
    assert len(watched.steps) == 3
    assert "dog" in watched.maps

    pipeline = tiny_pipeline()
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    with limelight.watch(pipeline) as watched:
        pipeline(PROMPT, **CALL)
    assert len(watched.steps) == 5  # two passes a step, but for the last


def test_a_steered_run(tiny_pipeline):
    pipeline = tiny_pipeline()
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={})
    model = limelight.load(pipeline)
    expected = limelight.generate(model, PROMPT, subjects=["cat", "dog"], seeds=3, steps=3, guidance=guidance)
    with limelight.watch(pipeline) as watched, limelight.attach(pipeline, subjects=["cat", "dog"], guidance=guidance):
        pipeline(PROMPT, **CALL, generator=seeded())
    size = (8, 8)
    assert torch.allclose(watched.maps.map("dog", size), expected.maps.map("dog", size), atol=1e-6)


def test_given_embeddings_have_indices_alone(tiny_pipeline):
    pipeline = tiny_pipeline()
    embedded = pipeline.encode_prompt(PROMPT, "cpu", 1, True)
    with limelight.watch(pipeline) as watched:
        pipeline(prompt_embeds=embedded[0], negative_prompt_embeds=embedded[1], **CALL)
    assert len(watched.maps) == 0
    assert watched.maps[2].shape[0] == 1


def test_what_cannot_be_watched(tiny_pipeline):
    parts = tiny_pipeline().components
    torch.manual_seed(0)
    parts["unet"] = UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": 8}).double()
    pipeline = StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    with pytest.raises(ModelError), limelight.watch(pipeline):
        pipeline(PROMPT, image=image, **CALL)
    assert not pipeline.unet._forward_hooks
