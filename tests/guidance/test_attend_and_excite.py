from __future__ import annotations

import math

import pytest
import torch
from transformers import CLIPTokenizer

from limelight import AttentionMaps
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.terms import blur
from limelight.models.sites import AttentionSite
from limelight.prompts.prompt import Prompt, parse
from limelight.prompts.subjects import Subject
from tests.conftest import POCKET


def at(*spans: tuple[int, ...]) -> tuple[Subject, ...]:
    """Subjects at these token positions."""
    return tuple(Subject(span) for span in spans)


@pytest.fixture
def maps_of(tokenizer):
    prompt = parse("a cat and a dog", tokenizer, 77)

    def build(probabilities: torch.Tensor) -> AttentionMaps:
        images, height, width, _ = probabilities.shape
        layer = AttentionSite("only", "cross", "up", 1, 1)
        return AttentionMaps({layer: probabilities.flatten(1, 2)[:, None]}, (height, width), (prompt,) * images)

    return build


def test_excite_by_hand(maps_of):
    """Without blur: 1 - exp(100 p) / (exp(100 p) + n - 1) at the best pixel, of the weakest subject."""
    p = torch.zeros(1, 4, 4, 10, dtype=torch.float64)
    p[0, 1, 2, 2] = 0.03
    p[0, 3, 3, 5] = 0.01
    p[..., 0] = 0.9  # the start token does not take part
    p[..., 9] = 0.5  # nor does the last
    loss, presence, _ = excite(maps_of(p), [at((2,), (5,))], smooth=False)
    expected = [math.exp(3) / (math.exp(3) + 7), math.exp(1) / (math.exp(1) + 7)]
    assert presence[0].tolist() == pytest.approx(expected)
    assert loss.tolist() == pytest.approx([1 - expected[1]])


def test_splitting_a_word_changes_nothing(maps_of):
    whole = torch.full((1, 4, 4, 12), 0.02, dtype=torch.float64)
    whole[..., 3] = 0.1
    split = whole.clone()
    split[..., 3] = 0.05
    split = torch.cat([split[..., :4], torch.full_like(split[..., :1], 0.05), split[..., 4:]], dim=-1)
    for smooth in (False, True):
        one = excite(maps_of(whole), [at((3,), (7,))], smooth=smooth)
        two = excite(maps_of(split), [at((3, 4), (8,))], smooth=smooth)
        assert torch.allclose(one.loss, two.loss)
        assert torch.allclose(one.presence, two.presence)


def test_images_do_not_mix(maps_of):
    torch.manual_seed(0)
    p = torch.rand(3, 4, 4, 9, dtype=torch.float64).div(9)
    subjects = [at((1,), (3,)), at((2, 3)), at((4,), (1,), (5, 6))]
    together = excite(maps_of(p), subjects)
    for i, spans in enumerate(subjects):
        alone = excite(maps_of(p[i : i + 1]), [spans])
        assert torch.allclose(alone.loss[0], together.loss[i])
        assert torch.allclose(alone.presence[0], together.presence[i, : len(spans)])
        assert together.presence[i, len(spans) :].isnan().all()


def test_gradient_is_finite_with_unequal_subjects(maps_of):
    p = torch.rand(2, 4, 4, 9, dtype=torch.float64).div(9).requires_grad_()
    excite(maps_of(p), [at((1,), (3,)), at((2, 3))]).loss.sum().backward()
    assert p.grad.isfinite().all()
    assert p.grad.abs().amax(dim=(1, 2, 3)).min() > 0


def test_pooling_survives_inference_mode(maps_of):
    p = torch.rand(1, 4, 4, 8, dtype=torch.float64).div(8)
    with torch.inference_mode():
        excite(maps_of(p), [at((1,), (6,))])
    variable = p.clone().requires_grad_()
    excite(maps_of(variable), [at((1,), (6,))]).loss.sum().backward()
    assert variable.grad is not None


def test_blur_has_the_published_weights():
    dot = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    dot[0, 0, 2, 2] = 1
    line = torch.tensor([0.0, 0.212, 0.576, 0.212, 0.0]).double()
    assert torch.allclose(blur(dot)[0, 0], line[:, None] * line, atol=1e-3)
    # Reflected borders: what lies beyond the edge mirrors the second row.
    ramp = torch.arange(25, dtype=torch.float64).reshape(1, 1, 5, 5)
    padded = torch.nn.functional.pad(ramp, (1, 1, 1, 1), mode="reflect")
    kernel = blur(dot)[:, :, 1:4, 1:4]
    assert torch.allclose(blur(ramp), torch.nn.functional.conv2d(padded, kernel))


def test_models_that_pad_with_other_tokens(tokenizer):
    """Their padding does not compete: the maps might as well end at the prompt's end token."""
    torch.manual_seed(0)
    # As Stable Diffusion 2.x pads, with a token that is not the end token.
    other = CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=12, pad_token="!</w>")
    padded, plain = parse("a cat and a dog", other, 12), parse("a cat and a dog", tokenizer, 12)
    assert (padded.padded, plain.padded, padded.end) == (True, False, 6)
    p, subjects = torch.rand(1, 4, 4, 12, dtype=torch.float64).div(12), [at((2,), (5,))]
    layer = AttentionSite("only", "cross", "up", 1, 1)

    def loss(probabilities: torch.Tensor, prompt: Prompt, **options: bool) -> float:
        maps = AttentionMaps({layer: probabilities.flatten(1, 2)[:, None]}, (4, 4), (prompt,))
        return excite(maps, subjects, **options).loss.item()

    # Columns 1..5 compete: with the end token at column 6 as the last, that is the ordinary case.
    expected = loss(p[..., :7], plain)
    assert loss(p, padded) == pytest.approx(expected, abs=1e-12)
    assert loss(p, plain, own_tokens=True) == pytest.approx(expected, abs=1e-12)
    assert loss(p, padded, own_tokens=False) == pytest.approx(loss(p, plain), abs=1e-12)
    assert abs(loss(p, plain) - expected) > 0.01
