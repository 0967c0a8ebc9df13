"""Guidance inside pipelines of transformer families that limelight does not drive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from PIL import Image

import limelight
from limelight.errors import ModelError, PromptError
from limelight.integrations.attach_transformer import _has_references
from limelight.models.families import FAMILIES
from tests import transformers as tiny

PROMPT = "a black cat and a white dog"
GUIDANCE = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.05, step_rule="relative")
WATCHING = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.0, step_rule="relative")
PHOTO = Image.effect_mandelbrot((48, 32), (-2, -1, 1, 1), 50).convert("RGB")
MASK = Image.linear_gradient("L").resize((48, 32))


class Case(NamedTuple):
    """A foreign pipeline: its class, the components it is made of, the arguments of its call, and its ControlNet."""

    cls: str
    build: Callable[[], Any]
    call: dict[str, Any]
    controlnet: Callable[[], Any] | None = None


IMAGE, PARTS = {"image": PHOTO, "strength": 0.75}, {"image": PHOTO, "mask_image": MASK, "strength": 0.75}
CONTROL = {"control_image": PHOTO}
CFG = {"true_cfg_scale": 4.0, "negative_prompt": "a frog on the tree"}
CASES = {
    "flux-img2img": Case("FluxImg2ImgPipeline", tiny.flux, IMAGE),
    "flux-img2img-cfg": Case("FluxImg2ImgPipeline", tiny.flux, {**IMAGE, **CFG}),
    "flux-inpaint": Case("FluxInpaintPipeline", tiny.flux, PARTS),
    "flux-controlnet": Case("FluxControlNetPipeline", tiny.flux, CONTROL, tiny.flux_controlnet),
    "flux-control": Case("FluxControlPipeline", partial(tiny.flux, channels=32), CONTROL),
    "flux-fill": Case("FluxFillPipeline", partial(tiny.flux, channels=48), {"image": PHOTO, "mask_image": MASK}),
    "flux-kontext": Case("FluxKontextPipeline", tiny.flux, {"max_area": 32 * 48}),
    "sd3-img2img": Case("StableDiffusion3Img2ImgPipeline", tiny.sd3, IMAGE),
    "sd3-inpaint": Case("StableDiffusion3InpaintPipeline", partial(tiny.sd3, channels=16), PARTS),
    "sd3-controlnet": Case("StableDiffusion3ControlNetPipeline", tiny.sd3, CONTROL, tiny.sd3_controlnet),
    "qwen-inpaint": Case("QwenImageInpaintPipeline", tiny.qwen_image, {**PARTS, **CFG}),
    "qwen-img2img": Case("QwenImageImg2ImgPipeline", tiny.qwen_image, {**IMAGE, **CFG}),
    "qwen-controlnet": Case("QwenImageControlNetPipeline", tiny.qwen_image, {**CONTROL, **CFG}, tiny.qwen_controlnet),
}


def foreign(case: Case) -> Any:
    """The pipeline, in float64."""
    parts = {name: part for name, part in case.build().components.items() if part is not None}
    if case.controlnet is not None:
        parts["controlnet"] = case.controlnet()
    pipeline = getattr(diffusers, case.cls)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline: Any, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)  # diffusers' SD3 ControlNet samples the latents of its control image without the generator
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


OTHERS = ("z_image", "pixart", "sana", "chroma", "flux2", "flux2_klein", "lumina2", "krea2")


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_refused(family):
    pipeline = getattr(tiny, family)()
    name = type(pipeline).__name__
    with pytest.raises(ModelError, match=rf"'{name}' cannot be steered by attach\(\); it steers .*FLUX\.1"):
        limelight.attach(pipeline).__enter__()


def test_every_family_is_one_that_works_or_one_that_is_refused():
    pipelines = [getattr(tiny, name)() for name in ("flux", "sd3", "qwen_image", *OTHERS)]
    classes = {type(pipeline.transformer).__name__ for pipeline in pipelines}
    assert classes == {family.parts["transformer"] for family in FAMILIES.values() if "transformer" in family.parts}


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_perturbed_attention_is_refused(scale):
    parts = {name: part for name, part in tiny.sd3().components.items() if part is not None}
    pipeline = diffusers.StableDiffusion3PAGPipeline(**parts, pag_applied_layers="blocks.1")
    with (
        limelight.attach(pipeline, subjects=["cat"], guidance=GUIDANCE),
        pytest.raises(ModelError, match="other branches than a negative and a positive prompt"),
    ):
        run(pipeline, guidance_scale=scale, pag_scale=2.0)


def test_prompts_without_words_are_refused():
    pipeline = tiny.flux()
    states, pooled, _ = pipeline.encode_prompt(PROMPT, None, device="cpu")
    with (
        limelight.attach(pipeline, subjects=["cat"], guidance=GUIDANCE),
        pytest.raises(PromptError, match="give a prompt"),
    ):
        pipeline(prompt_embeds=states, pooled_prompt_embeds=pooled, num_inference_steps=1, height=32, width=32)


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_reference_images_are_refused(size):
    height, width = size
    pipeline = foreign(CASES["flux-kontext"])
    call = {"image": PHOTO, "max_area": height * width, "_auto_resize": False, "num_inference_steps": 1}
    with (
        limelight.attach(pipeline, subjects=["cat"], guidance=GUIDANCE),
        pytest.raises(ModelError, match="'FluxKontextPipeline' has other images in its sequence"),
    ):
        pipeline(prompt=PROMPT, height=height, width=width, **call)


def test_references_are_told_by_the_shapes_of_the_sequence():
    own, reference = (1, 2, 3), (1, 4, 4)
    assert not _has_references({"img_shapes": [[own]] * 2})
    assert not _has_references({"img_shapes": [own] * 2}), "as the ControlNet pipelines give it"
    assert _has_references({"img_shapes": [[own, reference]] * 2})


def test_another_text_for_another_encoder_is_refused():
    pipeline = tiny.flux()
    with (
        limelight.attach(pipeline, subjects=["cat"], guidance=GUIDANCE),
        pytest.raises(PromptError, match=r"given prompt_2='a frog', which is not its prompt.* Leave out prompt_2\."),
    ):
        pipeline(PROMPT, prompt_2="a frog", num_inference_steps=1, height=32, width=32)
