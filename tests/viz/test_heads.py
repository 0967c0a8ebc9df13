"""Figures of head relevance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limelight.errors import SettingsError
from limelight.heads.relevance import Relevance
from limelight.viz import heads as plots
from limelight.viz.theme import new_figure


def test_heat_maps_of_layers_with_different_numbers_of_heads():
    """Every cell stands where its layer and head are; what does not exist stays empty."""
    relevance = Relevance(("A", "B"), (("down", 1), ("down", 3), ("up", 2)), torch.arange(12.0).unflatten(0, (2, 6)))
    axis = new_figure(2, 2).subplots()
    plots._heatmap(axis, relevance, "B", 3, 2)
    cells, nan = axis.images[0].get_array().filled(float("nan")), float("nan")
    assert np.array_equal(cells, [[6, nan, nan], [7, 8, 9], [10, 11, nan]], equal_nan=True)
    assert axis.get_title() == "B (most 11.0)"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["down 0", "down 1", "up 0"]
    frames = sorted((frame.get_x() + 0.5, frame.get_y() + 0.5) for frame in axis.patches)
    assert frames == [(0, 2), (1, 2)], "around the two most relevant heads"


def test_figures_of_what_is_there():
    vectors = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
    relevance = Relevance(tuple("ABCDEFGHI"), (("mid", 4),), vectors)
    found = plots.figures(relevance, ["a", "B"])
    assert list(found) == ["heatmaps", "concepts"]
    every = plots.heatmaps(relevance)  # nine heat maps in rows of four
    assert every.width > found["heatmaps"].width
    assert every.height > found["heatmaps"].height
    with pytest.raises(SettingsError, match="Unknown concept 'Birds'"):
        plots.heatmaps(relevance, ["Birds"])
