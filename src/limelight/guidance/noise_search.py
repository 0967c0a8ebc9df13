"""InitNO: look for a noise from which the subjects come by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingsError
from .attend_and_excite import excite
from .base import Objective, Score, check_targets, describe_objective
from .combined import weighted
from .self_cross import peak_overlap

Evaluate = Callable[[Tensor, Tensor], tuple[Score, Tensor]]
"""``evaluate(noise, rows)``: the score of some images, and the gradient of their losses with respect to their noise."""


@dataclass(frozen=True, eq=False)
class FoundNoise:
    """The outcome of a search.

    Attributes:
        noise: unit noise [images, channels, height, width].
        satisfied: whether every part of the score reached its target, bool [images].
        passes: gradient passes of each image, int64 [images].
    """

    noise: Tensor
    satisfied: Tensor
    passes: Tensor


@dataclass(frozen=True, kw_only=True)
class NoiseSearch:
    """Optimize the initial noise until an objective is satisfied in the first step.

    Xiefan Guo, Jinlin Liu, Miaomiao Cui, Jiankai Li, Hongyu Yang, Di Huang, "InitNO: Boosting Text-to-Image Diffusion
    Models via Initial Noise Optimization", 2024, https://arxiv.org/abs/2404.04650

    The noise is x = x0 * exp(v / 2) + m, with m = v = 0 at first. Adam lowers the loss of the first, conditional pass;
    after each of its steps (m, v) is scaled back until

        KL = mean(m^2 + exp(v) - 1 - v) / 2

    is at most `kl`, so that x stays as likely as noise (the authors take Adam steps on the KL instead). Where a noise
    does not reach the targets, a fresh one is tried; where none does, the best of them is optimized for longer. That
    costs one to a hundred gradient passes an image.

    Attributes:
        objective: by default Attend-and-Excite's, and the overlap of what the subjects' peaks attend to.
        targets: part of the score -> the largest value, 0..1, with which a noise is good. "mixing" is twice the overlap
            of the paper, whose limit is 0.3.
        rounds: noises to try, at least 1.
        tries: steps for each of them, at least 1.
        last: steps for the best of them, where none was good.
        lr: Adam's learning rate.
        kl: largest divergence from the noise that it began as.

    Raises:
        SettingsError: a setting is out of its range.
    """

    objective: Objective = field(
        default_factory=lambda: weighted((1, excite), (1, partial(peak_overlap, clean=1.0))), compare=False
    )
    targets: Mapping[str, float] = field(default_factory=lambda: {"neglect": 0.2, "mixing": 0.6})
    rounds: int = 5
    tries: int = 10
    last: int = 50
    lr: float = 1e-2
    kl: float = 1e-3

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("tries", 1), ("last", 0)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name}={getattr(self, name)} must be a whole number of at least {least}.")
        for name in ("lr", "kl"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SettingsError(f"{name}={getattr(self, name)} must be a number above 0.")
        check_targets(self.targets)

    def settings(self) -> dict[str, Any]:
        """The fields as plain values, to be stored with a result."""
        return {**vars(self), "objective": describe_objective(self.objective), "targets": dict(self.targets)}

    def __call__(self, noise: Tensor, evaluate: Evaluate, fresh: Callable[[Sequence[int]], Tensor]) -> FoundNoise:
        """Search for every image by itself: a batch gives what its images give alone.

        Args:
            noise: unit noise [images, channels, height, width], the first one to try.
            evaluate: see `Evaluate`.
            fresh: another noise for each of the given images.
        """
        best = _Best(noise)
        open_rows = torch.arange(len(noise), device=noise.device)
        for _ in range(self.rounds):
            found = self._optimize(noise[open_rows], open_rows, evaluate, self.tries, best)
            open_rows = open_rows[~found]
            if not len(open_rows):
                break
            noise = noise.index_copy(0, open_rows, fresh(open_rows.tolist()))

        if len(open_rows) and self.last:
            self._optimize(best.start[open_rows], open_rows, evaluate, self.last, best)
        return FoundNoise(best.noise, best.satisfied, best.passes)

    def _optimize(self, start: Tensor, rows: Tensor, evaluate: Evaluate, tries: int, best: _Best) -> Tensor:
        """Optimize some images' noise; returns which of them came to their targets."""
        mean, log_variance = torch.zeros_like(start), torch.zeros_like(start)
        adam = _Adam(self.lr, mean, log_variance)
        left = torch.arange(len(rows), device=rows.device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for index in range(tries + 1):
            noise = start[left] * (log_variance[left] / 2).exp() + mean[left]
            score, gradient = evaluate(noise, rows[left])
            good = self._good(score)
            best.take(rows[left], noise, start[left], score.loss, good, first=index == 0)
            done[left[good]] = True
            noise, gradient, left = noise[~good], gradient[~good], left[~good]
            if not len(left) or index == tries:
                break

            # dx/dm = 1 and dx/dv = (x - m) / 2.
            adam.step(left, (mean, gradient), (log_variance, gradient * (noise - mean[left]) / 2))
            _pull_back(mean, log_variance, left, self.kl)
        return done

    def _good(self, score: Score) -> Tensor:
        parts = [part <= self.targets.get(name, 1.0) for name, part in score.parts.items()]
        return torch.stack(parts).all(dim=0)


class _Best:
    """The best noise of every image so far."""

    def __init__(self, noise: Tensor) -> None:
        count = len(noise)
        self.noise, self.start = noise.clone(), noise.clone()
        self.loss = noise.new_full((count,), float("inf"))
        self.first_loss = noise.new_full((count,), float("inf"))
        self.satisfied = torch.zeros(count, dtype=torch.bool, device=noise.device)
        self.passes = torch.zeros(count, dtype=torch.int64, device=noise.device)

    def take(self, rows: Tensor, noise: Tensor, start: Tensor, loss: Tensor, good: Tensor, *, first: bool) -> None:
        """Count an evaluation, and keep what is better. The best starting noise is the one to go on with."""
        self.passes[rows] += 1
        better = good | (loss < self.loss[rows])
        self.noise[rows[better]], self.loss[rows[better]] = noise[better], loss[better].to(self.loss)
        self.satisfied[rows[good]] = True
        if first:
            lower = loss < self.first_loss[rows]
            self.start[rows[lower]], self.first_loss[rows[lower]] = start[lower], loss[lower].to(self.loss)


class _Adam:
    """Adam for rows that leave one after the other.

    Diederik P. Kingma, Jimmy Ba, "Adam: A Method for Stochastic Optimization", 2014, https://arxiv.org/abs/1412.6980
    """

    def __init__(self, lr: float, *parameters: Tensor, eps: float = 1e-3) -> None:
        self.lr, self.eps, self.count = lr, eps, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    def step(self, rows: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
        """Move the given rows of each parameter against its gradient."""
        self.count += 1
        for (first, second), (parameter, gradient) in zip(self.moments, pairs, strict=True):
            first[rows] = 0.9 * first[rows] + 0.1 * gradient
            second[rows] = 0.999 * second[rows] + 0.001 * gradient.square()
            mean = first[rows] / (1 - 0.9**self.count)
            deviation = (second[rows] / (1 - 0.999**self.count)).sqrt()
            parameter[rows] -= self.lr * mean / (deviation + self.eps)


def divergence_from_noise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, exp(log_variance)) from N(0, 1), averaged over its values [images]."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(dim=1) / 2


def _pull_back(mean: Tensor, log_variance: Tensor, rows: Tensor, limit: float) -> None:
    """Scale the rows whose divergence is above the limit until it is at the limit."""
    factor = torch.ones(len(rows), 1, 1, 1, dtype=mean.dtype, device=mean.device)
    for _ in range(20):  # nearly quadratic in the factor: a few rounds are enough
        kl = divergence_from_noise(mean[rows] * factor, log_variance[rows] * factor)
        if bool((kl <= limit * (1 + 1e-6)).all()):
            break
        factor = factor * (limit / kl).clamp(max=1).sqrt()[:, None, None, None]
    mean[rows] *= factor
    log_variance[rows] *= factor
