"""Guidance inside pipelines that limelight does not drive: real pipeline classes with random weights."""

from __future__ import annotations

import copy
import doctest
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from PIL import Image

import limelight
from limelight import ModelError, PromptError, SettingsError

PROMPT = "a cat and a dog"
# Of the tries, the first threshold is reached on the way and the second after none.
GUIDANCE = limelight.AttendAndExcite(resolution=8, thresholds={0: 0.32, 1: 0.65}, max_refinements=4)
# One try, and of two steps one is guided: enough to see whether a pipeline is steered.
BRIEFLY = limelight.AttendAndExcite(resolution=8, thresholds={0: 0.65}, max_refinements=1)
WATCHING = limelight.AttendAndExcite(resolution=8, scale=0, thresholds={})
CALL = {"prompt": PROMPT, "num_inference_steps": 4, "output_type": "latent"}
SHORT = {**CALL, "num_inference_steps": 2}


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def image() -> Image.Image:
    noise = torch.rand(32, 32, 3, generator=seeded()).mul(255).byte().numpy()
    return Image.fromarray(noise)


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "euler"])
def test_text_to_image_is_the_own_loop(tiny_pipeline, scheduler):
    pipeline = tiny_pipeline("ddim" if scheduler == "euler" else scheduler)
    if scheduler == "euler":
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    expected = limelight.generate(limelight.load(pipeline), PROMPT, seeds=3, steps=4, guidance=GUIDANCE)
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=GUIDANCE) as attached:
        latents = pipeline(**CALL, generator=seeded()).images
    assert float((latents - expected.latents).abs().max()) < 1e-8
    assert [row["step"] for row in attached.trace] == [row["step"] for row in expected.trace]
    assert attached.trace[-1]["loss"] == pytest.approx(expected.trace[-1]["loss"], abs=1e-7)
    assert attached.trace[0]["refinements"] == expected.trace[0]["refinements"] != [0]


def steers(pipeline, **inputs) -> float:
    """Watching changes nothing; steering lowers the last loss; nothing stays behind. Returns the difference made."""
    plain = pipeline(**inputs, generator=seeded()).images
    with limelight.attach(pipeline, guidance=WATCHING) as watched:
        same = pipeline(**inputs, generator=seeded()).images
    assert float((same - plain).abs().max()) < 1e-8
    with limelight.attach(pipeline, guidance=replace(GUIDANCE, thresholds={1: 0.65})) as attached:
        moved = pipeline(**inputs, generator=seeded()).images
    assert attached.trace[-1]["loss"][0] < watched.trace[-1]["loss"][0]
    assert torch.equal(pipeline(**inputs, generator=seeded()).images, plain)
    return float((moved - plain).abs().max())


def test_image_to_image(tiny_pipeline, image):
    pipeline = StableDiffusionImg2ImgPipeline(**tiny_pipeline().components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    inputs = {**CALL, "image": image, "strength": 0.7, "num_inference_steps": 6}
    assert steers(pipeline, **inputs) > 1e-3
    with limelight.attach(pipeline, guidance=WATCHING) as attached:
        pipeline(**inputs, generator=seeded())
    # Four of the six steps are taken; the first half of these is guided.
    assert [row["step"] for row in attached.trace] == [0, 1]


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(tiny_pipeline, image, channels):
    parts = tiny_pipeline().components
    if channels == 9:
        torch.manual_seed(0)
        parts["unet"] = UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": 9}).double()
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    mask = Image.new("L", image.size, 0)
    mask.paste(255, (8, 8, 24, 32))
    assert steers(pipeline, **CALL, image=image, mask_image=mask, height=32, width=32) > 1e-3


def test_controlnet(tiny_pipeline, image):
    parts = tiny_pipeline().components
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8, 8))
    for parameter in control.parameters():  # its last layers are zero at first
        parameter.data += 0.02 * torch.randn_like(parameter)
    pipeline = StableDiffusionControlNetPipeline(**parts, controlnet=control.double(), requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    assert steers(pipeline, **CALL, image=image, height=32, width=32) > 1e-3


def test_lora_stays_in_force(tiny_pipeline):
    peft = pytest.importorskip("peft")
    pipeline = tiny_pipeline()
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipeline.unet.to(torch.float64)
    assert steers(pipeline, **CALL) > 1e-3


def test_sdxl(tiny_xl, image):
    pipeline = StableDiffusionXLImg2ImgPipeline(**tiny_xl.components)
    pipeline.set_progress_bar_config(disable=True)
    inputs = {**SHORT, "image": image.resize((64, 64)), "strength": 0.8}
    plain = pipeline(**inputs, generator=seeded()).images
    guidance = limelight.AttendAndExcite(thresholds={})
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=guidance) as attached:
        moved = pipeline(**inputs, generator=seeded()).images
    assert attached.trace
    assert float((moved - plain).abs().max()) > 1e-4


def test_several_prompts_and_images(tiny_pipeline):
    """Rows find their own prompt's subjects, whatever stands beside them."""
    pipeline, guidance = tiny_pipeline(), replace(GUIDANCE, thresholds={0: 0.32})
    prompts, noise = ["a cat and a dog", "a red car and a frog"], torch.randn(4, 4, 16, 16, generator=seeded()).double()
    call = {**SHORT, "prompt": prompts, "num_images_per_prompt": 2}
    with limelight.attach(pipeline, subjects=[["cat", "dog"], ["car"]], guidance=guidance):
        together = pipeline(**call, latents=noise).images
    for row, (prompt, words) in enumerate(zip(prompts, [["cat", "dog"], ["car"]], strict=True)):
        alone = limelight.generate(
            limelight.load(pipeline),
            prompt,
            subjects=words,
            seeds=[0, 1],
            guidance=guidance,
            steps=2,
            latents=noise[2 * row : 2 * row + 2],
        )
        assert float((together[2 * row : 2 * row + 2] - alone.latents).abs().max()) < 1e-7


def test_without_a_prompt_subjects_are_indices(tiny_pipeline):
    pipeline = tiny_pipeline()
    embedded, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
    negative, _ = pipeline.encode_prompt("", "cpu", 1, False)
    call = {**SHORT, "prompt": None, "prompt_embeds": embedded, "negative_prompt_embeds": negative}
    with limelight.attach(pipeline, subjects=[2, 5], guidance=BRIEFLY):
        by_index = pipeline(**call, generator=seeded()).images
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=BRIEFLY):
        by_word = pipeline(**SHORT, generator=seeded()).images
    assert torch.allclose(by_index, by_word)
    with (
        limelight.attach(pipeline, subjects=["cat"], guidance=BRIEFLY),
        pytest.raises(PromptError, match="token indices"),
    ):
        pipeline(**call)


def test_an_error_leaves_the_pipeline_as_it_was(tiny_pipeline):
    pipeline = tiny_pipeline()
    with pytest.raises(PromptError, match="'horse' is not in"), limelight.attach(pipeline, subjects=["horse"]):
        pipeline(**CALL)
    assert "encode_prompt" not in vars(pipeline)
    assert not {"step", "scale_model_input"} & set(vars(pipeline.scheduler))
    assert not pipeline.unet._forward_pre_hooks


def test_refusals(tiny_pipeline):
    pipeline = tiny_pipeline()
    heun = copy.copy(pipeline)
    heun.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(SettingsError, match="Heun"), limelight.attach(heun):
        pass
    with pytest.raises(ModelError, match="'object' has no UNet"), limelight.attach(object()):
        pass
    edits = StableDiffusionInstructPix2PixPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(ModelError, match="Pix2PixPipeline' has no method encode_prompt"), limelight.attach(edits):
        pass


def test_ip_adapter_stays_in_force(tiny_pipeline):
    """An image as a second prompt: its attention stands beside the words' in every cross-attention layer."""
    pipeline, random = tiny_pipeline(), seeded()
    cross, embedded = pipeline.unet.config.cross_attention_dim, 24

    def weights(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=random)

    adapter = {}
    names = [name for name in pipeline.unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(names):
        width = pipeline.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        adapter |= {f"{2 * i + 1}.to_{kind}_ip.weight": weights(width, cross) for kind in "kv"}
    projection = {
        "proj.weight": weights(4 * cross, embedded),
        "proj.bias": weights(4 * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    pipeline.unet._load_ip_adapter_weights({"image_proj": projection, "ip_adapter": adapter})
    pipeline.unet.to(torch.float64)
    embeds = [torch.randn(2, 1, embedded, generator=random).double()]
    without = tiny_pipeline()(**CALL, generator=seeded()).images
    call = {**CALL, "ip_adapter_image_embeds": embeds}
    assert not torch.allclose(pipeline(**call, generator=seeded()).images, without)
    assert steers(pipeline, **call) > 1e-3


def test_lists_of_one_prompt_and_of_embeddings(tiny_pipeline):
    pipeline = tiny_pipeline()
    with limelight.attach(pipeline, subjects=[[2], [5]], guidance=BRIEFLY):  # two subjects of one prompt
        one = pipeline(**SHORT, generator=seeded()).images
    with limelight.attach(pipeline, subjects=[["cat", "dog"]], guidance=BRIEFLY):
        listed = pipeline(**{**SHORT, "prompt": [PROMPT]}, generator=seeded()).images
    assert torch.allclose(one, listed)
    embedded, _ = pipeline.encode_prompt([PROMPT, PROMPT], "cpu", 1, False)
    negative, _ = pipeline.encode_prompt(["", ""], "cpu", 1, False)
    call = {**SHORT, "prompt": None, "prompt_embeds": embedded, "negative_prompt_embeds": negative}
    with limelight.attach(pipeline, subjects=[[2, 5], [5, 2]], guidance=BRIEFLY):
        both = pipeline(**call, generator=[seeded(), seeded()]).images
    assert torch.allclose(both[:1], one, atol=1e-7)
    assert torch.allclose(both[1:], one, atol=1e-7)
    for subjects, message in (([[500], [2]], "between 1 and 75"), ([["cat"], [2]], "token indices")):
        with limelight.attach(pipeline, subjects=subjects), pytest.raises(PromptError, match=message):
            pipeline(**call)


def test_one_inside_the_other(tiny_pipeline):
    """The inner guidance goes with its block; the outer one and a user's own patch stay."""
    pipeline = tiny_pipeline()
    original = pipeline.scheduler.step
    pipeline.scheduler.step = own = lambda *args, **kwargs: original(*args, **kwargs)
    with limelight.attach(pipeline, guidance=BRIEFLY) as outer:
        expected = pipeline(**SHORT, generator=seeded()).images
        with limelight.attach(pipeline, guidance=WATCHING):
            pass
        assert torch.allclose(pipeline(**SHORT, generator=seeded()).images, expected)
        assert outer.trace
        assert "step" not in vars(limelight.load(pipeline).scheduler)
    assert pipeline.scheduler.step is own


def test_inference_mode_of_the_caller(tiny_pipeline):
    pipeline = tiny_pipeline()
    with limelight.attach(pipeline, guidance=BRIEFLY):
        expected = pipeline(**SHORT, generator=seeded()).images
        with torch.inference_mode():
            inside = pipeline(**SHORT, generator=seeded()).images
    assert torch.allclose(inside, expected)


def test_one_list_of_subjects_for_several_prompts(tiny_pipeline):
    pipeline, call = tiny_pipeline(), {**SHORT, "prompt": [PROMPT, PROMPT]}
    for subjects in (["cat", "dog"], [2, 5]):
        with limelight.attach(pipeline, subjects=[subjects, subjects], guidance=BRIEFLY):
            expected = pipeline(**call, generator=[seeded(3), seeded(4)]).images
        with limelight.attach(pipeline, subjects=subjects, guidance=BRIEFLY):
            flat = pipeline(**call, generator=[seeded(3), seeded(4)]).images
        assert torch.equal(flat, expected)
    with (
        limelight.attach(pipeline, subjects=[["cat"], ["dog"], ["cat"]], guidance=BRIEFLY),
        pytest.raises(PromptError, match="2 prompts need 2 lists of subjects, not 3"),
    ):
        pipeline(**call)
    with limelight.attach(pipeline, subjects=None), pytest.raises(PromptError, match="subjects is empty"):
        pipeline(**SHORT)


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_guidance_after_the_step(tiny_pipeline, scheduler):
    pipeline = tiny_pipeline(scheduler)
    options = {"resolution": 8, "thresholds": {}, "until": 1.0}
    guidance = limelight.AttendAndExcite(when="after", **options)
    expected = limelight.generate(limelight.load(pipeline), PROMPT, seeds=3, steps=2, guidance=guidance)
    found = []
    for chosen in (guidance, limelight.AttendAndExcite(**options)):
        with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=chosen):
            found.append(pipeline(**SHORT, generator=seeded()).images)
    assert float((found[0] - expected.latents).abs().max()) < 1e-8
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_embeddings_without_a_text_encoder(tiny_pipeline):
    pipeline = tiny_pipeline()
    embedded, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
    negative, _ = pipeline.encode_prompt("", "cpu", 1, False)
    call = {**SHORT, "prompt": None, "prompt_embeds": embedded, "negative_prompt_embeds": negative}
    with limelight.attach(pipeline, subjects=[2, 5], guidance=BRIEFLY):
        expected = pipeline(**SHORT, generator=seeded()).images
    pipeline.text_encoder = pipeline.tokenizer = None
    with limelight.attach(pipeline, subjects=[2, 5], guidance=BRIEFLY) as attached:
        found = pipeline(**call, generator=seeded()).images
    assert torch.equal(found, expected)
    assert attached.trace
    with (
        limelight.attach(pipeline, subjects=[2, 5], guidance=BRIEFLY),
        pytest.raises(PromptError, match="has no tokenizer to read 'a cat and a dog'; give prompt_embeds"),
    ):
        pipeline(**SHORT)


def test_the_refiner_of_xl(tiny_xl, image):
    """It has the second tokenizer and text encoder alone."""
    torch.manual_seed(2)
    changes = {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 5 * 8 + 24}
    unet = UNet2DConditionModel.from_config({**tiny_xl.unet.config, **changes}).double()
    parts = {**tiny_xl.components, "unet": unet, "tokenizer": None, "text_encoder": None}
    pipeline = StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
    pipeline.set_progress_bar_config(disable=True)
    inputs = {**SHORT, "image": image.resize((64, 64)), "strength": 0.8}
    plain = pipeline(**inputs, generator=seeded()).images
    found = []
    for subjects in (["cat", "dog"], [2, 5]):
        guidance = limelight.AttendAndExcite(thresholds={})
        with limelight.attach(pipeline, subjects=subjects, guidance=guidance) as attached:
            found.append(pipeline(**inputs, generator=seeded()).images)
        assert attached.trace
    assert torch.equal(*found)
    assert float((found[0] - plain).abs().max()) > 1e-4


@pytest.mark.parametrize("form", [pytest.param("wrapped", marks=pytest.mark.slow), "in place"])
def test_a_compiled_unet(tiny_pipeline, form):
    pipeline = tiny_pipeline()
    torch.manual_seed(0)
    pipeline.unet = UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(32,), layers_per_block=1, cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
        mid_block_type=None,
    ).double()  # fmt: skip
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=BRIEFLY) as attached:
        expected, trace = pipeline(**SHORT, generator=seeded()).images, attached.trace
    plain = pipeline(**SHORT, generator=seeded()).images

    if form == "wrapped":
        pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    else:
        pipeline.unet.compile(backend="eager")
    # Compiled before, when no hook was there yet.
    assert torch.allclose(pipeline(**SHORT, generator=seeded()).images, plain)
    with limelight.attach(pipeline, subjects=["cat", "dog"], guidance=BRIEFLY) as attached:
        found = pipeline(**SHORT, generator=seeded()).images
    assert torch.allclose(found, expected)
    assert attached.trace[-1]["loss"] == pytest.approx(trace[-1]["loss"], abs=1e-7)
    assert torch.allclose(pipeline(**SHORT, generator=seeded()).images, plain)
    assert not pipeline.unet._forward_pre_hooks


def test_weights_loaded_in_inference_mode(tiny_pipeline):
    with torch.inference_mode():
        pipeline = tiny_pipeline(dtype=torch.float32)
        pipeline.unet = copy.deepcopy(pipeline.unet)
    with pytest.raises(ModelError, match=r"loaded inside torch\.inference_mode"), limelight.attach(pipeline):
        pass


def test_layerwise_casting(tiny_pipeline):
    """Weights that are kept in float16 and computed with in float32."""
    pipeline = tiny_pipeline(dtype=torch.float32)
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    rounded = tiny_pipeline(dtype=torch.float32)
    rounded.unet.load_state_dict({name: value.float() for name, value in pipeline.unet.state_dict().items()})
    found = []
    for each in (pipeline, rounded):
        with limelight.attach(each, subjects=["cat", "dog"], guidance=WATCHING) as watched:
            each(**SHORT, generator=seeded())
        with limelight.attach(each, subjects=["cat", "dog"], guidance=limelight.AttendAndExcite(resolution=8, until=1)):
            found.append(each(**{**SHORT, "num_inference_steps": 1}, generator=seeded()).images)
        assert watched.trace
    assert float((found[0] - found[1]).abs().max()) < 1e-4
    assert pipeline.unet.conv_in.weight.dtype == torch.float16


def test_examples():
    found = doctest.testmod(import_module("limelight.integrations.attach"))
    assert found.attempted > 0
    assert found.failed == 0


def test_other_threads_may_use_the_denoiser(tiny_pipeline):
    """A plain pipeline of the same parts in another thread is neither steered nor disturbed."""
    pipeline = tiny_pipeline()
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    other.scheduler = copy.deepcopy(pipeline.scheduler)
    other.set_progress_bar_config(disable=True)
    inputs = {**SHORT, "image": torch.zeros(1, 3, 32, 32).double()}

    def meanwhile(*_):
        """Called in the middle of the steered call."""
        images.append(pool.submit(lambda: other(**inputs, generator=seeded()).images).result())
        return {}

    plain, images = other(**inputs, generator=seeded()).images, []
    with limelight.attach(pipeline, guidance=BRIEFLY):
        expected = pipeline(**SHORT, generator=seeded()).images
    with ThreadPoolExecutor(1) as pool, limelight.attach(pipeline, guidance=BRIEFLY) as attached:
        meanwhile()
        steered = pipeline(**SHORT, generator=seeded(), callback_on_step_end=meanwhile).images
    assert torch.equal(steered, expected)
    assert len(images) == 3
    assert all(torch.equal(image, plain) for image in images)
    assert len(attached.trace) == 1


def test_two_threads_cannot_call_an_attached_pipeline_at_once(tiny_pipeline):
    pipeline = tiny_pipeline()

    def overtake(*_):
        if not images:
            images.append(pool.submit(lambda: pipeline(**SHORT, generator=seeded(5)).images).result())
        return {}

    with ThreadPoolExecutor(1) as pool, limelight.attach(pipeline, guidance=BRIEFLY):
        expected, images = pipeline(**SHORT, generator=seeded(5)).images, []
        with pytest.raises(ModelError, match="called by another thread in the middle of this call"):
            pipeline(**SHORT, generator=seeded(), callback_on_step_end=overtake)
        assert torch.equal(images[0], expected)
        assert torch.equal(pipeline(**SHORT, generator=seeded(5)).images, expected), "the next call is served again"
