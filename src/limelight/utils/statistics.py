"""Are two methods different? Everything is per prompt: seeds of one prompt are not independent of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Difference:
    """What a method changes.

    Attributes:
        mean: over the prompts.
        low, high: ends of its 95 % interval.
        wins: share of the prompts on which it is better; an equal one counts half.
        prompts: how many.
    """

    mean: float
    low: float
    high: float
    wins: float
    prompts: int

    def shown(self, digits: int = 3, factor: float = 1.0) -> str:
        """The mean and its interval, "+0.123 [+0.010, +0.230]"; the mean alone of one prompt, which has none."""
        mean, low, high = (f"{factor * value:+.{digits}f}" for value in (self.mean, self.low, self.high))
        return mean if self.prompts < 2 else f"{mean} [{low}, {high}]"


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Lower and upper limit of the mean by a percentile bootstrap.

    Bradley Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979, https://doi.org/10.1214/aos/1176344552

    Args:
        values: one per independent unit, for example one per prompt.
        confidence: share of the resampled means within the interval, 0..1, for example 0.95.
        resamples: how often as many values are taken, with replacement.
        seed: of the resamples, which are the same in every call.

    Raises:
        ValueError: there are no values, or the confidence is out of range.

    Examples:
        >>> bootstrap_interval([1.0, 1.0, 1.0])
        (1.0, 1.0)
    """
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        raise ValueError("There are no values to resample.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be between 0 and 1.")

    random, part = np.random.default_rng(seed), 500  # in parts, to keep them small
    means = [
        random.choice(sample, (min(part, resamples - done), len(sample))).mean(axis=1)
        for done in range(0, resamples, part)
    ]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail]).tolist()
    return low, high


def compare(ours: Sequence[float], theirs: Sequence[float], resamples: int = 10_000) -> Difference:
    """Compare two methods by a paired bootstrap over prompts.

    Args:
        ours, theirs: a value per prompt each, in the same order.
        resamples: see `bootstrap_interval`.

    Raises:
        ValueError: there are no prompts.
    """
    change = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if not len(change):
        raise ValueError("There are no prompts to compare on.")

    low, high = bootstrap_interval(change, resamples=resamples)
    wins = float(((change > 0) + 0.5 * (change == 0)).mean())
    return Difference(float(change.mean()), low, high, wins, len(change))


def best_of(n: float, choose_by: Sequence[float], values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What the best of `n` images would score, if a person generated that many and kept the one that looks best.

    It is the exact mean over all ways to take `n` of the images that are there, so nothing is generated for it:
    the i-th worst is the best of `n` in C(i - 1, n - 1) of C(all, n) ways. Between whole numbers it is in proportion.

    Args:
        n: at least 1, at most as many as there are.
        choose_by: what the choice goes by, a value per image.
        values: of each score, a value per image.
    """
    count = len(choose_by)
    if not 1 <= n <= count:
        raise ValueError(f"The best of {n} cannot be taken from {count} images.")
    order = np.argsort(np.asarray(choose_by), kind="stable")
    weights = np.zeros(count)
    whole = math.floor(n)
    for size, share in ((whole, 1 - (n - whole)), (whole + 1, n - whole)):
        if share:
            ways = [math.comb(i, size - 1) / math.comb(count, size) for i in range(count)]
            weights[order] += share * np.array(ways)
    return {name: float(weights @ np.asarray(column, dtype=np.float64)) for name, column in values.items()}
