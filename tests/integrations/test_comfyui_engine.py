"""The nodes in ComfyUI itself, on tiny weights; skipped unless the variable COMFYUI names the folder of ComfyUI.

Its Python packages must be there, too (einops, torchsde, comfy-kitchen and what else its requirements.txt lists).
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

import limelight
from limelight import ModelError, SettingsError
from limelight.attention.probe import Probe
from limelight.integrations.comfyui import nodes
from tests.tiny import POCKET, attentive, tiny_unet

FOLDER = os.environ.get("COMFYUI")
if not FOLDER:
    pytest.skip("COMFYUI does not name the folder of ComfyUI", allow_module_level=True)
if not (Path(FOLDER) / "comfy").is_dir():
    raise FileNotFoundError(f"COMFYUI is '{FOLDER}', where there is no ComfyUI")
sys.path.append(FOLDER)  # last: it has a folder 'tests', too

cli_args = pytest.importorskip("comfy.cli_args")
cli_args.args.cpu = True
from comfy import model_base, model_patcher, samplers, sd, sd1_clip, supported_models, utils  # noqa: E402
from comfy.supported_models_base import ClipTarget  # noqa: E402

PROMPT, STEPS = "a cat and a dog", 4
GUIDANCE = limelight.AttendAndExcite(thresholds={0: 0.4, 2: 0.65}, max_refinements=4)
ROUNDING = 1e-3
"""Of latents up to 40 in float32, in which ComfyUI computes."""


def denoiser() -> UNet2DConditionModel:
    """ComfyUI's norms have 32 groups, so no layer is narrower."""
    torch.manual_seed(0)
    return attentive(tiny_unet((32, 32, 64), groups=32))


def loaded(unet: UNet2DConditionModel) -> model_patcher.ModelPatcher:
    """The same denoiser as ComfyUI's MODEL."""
    shape = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1, 1],
        "channel_mult": [1, 1, 2], "transformer_depth": [1, 1, 0], "transformer_depth_output": [1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1, "context_dim": 32, "use_spatial_transformer": True, "legacy": False,
        "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
        "dtype": torch.float32,
    }  # fmt: skip
    config = supported_models.SD15(shape)
    config.unet_config["num_heads"] = 2
    model, names = model_base.BaseModel(config), utils.unet_to_diffusers(shape)
    model.diffusion_model.load_state_dict({names[key]: value for key, value in unet.state_dict().items()})
    return model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def text_encoder(encoder, tokenizer) -> sd.CLIP:
    """The same text encoder as ComfyUI's CLIP."""
    special = dict(zip(("start", "end"), tokenizer("")["input_ids"], strict=False))
    options = {
        "textmodel_json_config": encoder.config.to_dict(),
        "special_tokens": {**special, "pad": special["end"]},
        "return_projected_pooled": False,
    }
    words = partial(sd1_clip.SDTokenizer, tokenizer_path=str(POCKET / "tokenizer"), embedding_size=32)
    target = ClipTarget(
        partial(sd1_clip.SD1Tokenizer, tokenizer=words),
        partial(sd1_clip.SD1ClipModel, clip_model=partial(sd1_clip.SDClipModel, **options)),
    )
    clip = sd.CLIP(target, model_options={"dtype": torch.float32})
    own = clip.cond_stage_model.clip_l
    own.transformer.set_input_embeddings(own.operations.Embedding(*encoder.get_input_embeddings().weight.shape))
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()}
    missing, _ = own.transformer.load_state_dict(weights, strict=False)
    assert missing == ["text_projection.weight"]
    return clip


class World:
    """A model in ComfyUI, and the same one in limelight."""

    def __init__(self, pipeline) -> None:
        pipeline.unet = denoiser()
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        self.limelight = limelight.load(pipeline)
        self.noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        scheduler.set_timesteps(STEPS)
        self.sigmas, self.start = scheduler.sigmas, scheduler.init_noise_sigma
        with torch.inference_mode():  # as ComfyUI loads and runs everything
            self.model = loaded(pipeline.unet)
            self.clip = text_encoder(pipeline.text_encoder, pipeline.tokenizer)

    @torch.inference_mode()
    def encoded(self, text):
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    @torch.inference_mode()
    def sample(self, model, positive, *, sampler="euler"):
        noise = self.noise * self.start / (1 + self.sigmas[0] ** 2) ** 0.5  # what ComfyUI multiplies it by
        found = samplers.sample(
            model, noise, positive, self.encoded(""), 7.5, torch.device("cpu"), samplers.sampler_object(sampler),
            self.sigmas, latent_image=torch.zeros_like(noise), disable_pbar=True, seed=0,
        )  # fmt: skip
        return found * self.model.model.latent_format.scale_factor

    @torch.inference_mode()
    def guided(self, **options):
        given = {"prompt": PROMPT, "words": "cat, dog", "method": "conform", **options}
        return nodes.LimelightGuidance().guide(self.model, self.clip, **given)


@pytest.fixture
def world(tiny_pipeline) -> World:
    with torch.inference_mode(False):
        return World(tiny_pipeline(dtype=torch.float32))


def wanted(world, **options):
    return limelight.generate(world.limelight, PROMPT, latents=world.noise, steps=STEPS, **options)


def test_comfyui_generates_what_limelight_generates(world):
    found = world.sample(world.model, world.encoded(PROMPT))
    assert float((found - wanted(world, subjects=()).latents).abs().max()) < ROUNDING


@pytest.mark.parametrize("method", ["attend-and-excite", "conform", "self-cross"])
def test_guidance_moves_the_latents_as_limelight_does(world, monkeypatch, method):
    chosen = GUIDANCE if method == "attend-and-excite" else limelight.preset(method, world.limelight)
    monkeypatch.setattr(nodes, "preset", lambda name, model: chosen)
    patched, positive = world.guided(method=method)
    found, run = world.sample(patched, positive), wanted(world, subjects=["cat", "dog"], guidance=chosen)
    assert float((found - run.latents).abs().max()) < ROUNDING
    assert float((found - world.sample(world.model, positive)).abs().max()) > 5 * ROUNDING

    trace = patched.model_options["sampler_calc_cond_batch_function"].__self__.trace
    for own, row in zip(trace, run.trace, strict=True):
        assert own["loss"] == pytest.approx(row["loss"], abs=1e-5)


def test_maps_are_limelights_own(world):
    """Of the same latents with the same noise, read by limelight's own UNet."""
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        latent = {"samples": image / world.model.model.latent_format.scale_factor}
        maps, masks = nodes.LimelightMaps().read(world.model, world.clip, latent, PROMPT, "dog, cat", STEPS, 7, 0.3)
    assert (tuple(maps.shape), tuple(masks.shape)) == ((2, 128, 128, 3), (2, 128, 128))

    own, generator = world.limelight.for_one_run(), torch.Generator().manual_seed(7)
    conditioning, mean = own.encode([own.prompt(PROMPT)]), 0
    for timestep, sigma in zip(own.timesteps(STEPS), world.sigmas, strict=False):
        own = world.limelight.for_one_run()
        own.timesteps(STEPS)
        with torch.no_grad(), Probe(own, own.guided_sites) as probe:
            own.predict(image + sigma * torch.randn(image.shape, generator=generator), timestep, conditioning)
            seen = probe.take(image, conditioning.prompts)
        mean = mean + torch.stack([seen.map(word, (128, 128)) for word in ("dog", "cat")])[:, 0] / STEPS
    assert float((maps[..., 0] - mean / mean.max()).abs().max()) < ROUNDING


def test_the_model_is_as_it_was(world):
    before = world.sample(world.model, world.encoded(PROMPT))
    patched, positive = world.guided()
    world.sample(patched, positive)
    assert torch.equal(world.sample(world.model, world.encoded(PROMPT)), before)


def test_what_cannot_be_guided_is_refused_when_the_sampler_runs(world):
    patched, positive = world.guided()
    with pytest.raises(SettingsError, match="cannot guide the sampler 'sample_heun'"):
        world.sample(patched, positive, sampler="heun")
    with pytest.raises(ModelError, match="several prompts"):
        world.sample(patched, [*positive, *positive])

    world.model.set_model_attn2_replace(lambda q, k, v, extra: q, "input", 1, 0)
    patched, positive = world.guided()
    with pytest.raises(ModelError, match="Another node has replaced"):
        world.sample(patched, positive)


def test_every_sampler_that_the_node_takes(world, monkeypatch):
    monkeypatch.setattr(nodes, "preset", lambda name, model: GUIDANCE)
    patched, positive = world.guided()
    for sampler in {*nodes.SAMPLERS, "ddim"} - {"euler"}:
        moved = world.sample(patched, positive, sampler=sampler)
        assert moved.isfinite().all()
        assert float((moved - world.sample(world.model, positive, sampler=sampler)).abs().max()) > 3 * ROUNDING
