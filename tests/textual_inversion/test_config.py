"""How a word is learned."""

from __future__ import annotations

from limelight.textual_inversion.config import TrainingConfig


def test_vectors_grow_with_the_step_alone():
    config = TrainingConfig(vectors=3, grow_every=10)
    assert [config.vectors_at(step) for step in (0, 9, 10, 20, 500)] == [1, 1, 2, 3, 3]
    assert TrainingConfig(vectors=3).vectors_at(0) == 3
