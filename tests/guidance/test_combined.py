"""Sums of objectives."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from limelight import SettingsError
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.base import describe_objective, reads, remembers
from limelight.guidance.bind import bind
from limelight.guidance.combined import in_turn, weighted
from limelight.guidance.contrast import contrast
from limelight.guidance.divergence import divergence
from limelight.guidance.self_cross import self_cross
from tests.guidance.test_objectives import PAIR, maps  # noqa: F401 - a fixture


def test_losses_add_up_and_the_worse_part_counts(maps):  # noqa: F811
    one, other = excite(maps, [PAIR]), bind(maps, [PAIR])
    both = weighted((2, excite), (0.5, bind))(maps, [PAIR])
    assert both.loss.item() == pytest.approx(2 * one.loss.item() + 0.5 * other.loss.item())
    assert set(both.parts) == {"neglect", "binding", "mixing"}
    assert torch.equal(both.parts["mixing"], other.parts["mixing"])


def test_a_sum_reads_what_its_terms_read():
    both = weighted((1, partial(contrast, temperature=0.1)), (1, self_cross))
    assert reads(both) == ("cross", "self")
    assert remembers(both)
    assert not remembers(weighted((1, excite)))
    assert describe_objective(both)["terms"] == [[1, {"name": "contrast", "temperature": 0.1}], [1, "self_cross"]]


def test_unit_terms_have_gradients_of_their_weights_lengths(maps):  # noqa: F811
    layer = next(iter(maps.cross.layers))
    variable = maps.layers[layer].clone().requires_grad_()
    own = type(maps)({**maps.layers, layer: variable}, maps.latent_size, maps.prompts)
    for objective in (excite, bind):
        loss = weighted((3, objective), unit=True)(own, [PAIR]).loss
        (gradient,) = torch.autograd.grad(loss.sum(), variable)
        assert gradient.norm().item() == pytest.approx(3)


def test_a_sum_needs_terms():
    with pytest.raises(SettingsError, match="weighted needs at least one term"):
        weighted()


def test_in_turn_follows_the_first_objective_that_finds_something(maps):  # noqa: F811
    parted, strong = divergence(maps, [PAIR]), excite(maps, [PAIR])
    mixing, binding = parted.parts["mixing"].item(), parted.parts["binding"].item()
    worst = max(mixing, binding)
    assert 0 < worst < 1

    first = in_turn(divergence, excite, limit=0.9 * worst)(maps, [PAIR])
    then = in_turn(divergence, excite, limit=worst)(maps, [PAIR])
    assert torch.equal(first.loss, parted.loss)
    assert torch.equal(then.loss, strong.loss)  # however little presence there is, it is the second objective's part
    assert torch.equal(first.presence, strong.presence)
    assert first.parts.keys() == {"mixing", "binding", "neglect"}


def test_in_turn_leaves_a_part_to_the_last_that_measures_it(maps):  # noqa: F811
    """The neglect of nouns alone, which `divergence` reports, is none of a phrase that is there."""
    together = partial(excite, modifiers=True)
    score = in_turn(divergence, together)(maps, [PAIR])
    assert torch.equal(score.parts["neglect"], together(maps, [PAIR]).parts["neglect"])
    assert not torch.equal(score.parts["neglect"], divergence(maps, [PAIR]).parts["neglect"])


def test_in_turn_chooses_image_by_image(maps):  # noqa: F811
    both = type(maps)(
        {layer: p.repeat(2, 1, 1, 1) for layer, p in maps.layers.items()}, maps.latent_size, maps.prompts * 2
    )
    bare = [PAIR[0]._replace(modifiers=())]  # one subject of one word: nothing can be mixed
    score = in_turn(divergence, excite, limit=0.0)(both, [PAIR, bare])
    assert score.loss[0] == divergence(maps, [PAIR]).loss
    assert score.loss[1] == excite(maps, [bare]).loss


@pytest.mark.parametrize(
    ("objectives", "limit", "message"),
    [
        ((excite,), 0.1, "in_turn needs at least two objectives, for example"),
        ((divergence, excite), 1.5, r"limit=1\.5 must be between 0 and 1"),
    ],
)
def test_in_turn_refuses(objectives, limit, message):
    with pytest.raises(SettingsError, match=message):
        in_turn(*objectives, limit=limit)
