"""Search for an initial noise."""

from __future__ import annotations

import pytest
import torch

from limelight import Guidance, SettingsError
from limelight.guidance.base import Score, Steering
from limelight.guidance.noise_search import NoiseSearch, divergence_from_noise
from limelight.prompts.subjects import resolve

TARGET = 0.3


def toy(rows_seen):
    """Images whose loss is the mean of the noise's first value plus 1; it is good below 0.3."""

    def evaluate(noise, rows):
        rows_seen.append(rows.tolist())
        loss = noise[:, 0, 0, 0] + 1
        gradient = torch.zeros_like(noise)
        gradient[:, 0, 0, 0] = 1
        return Score(loss, loss[:, None], {"neglect": loss.clamp(0, 1)}), gradient

    return evaluate


def test_a_good_noise_is_left_as_it_is():
    noise = torch.full((2, 1, 4, 4), -0.9, dtype=torch.float64)
    seen = []
    found = NoiseSearch(targets={"neglect": TARGET})(noise, toy(seen), lambda rows: noise[rows])
    assert torch.equal(found.noise, noise)
    assert found.satisfied.tolist() == [True, True]
    assert found.passes.tolist() == [1, 1]
    assert seen == [[0, 1]]


def test_images_are_searched_one_by_one():
    """Only those that are not good are evaluated again, and they end as they do alone."""
    start = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    start[:, 0, 0, 0] = torch.tensor([-0.9, -0.68, 5.0])
    search = NoiseSearch(targets={"neglect": TARGET}, rounds=2, tries=3, last=4, kl=1.0)
    fresh = {0: start[:1], 1: start[1:2], 2: torch.full_like(start[:1], 7.0)}
    seen = []
    together = search(start, toy(seen), lambda rows: torch.cat([fresh[i] for i in rows]))
    assert seen[0] == [0, 1, 2]
    assert seen[-1] == [2]
    for i in range(3):
        alone = search(start[i : i + 1], toy([]), lambda rows, i=i: fresh[i])
        assert torch.equal(alone.noise[0], together.noise[i])
        assert alone.passes[0] == together.passes[i]
    assert together.satisfied.tolist() == [True, True, False]
    # Two rounds of three steps and one look each, then four steps from the better start.
    assert together.passes[2] == 2 * 4 + 5
    assert together.noise[2, 0, 0, 0] < 5


def test_the_noise_stays_as_likely_as_noise():
    noise = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.randn_like(noise)

    def evaluate(x, rows):
        gap = x - target[rows]
        return Score(gap.square().flatten(1).sum(1), gap.flatten(1)[:, :1], {"neglect": torch.ones(len(x))}), 2 * gap

    found = NoiseSearch(rounds=1, tries=30, last=0)(noise, evaluate, lambda rows: noise[rows])
    assert not torch.equal(found.noise, noise)
    # Where v is 0 the divergence is half the mean square of m; it bounds what x may differ.
    assert (found.noise - noise).square().mean() < 4 * 1e-3
    exact = divergence_from_noise(torch.full((1, 2), 0.5), torch.full((1, 2), 0.25))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.5, torch.tensor(0.25).exp().sqrt()), torch.distributions.Normal(0.0, 1.0)
    )
    assert exact.item() == pytest.approx(expected.item())


def test_on_the_embedded_model(pocket):
    """The loss of the first step falls, by the gradient of the latents."""
    prompt = pocket.prompt("a cat and a crown and a lion")
    subjects, conditioning = [resolve(prompt, "auto")[1]], pocket.encode([prompt])
    timesteps = pocket.timesteps(20)
    noise = pocket.noise([torch.Generator().manual_seed(1)], *pocket.default_size)
    search = NoiseSearch(rounds=1, tries=6, last=0, targets={"neglect": 0.0, "mixing": 0.0})
    guidance = Guidance(objective=search.objective)
    layers = guidance.layers(pocket, tuple(noise.shape[-2:]))
    steering = Steering(guidance, pocket, conditioning, subjects, 20, timesteps, layers)
    losses = []

    def evaluate(x, rows):
        score, gradient = steering.evaluate(pocket.start(x), timesteps[0], rows)
        losses.append(score.loss.item())
        return score, pocket.start(gradient)

    search(noise, evaluate, lambda rows: noise)
    assert len(losses) == 7
    assert min(losses[1:]) < losses[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds=0 must be a whole number of at least 1"),
        ({"lr": float("nan")}, "lr=nan must be a number above 0"),
        ({"targets": {"mixing": 2}}, "The target of 'mixing', 2"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(SettingsError, match=message):
        NoiseSearch(**changes)
