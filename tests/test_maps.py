from __future__ import annotations

import pytest
import torch

import limelight
from limelight import AttentionMaps, ProbeError, PromptError, SettingsError
from limelight.models.base import Layer
from limelight.prompt import parse


def layer(name: str, scale: int, heads: int = 1) -> Layer:
    return Layer(name, "cross", "up", heads, scale)


def test_words_layers_and_heads(tokenizer):
    prompt = parse("a zebra", tokenizer, 77)
    pieces = prompt.find("zebra")
    first = torch.zeros(1, 2, 6, 77)  # two heads, 2 x 3 pixels
    first[0, 0, 5, pieces[0]] = 0.4
    first[0, 1, 5, pieces[1]] = 0.2
    second = torch.zeros(1, 1, 6, 77)
    second[0, 0, 0, pieces[0]] = 0.9
    maps = AttentionMaps({layer("one", 1, 2): first, layer("two", 1): second}, (2, 3), (prompt,))
    # Pieces add; layers and heads average, each of the three heads counting once.
    assert torch.allclose(maps["zebra"], torch.tensor([[[0.3, 0, 0], [0, 0, 0.2]]]))
    assert torch.allclose(maps.select(lambda x: x.name == "two")["zebra"][0, 0, 0], torch.tensor(0.9))
    assert list(maps) == list(dict(maps)) == ["a", "zebra"]
    assert len(maps) == 2
    assert "ZEBRA" in maps
    assert "dig" not in maps
    assert maps.get("dig") is None
    with pytest.raises(PromptError, match="'dig' is not in the prompt"):
        maps["dig"]


def test_several_sizes_need_a_choice(tokenizer):
    prompt = parse("a cat", tokenizer, 77)
    uniform = {
        layer(f"{scale}", scale): torch.full((1, 1, (8 // scale) * (12 // scale), 77), 1 / 77) for scale in (1, 2)
    }
    maps = AttentionMaps(uniform, (8, 12), (prompt,))
    with pytest.raises(SettingsError, match="4x6, 8x12"):
        maps["cat"]
    assert torch.allclose(maps.map("cat", size=(5, 7)), torch.full((1, 5, 7), 1 / 77))
    with pytest.raises(ProbeError, match="record=True"):
        maps.select(lambda x: False)["cat"]


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (36, 28)])
def test_maps_of_a_run_have_the_pictures_orientation(tiny, size):
    result = limelight.generate(tiny, "a cat and a dog", height=size[0], width=size[1], steps=2, seeds=[0, 1])
    assert result.images[0].size == (size[1], size[0])
    expected = tuple(-(-side // tiny.pixels_per_latent // tiny.guided_scale) for side in size)
    assert result.maps["cat"].shape == (2, *expected)
    assert torch.allclose(result.maps.mean().sum(-1), torch.ones(()).double())


def test_maps_of_a_run_are_the_mean_over_its_steps(tiny):
    model, prompt = tiny, tiny.prompt("a cat and a dog")
    noise = model.noise([torch.Generator().manual_seed(0)], *model.default_size)
    conditioning = model.encode([prompt], "")
    steps = list(limelight.denoise(model, conditioning, noise, steps=3, record=True))
    expected = torch.stack([step.maps["dog"] for step in steps]).mean(0)
    result = limelight.generate(model, "a cat and a dog", steps=3)
    assert torch.allclose(result.maps["dog"], expected)
    assert limelight.generate(model, "", steps=1).maps.layers
