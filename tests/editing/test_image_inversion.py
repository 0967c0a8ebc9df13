"""From a real image to its noise and back."""

from __future__ import annotations

import doctest

import pytest
from PIL import Image

import limelight
from limelight.editing import image_inversion


def test_inversion_of_a_model_that_is_known(tiny, monkeypatch):
    """Were all latents normally distributed, the perfect denoiser would be this one, and the way back is exact."""

    def perfect(latents, timestep, conditioning, **_):
        share = tiny.scheduler.alphas_cumprod[timestep]
        return (1 - share).sqrt() * (latents - share.sqrt() * 0.7) / (share * 0.2**2 + 1 - share)

    monkeypatch.setattr(tiny, "predict", perfect)
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    errors = [limelight.invert_image(tiny, image, "a cat", steps=steps).error for steps in (25, 100, 500)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.02


def test_null_text_leads_back(tiny):
    image = limelight.generate(tiny, "a red car", steps=3, record=False).images[0]
    guided, learned = (
        limelight.invert_image(tiny, image, "a red car", steps=3, null_text=null) for null in (False, True)
    )
    assert learned.error < 0.8 * guided.error
    changed = limelight.edit(tiny, "a red car", "a blue car", image=learned, steps=3)
    plain = limelight.edit(tiny, "a red car", "a blue car", image=guided, steps=3)
    # The source is what the inversion gives back.
    wanted = tiny.latents([image])
    assert (changed.source.latents - wanted).square().mean().sqrt().item() == pytest.approx(learned.error, rel=1e-3)
    assert (plain.source.latents - wanted).square().mean().sqrt().item() == pytest.approx(guided.error, rel=1e-3)
    with pytest.raises(limelight.SettingsError, match="inverted with steps '3', the edit asks for '4'"):
        limelight.edit(tiny, "a red car", "a blue car", image=learned, steps=4)


def test_no_negative_prompt_is_the_empty_one(tiny):
    image = limelight.generate(tiny, "a red car", steps=2, record=False).images[0]
    empty, none = (
        limelight.invert_image(tiny, image, "a red car", steps=2, null_text=True, negative=negative)
        for negative in ("", None)
    )
    assert none.error == empty.error
    assert len(none.unconditional) == 2
    with pytest.raises(limelight.SettingsError, match="guidance_scale=1 has none"):
        limelight.invert_image(tiny, image, "a red car", steps=2, null_text=True, guidance_scale=1)


def test_inversion_needs_ddim(tiny_pipeline):
    model = limelight.load(tiny_pipeline("pndm"))
    with pytest.raises(limelight.SettingsError, match="not with PNDMScheduler"):
        limelight.invert_image(model, Image.new("RGB", (32, 32)), "a cat")


def test_examples():
    found = doctest.testmod(image_inversion, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0
