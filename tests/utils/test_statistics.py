"""The bootstrap, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from limelight.utils.statistics import bootstrap_interval, compare


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_scipy(confidence):
    values = np.random.default_rng(1).gamma(2.0, size=60)
    expected = bootstrap(
        (values,), np.mean, confidence_level=confidence, method="percentile", n_resamples=20_000, rng=3
    ).confidence_interval
    assert bootstrap_interval(values, confidence=confidence) == pytest.approx(tuple(expected), abs=0.015)


def test_compare_has_the_interval_of_the_differences():
    ours, theirs = [3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 3.0, 2.0]
    found = compare(ours, theirs)
    assert (found.low, found.high) == bootstrap_interval(np.subtract(ours, theirs))
    assert (found.mean, found.wins, found.prompts) == (1.0, 0.625, 4)


def test_values_that_cannot_be():
    with pytest.raises(ValueError, match="no values to resample"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence=1 must be between 0 and 1"):
        bootstrap_interval([1.0], confidence=1)
