"""A noise that is searched for before the first step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import limelight
from limelight import SettingsError
from limelight.evaluate.runs import _calls
from limelight.guidance.noise_search import NoiseSearch

PROMPT = "a red cat and a blue car"


def run(model, search, seeds=(0, 1, 2), **options):
    guidance = limelight.preset("initno", model, resolution=8, until=1, noise_search=search)
    return limelight.generate(model, PROMPT, guidance=guidance, seeds=seeds, **{"steps": 2, **options})


def test_a_searched_noise_belongs_to_its_seed(tiny):
    """With fresh noises in between, and beside images that are good at once."""
    search = NoiseSearch(targets={"neglect": 0.0, "mixing": 0.0}, rounds=2, tries=1, last=1)
    together = run(tiny, search)
    # Two noises with one step and a look before it, then one step and a look from the better of them.
    assert together.trace[0]["searches"] == [6, 6, 6]
    for i, seed in enumerate(together.seeds):
        alone = run(tiny, search, seeds=seed)
        torch.testing.assert_close(alone.latents[0], together.latents[i], atol=1e-8, rtol=0)
    apart = run(tiny, search, batch=2)
    torch.testing.assert_close(apart.latents, together.latents, atol=1e-8, rtol=0)
    assert apart.trace[0]["searches"] == [6, 6, 6]


def test_images_of_one_batch_stop_by_themselves(tiny):
    """Of three images some are good at once; each is searched as it is alone."""
    watched = run(tiny, None)
    lacking = sorted(watched.trace[0]["neglect"])
    search = NoiseSearch(targets={"neglect": (lacking[0] + lacking[1]) / 2}, rounds=1, tries=1, last=0)
    together = run(tiny, search)
    best = watched.trace[0]["neglect"].index(lacking[0])
    assert together.trace[0]["searches"][best] == 1
    assert sorted(together.trace[0]["searches"]) == [1, 2, 2]
    torch.testing.assert_close(together.latents[best], watched.latents[best], atol=1e-8, rtol=0)
    assert not torch.allclose(together.latents, watched.latents, atol=1e-6)


def test_the_search_lowers_the_loss_of_the_first_step(tiny):
    search = NoiseSearch(targets={"neglect": 0.0, "mixing": 0.0}, rounds=1, tries=8, last=0)
    before, after = run(tiny, None).trace[0]["loss"], run(tiny, search).trace[0]["loss"]
    assert sum(after) < sum(before)


def test_the_search_is_part_of_the_settings(tiny):
    described = limelight.preset("initno", tiny).settings()["noise_search"]
    assert described["targets"] == {"neglect": 0.2, "mixing": 0.6}
    assert (described["rounds"], described["tries"], described["last"]) == (5, 10, 50)
    assert "noise_search" not in limelight.preset("initno", tiny, noise_search=None).settings()
    assert "searches" not in run(tiny, None).trace[0]


def test_evaluation_counts_the_passes_of_a_search():
    trace = ({"refinements": [1, 0], "searches": [6, 2]}, {"refinements": [0, 3]})
    assert _calls(SimpleNamespace(trace=trace, seeds=(0, 1)), 20) == [4 + 7, 4 + 5]
    assert _calls(SimpleNamespace(trace=(), seeds=(0, 1)), 20) == [10, 10]


def test_an_attached_pipeline_has_a_noise_of_its_own(tiny_pipeline):
    pipeline = tiny_pipeline()
    guidance = limelight.preset("initno", limelight.load(pipeline))
    with pytest.raises(SettingsError, match="A noise search needs"):
        limelight.attach(pipeline, subjects=["cat"], guidance=guidance).__enter__()
