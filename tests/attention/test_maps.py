from __future__ import annotations

import copy
from types import SimpleNamespace

import psutil
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor

import limelight
from limelight import AttentionMaps, ProbeError, PromptError, SettingsError
from limelight.attention.recording import size_of
from limelight.models.sites import AttentionSite
from limelight.prompts.prompt import parse


def layer(name: str, scale: int, heads: int = 1) -> AttentionSite:
    return AttentionSite(name, "cross", "up", heads, scale)


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


def test_what_the_masks_of_two_words_share(tokenizer):
    prompt = parse("a cat and a dog", tokenizer, 77)
    p = torch.zeros(1, 1, 16, 77)  # 4 x 4 pixels
    p[0, 0, [0, 1, 2, 3, 4, 5], prompt.find("cat")[0]] = 1.0
    p[0, 0, [4, 5, 6, 7], prompt.find("dog")[0]] = 1.0
    maps = AttentionMaps({layer("one", 1): p}, (4, 4), (prompt,))
    assert maps.iou("cat", "dog").tolist() == maps.iou("dog", "cat").tolist() == [2 / 8]
    assert maps.ioa("cat", "dog").item() == pytest.approx(2 / 6)
    assert maps.ioa("dog", "cat").item() == 2 / 4
    assert maps.iou("cat", "cat").item() == 1
    assert maps.iou("and", "and").isnan().all()  # no contrast, no mask
    assert maps.iou("cat", "and").item() == 0


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


def blobs(tokenizer, spots, size=(8, 12), heads=1):
    """Maps of "a cat", an image each, whose word "cat" has the given values at the given places."""
    prompt = parse("a cat", tokenizer, 77)
    p = torch.zeros(len(spots), heads, size[0] * size[1], 77)
    for image, places in enumerate(spots):
        for (y, x), value in places.items():
            p[image, :, y * size[1] + x, prompt.find("cat")[0]] = value
    return AttentionMaps({layer("one", 1, heads): p}, size, (prompt,) * len(spots))


def test_heads_and_groups(tokenizer):
    prompt = parse("a cat", tokenizer, 77)
    layers = {
        AttentionSite("d", "cross", "down", 2, 1): torch.rand(1, 2, 24, 77).softmax(-1),
        AttentionSite("u", "cross", "up", 2, 2): torch.rand(1, 2, 6, 77).softmax(-1),
        AttentionSite("v", "cross", "up", 2, 2): torch.rand(1, 2, 6, 77).softmax(-1),
    }
    maps = AttentionMaps(layers, (4, 6), (prompt,))
    assert {name: len(part.layers) for name, part in maps.groups().items()} == {"down 4x6": 1, "up 2x3": 2}
    first, second = list(layers.values())[1:]
    expected = (first[:, 1] + second[:, 1])[..., 2].unflatten(1, (2, 3)) / 2
    assert torch.allclose(maps.groups()["up 2x3"].head(1)["cat"], expected)
    with pytest.raises(SettingsError, match=r"The layer 'd' has no head 2; it has 0 to 1\."):
        maps.head(2)
    averaged = AttentionMaps({k: v.mean(1, keepdim=True) for k, v in layers.items()}, (4, 6), (prompt,))
    with pytest.raises(ProbeError, match="record='all'"):
        averaged.head(0)


def test_masks_and_boxes_by_hand(tokenizer):
    rows = {(y, x): 0.8 for y in (2, 3, 4) for x in (3, 4, 5, 6)}
    stray = {**rows, (2, 3): 0.9, (7, 11): 0.3}
    maps = blobs(tokenizer, [rows, stray, {}])
    mask = maps.mask("cat")
    assert mask.sum(dim=(1, 2)).tolist() == [12, 13, 0]
    assert mask[0, 2:5, 3:7].all()
    box = [3 / 12, 2 / 8, 7 / 12, 5 / 8]
    # The stray spot is in the mask and not in the box; a map without contrast has none.
    assert torch.allclose(maps.box("cat"), torch.tensor([box, box, [0.0] * 4]))
    assert torch.allclose(maps.box("cat", threshold=1.0)[1], torch.tensor([3 / 12, 2 / 8, 4 / 12, 3 / 8]))
    assert maps.mask("cat", size=(32, 48)).shape == (3, 32, 48)
    assert 11 * 16 < maps.mask("cat", 0.5, size=(32, 48))[0].sum() < 13 * 16


def test_bad_input_says_what_to_do(tokenizer, tiny):
    maps = blobs(tokenizer, [{(0, 0): 0.5}])
    with pytest.raises(PromptError, match="'dig' is not in the prompt; its words are: a, cat"):
        maps.mask("dig")
    with pytest.raises(SettingsError, match=r"threshold=1.5 must lie between 0 and 1\."):
        maps.box("cat", 1.5)
    with pytest.raises(SettingsError, match=r"The size \(0, 4\) must be a height and a width of at least 1"):
        maps.map("cat", (0, 4))
    unrecorded = limelight.generate(tiny, "a cat", steps=1, record=False)
    with pytest.raises(ProbeError, match="No attention maps were recorded; call generate\\(\\) with record=True"):
        unrecorded.maps["cat"]
    with pytest.raises(ProbeError, match="record='steps'"):
        unrecorded.steps[0]
    with pytest.raises(SettingsError, match="record='every' must be True, False, 'steps' or 'all'"):
        limelight.generate(tiny, "a cat", record="every")


def eager_maps(pipeline, steps, monkeypatch):
    """Cross-attention of a run of diffusers' own pipeline by diffusers' own eager softmax: [step][layer name]."""
    seen = []
    names = {module: name for name, module in pipeline.unet.named_modules()}
    scores = Attention.get_attention_scores

    def watched(self, query, key, mask=None):
        probabilities = scores(self, query, key, mask)
        if key.shape[1] == 77:
            name = names[self]
            if not seen or name in seen[-1]:
                seen.append({})
            # [branches x heads, pixels, tokens], the conditional branch last
            seen[-1][name] = probabilities.unflatten(0, (2, self.heads))[1:]
        return probabilities

    monkeypatch.setattr(Attention, "get_attention_scores", watched)
    pipeline.unet.set_attn_processor(AttnProcessor())
    generator = torch.Generator().manual_seed(5)
    pipeline("a cat and a dog", num_inference_steps=steps, generator=generator, output_type="latent")
    return seen


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_recorded_run_equals_diffusers_eager_softmax(kind, tiny_pipeline, tiny_xl, monkeypatch):
    pipeline, guidance_scale = (tiny_pipeline(), 7.5) if kind == "sd" else (tiny_xl, 5.0)
    model = limelight.load(copy.deepcopy(pipeline))
    expected = eager_maps(pipeline, 3, monkeypatch)
    result = limelight.generate(
        model, "a cat and a dog", steps=3, seeds=[4, 5], record="all", batch=1, guidance_scale=guidance_scale
    )
    assert len(result.steps) == len(expected) == 3
    for step, reference in zip(result.steps, expected, strict=True):
        assert {layer.name for layer in step.layers} == set(reference)
        for layer, p in step.layers.items():
            assert (p.dtype, p.shape[:2]) == (torch.float16, (2, layer.heads))
            assert torch.allclose(p[1:].double(), reference[layer.name], atol=1e-3)
    for layer, p in result.maps.layers.items():
        mean = torch.stack([step[layer.name].mean(1, keepdim=True) for step in expected]).mean(0)
        assert torch.allclose(p[1:], mean, atol=1e-9)
        assert torch.allclose(p.sum(-1), torch.ones(()).double())
    whole = result.steps.mean()
    assert torch.allclose(whole.mean((8, 8)).sum(-1), torch.ones(()), atol=1e-3)
    same = whole.select(result.maps.layers.__contains__)["dog"]
    assert torch.allclose(same, result.maps["dog"].float(), atol=1e-3)
    assert whole.head(1).map("dog", (8, 8)).shape == (2, 8, 8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.denoiser.modules())


def test_what_a_run_keeps(tiny, monkeypatch):
    prompts = ["a cat and a dog", "a frog and a bench"]
    plain = limelight.generate(tiny, prompts, steps=3, seeds=[0, 1])
    assert all(p.shape[1] == 1 for result in plain for p in result.maps.layers.values())
    assert [len(result.steps) for result in plain] == [0, 0]
    recorded = limelight.generate(tiny, prompts, steps=3, seeds=[0, 1], record="steps", batch=3)
    for one, other, word in zip(plain, recorded, ("dog", "bench"), strict=True):
        assert torch.allclose(one.maps[word], other.maps[word])
        assert torch.allclose(other.steps.mean()[word], other.maps[word].float(), atol=1e-3)
        assert other.steps[-1][word].shape == one.maps[word].shape
        assert len(other.steps[1:]) == 2
    with pytest.raises(IndexError, match="There is no step 3; the run has 3 steps"):
        recorded[0].steps[3]
    step = recorded[0].steps[0]
    kept = sum(p.nbytes for p in step.layers.values())
    assert kept == 2 * size_of(tuple(step.layers), step.latent_size, 77, heads=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1e5, total=1e12))
    with pytest.raises(SettingsError, match=r"record='all' would keep 0\.\d GB .* use record='steps'"):
        limelight.generate(tiny, "a cat", steps=50, record="all")
