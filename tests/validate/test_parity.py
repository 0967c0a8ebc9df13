"""Parity: sound families pass, broken adapters do not."""

import pytest
import torch

import limelight
from limelight.models.reference import by_diffusers, decoded_latents, rounded
from limelight.models.stable_diffusion import StableDiffusion
from tests import transformers as families


def attention_state(model):
    return {name: type(processor).__name__ for name, processor in model.denoiser.attn_processors.items()}


def test_stable_diffusion_passes_and_is_left_as_it_was(check, tiny):
    before = attention_state(tiny), [p.requires_grad for p in tiny.denoiser.parameters()]
    outcome = check(tiny, "parity")["parity"]
    assert outcome.verdict == "passed"
    assert set(outcome.numbers) == {"difference, plain, 32x32", "difference, Attend-and-Excite"}
    assert max(outcome.numbers.values()) < 1e-8
    assert (attention_state(tiny), [p.requires_grad for p in tiny.denoiser.parameters()]) == before
    assert "decode" not in vars(tiny.pipeline.vae)


SIZES = {"z_image": {"height": 24, "width": 40}, "sana": {"height": 32, "width": 64}}


@pytest.mark.parametrize("name", ["flux", "chroma", "qwen_image", "z_image", "pixart", "sana", "sd3"])
def test_every_family_of_transformers_passes(check, name):
    pipeline = getattr(families, name)()
    if name == "pixart":  # its pipeline knows no shift of the autoencoder's
        pipeline.vae.register_to_config(shift_factor=None)
    outcome = check(limelight.load(pipeline), "parity", **SIZES.get(name, {}))["parity"]
    assert (outcome.verdict, outcome.summary) == ("passed", "1 runs of 2 steps are diffusers' own, but for rounding.")


@pytest.mark.parametrize("name", ["tiny_xl", "tiny_ldm"])
def test_other_families_of_unets_pass(check, name, request):
    model = request.getfixturevalue(name)
    outcome = check(model if isinstance(model, limelight.Model) else limelight.load(model), "parity")["parity"]
    assert outcome.verdict == "passed"


def wrong_branch(self, latents, timestep, conditioning, *, guidance_scale=1.0, until=None, own=StableDiffusion.predict):
    return own(self, latents, timestep, conditioning, guidance_scale=guidance_scale * 1.01, until=until)


def wrong_step(self, prediction, timestep, latents, generators, eta=0.0, own=StableDiffusion.step):
    return own(self, prediction * 1.001, timestep, latents, generators, eta)


def wrong_words(self, prompt, size, negative, clip_skip, own=StableDiffusion._states):
    states = own(self, prompt, size, negative, clip_skip)
    return {name: value.flip(-1) for name, value in states.items()}


def wrong_pixels(self, latents, own=StableDiffusion._decoded):
    return own(self, latents * 1.01)


@pytest.mark.parametrize(
    ("method", "broken"),
    [("predict", wrong_branch), ("step", wrong_step), ("_states", wrong_words), ("_decoded", wrong_pixels)],
)
def test_a_broken_adapter_is_caught(check, tiny_pipeline, monkeypatch, method, broken):
    model = limelight.load(tiny_pipeline(dtype=torch.float32))
    monkeypatch.setattr(StableDiffusion, method, broken)
    outcome = check(model, "parity")["parity"]
    assert outcome.verdict == "failed"
    assert "plain, 32x32" in outcome.summary


def test_rounding_changes_the_last_digits_alone(tiny):
    options = {"seed": 0, "steps": 2, "guidance_scale": 5.0, "size": (32, 32)}
    with decoded_latents(tiny) as seen:
        by_diffusers(tiny, "a cat", **options)
        with rounded(tiny):
            by_diffusers(tiny, "a cat", **options)
    assert 0 < float((seen[0] - seen[1]).abs().max()) < 1e-12
