"""Maps of images that exist."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from PIL import Image

import limelight
from limelight.editing import image_maps
from limelight.evaluate.detectors import PocketDetector, overlap
from tests import transformers

PROMPT = "a cat and a dog"


@pytest.fixture(scope="module")
def generated(pocket):
    return limelight.generate(pocket, PROMPT, seeds=3, steps=10)


@pytest.fixture(scope="module")
def truth(generated) -> dict[str, tuple[float, ...]]:
    """The boxes of an independent detector."""
    found = {detection.word: detection.box for detection in PocketDetector.load().detect(generated.images)[0]}
    assert found.keys() >= {"cat", "dog"}
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_words_lie_on_their_things(pocket, generated, truth, exact):
    found = limelight.read_image(pocket, generated.images[0], PROMPT, steps=4, exact=exact)
    for word, other in (("cat", "dog"), ("dog", "cat")):
        box = found.maps.box(word)[0].tolist()
        assert overlap(box, truth[word]) > 0.5
        assert overlap(box, truth[other]) < 0.1
    assert found.images[0].tobytes() == generated.images[0].tobytes()
    assert torch.equal(found.latents, pocket.latents(generated.images))
    assert found.settings["noise"] == ("inverted" if exact else "added")


def test_one_pass_of_each_strength_of_noise(tiny):
    """Against the same passes written out by hand."""
    image = Image.effect_noise((64, 48), 60)
    found = limelight.read_image(tiny, image, PROMPT, steps=3, seed=5, record="steps")
    latents, timesteps = tiny.latents(found.images), tiny.timesteps(3)
    generator, encoded = torch.Generator().manual_seed(5), tiny.encode([tiny.prompt(PROMPT)])
    for step, timestep in zip(found.steps, timesteps, strict=True):
        share = tiny.scheduler.alphas_cumprod[timestep]
        noise = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
        with torch.no_grad(), limelight.Probe(tiny, found.maps.layers) as probe:
            tiny.predict(share.sqrt() * latents + (1 - share).sqrt() * noise, timestep, encoded)
            expected = probe.take(latents, encoded.prompts)
        assert torch.allclose(step["cat"], expected["cat"].float(), atol=2e-3)  # kept as float16
    mean = torch.stack([step["cat"] for step in found.steps]).mean(0)
    assert torch.allclose(found.maps["cat"].float(), mean, atol=2e-3)


@pytest.mark.parametrize("scheduler", ["euler", "heun", "lms", "dpm++", "unipc"])
def test_every_scheduler_adds_its_own_noise(tiny_pipeline, scheduler):
    """The weaker the noise, the nearer are the latents to the image's, also in units of their own."""
    model = limelight.load(tiny_pipeline(), scheduler=scheduler)
    seen = []
    limelight.read_image(model, Image.new("RGB", (32, 32), "red"), PROMPT, steps=3, on_step=seen.append)
    latents = model.latents([Image.new("RGB", (32, 32), "red").resize(model.default_size)])
    away = [(step.latents - latents).abs().mean().item() for step in seen]
    assert len(away) == 3
    assert away[0] > away[1] > away[2]
    assert [step.index for step in seen] == [0, 1, 2]


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen_image", "sana"])
def test_flow_matching(family):
    model = limelight.load(getattr(transformers, family)())
    seen = []
    image = Image.effect_noise((32, 64), 60)
    found = limelight.read_image(
        model, image, "a black cat", steps=2, height=32, width=32, record="steps", on_step=seen.append
    )
    # x = (1 - sigma) image + sigma noise, with noise of the seed.
    generator = torch.Generator().manual_seed(0)
    model.timesteps(2, (32, 32))
    sigmas = model.scheduler.sigmas.tolist()
    for step, sigma in zip(seen, sigmas, strict=False):
        noise = model.noise([generator], 32, 32)
        assert torch.allclose(step.latents, (1 - sigma) * found.latents + sigma * noise, atol=1e-5)
    assert found.maps["cat"].shape[0] == 1
    assert math.isfinite(found.maps["cat"].sum())
    assert not torch.equal(found.steps[0]["cat"], found.steps[1]["cat"])


def test_words_beside_the_prompt(pocket, generated):
    plain = limelight.read_image(pocket, generated.images[0], PROMPT, steps=2)
    found = limelight.read_image(pocket, generated.images[0], PROMPT, steps=2, also="tree")
    assert torch.allclose(found.maps["cat"], plain.maps["cat"], atol=1e-6)
    assert found.maps["tree"].shape == found.maps["cat"].shape
    without = limelight.read_image(pocket, generated.images[0], "a dog", steps=4, also="cat")
    assert overlap(without.maps.box("cat")[0].tolist(), plain.maps.box("cat")[0].tolist()) > 0.4
    with pytest.raises(limelight.PromptError, match="'cat' is in the prompt"):
        limelight.read_image(pocket, generated.images[0], PROMPT, also="cat")


def test_what_is_refused(tiny_pipeline):
    model, image = limelight.load(tiny_pipeline("pndm")), Image.new("RGB", (32, 32))
    for options, message in (
        ({"exact": True}, "with DDIM, not with PNDMScheduler"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"record": False}, "maps are all that is read"),
        ({"height": -1}, "height=-1 must be"),
        ({"seed": -1}, "-1; each must be a whole number"),
    ):
        with pytest.raises(limelight.SettingsError, match=message):
            limelight.read_image(model, image, PROMPT, **options)
    with pytest.raises(limelight.FileError, match=r"'/none.png'"):
        limelight.read_image(model, "/none.png", PROMPT)


def test_examples():
    found = doctest.testmod(image_maps, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0
