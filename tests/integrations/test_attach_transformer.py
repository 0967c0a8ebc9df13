"""Guidance inside pipelines of transformer families that limelight does not drive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from PIL import Image

import limelight
from limelight.errors import ModelError, PromptError
from tests import transformers as tiny

PROMPT = "a black cat and a white dog"
GUIDANCE = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.05, step_rule="relative")
WATCHING = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.0, step_rule="relative")
PHOTO = Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 50).convert("RGB")
MASK = Image.linear_gradient("L").resize((48, 32))


class Case(NamedTuple):
    """A foreign pipeline: its class, the components it is made of, and the arguments of its call."""

    cls: str
    build: Callable[[], Any]
    call: dict[str, Any]


IMAGE, PARTS = {"image": PHOTO, "strength": 0.75}, {"image": PHOTO, "mask_image": MASK, "strength": 0.75}
CFG = {"true_cfg_scale": 4.0, "negative_prompt": "a frog on the tree"}
CASES = {
    "flux-img2img": Case("FluxImg2ImgPipeline", tiny.flux, IMAGE),
    "flux-img2img-cfg": Case("FluxImg2ImgPipeline", tiny.flux, {**IMAGE, **CFG}),
    "flux-inpaint": Case("FluxInpaintPipeline", tiny.flux, PARTS),
    "sd3-img2img": Case("StableDiffusion3Img2ImgPipeline", tiny.sd3, IMAGE),
    "qwen-inpaint": Case("QwenImageInpaintPipeline", tiny.qwen_image, {**PARTS, **CFG}),
    "qwen-img2img": Case("QwenImageImg2ImgPipeline", tiny.qwen_image, {**IMAGE, **CFG}),
}


def foreign(case: Case) -> Any:
    """The pipeline, in float64."""
    parts = case.build().components
    pipeline = getattr(diffusers, case.cls)(**{k: v for k, v in parts.items() if v is not None})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline: Any, **options: Any) -> torch.Tensor:
    size = {"height": 32, "width": 48, "num_inference_steps": 3, "output_type": "latent"}
    return pipeline(prompt=PROMPT, generator=torch.Generator().manual_seed(0), **size, **options).images


@pytest.mark.parametrize("name", CASES)
def test_guidance_acts_and_leaves_nothing(name):
    case = CASES[name]
    pipeline = foreign(case)
    plain = run(pipeline, **case.call)
    own, hooks = set(vars(pipeline)), len(pipeline.transformer._forward_pre_hooks)
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=WATCHING) as watched:
        assert torch.equal(run(pipeline, **case.call), plain)
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=GUIDANCE) as attached:
        guided = run(pipeline, **case.call)
    assert len(attached.trace) == len(watched.trace) == pipeline.num_timesteps
    assert attached.trace[-1]["loss"][0] < watched.trace[-1]["loss"][0]
    assert float((guided - plain).abs().max()) > 1e-4

    assert torch.equal(run(pipeline, **case.call), plain)
    assert (set(vars(pipeline)), len(pipeline.transformer._forward_pre_hooks)) == (own, hooks)
    assert "step" not in vars(pipeline.scheduler)


def test_attached_to_a_pipeline_that_is_driven_it_gives_the_same():
    pipeline = tiny.sd3()
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=GUIDANCE) as attached:
        latents = run(pipeline, guidance_scale=5.0, negative_prompt="a frog")
    settings = {"steps": 3, "height": 32, "width": 48, "seeds": 0, "negative": "a frog", "guidance_scale": 5.0}
    result = limelight.generate(
        limelight.load(pipeline), PROMPT, subjects=["cat", "dog"], guidance=GUIDANCE, **settings
    )
    assert float((latents - result.latents).abs().max()) < 1e-10
    assert [row["step"] for row in attached.trace] == [row["step"] for row in result.trace]


def test_what_cannot_be_steered_is_refused():
    with pytest.raises(ModelError, match=r"it steers pipelines of: .*FLUX\.1"):
        limelight.attach(tiny.z_image()).__enter__()
    pipeline = tiny.flux()
    states, pooled, _ = pipeline.encode_prompt(PROMPT, None, device="cpu")
    with (
        limelight.attach(pipeline, subjects=["cat"], guidance=GUIDANCE),
        pytest.raises(PromptError, match="give a prompt"),
    ):
        pipeline(prompt_embeds=states, pooled_prompt_embeds=pooled, num_inference_steps=1, height=32, width=32)
