"""Magnet and TEBOpt, which move encoded words, and TACA's temperature."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import limelight
from limelight import ModelError, Probe, PromptError, SettingsError
from limelight.attention.edits import bind_edits
from limelight.guidance.magnet import magnet
from limelight.guidance.tebopt import tebopt
from limelight.guidance.temperature import Temperature
from tests import transformers

STATES = "encoder_hidden_states"


def state(model, text, position=None):
    prompt = model.prompt(text)
    place = prompt.end - 1 if position is None else position
    return model.encode([prompt]).conditional[STATES][0, place]


def cosine(a, b):
    return F.cosine_similarity(a, b, dim=0)


# -- Magnet


def test_magnet_is_its_formula(pocket):
    """Written out for two pairs and all neighbors given, so that the choice is none."""
    text, nouns = "a red car and a blue chair", ("bus", "bench")
    expected = pocket.encode([pocket.prompt(text)]).conditional[STATES][0].clone()
    for noun, own, other in (("car", "red", "blue"), ("chair", "blue", "red")):
        alone = pocket.prompt(f"{own} {noun}")
        omega = cosine(state(pocket, alone.text, alone.end), state(pocket, alone.text, -1))
        pulls = {
            color: sum(state(pocket, f"{color} {near}") - state(pocket, near) for near in nouns) / 2
            for color in (own, other)
        }
        (place,) = pocket.prompt(text).find(noun)
        expected[place] += torch.exp(0.6 - omega) * pulls[own] - (1 - omega**2) * pulls[other]

    found = magnet(pocket, text, nouns=nouns, neighbors=2)
    assert torch.allclose(found.conditional[STATES][0], expected, atol=1e-5)
    moved = (found.conditional[STATES][0] != pocket.encode([pocket.prompt(text)]).conditional[STATES][0]).any(-1)
    assert moved.sum() == 2


def test_magnet_takes_the_nearest_nouns(pocket):
    text, nouns = "a red car and a blue chair", ("bus", "bench", "lion", "apple")
    nearest = {
        n: max(nouns, key=lambda other, n=n: cosine(state(pocket, other), state(pocket, n))) for n in ("car", "chair")
    }
    one = magnet(pocket, text, nouns=nouns, neighbors=1).conditional[STATES][0]
    for noun, near in nearest.items():
        alone = magnet(pocket, text, nouns=(near,), neighbors=1).conditional[STATES][0]
        (place,) = pocket.prompt(text).find(noun)
        assert torch.equal(one[place], alone[place])


def test_magnet_leaves_a_prompt_that_describes_nothing(pocket):
    plain = pocket.encode([pocket.prompt("a cat and a dog")], "")
    found = magnet(pocket, "a cat and a dog")
    assert torch.equal(found.conditional[STATES], plain.conditional[STATES])
    assert torch.equal(found.unconditional[STATES], plain.unconditional[STATES])


def test_magnet_says_that_nouns_are_too_few(pocket):
    with pytest.raises(PromptError, match="neighbors=3 does not fit the 1 nouns that 'pocket' knows besides 'car'"):
        magnet(pocket, "a red car and a blue chair", nouns=("bus", "car"), neighbors=3)


# -- TEBOpt


def test_tebopt_takes_one_step_down_its_loss(pocket):
    text, nouns = "a cat and a monkey", ("cat", "monkey")
    prompt = pocket.prompt(text)
    before = pocket.encode([prompt]).conditional[STATES][0].double()
    places = [prompt.find(noun)[0] for noun in nouns]
    alone = [state(pocket, f"a photo of a {noun}").double() for noun in nouns]

    def loss(states):
        cat, monkey = (states[place] for place in places)
        return cosine(cat, monkey) - torch.minimum(cosine(cat, alone[0]), cosine(monkey, alone[1]))

    expected = before - 3.0 * torch.func.grad(loss)(before)
    found = tebopt(pocket, text, rate=3.0, iterations=1, enough=-2).conditional[STATES][0].double()
    assert torch.allclose(found, expected, atol=1e-5)
    assert loss(found) < loss(before)


def test_tebopt_ends_where_it_is_enough(pocket):
    plain = pocket.encode([pocket.prompt("a cat and a monkey")]).conditional[STATES]
    assert torch.equal(tebopt(pocket, "a cat and a monkey", enough=2).conditional[STATES], plain)


def test_tebopt_needs_two_subjects(pocket):
    with pytest.raises(PromptError, match="Name at least two"):
        tebopt(pocket, "a cat")


@pytest.mark.parametrize("method", [magnet, tebopt])
def test_other_text_encoders_are_refused(method):
    model = limelight.load(transformers.ready(transformers.pixart()))
    with pytest.raises(ModelError, match="moves the states of CLIP's text encoder"):
        method(model, "a red cat and a blue dog")


# -- TACA


def prediction(model, factor, mode=None):
    """One pass with `Temperature`, or with a mode that does the same by hand."""
    prompt, size = model.prompt("a cat and a dog"), (32, 32)
    latents = model.noise([torch.Generator().manual_seed(0)], *size)
    timestep = model.timesteps(4, size)[0]
    conditioning = model.prepare(model.encode([prompt], size=size), 1.0)
    edits = bind_edits([Temperature(factor, until=1)], model, [prompt], 4) if mode is None else []
    with torch.no_grad(), Probe(model, (), edits=edits), mode or torch.no_grad():
        return model.predict(latents, timestep, conditioning)


class Scaled(TorchFunctionMode):
    """Multiplies the scores of image positions with text in the layers of joint attention, explicitly."""

    def __init__(self, text, factor):
        self.text, self.factor = text, factor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if args else (kwargs[name] for name in ("query", "key", "value"))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        factors = torch.ones(scores.shape[-2:], dtype=scores.dtype)
        pixels = torch.ones(factors.shape[0], dtype=torch.bool)
        pixels[self.text] = False
        factors[pixels[:, None] & ~pixels] = self.factor
        return (scores * factors).softmax(-1) @ value


@pytest.mark.parametrize("make", [transformers.flux, transformers.sd3])
def test_temperature_multiplies_the_scores_of_the_prompt(make):
    model = limelight.load(transformers.ready(make()))
    prediction(model, 1.0)
    layout = model.layout(model.text_sites[0])
    length = model.encode([model.prompt("a cat and a dog")]).conditional[STATES].shape[1]
    text = torch.arange(layout.text, layout.text + length)

    expected = prediction(model, None, Scaled(text, 1.2))
    assert torch.allclose(prediction(model, 1.2), expected, atol=1e-10)
    assert not torch.allclose(prediction(model, 1.0), expected, atol=1e-6)


def test_temperature_of_one_changes_nothing(pocket):
    plain = limelight.generate(pocket, "a cat and a dog", steps=2, record=False)
    same = limelight.generate(pocket, "a cat and a dog", steps=2, record=False, edits=[Temperature(1.0, until=1)])
    assert same.images[0].tobytes() == plain.images[0].tobytes()


def test_temperature_of_a_unet_is_that_of_its_keys(pocket):
    sharper = limelight.generate(pocket, "a cat and a dog", steps=2, record=False, edits=[Temperature(2.0, until=1)])
    model = limelight.load("pocket", device="cpu")
    for site in model.text_sites:
        model.denoiser.get_submodule(site.name).to_k.weight.data *= 2.0
    expected = limelight.generate(model, "a cat and a dog", steps=2, record=False, guidance_scale=1.0)
    alone = limelight.generate(
        pocket, "a cat and a dog", steps=2, record=False, guidance_scale=1.0, edits=[Temperature(2.0, until=1)]
    )
    assert alone.images[0].tobytes() == expected.images[0].tobytes()
    assert alone.images[0].tobytes() != sharper.images[0].tobytes()


def test_temperature_ends(pocket):
    plain = limelight.generate(pocket, "a cat and a dog", steps=2, record=False)
    never = limelight.generate(pocket, "a cat and a dog", steps=2, record=False, edits=[Temperature(2.0, until=0)])
    assert never.images[0].tobytes() == plain.images[0].tobytes()


@pytest.mark.parametrize(("settings", "message"), [({"factor": 0}, "factor=0 must"), ({"until": 2}, "until=2")])
def test_temperature_out_of_range(settings, message):
    with pytest.raises(SettingsError, match=message):
        Temperature(**settings)
