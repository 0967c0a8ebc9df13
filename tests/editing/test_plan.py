"""What is checked and chosen before the first image of an edit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import limelight
from limelight.editing import plan as plan_module
from limelight.heads.relevance import Relevance


def vectors(model) -> Relevance:
    """The same relevance of every head."""
    heads = tuple((layer.group, layer.heads) for layer in model.text_sites)
    return Relevance(("Color",), heads, torch.ones(1, sum(count for _, count in heads)))


def test_prompts_are_checked_before_the_image_is_inverted(tiny, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the inversion takes minutes")

    monkeypatch.setattr(plan_module, "invert", refuse)
    image = Image.new("RGB", (32, 32))
    for bad in ({"local": "cat"}, {"mode": "replace"}, {"cross_steps": 2.0}, {"strengthen": {"cat": "Color"}}):
        with pytest.raises(limelight.LimelightError):
            limelight.edit(tiny, "a red car", "a big red car", image=image, head_vectors=vectors(tiny), **bad)


def test_settings_are_plain_values(tiny, tmp_path):
    relevance = vectors(tiny)
    relevance.save(tmp_path / "own.safetensors")
    options = {"strengthen": {"blue": "Color"}, "cross_steps": (0.1, 0.5), "steps": 1, "record": False}
    for given, name in ((relevance, "given"), (Path(tmp_path / "own.safetensors"), "own.safetensors")):
        result = limelight.edit(tiny, "a red car", "a blue car", head_vectors=given, **options)
        settings = json.loads(json.dumps(result.target.settings))
        assert settings["head_vectors"] == name
        assert (settings["cross_steps"], settings["self_steps"]) == ({"*": [0.1, 0.5]}, 0.9)
        assert (settings["image"], settings["null_text"]) == (None, False)


def test_shapes_are_kept_for_less_long_where_no_word_is_strengthened(tiny):
    result = limelight.edit(tiny, "a red car", "a blue car", steps=1, record=False)
    assert (result.source.settings["self_steps"], result.source.settings["head_vectors"]) == (0.4, None)


def test_a_real_image_has_one_seed(tiny):
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    result = limelight.edit(tiny, "a red car", "a blue car", seeds=[5, 6], image=image, steps=1, record=False)
    assert result.target.seeds == (5,)
    assert len(result.target.images) == 1
    assert result.target.settings["image"] == "given"
