"""Checkpoints in a single file."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import limelight
from limelight import ModelError, SettingsError
from limelight.models import single_file
from limelight.models.single_file import clip_pieces
from tests.models.original import original
from tests.tiny import BETAS, text_config

SHIPPED = Path(limelight.__file__).parent / "data" / "checkpoints"


@pytest.fixture
def pipeline(tiny_pipeline):
    return tiny_pipeline("pndm", torch.float32)


@pytest.fixture
def folder(pipeline, tmp_path) -> Path:
    pipeline.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def kept(state: dict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def refused(path: Path, *words: str, config: Path | None = None) -> None:
    with pytest.raises(ModelError) as error:
        limelight.load(path, device="cpu", config=config)
    for word in (*words, path.name):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# What is loaded equals the folder


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_file_equals_its_folder(pipeline, folder, tmp_path, name):
    state = original(pipeline)
    path = kept(state if "safetensors" in name else {"state_dict": state, "global_step": 3}, tmp_path / name)
    expected, found = limelight.load(folder, device="cpu"), limelight.load(path, device="cpu", config=folder)
    assert found.name == str(path)
    assert type(found.scheduler) is type(expected.scheduler)
    first, second = (limelight.generate(model, "a cat", steps=2) for model in (expected, found))
    assert torch.allclose(first.latents, second.latents, atol=1e-6)
    assert first.images[0].tobytes() == second.images[0].tobytes()


@pytest.fixture
def xl(tokenizer, tiny_xl) -> StableDiffusionXLPipeline:
    """Its second encoder has another width and at least ten layers: by these diffusers knows it."""
    torch.manual_seed(2)
    config = CLIPTextConfig(
        **{**text_config(tokenizer, projection_dim=24).to_dict(), "num_hidden_layers": 10, "hidden_size": 24}
    )
    tiny_xl.text_encoder_2 = CLIPTextModelWithProjection(config)
    unet = {k: v for k, v in tiny_xl.unet.config.items() if not k.startswith("_")}
    tiny_xl.unet = UNet2DConditionModel(**{**unet, "cross_attention_dim": 32 + 24})
    return tiny_xl.to(torch.float32)


def test_a_file_of_xl_equals_its_folder(xl, tmp_path):
    xl.save_pretrained(tmp_path / "folder")
    path = kept(original(xl), tmp_path / "xl.safetensors")
    models = (
        limelight.load(tmp_path / "folder", device="cpu"),
        limelight.load(path, device="cpu", config=tmp_path / "folder"),
    )
    first, second = (limelight.generate(model, "a cat", steps=1).latents for model in models)
    assert torch.allclose(first, second, atol=1e-6)


def test_a_checkpoint_of_the_authors_trainer(pipeline, folder, tmp_path, monkeypatch):
    """Theirs hold an object of pytorch_lightning and numbers of numpy, which are passed over."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    packages = [".".join(name.split(".")[:depth]) for depth in (1, 2, 3)]
    for package in packages:
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    sys.modules[name].ModelCheckpoint = callback
    number = torch.ones(1, dtype=torch.float64).numpy()[0]
    held = {"state_dict": original(pipeline), "callbacks": {callback: {"best": number}, "own": callback()}}
    path = kept(held, tmp_path / "sd.ckpt")
    for package in packages:
        monkeypatch.delitem(sys.modules, package)
    assert limelight.load(path, device="cpu", config=folder).default_size == (32, 32)


def test_other_objects_are_not_read(pipeline, folder, tmp_path):
    refused(
        kept({"state_dict": original(pipeline), "x": Path("x")}, tmp_path / "sd.ckpt"),
        "has a weight file that holds more than weights",
        config=folder,
    )


# The package's own settings


def test_without_a_folder(pipeline, tmp_path, monkeypatch):
    """Tiny settings in place of those of 1.x, with CLIP's tokenizer."""
    wide = {**text_config(pipeline.tokenizer).to_dict(), "vocab_size": 49408, "hidden_size": 32}
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(**wide))
    pipeline.save_pretrained(tmp_path / "data" / "sd-1")
    shutil.rmtree(tmp_path / "data" / "sd-1" / "tokenizer")
    shutil.copy(SHIPPED / "clip_merges.txt.gz", tmp_path / "data")
    monkeypatch.setattr(single_file, "_DATA", tmp_path / "data")
    path = kept(original(pipeline), tmp_path / "own.safetensors")
    model = limelight.load(path, device="cpu")
    assert model.prompt("a photo of a cat").ids[:7] == (49406, 320, 1125, 539, 320, 2368, 49407)

    (tmp_path / "own.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert limelight.load(path, device="cpu").scheduler.config.prediction_type == "v_prediction"


PARAMETERS = {  # in the models' own papers and repositories
    "sd-1": (859_520_964, 83_653_863, 123_060_480),
    "sd-2": (865_910_724, 83_653_863, 340_387_840),
    "sd-xl": (2_567_463_684, 83_653_863, 123_060_480),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_the_shipped_settings_are_of_the_right_size(kind):
    with torch.device("meta"):
        parts = [
            *(cls.from_config(cls.load_config(SHIPPED / kind, subfolder=part)) for cls, part in MODULES),
            CLIPTextModel(CLIPTextConfig.from_pretrained(SHIPPED / kind, subfolder="text_encoder")),
        ]
        if kind == "sd-xl":
            config = CLIPTextConfig.from_pretrained(SHIPPED / kind, subfolder="text_encoder_2")
            assert size(CLIPTextModelWithProjection(config)) == 694_659_840
    assert tuple(map(size, parts)) == PARAMETERS[kind]


MODULES = ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("kind", PARAMETERS)
def test_the_shipped_settings_name_their_parts(kind):
    index = json.loads((SHIPPED / kind / "model_index.json").read_text())
    for part, (_, cls) in ((part, value) for part, value in index.items() if isinstance(value, list)):
        for file in (SHIPPED / kind / part).glob("*.json"):
            held = json.loads(file.read_text())
            assert cls == held.get("_class_name", held.get("architectures", [None])[0])


def test_clips_tokenizer():
    """Numbers of https://github.com/openai/CLIP."""
    vocabulary, merges = clip_pieces()
    assert (len(vocabulary), len(merges)) == (49408, 48894)
    tokenizer = CLIPTokenizer(vocabulary, merges)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello World!").input_ids == [49406, 3306, 1002, 256, 49407]


# What the denoiser predicts


@pytest.mark.parametrize(("share", "noise"), [(0.998, True), (0.068, False)])
def test_the_trial_of_what_is_predicted(share, noise, pipeline):
    """A denoiser at the last step: its answer is the noise, or the velocity, whose share of the noise is small."""
    image = torch.randn(1, 4, 32, 32)

    def unet(latents, _step, _states):
        return SimpleNamespace(sample=share * latents - (1 - share**2) ** 0.5 * image)

    unet.config, unet.dtype = pipeline.unet.config, torch.float32
    parts = {"tokenizer": pipeline.tokenizer, "text_encoder": pipeline.text_encoder, "scheduler": pipeline.scheduler}
    assert single_file._predicts_noise(SimpleNamespace(unet=unet, **parts)) == noise


@pytest.mark.parametrize("noise", [True, False])
def test_a_model_of_2(noise, pipeline, monkeypatch):
    pipeline.scheduler = DDIMScheduler(**BETAS, prediction_type="v_prediction")
    monkeypatch.setattr(single_file, "_predicts_noise", lambda _: noise)
    single_file._set_scheduler(pipeline, Path("x.safetensors"), {})
    found = pipeline.scheduler.config.prediction_type, pipeline.unet.config.sample_size
    assert found == (("epsilon", 64) if noise else ("v_prediction", 16))


def test_marks_of_xls_trainers(pipeline):
    pipeline.scheduler = EulerDiscreteScheduler(**BETAS)
    single_file._set_scheduler(pipeline, Path("x.safetensors"), {"v_pred": None, "ztsnr": None})
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)


# What is refused

V = torch.zeros(2, 32)


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("a.safetensors", {"lora_unet_down_blocks_0.lora_down.weight": V}, "is a LoRA, which changes"),
        ("a.safetensors", {"unet.down_blocks.0.attn1.to_q.lora_A.weight": V}, "is a LoRA, which changes"),
        ("a.ckpt", {"string_to_token": {"*": 265}, "string_to_param": {"*": V}}, "is a learned word (an embedding)"),
        ("a.safetensors", {"<cat>": V}, "is a learned word (an embedding)"),
        ("a.safetensors", {"clip_l": V, "clip_g": V + 1}, "is a learned word (an embedding)"),
        (
            "a.safetensors",
            {"encoder.conv_in.weight": V, "decoder.conv_in.weight": V + 1},
            "is an autoencoder (VAE) alone",
        ),
        ("a.safetensors", {"first_stage_model.x": V, "b": V + 1}, "has no denoiser and no text encoder"),
        ("a.safetensors", {"model.diffusion_model.x": V, "b": V + 1}, "has no text encoder and no autoencoder"),
        ("a.safetensors", {"control_model.time_embed.0.weight": V, "b": V + 1}, "is a ControlNet alone"),
        ("a.safetensors", {"joint_blocks.37.x_block.mlp.fc1.weight": V, "b": V + 1}, "diffusers calls 'sd35_large'"),
        ("a.safetensors", {"a": V, "b": V + 1}, "is no checkpoint of Stable Diffusion: it holds 'a', 'b'."),
        ("a.ckpt", [V], "holds no weights by name, but a list"),
        ("a.ckpt", {}, "it holds nothing"),
    ],
)
def test_another_kind_of_file(tmp_path, name, state, words):
    refused(kept(state, tmp_path / name), words)


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_an_odd_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


@pytest.mark.parametrize("part", ["model.diffusion_model.middle", "first_stage_model.decoder", "cond_stage_model.tr"])
def test_a_missing_weight(pipeline, folder, tmp_path, part):
    state = original(pipeline)
    del state[next(key for key in sorted(state) if key.startswith(part))]
    refused(kept(state, tmp_path / "a.safetensors"), "lacks weights", config=folder)


def test_a_denoiser_that_reads_more(pipeline, folder, tmp_path):
    state = original(pipeline) | {"model.diffusion_model.time_embed.cond_proj.weight": V}
    refused(kept(state, tmp_path / "a.safetensors"), "it reads something else, too", config=folder)


def test_another_size_than_the_settings(pipeline, tmp_path):
    path = kept(original(pipeline), tmp_path / "a.safetensors")
    refused(path, "does not fit the settings of 'StableDiffusionPipeline'", "config=folder")


def test_a_folder_of_settings_is_for_a_single_file(folder, tmp_path):
    with pytest.raises(SettingsError, match=r"config='x' is for a checkpoint in a single file\. Leave it out\."):
        limelight.load(folder, config="x")
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        limelight.load(tmp_path / "a.safetensors", config=tmp_path)
