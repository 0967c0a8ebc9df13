"""What is loaded, what is refused, and what the refusal says."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

import limelight
from limelight import FileError, ModelError, SettingsError
from limelight.integrations.diffusers import StableDiffusionAttendAndExcitePipeline
from tests.tiny import BETAS


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def ldm_folder(tiny_ldm_pipeline, tmp_path) -> Path:
    tiny_ldm_pipeline(dtype=torch.float32).save_pretrained(tmp_path / "ldm")
    return tmp_path / "ldm"


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def without_a_weight(folder: Path, part: str) -> str:
    path = weights(folder, part)
    state = load_file(path)
    name = sorted(state)[3]
    del state[name]
    save_file(state, path, {"format": "pt"})
    return name


def edited(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(source, *words: str) -> None:
    with pytest.raises(ModelError) as error:
        limelight.load(source, device="cpu")
    for word in (*words, str(source) if isinstance(source, Path) else ""):
        assert word in str(error.value), f"{word} in {error.value}"
    assert "\n" not in str(error.value)


# Weights


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_a_missing_weight_is_refused(folder, part):
    name = without_a_weight(folder, part)
    refused(folder, f"The {part} of ", f"lacks weights: {name}.")


@pytest.mark.parametrize("part", ["bert", "unet", "vqvae"])
def test_a_missing_weight_of_latent_diffusion_is_refused(ldm_folder, part):
    name = without_a_weight(ldm_folder, part)
    refused(ldm_folder, f"The {part} of ", f"lacks weights: {name}.")


def test_a_missing_weight_of_xls_second_text_encoder(tiny_xl, tmp_path):
    tiny_xl.to(torch.float32).save_pretrained(tmp_path)
    name = without_a_weight(tmp_path, "text_encoder_2")
    refused(tmp_path, "The text_encoder_2 of ", f"lacks weights: {name}.")


def test_a_weight_that_no_image_depends_on_may_be_missing(ldm_folder):
    path = weights(ldm_folder, "bert")
    save_file({k: v for k, v in load_file(path).items() if "to_logits" not in k}, path, {"format": "pt"})
    assert limelight.load(ldm_folder, device="cpu").prompt("a cat").words


def test_a_text_encoder_of_another_width_is_refused(folder):
    edited(folder / "text_encoder" / "config.json", hidden_size=16)
    refused(folder, "The text_encoder of ", "does not fit its config.json")


def test_an_unfused_lora_is_named(folder):
    path = weights(folder, "unet")
    state = load_file(path)
    for key in [key for key in state if key.endswith("to_q.weight")]:
        stem, value = key.removesuffix("weight"), state.pop(key)
        state[f"{stem}base_layer.weight"] = value
        state[f"{stem}lora_A.default.weight"] = torch.zeros(4, value.shape[1])
    save_file(state, path, {"format": "pt"})
    refused(folder, "unet", "with a LoRA", "`fuse_lora()`")


def test_only_a_variant(folder):
    path = weights(folder, "unet")
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    refused(folder, "its unet is there as the variant 'fp16' alone", "variant='fp16'")


def test_the_way_out_of_only_a_variant(folder):
    for part in ("unet", "vae", "text_encoder"):
        path = weights(folder, part)
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    pipeline = DiffusionPipeline.from_pretrained(str(folder), variant="fp16")
    assert limelight.load(pipeline).default_size == (32, 32)


def test_only_pickles_and_the_way_out(folder, tmp_path):
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "pytorch_model"),
    ):
        path = weights(folder, part)
        torch.save(load_file(path), folder / part / f"{name}.bin")
        path.unlink()
    refused(folder, "its unet is there as diffusion_pytorch_model.bin alone", "`DiffusionPipeline.from_pretrained")
    DiffusionPipeline.from_pretrained(str(folder)).save_pretrained(tmp_path / "new")
    assert limelight.load(tmp_path / "new", device="cpu").default_size == (32, 32)


def test_no_weights(folder):
    weights(folder, "vae").unlink()
    refused(folder, "its vae has no weights")


@pytest.mark.parametrize("name", ["v1-5.safetensors", "V1-5.CKPT"])
def test_a_single_file_is_no_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(f"models/{name}", f"There is no file 'models/{name}'")


# Odd files


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "{"])
def test_an_odd_tokenizer(folder, content):
    (folder / "tokenizer" / "tokenizer.json").write_text(content)
    refused(folder, "cannot be read as a model: its tokenizer: ")


def test_no_sample_size(folder, tiny_pipeline):
    edited(folder / "unet" / "config.json", sample_size=None)
    refused(folder, "`sample_size` in its config.json is None")
    pipeline = tiny_pipeline()
    pipeline.unet.register_to_config(sample_size=None)
    refused(pipeline, "`sample_size` in its config.json is None")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": ["diffusers", "NoScheduler"]}, "its scheduler: "),
        ({"unet": [None, None]}, "without unet"),
        ({"text_encoder": ["os", "system"]}, "its text_encoder: "),
    ],
)
def test_an_odd_index(folder, changes, message):
    edited(folder / "model_index.json", **changes)
    refused(folder, "cannot be read as a model: ", message)


def test_an_index_without_end(folder):
    (folder / "model_index.json").write_text("[" * 100_000)
    refused(folder, "has no readable model_index.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Invalid JSON: EOF"),
        ("[]", "Input should be an object"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        ('{"words": "cat"}', "words: Input should be a valid array"),
        ('{"words": [1]}', "words.0: Input should be a valid string"),
        ('{"attend_and_excite": []}', "attend_and_excite: Input should be an object"),
        ('{"attend_and_excite": {"thresholds": [1]}}', "attend_and_excite.thresholds: Input should be an object"),
        ('{"attend_and_excite": {"thresholds": {"a": 1}}}', "attend_and_excite.thresholds.a"),
        ('{"textual_inversion": 3}', "textual_inversion: Input should be an object"),
        ('{"generate": {"guidance_scale": "x"}}', "generate.guidance_scale: Input should be a valid number"),
        ('{"generate": {"guidance_scale": NaN}}', "generate.guidance_scale: Input should be a finite number"),
    ],
)
def test_an_odd_limelight_json(folder, content, message):
    (folder / "limelight.json").write_text(content)
    with pytest.raises(FileError, match=rf"limelight.json' cannot be read as settings: {message}.*; correct it"):
        limelight.load(folder, device="cpu")


# Families


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionAttendAndExcitePipeline",
        "LatentConsistencyModelPipeline",
        ["my_pipeline", "MyPipeline"],
    ],
)
def test_a_folder_is_what_its_parts_are(folder, name):
    expected = limelight.generate(limelight.load(folder, device="cpu"), "a cat", steps=1).latents
    edited(folder / "model_index.json", _class_name=name)
    model = limelight.load(folder, device="cpu")
    assert type(model.pipeline) is StableDiffusionPipeline
    assert torch.equal(limelight.generate(model, "a cat", steps=1).latents, expected)


class Derived(StableDiffusionPipeline):
    """As users write them."""


@pytest.mark.parametrize("cls", [Derived, StableDiffusionImg2ImgPipeline])
def test_a_live_pipeline_is_what_its_parts_are(tiny_pipeline, cls):
    expected = limelight.generate(limelight.load(tiny_pipeline()), "a cat", steps=1).latents
    found = limelight.generate(limelight.load(tiny_pipeline(cls=cls)), "a cat", steps=1).latents
    assert torch.equal(found, expected)


def test_more_parts_than_a_stable_diffusion_has(tiny_pipeline, tmp_path):
    plain = tiny_pipeline(dtype=torch.float32)
    pipeline = StableDiffusionControlNetPipeline(
        **plain.components,
        controlnet=ControlNetModel.from_unet(plain.unet, conditioning_channels=3),
        requires_safety_checker=False,
    )
    refused(pipeline, "is a StableDiffusionControlNetPipeline", "controlnet", "`limelight.attach`")
    pipeline.save_pretrained(tmp_path)
    refused(tmp_path, "is a StableDiffusionControlNetPipeline", "controlnet", "`limelight.attach`")


# Inputs of the denoiser


def with_unet(pipeline: StableDiffusionPipeline, **changes) -> StableDiffusionPipeline:
    """The pipeline with a UNet of another configuration."""
    torch.manual_seed(3)
    config = {k: v for k, v in pipeline.unet.config.items() if not k.startswith("_")}
    pipeline.unet = UNet2DConditionModel(**{**config, **changes}).to(pipeline.unet.dtype)
    return pipeline


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "reads 9 channels where the autoencoder has 4"),
        ({"num_class_embeds": 10}, "reads class labels"),
        ({"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 32}, "reads images or other embeddings"),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, "reads other additions"),
        ({"attention_type": "gated"}, "reads places of objects"),
    ],
)
def test_inputs_that_cannot_be_given_are_refused(tiny_pipeline, changes, message):
    refused(with_unet(tiny_pipeline(), **changes), message, "`limelight.attach`")


def test_an_ip_adapter_that_comes_later(tiny_pipeline):
    model = limelight.load(tiny_pipeline())
    model.denoiser.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(ModelError, match="an IP-Adapter, for example"):
        limelight.generate(model, "a cat", steps=1)


def test_xls_refiner_is_refused(tiny_xl):
    config = {k: v for k, v in tiny_xl.unet.config.items() if not k.startswith("_")}
    config["projection_class_embeddings_input_dim"] = 5 * 8 + 24
    tiny_xl.unet = UNet2DConditionModel(**config)
    refused(tiny_xl, "reads 64 numbers beside the prompt, not the 72")


def test_an_autoencoder_of_depth(tiny_pipeline):
    pipeline = tiny_pipeline()
    config = {k: v for k, v in pipeline.vae.config.items() if not k.startswith("_")}
    pipeline.vae = AutoencoderKL(**{**config, "out_channels": 6})
    refused(pipeline, "makes no ordinary images: out_channels=6")


def consistency(tiny_pipeline, cls: type = LatentConsistencyModelPipeline):
    pipeline = with_unet(tiny_pipeline(), time_cond_proj_dim=33)
    parts = {name: part for name, part in pipeline.components.items() if name != "scheduler"}
    pipeline = cls(**parts, scheduler=LCMScheduler(**BETAS), requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("cls", [LatentConsistencyModelPipeline, StableDiffusionPipeline])
@pytest.mark.parametrize("guidance_scale", [8.5, 3.0, 1.0])
def test_latent_consistency_equals_diffusers(tiny_pipeline, cls, guidance_scale):
    pipeline = consistency(tiny_pipeline, cls)
    options = {"guidance_scale": guidance_scale, "generator": [torch.Generator().manual_seed(4)]}
    expected = pipeline("a cat", num_inference_steps=4, output_type="latent", **options).images
    result = limelight.generate(limelight.load(pipeline), "a cat", seeds=4, steps=4, guidance_scale=guidance_scale)
    assert torch.allclose(result.latents, expected, atol=1e-8)


def test_guidance_sees_the_scale_of_latent_consistency(tiny_pipeline):
    model, seen = limelight.load(consistency(tiny_pipeline)), []
    model.denoiser.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["timestep_cond"]), with_kwargs=True
    )
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={}, until=1.0)
    limelight.generate(model, "a cat and a dog", guidance=guidance, steps=2, guidance_scale=3.0)
    assert len(seen) == 4
    assert all(torch.equal(one, seen[0]) for one in seen)


def test_latent_consistency_reads_no_negative_prompt(tiny_pipeline):
    with pytest.raises(SettingsError, match="leave out negative='a dog'"):
        limelight.generate(limelight.load(consistency(tiny_pipeline)), "a cat", negative="a dog", steps=1)


def test_latent_consistency_has_no_unconditional_branch_to_learn(tiny_pipeline):
    model = limelight.load(consistency(tiny_pipeline), scheduler="ddim")
    with pytest.raises(SettingsError, match=r"it reads the guidance scale as a number\. Leave out null_text"):
        limelight.invert_image(model, Image.new("RGB", (32, 32)), "a cat", steps=1, null_text=True)


def test_latent_consistency_in_the_drop_in_pipeline(tiny_pipeline):
    """It reads the scale, by default 8.5, and has one branch."""
    parts = consistency(tiny_pipeline).components
    parts = {name: part for name, part in parts.items() if name not in ("image_encoder", "scheduler")}
    pipeline = StableDiffusionAttendAndExcitePipeline(
        **parts, scheduler=DDIMScheduler(**BETAS), requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    pipeline.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    options = {"token_indices": [2], "num_inference_steps": 1, "attn_res": 8, "thresholds": {}}
    pipeline("a cat", **options, output_type="latent")
    scale = limelight.load(pipeline)._embedded(8.5, 1)
    assert seen
    assert all(len(args[0]) == 1 and torch.equal(kwargs["timestep_cond"], scale) for args, kwargs in seen)
    with pytest.raises(SettingsError, match="has no negative prompt; leave out 'a dog'"):
        pipeline("a cat", **options, negative_prompt="a dog")


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_eta_is_always_passed_on(tiny_pipeline, eta):
    """TCD's own default is 0.3."""
    pipeline = tiny_pipeline()
    pipeline.scheduler = TCDScheduler(**BETAS)
    generator = [torch.Generator().manual_seed(2)]
    expected = pipeline("a cat", num_inference_steps=4, eta=eta, generator=generator, output_type="latent").images
    result = limelight.generate(limelight.load(pipeline), "a cat", seeds=2, steps=4, eta=eta)
    assert torch.allclose(result.latents, expected, atol=1e-8)


def test_the_parts_of_an_open_pipeline_are_not_copied(tiny_pipeline):
    pipeline = tiny_pipeline()
    before = copy.copy(pipeline.components)
    model = limelight.load(pipeline)
    assert all(pipeline.components[name] is part for name, part in before.items())
    assert model.denoiser is pipeline.unet


# The model's own guidance scale


def test_the_guidance_scale_is_the_models_own(tiny_pipeline, tiny_xl, tiny_ldm, folder):
    """diffusers' defaults: 7.5, of XL 5, of latent consistency 8.5; 5 is latent diffusion's model card's."""
    found = [limelight.load(one).guidance_scale for one in (tiny_pipeline(), tiny_xl, consistency(tiny_pipeline))]
    assert [*found, tiny_ldm.guidance_scale] == [7.5, 5.0, 8.5, 5.0]
    (folder / "limelight.json").write_text('{"generate": {"guidance_scale": 3}}')
    assert limelight.load(folder, device="cpu").guidance_scale == 3.0


def test_the_recorded_guidance_scale_is_the_one_that_was_used(tiny_xl):
    model = limelight.load(tiny_xl)
    own, named = (limelight.generate(model, "a cat", steps=1, **options) for options in ({}, {"guidance_scale": 5.0}))
    assert own.settings["guidance_scale"] == 5.0
    assert torch.equal(own.latents, named.latents)
    edited = limelight.edit(model, "a cat", "a dog", steps=1)
    assert edited.target.settings["guidance_scale"] == 5.0


def test_a_folder_that_names_words_keeps_its_familys_settings(tiny_xl, tmp_path):
    tiny_xl.to(torch.float32).save_pretrained(tmp_path)
    (tmp_path / "limelight.json").write_text('{"words": ["cat"]}')
    model = limelight.load(tmp_path, device="cpu")
    assert model.guidance_scale == 5.0
    assert limelight.AttendAndExcite.suited(model).scale == 30.0
