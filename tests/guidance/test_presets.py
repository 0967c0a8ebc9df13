"""Guidance by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import limelight
from limelight import AttendAndExcite, SettingsError
from limelight.guidance.base import describe_objective
from limelight.guidance.divergence import divergence
from limelight.guidance.names import NAMES
from limelight.guidance.noise_search import NoiseSearch
from limelight.guidance.presets import ATTEND_AND_EXCITE, PRESETS
from limelight.models.base import About


def test_every_name_has_a_preset():
    assert set(NAMES) == {"recommended", *ATTEND_AND_EXCITE, *PRESETS}


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_guides(tiny, name):
    prompt = "a red cat and a blue car"
    plain = limelight.generate(tiny, prompt, steps=2)
    guidance = limelight.preset(name, tiny, resolution=8, until=1)
    if guidance.noise_search is not None:
        guidance = replace(guidance, noise_search=NoiseSearch(rounds=1, tries=1, last=0))
    guided = limelight.generate(tiny, prompt, guidance=guidance, steps=2)
    assert guided.latents.isfinite().all()
    assert not torch.equal(plain.latents, guided.latents)
    assert guided.settings["guidance"]["until"] == 1


def test_settings_of_the_model_and_of_the_caller(tiny):
    tiny.about = About(
        presets={
            "guidance": {"step_rule": "relative", "scale": 0.1},
            "attend_and_excite": {"scale": 5.0},
            "recommended": {"preset": "focus", "until": 0.3},
        }
    )
    assert limelight.preset("attend-and-excite", tiny) == AttendAndExcite(scale=5.0)
    conform = limelight.preset("conform", tiny, every=2)
    assert (conform.step_rule, conform.scale, conform.until, conform.every) == ("relative", 0.1, 0.6, 2)
    recommended = limelight.preset("recommended", tiny)
    assert recommended.objective is PRESETS["focus"].objective
    assert recommended.until == 0.3
    assert limelight.preset("recommended", tiny, until=0.5).until == 0.5


def test_names_and_settings_that_do_not_exist(tiny):
    with pytest.raises(SettingsError, match=r"Unknown guidance 'magic'\. Choose one of: recommended,"):
        limelight.preset("magic", tiny)
    for name in ("focus", "recommended", "attend-and-excite"):
        with pytest.raises(SettingsError, match=r"do not fit: .*strength"):
            limelight.preset(name, tiny, strength=3)


def test_the_embedded_model_has_presets_of_its_own(pocket):
    recommended = limelight.preset("recommended", pocket)
    assert recommended == limelight.preset("focus-then-excite", pocket)
    first, then = recommended.objective.objectives
    assert (first, describe_objective(then)) == (divergence, {"name": "excite", "modifiers": True})
    assert limelight.preset("focus", pocket).step_rule == "relative"
    assert limelight.preset("syngen", pocket).scale == 0.1
