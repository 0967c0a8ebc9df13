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


def compare(ours: Sequence[float], theirs: Sequence[float], resamples: int = 10_000) -> Difference:
    """A paired bootstrap over prompts.

    Bradley Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979, https://doi.org/10.1214/aos/1176344552

    Args:
        ours, theirs: a value per prompt each, in the same order.
        resamples: how often prompts are drawn with replacement; the draws are the same in every call.
    """
    change = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if not len(change):
        raise ValueError("There are no prompts to compare on.")
    random = np.random.default_rng(0)
    means = np.concatenate(  # in parts, to keep them small
        [random.choice(change, (min(500, resamples - i), len(change))).mean(axis=1) for i in range(0, resamples, 500)]
    )
    low, high = np.percentile(means, [2.5, 97.5]).tolist()
    wins = float(((change > 0) + 0.5 * (change == 0)).mean())
    return Difference(float(change.mean()), low, high, wins, len(change))


def best_of(n: float, choose_by: Sequence[float], values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What the best of `n` pictures would score, if a person drew that many and kept the one that looks best.

    It is the exact mean over all ways to take `n` of the pictures that are there, so nothing needs to be drawn for it:
    the i-th worst is the best of `n` in C(i - 1, n - 1) of C(all, n) ways. Between whole numbers it is in proportion.

    Args:
        n: at least 1, at most as many as there are.
        choose_by: what the choice goes by, a value per picture.
        values: of each score, a value per picture.
    """
    count = len(choose_by)
    if not 1 <= n <= count:
        raise ValueError(f"The best of {n} cannot be taken from {count} pictures.")
    order = np.argsort(np.asarray(choose_by), kind="stable")
    weights = np.zeros(count)
    whole = math.floor(n)
    for size, share in ((whole, 1 - (n - whole)), (whole + 1, n - whole)):
        if share:
            ways = [math.comb(i, size - 1) / math.comb(count, size) for i in range(count)]
            weights[order] += share * np.array(ways)
    return {name: float(weights @ np.asarray(column, dtype=np.float64)) for name, column in values.items()}
