"""Attend-and-Excite with maps weighted by head, against a literal implementation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import limelight
from limelight import AttendAndExcite, HeadWeightedAttendAndExcite
from limelight.attention.maps import AttentionMaps
from limelight.errors import SettingsError
from limelight.heads.guidance import excite_by_heads, resizing
from limelight.prompts.subjects import Subject
from tests.heads.test_gains import random_relevance

TEXT = "a cat and a red car"


def literal_resize(maps: torch.Tensor, side: int) -> torch.Tensor:
    """[n, 1, height, width] blurred by a two-dimensional Gaussian, then resized."""
    old = maps.shape[-1]
    if old > side:
        k = old // side + 1
        sigma = 0.3 * ((k - 1) / 2 - 1) + 0.8
        at = torch.arange(k, dtype=maps.dtype) - (k - 1) / 2
        row = torch.exp(-(at**2) / (2 * sigma**2))
        kernel = torch.outer(row / row.sum(), row / row.sum())
        maps = F.conv2d(F.pad(maps, [k // 2] * 4, mode="reflect"), kernel[None, None])
    return F.interpolate(maps, size=(side, side), mode="bicubic", align_corners=False)


@pytest.mark.parametrize("old", [4, 8, 16, 32, 64])
def test_resizing_is_one_matrix(old):
    maps = torch.rand(2, 1, old, old, dtype=torch.float64, generator=torch.Generator().manual_seed(old))
    matrix = resizing((old, old), (8, 8), torch.float64)
    assert matrix.shape == (64, old * old)
    expected = literal_resize(maps, 8)
    assert torch.allclose((matrix @ maps.flatten(2).movedim(1, 2)).flatten(), expected.flatten(), atol=1e-12)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(64, dtype=torch.float64))


# exp(-(d / 0.5)^2 / 2) at d = -1, 0, 1, divided by its sum: the Gaussian of the released code.
KERNEL = torch.tensor([0.10650698, 0.78698604, 0.10650698], dtype=torch.float64)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_loss_equals_a_literal_implementation(tiny, smooth):
    relevance, prompt = random_relevance(tiny), tiny.prompt(TEXT)
    torch.manual_seed(3)
    layers = {}
    for layer in tiny.sites:
        if layer.kind == "cross":
            pixels = layer.size((16, 16))[0] ** 2
            layers[layer] = (3 * torch.randn(2, layer.heads, pixels, 77, dtype=torch.float64)).softmax(dim=-1)
    maps = AttentionMaps(layers, (16, 16), (prompt, prompt))
    subjects = [(Subject(prompt.find("cat")), Subject(prompt.find("car")))] * 2
    concepts = {"cat": "Animals", "car": "Color"}
    found = excite_by_heads(maps, subjects, relevance=relevance, concepts=concepts, smooth=smooth)
    for image in range(2):
        presences = []
        for word, concept in concepts.items():
            total, flat = torch.zeros(8, 8, 77, dtype=torch.float64), 0
            for layer, p in layers.items():
                for head in range(layer.heads):
                    side = layer.size((16, 16))[0]
                    own = p[image, head].T.reshape(77, 1, side, side)
                    weight = float(relevance[concept][flat]) / len(relevance.heads)
                    total += weight * literal_resize(own, 8)[:, 0].movedim(0, -1)
                    flat += 1
            sharp = (100 * total[..., 1:77]).softmax(dim=-1)  # the last token competes, too
            (position,) = prompt.find(word)
            own = sharp[None, None, ..., position - 1]
            if smooth:
                own = F.conv2d(F.pad(own, [1] * 4, mode="reflect"), torch.outer(KERNEL, KERNEL)[None, None])
            presences.append(own.max())
        expected = torch.stack(presences)
        limit = 1e-7 if smooth else 1e-10  # the kernel is built in float32, as published
        assert torch.allclose(found.presence[image], expected, atol=limit)
        assert torch.allclose(found.loss[image], (1 - expected).clamp(min=0).max(), atol=limit)


def test_guidance_with_heads(tiny):
    relevance = random_relevance(tiny)
    options = {"subjects": ["cat", "red car"], "seeds": [0, 1], "steps": 2}
    guidance = HeadWeightedAttendAndExcite(
        head_vectors=relevance, concepts={"cat": "Animals", "car": "Color"}, thresholds={}
    )
    weighted = limelight.generate(tiny, TEXT, guidance=guidance, **options)
    plain = limelight.generate(tiny, TEXT, guidance=AttendAndExcite(thresholds={}), **options)
    assert not torch.allclose(weighted.latents, plain.latents)
    assert weighted.settings["guidance"]["concepts"] == {"cat": "Animals", "car": "Color"}
    assert all(0 < value <= 1 for row in weighted.trace for each in row["presence"] for value in each)
    # A batch equals its single images.
    moved = limelight.generate(tiny, TEXT, guidance=guidance, **{**options, "seeds": [1]})
    assert torch.allclose(moved.latents[0], weighted.latents[1], atol=1e-8)


def test_mistakes(tiny):
    relevance = random_relevance(tiny)
    with pytest.raises(SettingsError, match="concepts is empty"):
        HeadWeightedAttendAndExcite(head_vectors=relevance, concepts={})
    with pytest.raises(SettingsError, match="must be one number"):
        HeadWeightedAttendAndExcite(concepts="Animals", resolution=(8, 8))
    options = {"subjects": ["cat", "car"], "steps": 1}
    with pytest.raises(SettingsError, match="The subject 'car' has no concept"):
        limelight.generate(
            tiny,
            TEXT,
            guidance=HeadWeightedAttendAndExcite(head_vectors=relevance, concepts={"cat": "Animals"}),
            **options,
        )
    with pytest.raises(SettingsError, match="Unknown concept 'Birds'"):
        limelight.generate(
            tiny, TEXT, guidance=HeadWeightedAttendAndExcite(head_vectors=relevance, concepts="Birds"), **options
        )
