"""Mistakes in objectives of one's own are explained."""

from __future__ import annotations

import pytest
import torch

import limelight
from limelight import SettingsError
from limelight.guidance.base import Score
from limelight.guidance.combined import in_turn, weighted
from limelight.guidance.divergence import divergence


def owned(maps):
    return maps.mean().mean(dim=(1, 2))[:, 2]


def bare(maps, subjects):
    return owned(maps).sum()


def detached(maps, subjects):
    loss = owned(maps).detach()
    return Score(loss, loss[:, None].expand(-1, 2), {"neglect": loss})


def elsewhere(maps, subjects):
    loss = torch.ones(1, requires_grad=True) * 2
    return Score(loss, loss[:, None].expand(-1, 2), {"neglect": loss})


def scalar(maps, subjects):
    loss = owned(maps).sum()
    return Score(loss, loss.expand(1, 2), {"neglect": loss[None]})


def no_parts(maps, subjects):
    loss = owned(maps)
    return Score(loss, loss[:, None].expand(-1, 2), {})


def one_subject(maps, subjects):
    loss = owned(maps)
    return Score(loss, loss[:, None], {"neglect": loss})


def wide_part(maps, subjects):
    loss = owned(maps)
    return Score(loss, loss[:, None].expand(-1, 2), {"neglect": loss[:, None]})


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (bare, r"'bare' returned a Tensor. Return limelight.guidance.base.Score\(loss, presence, parts\)"),
        (detached, r"loss of the objective 'detached' does not depend on the maps: it has no gradient"),
        (elsewhere, r"loss of the objective 'elsewhere' does not depend on the maps"),
        (scalar, r"loss of the objective 'scalar' has the shape \[\]; it must be \[1\], one number for each image"),
        (no_parts, r"'no_parts' says of nothing what is wrong. Name at least one part"),
        (one_subject, r"presence of the objective 'one_subject' has the shape \[1, 1\]; it must be \[1, 2\]"),
        (wide_part, r"parts\['neglect'\] of the objective 'wide_part' has the shape \[1, 1\]; it must be \[1\]"),
        (weighted((1.0, bare)), "'bare' returned a Tensor"),
        (in_turn(divergence, bare), "'bare' returned a Tensor"),
    ],
)
def test_mistakes(tiny, objective, message):
    guidance = limelight.Guidance(objective=objective)
    with pytest.raises(SettingsError, match=message):
        limelight.generate(tiny, "a cat and a dog", subjects=["cat", "dog"], guidance=guidance, steps=1)
