"""The bootstrap, against scipy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from scipy.stats import bootstrap

from limelight.utils.statistics import best_of, bootstrap_interval, compare


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
    assert found.shown() == f"+1.000 [{found.low:+.3f}, {found.high:+.3f}]"
    assert compare([0.5], [0.25]).shown(1, 100) == "+25.0", "one prompt has no interval"


def test_values_that_cannot_be():
    with pytest.raises(ValueError, match="no values to resample"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence=1 must be between 0 and 1"):
        bootstrap_interval([1.0], confidence=1)


def test_best_of_is_the_mean_over_all_choices():
    chosen_by, value = [0.3, 0.1, 0.2, 0.9, 0.5], [1.0, 2.0, 4.0, 8.0, 16.0]
    for n in (1, 2, 4, 5):
        every = list(itertools.combinations(range(5), n))
        expected = sum(value[max(own, key=lambda i: chosen_by[i])] for own in every) / len(every)
        assert best_of(n, chosen_by, {"a": value})["a"] == pytest.approx(expected)
    one, two = (best_of(n, chosen_by, {"a": value})["a"] for n in (1, 2))
    assert best_of(1.25, chosen_by, {"a": value})["a"] == pytest.approx(0.75 * one + 0.25 * two)


def test_the_bootstrap_against_scipy():
    random = np.random.default_rng(3)
    ours, theirs = random.normal(0.3, 1, 80), random.normal(0, 1, 80)
    found = compare(ours, theirs)
    other = scipy.stats.bootstrap((ours - theirs,), np.mean, method="percentile", n_resamples=10_000, rng=random)
    assert (found.low, found.high) == pytest.approx(other.confidence_interval, abs=0.03)
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert compare([1, 2, 3, 0], [1, 1, 1, 1]).wins == (0.5 + 2) / 4
