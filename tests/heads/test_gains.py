"""Gains by head: against the formula, their identity, their windows, and the command line."""

from __future__ import annotations

import doctest
import json

import pytest
import torch
from PIL import Image

import limelight as package
from limelight.attention.probe import Probe
from limelight.cli.options import parse_adjust, parse_strengthen
from limelight.errors import PromptError, SettingsError
from limelight.heads import gains as gains_module
from limelight.heads.gains import HeadGain, adjust, strengthen, weaken
from limelight.heads.relevance import Relevance
from tests.cli.test_cli import limelight  # noqa: F401 - a fixture
from tests.conftest import saved

TEXT = "a rose-colored cat"


def random_relevance(model) -> Relevance:
    cross = [layer for layer in model.sites if layer.kind == "cross"]
    layers = tuple((layer.group, layer.heads) for layer in cross)
    vectors = torch.rand(3, sum(heads for _, heads in layers), generator=torch.Generator().manual_seed(0))
    return Relevance(("Animals", "Color", "Plants"), layers, vectors / vectors.mean(dim=1, keepdim=True))


def latents(model, edits, seeds=(0, 1), **options):
    return package.generate(
        model, TEXT, subjects=[], seeds=seeds, steps=2, edits=edits, record=False, **options
    ).latents


def test_a_gain_of_one_changes_nothing(tiny):
    plain = latents(tiny, [])
    heads = sum(layer.heads for layer in tiny.sites if layer.kind == "cross")
    ones = HeadGain(lambda model: torch.ones(heads), "cat", (0.0, 1.0), {})
    assert torch.allclose(latents(tiny, [ones]), plain, atol=1e-12)
    relevance = random_relevance(tiny)
    level = Relevance(relevance.concepts, relevance.layers, torch.ones_like(relevance.vectors))
    for edit in (
        adjust("cat", "Color", "Color", head_vectors=level),
        strengthen("cat", "Color", head_vectors=level),
        weaken([0, 3], 1.0),
    ):
        assert torch.allclose(latents(tiny, [edit]), plain, atol=1e-12)


def test_adjusting_between_equal_concepts_is_strengthening(tiny):
    # 2 v - v = v
    relevance = random_relevance(tiny)
    same = latents(tiny, [adjust("cat", "Color", "color", head_vectors=relevance)])
    assert torch.allclose(same, latents(tiny, [strengthen("cat", "Color", head_vectors=relevance)]), atol=1e-12)
    assert not torch.allclose(same, latents(tiny, []), atol=1e-6)


@pytest.mark.parametrize("kind", ["strengthen", "adjust", "clamp", "weaken"])
def test_gains_head_by_head(tiny, kind):
    """Every head and token alone, as the paper writes it; conditional rows only, rows not normalised again."""
    relevance, prompt = random_relevance(tiny), tiny.prompt(TEXT)
    color, plants = relevance["Color"], relevance["Plants"]
    edit, gains = {
        "strengthen": (strengthen("rose-colored", "Color", head_vectors=relevance), color),
        "adjust": (adjust("rose-colored", "Color", "Plants", head_vectors=relevance), 2 * color - plants),
        "clamp": (
            adjust("rose-colored", "Color", "Plants", clamp=1.1, head_vectors=relevance),
            2 * color.clamp(max=1.1) - plants.clamp(max=1.1),
        ),
        "weaken": (weaken([1, "up, layer: 0, head: 1"]), None),
    }[kind]
    positions = prompt.find("rose-colored")
    if kind == "weaken":
        positions = tuple(range(1, prompt.end))
        gains = torch.ones(len(relevance.heads))
        gains[1] = gains[relevance.find("up, layer: 0, head: 1")] = -2
    bound = edit.bind(tiny, [prompt, prompt], 4)
    conditioning = tiny.encode([prompt] * 2, "")
    noise = tiny.noise([torch.Generator().manual_seed(i) for i in (0, 1)], *tiny.default_size)
    flat, seen = 0, {}

    def spy(layer, p, step):
        seen[layer] = (p, bound(layer, p, step))
        return p

    timestep = tiny.timesteps(4)[0]
    with Probe(tiny, (), edits=[spy], images=2) as probe, torch.no_grad():
        tiny.predict(noise, timestep, conditioning)
        probe.take(noise, conditioning.prompts)
    for layer, (before, after) in seen.items():
        assert before.shape[0] == 2
        for head in range(layer.heads):
            for token in range(before.shape[-1]):
                gain = float(gains[flat + head]) if token in positions else 1.0
                assert torch.allclose(after[:, head, :, token], before[:, head, :, token] * gain, atol=1e-12)
        flat += layer.heads
    assert flat == len(relevance.heads)


def test_windows_of_steps(tiny):
    relevance = random_relevance(tiny)
    prompt = tiny.prompt(TEXT)
    layer = next(layer for layer in tiny.sites if layer.kind == "cross")
    p = torch.rand(1, layer.heads, 4, len(prompt.ids))
    for window, acting in {(0.0, 1.0): range(10), (0.25, 0.8): range(2, 8), (3, 5): (3, 4), (0.0, 4): range(4)}.items():
        edit = strengthen("cat", "Animals", head_vectors=relevance, window=window).bind(tiny, [prompt], 10)
        assert [s for s in range(10) if not torch.equal(edit(layer, p, s), p)] == list(acting)
    with pytest.raises(SettingsError, match=r"window=\(0.0, 1.5\)"):
        strengthen("cat", "Animals", window=(0.0, 1.5))


def test_each_prompt_has_its_own_columns(tiny):
    relevance = random_relevance(tiny)
    edit = strengthen("cat", "Animals", head_vectors=relevance)
    texts = ["a cat", "a red red cat"]
    together = package.generate(tiny, texts, subjects=[(), ()], steps=2, edits=[edit], record=False)
    for text, result in zip(texts, together, strict=True):
        alone = package.generate(tiny, text, subjects=[], steps=2, edits=[edit], record=False)
        assert torch.allclose(alone.latents, result.latents, atol=1e-10)
    assert json.dumps(together[0].settings["edits"])
    assert together[0].settings["edits"][0]["concept"] == "Animals"


def test_mistakes(tiny):
    relevance = random_relevance(tiny)
    with pytest.raises(PromptError, match="'dog' is not in the prompt"):
        latents(tiny, [strengthen("dog", "Animals", head_vectors=relevance)])
    with pytest.raises(SettingsError, match=r"Unknown concept 'Birds'. Choose one of: Animals, Color, Plants"):
        latents(tiny, [strengthen("cat", "Birds", head_vectors=relevance)])
    with pytest.raises(SettingsError, match="No head relevance vectors are shipped"):
        latents(tiny, [strengthen("cat", "Animals")])
    with pytest.raises(SettingsError, match="do not fit"):
        latents(tiny, [strengthen("cat", "Animals", head_vectors="sd-1.4")])
    with pytest.raises(SettingsError, match="The head 500 does not exist"):
        latents(tiny, [weaken([500])])
    with pytest.raises(SettingsError, match="Unknown head 'up, head 3'"):
        latents(tiny, [weaken(["up, head 3"])])
    with pytest.raises(SettingsError, match="clamp=0 must be positive"):
        adjust("cat", "Color", "Plants", clamp=0)


def test_parsing():
    paper = Relevance.load("sd-1.4")
    assert parse_strengthen("blue frog=Animals") == ("blue frog", "Animals")
    assert parse_adjust("rose-colored=Color-Plants", paper) == ("rose-colored", "Color", "Plants")
    assert parse_adjust("Paris=geo-locations-People", paper) == ("Paris", "geo-locations", "People")
    for text in ("Color-Plants", "=Color-Plants", "rose=Color", "rose=Color-Birds"):
        with pytest.raises(SettingsError, match="must be word=Desired-Undesired"):
            parse_adjust(text, paper)
    with pytest.raises(SettingsError, match="'cat' must be word=Concept"):
        parse_strengthen("cat")


def test_generate_with_edits(limelight, tmp_path):  # noqa: F811
    code, out, _ = limelight(
        *("generate", "an orange cat", "--adjust", "orange=Color-Food", "--strengthen", "cat=Animals"),
        *("--guidance", "none", "--compare", "--steps", "2", "--out", str(tmp_path)),
    )
    assert code == 0, out
    edited = saved(tmp_path, "an-orange-cat-edited-0.png")
    with Image.open(edited) as image:
        edits = json.loads(image.text["limelight"])["edits"]
    assert [edit["name"] for edit in edits] == ["strengthen", "adjust"]
    assert saved(tmp_path, "an-orange-cat-plain-0.png").read_bytes() != edited.read_bytes()


def test_bad_edits_on_the_command_line(limelight, tmp_path):  # noqa: F811
    for arguments, message in {
        ("--strengthen", "dog=Animals"): "'dog' is not in the prompt",
        ("--strengthen", "cat=Birds"): "Unknown concept 'Birds'",
        ("--adjust", "cat=Animals"): "must be word=Desired-Undesired",
        ("--clamp", "9"): "belong to --strengthen or --adjust",
        ("--strengthen", "cat=Animals", "--head-vectors", "sdxl"): "do not fit 'pocket'",
        (
            "--strengthen",
            "cat=Animals",
            "--head-vectors",
            "none.safetensors",
        ): "cannot be read: No such file",
    }.items():
        code, _, err = limelight("generate", "a cat", "--guidance", "none", "--out", str(tmp_path / "o"), *arguments)
        assert code == 2
        assert message in err
    assert not (tmp_path / "o").exists()


def test_examples():
    found = doctest.testmod(gains_module, extraglobs={"limelight": package})
    assert found.attempted > 0
    assert found.failed == 0
