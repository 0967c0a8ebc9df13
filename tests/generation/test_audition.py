"""Seeds that are chosen by their maps."""

from __future__ import annotations

import pytest
import torch

import limelight
from limelight import Audition, SettingsError
from limelight.generation.audition import _Found, candidate_seeds
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.divergence import divergence
from limelight.guidance.self_cross import self_cross
from limelight.prompts.subjects import resolve

PROMPT = "a red cat and a blue car"


def test_candidates():
    assert candidate_seeds(7, 3) == (7, 1_000_007, 2_000_007)
    assert candidate_seeds(2**63 - 1, 2)[1] == 999_999


@pytest.mark.parametrize("objective", [excite, divergence])
def test_the_winner_has_the_least_loss_of_its_own_run(tiny, objective):
    """Against whole runs of every candidate, with the maps of their single steps."""
    chosen = limelight.generate(
        tiny,
        PROMPT,
        seeds=[0, 5],
        steps=3,
        audition=Audition(candidates=3, rounds=[1], objective=objective, targets={}),
    )
    subjects = [resolve(tiny.prompt(PROMPT), "auto")[1]]
    for seed, winner in zip((0, 5), chosen.seeds, strict=True):
        losses = {}
        for candidate in candidate_seeds(seed, 3):
            run = limelight.generate(tiny, PROMPT, seeds=candidate, steps=3, record="steps")
            maps = type(run.maps)({k: v.double() for k, v in run.steps[1].layers.items()}, (16, 16), run.maps.prompts)
            losses[candidate] = objective(maps, subjects).loss.item()
        first, second, *_ = sorted(losses.values())
        assert second - first > 1e-3  # or single steps in half precision could not tell them apart
        assert winner == min(losses, key=losses.get)


def test_the_winning_seed_gives_the_same_image_alone(tiny):
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={})
    chosen = limelight.generate(tiny, PROMPT, guidance=guidance, steps=4, audition=3)
    alone = limelight.generate(tiny, PROMPT, seeds=chosen.seeds, guidance=guidance, steps=4)
    assert torch.equal(chosen.latents, alone.latents)
    assert chosen.settings["audition"] == {
        "candidates": 3,
        "rounds": [0, 0.16],
        "objective": "divergence",
        "targets": {"neglect": 1.0, "mixing": 0.1, "binding": 0.1},
    }
    assert "audition" not in alone.settings


def test_several_prompts_have_winners_of_their_own(tiny):
    prompts = [PROMPT, "a frog and a bear"]
    audition = Audition(candidates=3, rounds=[0, 1])
    both = limelight.generate(tiny, prompts, seeds=[0, 1], steps=3, audition=audition, batch=3)
    for prompt, result in zip(prompts, both, strict=True):
        alone = limelight.generate(tiny, prompt, seeds=[0, 1], steps=3, audition=audition)
        assert result.seeds == alone.seeds
        torch.testing.assert_close(result.latents, alone.latents)


def test_an_objective_that_reads_self_attention(tiny):
    chosen = limelight.generate(tiny, PROMPT, steps=4, audition=Audition(candidates=2, objective=self_cross))
    assert len(chosen.seeds) == 1


def test_one_candidate_changes_nothing(tiny):
    assert limelight.generate(tiny, PROMPT, seeds=3, steps=2, audition=1).seeds == (3,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audition": 0}, "candidates=0 must be a whole number from 1"),
        ({"audition": Audition(rounds=[9])}, "An audition of 9 steps is too long for a schedule of 4 steps"),
        ({"audition": 2, "subjects": []}, "An audition needs the subjects of every image"),
        ({"audition": 2, "latents": torch.zeros(1, 4, 16, 16)}, "cannot be held with given latents"),
    ],
)
def test_auditions_that_cannot_be_held(tiny, options, message):
    with pytest.raises(SettingsError, match=message):
        limelight.generate(tiny, PROMPT, steps=4, **options)


@pytest.mark.parametrize("rounds", [[], [-1], [0, 1.5], [float("nan")]])
def test_rounds_that_do_not_exist(rounds):
    with pytest.raises(SettingsError):
        Audition(rounds=rounds)


def test_each_round_keeps_the_same_share(tiny, monkeypatch):
    compared = []

    def find(plan, audition, images, step, batch):
        compared.append((step, [seed for _, seed in images]))
        return {image: _Found(loss=image[1] % 7, lacks=True) for image in images}

    monkeypatch.setattr("limelight.generation.audition._find", find)
    chosen = limelight.generate(tiny, PROMPT, steps=10, seeds=3, audition=Audition(candidates=16, rounds=[0, 2]))
    own, (first, tried), (second, left) = compared
    assert (own, first, second, len(tried), len(left)) == ((2, [3]), 0, 2, 16, 4)
    assert sorted(seed % 7 for seed in left) == sorted(seed % 7 for seed in tried)[:4]
    assert chosen.seeds == (min(left, key=lambda seed: seed % 7),)


def test_an_image_that_lacks_nothing_keeps_its_seed(tiny, monkeypatch):
    looks = []

    def parts(maps, subjects):
        looks.append(len(subjects))
        wrong = torch.tensor([0.3, 0.5, 0.5][: len(subjects)])  # the first seed lacks nothing
        return excite(maps, subjects).of(-torch.arange(len(subjects)).double(), mixing=wrong)

    audition = Audition(candidates=3, rounds=[1], objective=parts, targets={"neglect": 1, "mixing": 0.4})
    chosen = limelight.generate(tiny, PROMPT, seeds=[5, 6], steps=4, audition=audition)
    assert chosen.seeds == (5, 2_000_006)
    assert looks == [2, 3]
