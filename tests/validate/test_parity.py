"""Parity: sound families pass, broken adapters do not."""

import pytest
import torch

import limelight
from limelight.models.reference import by_diffusers, decoded_latents, rounded
from limelight.models.stable_diffusion import StableDiffusion


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


def test_latent_diffusion_passes(check, tiny_ldm):
    """The other families: test_families.py."""
    assert check(tiny_ldm, "parity")["parity"].verdict == "passed"


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
