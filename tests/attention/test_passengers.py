"""Words beside a prompt: maps of what is not in it, and the same image to the last bit."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import limelight
from limelight.attention.passengers import Passengers
from limelight.errors import ModelError, PromptError, SettingsError
from tests import transformers as built

PROMPT, ALSO = "a black cat", ["tree", "red house"]
FAMILIES = {
    "flux": built.flux,
    "chroma": built.chroma,
    "sd3": lambda: built.sd3(dual=(0,)),
    "qwen-image": built.qwen_image,
    "pixart": built.pixart,
    "sana": built.sana,
    "flux2": built.flux2,
}


@cache
def model_of(name: str) -> limelight.Model:
    return limelight.load(FAMILIES[name]())


def pass_of(model, text, **probe):
    """The prediction and maps of one conditional pass, float64 on tiny weights."""
    model = model.for_one_run()
    conditioning = model.encode([model.prompt(text)])
    conditioning = model.prepare(conditioning, 1.0)
    timestep = model.timesteps(2, (32, 64))[0]
    latents = model.noise([torch.Generator().manual_seed(0)], 32, 64)
    with torch.no_grad(), limelight.Probe(model, **probe) as watch:
        prediction = model.predict(latents, timestep, conditioning)
        return prediction, watch.take(latents, conditioning.prompts), (latents, timestep, conditioning)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_image_is_the_same_to_the_last_bit(name):
    model = model_of(name)
    settings = {"steps": 2, "height": 32, "width": 64, "subjects": []}
    plain = limelight.generate(model, PROMPT, **settings)
    both = limelight.generate(model, PROMPT, also=ALSO, **settings)
    assert torch.equal(plain.latents, both.latents)
    assert list(both.maps) == ["a", "black", "cat", *ALSO]
    assert torch.equal(plain.maps["cat"], both.maps["cat"])
    for word in ALSO:
        heat = both.maps[word]
        assert heat.shape == both.maps["cat"].shape
        assert float(heat.std()) > 0
    assert both.settings["also"] == ALSO
    assert "also" not in plain.settings


def test_the_image_of_a_unet_is_the_same_to_the_last_bit(tiny):
    guidance = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=5.0)
    settings = {"steps": 3, "subjects": ["cat"], "guidance": guidance, "record": "all"}
    plain = limelight.generate(tiny, PROMPT, **settings)
    both = limelight.generate(tiny, PROMPT, also=ALSO, **settings)
    assert torch.equal(plain.latents, both.latents)
    assert plain.trace == both.trace
    assert float(both.steps[1].select(lambda layer: layer.scale == 2)["tree"].std()) > 0


def test_a_unets_maps_are_those_of_one_softmax_with_the_words_own_keys(tiny):
    from limelight.models.unet import text_keys, text_states

    passengers = Passengers.of(tiny, ["tree"], tiny.text_sites)
    _, _, given = pass_of(tiny, PROMPT)
    beside = passengers.beside(*given)
    queries = {}
    _, maps, _ = pass_of(
        tiny, PROMPT, beside=beside, queries=lambda site, q, scale: queries.setdefault(site, q.double() * scale)
    )
    prompt = tiny.prompt("tree")
    states = torch.cat([text_states(given[2])[0], text_states(tiny.encode([prompt]))[0, list(prompt.find("tree"))]])
    for site in tiny.text_sites:
        keys = text_keys(tiny.denoiser, site, states).double()
        expected = torch.einsum("nhqw,khw->nhqk", queries[site], keys).softmax(-1)[..., 77:]
        assert torch.allclose(maps.layers[site][..., 77:].double(), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "chroma", "sd3", "qwen-image", "pixart"])
def test_passengers_change_nothing_and_not_each_other(name):
    model = model_of(name)
    plain, _, given = pass_of(model, PROMPT)
    alone, together = (Passengers.of(model, words, model.text_sites) for words in (ALSO[:1], ALSO))
    of_one, of_both = (dict(words.beside(*given).keys) for words in (alone, together))
    count = len(alone.owners)
    for site in model.text_sites:
        assert torch.allclose(of_one[site], of_both[site][:, :, :count], atol=1e-12)

    # The rows that are there without them have what they would have.
    carried = given[2].carrying(together.states)
    length = given[2].conditional["encoder_hidden_states"].shape[1]
    with torch.no_grad(), limelight.Probe(model, answer=lambda *call: together._ride({}, length, *call)):
        ridden = model.predict(given[0], given[1], carried)
    assert float((ridden - plain).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_joint_layers_first_keys_are_those_of_the_word_as_text(name):
    # In the first layer the text has not met the image yet: a word has the same keys in the prompt and beside it.
    model = model_of(name)
    conditioning = model.encode([model.prompt("tree")])
    conditioning = model.prepare(conditioning, 1.0)
    timestep, latents = model.timesteps(1)[0], model.noise([torch.Generator().manual_seed(0)], 32, 64)
    site = model.sites[0]
    keys = Passengers.of(model, ["tree"], [site]).beside(latents, timestep, conditioning).keys[site]
    found = []

    def keep(layer, call, layout):
        columns = layout.columns[0]
        found.append(call.key[:, :, columns[columns >= 0]])
        return call.attend()

    with torch.no_grad(), limelight.Probe(model, [site], answer=keep):
        model.predict(latents, timestep, conditioning)
    if name == "sd3":
        assert torch.allclose(keys, found[0], atol=1e-12)
    else:  # FLUX turns keys by their place, which is the same for all text
        assert torch.allclose(keys, found[0], atol=1e-10)


def test_words_beside_a_short_prompt_do_not_see_how_long_its_neighbor_is():
    model, settings = (
        model_of("qwen-image"),
        {"steps": 1, "height": 32, "width": 64, "subjects": None, "also": ["tree"]},
    )
    alone = limelight.generate(model, PROMPT, **settings)
    beside, _ = limelight.generate(model, [PROMPT, f"{PROMPT} and a white dog in the house"], **settings)
    assert torch.allclose(alone.maps["tree"], beside.maps["tree"], atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"also": ["cat"]}, PromptError, "'cat' is in the prompt"),
        ({"also": ["black cat"]}, PromptError, "'black cat' is in the prompt"),
        ({"also": [""]}, PromptError, "The word '' has no tokens"),
        ({"also": ["tree"], "record": False}, SettingsError, "record=False"),
        ({"also": ["tree"], "edits": [lambda layer, p, step: p]}, SettingsError, "joint attention"),
    ],
)
def test_what_cannot_be_mapped_is_refused(options, error, what):
    with pytest.raises(error, match=what):
        limelight.generate(model_of("sd3"), PROMPT, steps=1, subjects=[], **options)


def test_z_image_has_no_words_beside():
    with pytest.raises(ModelError, match="'also' does not work"):
        limelight.generate(limelight.load(built.z_image()), PROMPT, steps=1, subjects=[], also=["tree"])
