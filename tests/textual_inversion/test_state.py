"""The state of a training: where it begins, and going on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from limelight.errors import SettingsError
from limelight.textual_inversion.config import TrainingConfig
from limelight.textual_inversion.state import TrainState, first_vectors
from limelight.textual_inversion.training import train_word
from tests.textual_inversion.images import TINY, patches


def test_a_resumed_training_equals_one_without_a_break(tiny, tmp_path):
    config = TrainingConfig(
        **{**TINY, "vectors": 2, "accumulate": 2, "norm": "keep", "anchor_weight": 0.1, "grow_every": 3}, steps=4
    )
    *_, whole = train_word(tiny, patches(), config)
    *_, half = train_word(tiny, patches(), replace(config, steps=2))
    # Of two vectors one waits until step 3.
    assert torch.equal(half.state.vectors[0][1], half.state.begun[0][1])
    assert not torch.equal(half.state.vectors[0][0], half.state.begun[0][0])
    half.state.save(tmp_path / "state.safetensors")
    torch.manual_seed(99)  # the random numbers of the rest of the program have no part in it
    *_, again = train_word(tiny, patches(), config, state=TrainState.load(tmp_path / "state.safetensors"))
    assert (again.loss, again.gradient) == (whole.loss, whole.gradient)
    for a, b in zip(again.state.moments, whole.state.moments, strict=True):
        assert all(map(torch.equal, a, b))
    assert torch.equal(again.state.vectors[0], whole.state.vectors[0])
    assert not torch.equal(whole.state.vectors[0][1], whole.state.begun[0][1])
    torch.testing.assert_close(whole.state.vectors[0].norm(dim=1), whole.state.begun[0].norm(dim=1))
    for changes, reason in (({"lr": 0.1}, "lr=0.02, not 0.1"), ({"seed": 3}, "seed=0, not 3")):
        with pytest.raises(SettingsError, match=reason):
            train_word(tiny, patches(), replace(config, **changes), state=half.state)
    with pytest.raises(SettingsError, match="other images"):
        train_word(tiny, patches(2), config, state=half.state)


def test_a_word_begins_as_its_init_word(pocket):
    table = pocket.pipeline.text_encoder.get_input_embeddings().weight.float()
    cat, teddy, bear = (
        table[pocket.pipeline.tokenizer.convert_tokens_to_ids(f"{w}</w>")] for w in ("cat", "teddy", "bear")
    )
    (one,) = first_vectors(pocket, TrainingConfig(init="cat"))
    assert torch.equal(one, cat[None])
    (pair,) = first_vectors(pocket, TrainingConfig(init="teddy bear", vectors=2))
    assert torch.equal(pair, torch.stack([teddy, bear]))
    (two,) = first_vectors(pocket, TrainingConfig(init="cat", vectors=2))
    assert 0 < (two[0] - two[1]).norm() < 0.01 * cat.norm()
    (random,) = first_vectors(pocket, TrainingConfig(vectors=64))
    assert random.std() == pytest.approx(table.std().item(), rel=0.1)
    with pytest.raises(SettingsError, match=r"init='kite' is 2 tokens of 'pocket' \(k, ite\).*take vectors=2"):
        first_vectors(pocket, TrainingConfig(init="kite"))
