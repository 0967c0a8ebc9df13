from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from PIL import Image

import limelight
from limelight import ModelError, SettingsError
from limelight.models.blueprint import blueprint
from limelight.models.embedded import EMBEDDED
from limelight.models.schedulers import SCHEDULERS
from limelight.models.stable_diffusion import StableDiffusion
from limelight.models.unet import guided_scale, unet_sites
from limelight.validate.context import Settings
from tests.tiny import BETAS

STABLE_DIFFUSION_1 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
STABLE_DIFFUSION_2 = {**STABLE_DIFFUSION_1, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}


@pytest.mark.parametrize("config", [STABLE_DIFFUSION_1, STABLE_DIFFUSION_2], ids=["1.x", "2.x"])
def test_the_layers_of_the_real_configurations(config):
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **config)
    layers = unet_sites(unet)
    cross = [layer for layer in layers if layer.kind == "cross"]
    assert len(cross) == 16
    assert len(layers) == 32
    guided = [layer for layer in cross if layer.scale == guided_scale(layers, 64)]
    assert [layer.size((64, 64)) for layer in guided] == [(16, 16)] * 5
    assert [layer.name.split(".attentions")[0] for layer in guided] == ["down_blocks.2"] * 2 + ["up_blocks.1"] * 3


def test_the_layers_of_the_real_xl():
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
        )
    layers = unet_sites(unet)
    cross = [layer for layer in layers if layer.kind == "cross"]
    assert len(cross) == 70
    guided = [layer for layer in cross if layer.scale == guided_scale(layers, 128)]
    assert {layer.size((128, 128)) for layer in guided} == {(32, 32)}


def test_settings_of_xl(tiny_xl):
    """The family has settings of its own, and maps of 32 x 32 at 1024 pixels; other families have the paper's."""
    model = limelight.load(tiny_xl)
    assert limelight.AttendAndExcite.suited(model) == limelight.AttendAndExcite(scale=30.0)
    assert limelight.AttendAndExcite.suited(model, scale=5.0) == limelight.AttendAndExcite(scale=5.0)
    fast = limelight.AttendAndExcite.fast(model)
    assert fast == limelight.AttendAndExcite.fast(scale=30.0)
    result = limelight.generate(model, "a cat and a dog", guidance=fast, steps=5)
    assert [row["step"] for row in result.trace] == [0]


def test_settings_of_a_folder_come_before_the_familys(tiny_xl, tmp_path):
    tiny_xl.to(torch.float32).save_pretrained(tmp_path / "model")
    assert limelight.AttendAndExcite.suited(limelight.load(tmp_path / "model", device="cpu")).scale == 30.0
    (tmp_path / "model" / "limelight.json").write_text('{"attend_and_excite": {"scale": 7.0}}')
    assert limelight.AttendAndExcite.suited(limelight.load(tmp_path / "model", device="cpu")).scale == 7.0


def test_settings_of_training_under_their_earlier_name(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    for name in ("inversion", "textual_inversion"):
        (tmp_path / "limelight.json").write_text(json.dumps({name: {"steps": 7}}))
        assert limelight.load(tmp_path, device="cpu").about.preset("textual_inversion") == {"steps": 7}


@pytest.mark.parametrize(("relative", "rule"), [(True, {"step_rule": "relative"}), (False, {})])
def test_settings_of_guidance_under_their_earlier_name(tiny_folder, tmp_path, relative, rule):
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    settings = {"relative": relative, "scale": 0.25}
    (tmp_path / "limelight.json").write_text(json.dumps({"guidance": settings}))
    model = limelight.load(tmp_path, device="cpu")
    assert model.about.preset("guidance") == {**rule, "scale": 0.25}
    guidance = limelight.preset("conform", model)
    assert (guidance.step_rule, guidance.scale) == (rule.get("step_rule", limelight.Guidance.step_rule), 0.25)


def test_guidance_on_xl(tiny_xl):
    model = limelight.load(tiny_xl)
    guidance = limelight.AttendAndExcite(thresholds={}, until=1.0)
    losses = []
    for scale in (0.0, 20.0):
        result = limelight.generate(
            model, "a cat and a dog", guidance=dataclasses.replace(guidance, scale=scale), steps=4
        )
        losses.append([row["loss"][0] for row in result.trace])
    assert losses[0][0] == losses[1][0]
    assert sum(losses[1]) < sum(losses[0])
    assert result.maps["cat"].shape == (1, 8, 8)


def test_execution_order_is_the_modules_own(tiny):
    order = []
    handles = [
        tiny.denoiser.get_submodule(layer.name).register_forward_hook(lambda m, i, o, n=layer.name: order.append(n))
        for layer in tiny.sites
    ]
    with torch.no_grad():
        tiny.predict(torch.zeros(1, 4, 16, 16).double(), torch.tensor(1), tiny.encode([tiny.prompt("a")]))
    for handle in handles:
        handle.remove()
    assert order == [layer.name for layer in tiny.sites]


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        LMSDiscreteScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        HeunDiscreteScheduler,
    ],
)
def test_schedulers(tiny_pipeline, scheduler):
    pipeline = tiny_pipeline()
    pipeline.scheduler = scheduler(**BETAS)
    expected = pipeline(
        "a cat", num_inference_steps=4, generator=[torch.Generator().manual_seed(2)], output_type="latent"
    )
    result = limelight.generate(limelight.load(pipeline), "a cat", steps=4, seeds=2)
    assert torch.allclose(result.latents, expected.images, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "heun"])
def test_guidance_with_every_named_scheduler(tiny_pipeline, name):
    """The guidance pass sees what the ordinary pass of the same step would: latents as the scheduler scales them."""
    model = limelight.load(tiny_pipeline(), scheduler=name)
    seen = []
    handle = model.denoiser.register_forward_pre_hook(lambda m, inputs: seen.append((inputs[0], inputs[1])))
    options = {"guidance": limelight.AttendAndExcite(resolution=8, scale=0, thresholds={}, until=1.0), "steps": 4}
    watched = limelight.generate(model, "a cat and a dog", guidance_scale=1.0, **options)
    handle.remove()
    pairs = list(zip(seen[::2], seen[1::2], strict=False))
    assert len(pairs) >= 4
    for (guided, at), (ordinary, then) in pairs[:4]:
        assert torch.equal(guided.detach(), ordinary)
        assert at == then
    options["guidance"] = dataclasses.replace(options["guidance"], scale=20.0)
    steered = limelight.generate(model, "a cat and a dog", guidance_scale=1.0, **options)
    losses = [sum(row["loss"][0] for row in result.trace) for result in (steered, watched)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("switch", ["slicing", "tiling"])
def test_the_autoencoder_may_be_sliced_or_tiled(tiny_pipeline, switch):
    pipeline = tiny_pipeline()
    model = limelight.load(pipeline)
    whole = limelight.generate(model, "a cat", seeds=[0, 1], steps=1).images
    getattr(pipeline.vae, f"enable_{switch}")()
    parts = limelight.generate(model, "a cat", seeds=[0, 1], steps=1).images
    for a, b in zip(whole, parts, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


@pytest.mark.gpu
def test_offloaded_to_the_cpu(tiny_pipeline):
    expected, pipeline = limelight.load(tiny_pipeline(), device="cuda"), tiny_pipeline()
    pipeline.enable_model_cpu_offload()
    options = {"guidance": limelight.AttendAndExcite(resolution=8), "steps": 3}
    results = [limelight.generate(m, "a cat and a dog", **options) for m in (expected, limelight.load(pipeline))]
    assert torch.allclose(results[0].latents, results[1].latents, atol=1e-8)


def test_velocity_prediction(tiny_pipeline):
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False)
    expected = pipeline(
        "a cat", num_inference_steps=4, generator=torch.Generator().manual_seed(2), output_type="latent"
    )
    result = limelight.generate(limelight.load(pipeline), "a cat", steps=4, seeds=2)
    assert torch.allclose(result.latents, expected.images, atol=1e-8)


def test_the_callers_pipeline_is_left_alone(tiny_pipeline):
    pipeline = tiny_pipeline("pndm")
    model = limelight.load(pipeline)
    before = dict(vars(pipeline.scheduler))
    limelight.generate(
        model, "a cat and a dog", guidance=limelight.AttendAndExcite(resolution=8, max_refinements=2), steps=3
    )
    assert {k: v for k, v in vars(pipeline.scheduler).items() if k != "timesteps"} == {
        k: v for k, v in before.items() if k != "timesteps"
    }
    assert next(iter(pipeline.unet.parameters())).dtype == torch.float64, "neither moved nor cast"


def test_a_folder(tiny_pipeline, tmp_path):
    pipeline = tiny_pipeline(dtype=torch.float32)
    pipeline.save_pretrained(tmp_path / "model")
    from_folder = limelight.generate(limelight.load(tmp_path / "model", device="cpu"), "a cat", steps=2)
    live = limelight.generate(limelight.load(pipeline), "a cat", steps=2)
    assert torch.equal(from_folder.latents, live.latents)


def test_pocket_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert limelight.load(device="cpu").name == "pocket"


def test_pocket_is_an_ordinary_diffusers_folder(pocket):
    from tests.conftest import POCKET

    pipeline = StableDiffusionPipeline.from_pretrained(POCKET)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) < 40e6
    assert pocket.default_size == (128, 128)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "'no/such/folder' is neither a folder, a checkpoint (.safetensors, .ckpt) nor a hub id"),
        ("./missing", "'./missing' is neither a folder, a checkpoint (.safetensors, .ckpt) nor a hub id"),
        ("nobody", "'nobody' is neither a folder, a checkpoint (.safetensors, .ckpt) nor a hub id (owner/name);"),
    ],
)
def test_what_is_not_there(source, message):
    with pytest.raises(ModelError) as error:
        limelight.load(source)
    assert message in str(error.value)


def test_the_embedded_transformer_is_an_ordinary_diffusers_folder():
    model = limelight.load("pocket-dit", device="cpu")
    pipeline = StableDiffusion3Pipeline.from_pretrained(EMBEDDED["pocket-dit"], dtype=torch.float32)
    assert (model.name, type(model).__name__, model.default_size) == ("pocket-dit", "StableDiffusion3", (128, 128))
    ours = limelight.generate(model, "a cat", seeds=0, steps=3).latents
    theirs = pipeline(
        "a cat",
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **model.own_options(model.guidance_scale, ""),
    ).images
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert set(Settings(source="pocket-dit").measured_by.values()) == {"pocket"}


def test_the_large_variant_shares_all_but_the_autoencoder(pocket):
    large = limelight.load("pocket-256", device="cpu")
    assert (large.name, large.default_size, large.about) == ("pocket-256", (256, 256), pocket.about)
    assert blueprint("pocket-256").default_size == (256, 256)
    small, wide = (limelight.generate(model, "a cat and a dog", seeds=0, steps=4) for model in (pocket, large))
    assert torch.equal(small.latents, wide.latents)
    halved = wide.images[0].resize((128, 128), Image.Resampling.BOX)
    away = np.abs(np.asarray(halved, dtype=float) - np.asarray(small.images[0], dtype=float)).mean()
    assert away < 4, "the same picture"
    # What is read from an image is the same at both sizes, too.
    (one, spread), (two, other) = pocket.posterior([halved]), large.posterior(wide.images)
    assert (one - two).square().mean().sqrt() < 0.05 * one.std()
    assert torch.allclose(spread, other, rtol=0.5)


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'CompVis/stable-diffusion-v1-4' cannot be fetched from the hub; check"):
        limelight.load("CompVis/stable-diffusion-v1-4")


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(ModelError, match="is not a model folder"):
        limelight.load(tmp_path)
    for content in ("{", "{}", "[]"):
        (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ModelError, match="is not a model folder"):
            limelight.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(
        ModelError, match="is a KandinskyPipeline, which is not supported; supported: StableDiffusionPipeline, Stable"
    ):
        limelight.load(tmp_path)
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]})
    )
    with pytest.raises(ModelError, match="cannot be read as a model"):
        limelight.load(tmp_path)


@pytest.mark.parametrize(
    ("pipeline", "why"),
    [
        ("GlmImagePipeline", "reads the quoted text of a prompt alone"),
        ("KandinskyV22Pipeline", "reads the embedding of an image and no words"),
        ("ErnieImagePipeline", "a language model rewrites the prompt"),
        ("LongCatImagePipeline", "a language model rewrites the prompt"),
    ],
)
def test_families_whose_words_cannot_be_read_are_refused_with_the_reason(tmp_path, pipeline, why):
    assert hasattr(diffusers, pipeline)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    with pytest.raises(ModelError, match=f"is a {pipeline}, which is not supported: .*{why}"):
        limelight.load(tmp_path)
    foreign = type(pipeline, (), {})()
    with (
        pytest.raises(ModelError, match=rf"'{pipeline}' cannot be steered by attach\(\): .*{why}"),
        limelight.attach(foreign, subjects=["cat"]),
    ):
        pass


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_torn_weight_file(tiny_folder, tmp_path, part):
    shutil.copytree(tiny_folder, tmp_path / "model")
    weights = next((tmp_path / "model" / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read as a model"):
        limelight.load(tmp_path / "model")


def test_a_folder_without_its_tokenizer(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "tokenizer")
    with pytest.raises(ModelError):
        limelight.load(tmp_path / "model")


@pytest.mark.parametrize("device", ["toaster", "xpu", "meta", "cuda:99"])
def test_devices_that_are_not_there(tiny_pipeline, device):
    with pytest.raises(SettingsError, match=f"Unknown device '{device}'|'{device}' is not there"):
        limelight.load("pocket", device=device)
    with pytest.raises(SettingsError, match=f"Unknown device '{device}'|'{device}' is not there"):
        limelight.load(tiny_pipeline(), device=device)


def test_seeds_may_be_numpys(tiny):
    several = limelight.generate(tiny, "a cat", steps=1, seeds=np.arange(2))
    single = limelight.generate(tiny, "a cat", steps=1, seeds=np.int64(1))
    assert torch.allclose(several.latents[1], single.latents[0], atol=1e-10)


def test_guidance_refuses_a_scheduler_of_second_order(tiny_pipeline):
    pipeline = tiny_pipeline()
    pipeline.scheduler = HeunDiscreteScheduler(**BETAS)
    model = limelight.load(pipeline)
    with pytest.raises(SettingsError, match="HeunDiscreteScheduler evaluates the denoiser twice a step"):
        limelight.generate(model, "a cat and a dog", steps=2, guidance=limelight.AttendAndExcite(resolution=8))


def test_a_pipeline_of_another_family():
    pipeline = DDIMPipeline(UNet2DModel(sample_size=8, block_out_channels=(32, 32, 32, 32)), DDIMScheduler())
    with pytest.raises(ModelError, match="is a DDIMPipeline, which is not supported"):
        limelight.load(pipeline)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 33}, "size 33x32 does not fit this model; both sides must be multiples of 2"),
        ({"steps": 0}, "steps=0 must be a whole number from 1"),
        ({"seeds": []}, "seeds is empty"),
        ({"latents": torch.zeros(1, 4, 3, 3)}, r"latents of shape \[1, 4, 3, 3\] do not fit 1 images at 32x32"),
    ],
)
def test_bad_settings(tiny, options, message):
    with pytest.raises(SettingsError, match=message):
        limelight.generate(tiny, "a cat", **options)


def test_a_denoiser_that_reads_no_prompt(tiny):
    pipeline = copy.copy(tiny.pipeline)
    pipeline.unet = UNet2DModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    with pytest.raises(ModelError, match="The denoiser of 'pixels' does not read a prompt"):
        StableDiffusion(pipeline, "pixels")


def test_an_incomplete_tokenizer_is_named_with_its_model(tiny):
    pipeline = copy.copy(tiny.pipeline)
    pipeline.text_encoder = copy.deepcopy(tiny.pipeline.text_encoder)
    pipeline.text_encoder.config.vocab_size = len(tiny.pipeline.tokenizer) + 7
    with pytest.raises(ModelError, match="The tokenizer of 'short' knows"):
        StableDiffusion(pipeline, "short")
