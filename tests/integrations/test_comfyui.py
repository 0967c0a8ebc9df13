"""The nodes for ComfyUI, in a small stand-in for it (`tests.integrations.comfy`)."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler

import limelight
from limelight import ModelError, PromptError, SettingsError
from limelight.attention.probe import Probe
from limelight.integrations.comfyui import nodes
from limelight.integrations.comfyui.model import ComfyModel, read_prompt, without_weights
from limelight.models.unet import unet_sites
from limelight.prompts.subjects import resolve
from tests.integrations import comfy

PROMPT, STEPS = "a cat and a dog", 4
GUIDANCE = limelight.AttendAndExcite(thresholds={0: 0.4, 2: 0.65}, max_refinements=4)
ROUNDING = 2e-5
"""Of latents up to 40: the Euler scheduler of diffusers computes with float32."""


class World:
    """A model in ComfyUI's stand-in, and the same one in limelight."""

    def __init__(self, pipeline, prepare=lambda unet: unet) -> None:
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        self.limelight = limelight.load(pipeline)
        self.factor = pipeline.vae.config.scaling_factor
        with torch.inference_mode():  # as ComfyUI loads and runs everything
            self.sampling = comfy.Sampling(EulerDiscreteScheduler.from_config(pipeline.scheduler.config), STEPS)
            unet = type(pipeline.unet).from_config(pipeline.unet.config).double().eval()
            unet.load_state_dict(pipeline.unet.state_dict())
            self.model = comfy.ModelPatcher(comfy.BaseModel(unet, self.sampling, self.factor))
        self.clip = comfy.Clip(pipeline.tokenizer, pipeline.text_encoder)
        self.noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)).double()

    @torch.inference_mode()
    def sample(self, model, positive, *, function=comfy.sample_euler, mask=None, noise=None, cfg=7.5):
        noise = self.noise if noise is None else noise
        negative = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(""))
        found = comfy.sample(
            model, noise, positive, negative, cfg, None, comfy.Sampler(function), self.sampling.sigmas,
            latent_image=torch.zeros_like(noise), denoise_mask=mask,
        )  # fmt: skip
        return found * self.factor

    @torch.inference_mode()
    def guided(self, **options):
        given = {"prompt": PROMPT, "words": "cat, dog", "method": "conform", **options}
        return nodes.LimelightGuidance().guide(self.model, self.clip, **given)


@pytest.fixture
def world(tiny_pipeline, monkeypatch) -> World:
    with torch.inference_mode(False):
        found = World(tiny_pipeline())
    for name, module in comfy.modules(found.sampling.sigmas).items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_the_stand_in_generates_what_limelight_generates(world):
    positive = world.clip.encode_from_tokens_scheduled(world.clip.tokenize(PROMPT))
    found = world.sample(world.model, positive)
    wanted = limelight.generate(world.limelight, PROMPT, subjects=(), latents=world.noise, steps=STEPS).latents
    assert float((found - wanted).abs().max()) < ROUNDING


def test_one_step_moves_the_latents_exactly_as_limelight_does(world, monkeypatch):
    monkeypatch.setattr(nodes, "preset", lambda name, model: GUIDANCE)
    patched, positive = world.guided()
    moved = []

    def sample_euler(model, x, sigmas, extra):
        model(x, sigmas[:1], **extra)
        moved.append(x)
        return x

    world.sample(patched, positive, function=sample_euler)
    model = world.limelight
    prompt = model.prompt(PROMPT)
    subjects = [resolve(prompt, ["cat", "dog"])[1]]
    options = {"steps": STEPS, "guidance": GUIDANCE, "subjects": subjects}
    wanted = next(limelight.denoise(model, model.encode([prompt], ""), world.noise, **options)).move
    assert int(wanted.refinements) > 0
    assert float((moved[0] - wanted.latents).abs().max()) < 1e-12
    assert float((moved[0] - model.for_one_run().start(world.noise)).abs().max()) > 1e-2


@pytest.mark.parametrize("method", ["attend-and-excite", "conform", "self-cross"])
def test_guidance_moves_the_latents_as_limelight_does(world, monkeypatch, method):
    monkeypatch.setattr(nodes, "preset", lambda name, model: chosen)
    chosen = GUIDANCE if method == "attend-and-excite" else limelight.preset(method, world.limelight)
    patched, positive = world.guided(method=method)
    found = world.sample(patched, positive)
    wanted = limelight.generate(
        world.limelight, PROMPT, subjects=["cat", "dog"], latents=world.noise, steps=STEPS, guidance=chosen
    )
    assert float((found - wanted.latents).abs().max()) < ROUNDING

    trace = patched.model_options["sampler_calc_cond_batch_function"].__self__.trace
    assert [row["step"] for row in trace] == [row["step"] for row in wanted.trace]
    for own, row in zip(trace, wanted.trace, strict=True):
        assert own["loss"] == pytest.approx(row["loss"], abs=1e-6)
        assert own["refinements"] == row["refinements"]


def test_maps_are_limelights_own(world):
    """Of the same latents with the same noise, read by limelight's own UNet."""
    image = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5)).double()
    with torch.inference_mode():
        maps, masks = nodes.LimelightMaps().read(
            world.model, world.clip, {"samples": image / world.factor}, PROMPT, "dog, cat", STEPS, 7, 0.3
        )
    assert (tuple(maps.shape), tuple(masks.shape)) == ((4, 128, 128, 3), (4, 128, 128))

    model, generator = world.limelight.for_one_run(), torch.Generator().manual_seed(7)
    conditioning = model.encode([model.prompt(PROMPT)] * 2)
    mean = 0
    for timestep, sigma in zip(model.timesteps(STEPS), model.scheduler.sigmas, strict=False):
        noisy = image + sigma * torch.randn(image.shape, generator=generator, dtype=torch.float64)
        own = model.for_one_run()
        with torch.no_grad(), Probe(own, own.guided_sites) as probe:
            own.predict(noisy, timestep, conditioning)
            seen = probe.take(noisy, conditioning.prompts)
        mean = mean + torch.stack([seen.map(word, (128, 128)) for word in ("dog", "cat")]) / STEPS
    wanted = mean / mean.amax(dim=(0, 2, 3), keepdim=True)
    assert float((maps[..., 0].unflatten(0, (2, 2)) - wanted).abs().max()) < 1e-5
    low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
    assert ((mean >= low + 0.3 * (high - low)) != masks.unflatten(0, (2, 2)).bool()).float().mean() < 1e-3


def test_maps_without_words_are_of_the_nouns(world):
    latent = {"samples": torch.zeros(1, 4, 16, 16).double()}
    maps, _ = nodes.LimelightMaps().read(world.model, world.clip, latent, "a red car and a frog", "", STEPS, 0, 0.3)
    assert len(maps) == 2
    with pytest.raises(PromptError, match="No noun can be found"):
        nodes.LimelightMaps().read(world.model, world.clip, latent, "and", "", STEPS, 0, 0.3)


def test_several_images_are_each_as_alone(world):
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    patched, positive = world.guided()
    both = world.sample(patched, positive, noise=noise)
    for row in range(2):
        alone = world.sample(patched, positive, noise=noise[row : row + 1])
        assert float((both[row] - alone[0]).abs().max()) < 1e-6


def test_the_model_is_as_it_was(world):
    weights = {name: (id(p), p.is_inference()) for name, p in world.model.model.diffusion_model.named_parameters()}
    positive = world.clip.encode_from_tokens_scheduled(world.clip.tokenize(PROMPT))
    before = world.sample(world.model, positive)
    patched, _ = world.guided()
    world.sample(patched, positive)
    assert torch.equal(world.sample(world.model, positive), before)
    assert weights == {n: (id(p), p.is_inference()) for n, p in world.model.model.diffusion_model.named_parameters()}
    assert all(inference for _, inference in weights.values())
    assert world.model.model_options == {"transformer_options": {}}


def test_the_layers_are_those_of_the_unet(world):
    patched, positive = world.guided()
    world.sample(patched, positive)
    model = patched.model_options["sampler_calc_cond_batch_function"].__self__.model
    wanted = unet_sites(world.limelight.denoiser)
    assert [(s.kind, s.group, s.heads, s.scale) for s in model.sites] == [
        (s.kind, s.group, s.heads, s.scale) for s in wanted
    ]
    assert model.guided_scale == world.limelight.guided_scale


def test_other_nodes_stay_in_force(world):
    """A patch of the words' values, a wrapper around the denoiser, and another function of the branches."""

    def halved(n, context, value, options):
        return n, context, 0.5 * value

    def louder(apply, given):
        return apply(given["input"], given["timestep"], **given["c"]) * 1.01

    seen = []

    def branches(args):
        seen.append(True)
        return comfy.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"], args["model_options"])

    plain, _ = world.guided()
    positive = world.clip.encode_from_tokens_scheduled(world.clip.tokenize(PROMPT))
    without = world.sample(plain, positive)
    world.model.set_model_attn2_patch(halved)
    world.model.set_model_unet_function_wrapper(louder)
    world.model.set_model_sampler_calc_cond_batch_function(branches)
    patched, _ = world.guided()
    found = world.sample(patched, positive)
    assert len(seen) == STEPS
    assert float((found - without).abs().max()) > 1e-3
    assert float((found - world.sample(world.model, positive)).abs().max()) > 1e-3


def test_weights_in_a_prompt(world):
    assert without_weights("a ((red) (cat:1.2)) and \\(a dog\\)") == "a red cat and (a dog)"
    prompt = read_prompt(world.clip, "a (cat:1.2) and a (dog)")
    assert prompt.ids == world.limelight.prompt(PROMPT).ids
    assert prompt.find("dog") == world.limelight.prompt(PROMPT).find("dog")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"words": "horse"}, PromptError, "'horse' is not in the prompt"),
        ({"prompt": "a cat " * 60}, PromptError, "at most 75 tokens"),
        ({"method": "initno"}, SettingsError, "'initno' does not work in ComfyUI"),
    ],
)
def test_what_cannot_be_guided_is_refused_when_the_node_runs(world, options, error, message):
    with pytest.raises(error, match=message):
        world.guided(**options)


def test_what_cannot_be_guided_is_refused_when_the_sampler_runs(world):
    patched, positive = world.guided()

    def sample_heun(*args):
        raise AssertionError("never run")

    with pytest.raises(SettingsError, match="cannot guide the sampler 'sample_heun'"):
        world.sample(patched, positive, function=sample_heun)
    with pytest.raises(SettingsError, match="noise mask"):
        world.sample(patched, positive, mask=torch.ones(1, 1, 16, 16))
    other = world.clip.encode_from_tokens_scheduled(world.clip.tokenize("a red car"))
    with pytest.raises(PromptError, match=f"is not that of '{PROMPT}'"):
        world.sample(patched, other)
    with pytest.raises(ModelError, match="several prompts"):
        world.sample(patched, [*positive, *positive])

    world.model.set_model_attn2_replace(lambda q, k, v, extra: q, "input", 0, 0)
    patched, positive = world.guided()
    with pytest.raises(ModelError, match="Another node has replaced"):
        world.sample(patched, positive)


def test_a_model_without_cross_attention_is_refused(world):
    class Other(torch.nn.Module):
        def forward(self, x, timesteps, context, transformer_options):
            return x

    world.model.model.diffusion_model = Other()
    patched, positive = world.guided()
    with pytest.raises(ModelError, match="no cross-attention"):
        world.sample(patched, positive)
    world.clip.tokenizer = object()
    with pytest.raises(ModelError, match="this CLIP is of another model"):
        world.guided()


@pytest.mark.parametrize("how", ["copied", "linked"])
def test_the_folder_as_comfyui_loads_it(tmp_path, how):
    source, folder = Path(nodes.__file__).parent, tmp_path / "custom_nodes" / "limelight-nodes"
    folder.parent.mkdir()
    if how == "copied":
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        folder.symlink_to(source)
    spec = importlib.util.spec_from_file_location(
        "limelight_nodes", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for cls in module.NODE_CLASS_MAPPINGS.values():
        assert {"required"} == cls.INPUT_TYPES().keys()
        assert len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES)
        assert callable(getattr(cls, cls.FUNCTION))

    fields = tomllib.loads((folder / "pyproject.toml").read_text())
    assert fields["project"]["version"] == limelight.__version__
    assert {"PublisherId", "DisplayName"} <= fields["tool"]["comfy"].keys()


def test_every_method_of_the_menu_can_be_had(world):
    model = ComfyModel(world.model)
    for name in nodes.METHODS:
        guidance = limelight.preset(name, model)
        assert guidance.look is None
        assert guidance.noise_search is None
