"""The fingerprint of a model: of all weights of every part."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig

import limelight
from limelight import SettingsError
from limelight.evaluate.runs import run
from limelight.evaluate.suites import Case
from limelight.generation import provenance
from limelight.generation.provenance import fingerprint
from limelight.textual_inversion.config import TrainingConfig
from limelight.textual_inversion.dataset import TrainingImages
from limelight.textual_inversion.state import TrainState
from limelight.textual_inversion.word import LearnedWord


def last_weight(module: torch.nn.Module) -> torch.nn.Parameter:
    return max(module.parameters(), key=lambda p: p.numel())


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_any_single_weight_counts(tiny_pipeline, part):
    pipeline = tiny_pipeline()
    before = fingerprint(limelight.load(pipeline))
    changed = copy.deepcopy(getattr(pipeline, part))
    with torch.no_grad():
        last_weight(changed).view(-1)[-7] += 1e-3
    assert fingerprint(limelight.load(StableDiffusionPipeline(
        **{**pipeline.components, part: changed}, requires_safety_checker=False))) != before  # fmt: skip


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2", "vae"])
def test_every_part_of_xl_counts(tiny_xl, part):
    model = limelight.load(tiny_xl)
    before = fingerprint(model)
    with torch.no_grad():  # counted by torch: the module need not be another
        last_weight(getattr(tiny_xl, part)).view(-1)[-7] += 1e-3
    assert fingerprint(model) != before


def test_latent_diffusion_has_two_parts_more(tiny_ldm):
    assert set(tiny_ldm.parts) == {"unet", "text_encoder", "vae"}


def test_writing_to_data_is_noticed(tiny_pipeline):
    """As LoRA's merging does it, past torch's count of changes."""
    model = limelight.load(tiny_pipeline())
    before, weight = fingerprint(model), last_weight(model.denoiser)
    count = weight._version
    weight.data += 1e-3
    assert weight._version == count
    assert fingerprint(model) != before


def test_the_second_time_nothing_is_hashed(tiny_pipeline, monkeypatch):
    model = limelight.load(tiny_pipeline())
    before = fingerprint(model)
    monkeypatch.setattr(provenance, "_digest", None)
    assert fingerprint(model) == before


def test_equal_weights_have_one_fingerprint(tiny_pipeline):
    assert fingerprint(limelight.load(tiny_pipeline())) == fingerprint(limelight.load(tiny_pipeline()))


def test_loras_and_their_strength_count(tiny_pipeline):
    model = limelight.load(tiny_pipeline())
    plain = fingerprint(model)
    model.denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "a")
    whole = fingerprint(model)
    model.denoiser.set_adapters(["a"], [0.5])
    half = fingerprint(model)
    assert len({plain, whole, half}) == 3


def test_a_bound_word_is_not_a_weight(tiny_pipeline):
    model = limelight.load(tiny_pipeline())
    before = fingerprint(model)
    with LearnedWord("<thing>", (torch.ones(2, 32),), {}).bind(model):
        assert fingerprint(model) == before
    assert fingerprint(model) == before


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_run_does_not_go_on_with_other_weights(tiny_pipeline, tmp_path, part):
    pipeline = tiny_pipeline(dtype=torch.float32)
    pipeline.save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "device": "cpu", "steps": 1, "batch": 1, "workers": 1}
    run(tmp_path / "run", [Case("a cat", "mine")], ["plain"], [0], **options)
    with torch.no_grad():
        last_weight(getattr(pipeline, part)).view(-1)[-7] += 1e-3
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(SettingsError, match="weights: "):
        run(tmp_path / "run", [Case("a cat", "mine")], ["plain"], [0, 1], **options)


def test_a_training_does_not_go_on_with_other_weights(tiny):
    images, config = TrainingImages, TrainingConfig(token="<thing>", init="cat", vectors=1, steps=1)
    state = TrainState(config, 0, (), (), (), {"model": "mine", "weights": fingerprint(tiny), "pictures": "x"})
    tiny = copy.deepcopy(tiny)
    with torch.no_grad():
        last_weight(tiny.pipeline.vae).view(-1)[-7] += 1e-3
    with pytest.raises(SettingsError, match="has other weights"):
        state.check(tiny, images, config)
