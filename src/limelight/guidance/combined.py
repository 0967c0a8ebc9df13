"""Objectives made of others: their sum, and one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..errors import SettingsError
from ..utils.numbers import check_finite
from .base import Kind, Objective, Score, Subjects, describe_objective, reads, remembers, score_of


class _Combined:
    """What objectives made of others have in common.

    Attributes:
        objectives: those that it is made of.
    """

    objectives: tuple[Objective, ...]

    @property
    def reads(self) -> tuple[Kind, ...]:
        """What any of the objectives reads."""
        return tuple(dict.fromkeys(chain.from_iterable(map(reads, self.objectives))))

    @property
    def remembers(self) -> bool:
        """Whether any of the objectives does."""
        return any(map(remembers, self.objectives))


def _worst_parts(scores: Sequence[Score]) -> dict[str, Tensor]:
    """The parts of several scores; where two measure the same part, the worse one counts."""
    parts: dict[str, Tensor] = {}
    for score in scores:
        for name, part in score.parts.items():
            parts[name] = torch.maximum(parts.get(name, part), part)
    return parts


@dataclass(frozen=True)
class Weighted(_Combined):
    """A weighted sum of objectives, see `weighted`."""

    terms: tuple[tuple[float, Objective], ...]
    unit: bool = False

    @property
    def objectives(self) -> tuple[Objective, ...]:  # type: ignore[override]
        """The terms without their weights."""
        return tuple(map(itemgetter(1), self.terms))

    def __call__(self, maps: AttentionMaps, subjects: Subjects) -> Score:
        scores, loss = [], torch.zeros(())
        for weight, term in self.terms:
            score = score_of(term, maps, subjects)
            own = score.loss
            if self.unit:
                own = _unit(own, maps)
            loss = loss + weight * own
            scores.append(score)
        return Score(loss, scores[0].presence, _worst_parts(scores))

    def settings(self) -> dict[str, Any]:
        """The terms and their weights as plain values."""
        terms = [[weight, describe_objective(term)] for weight, term in self.terms]
        return {"name": "weighted", "terms": terms, "unit": self.unit}


def weighted(*terms: tuple[float, Objective], unit: bool = False) -> Objective:
    """Add objectives: ``weighted((1, excite), (0.5, bind))``.

    The losses add up; of parts that several terms measure, the largest counts.

    Args:
        terms: pairs of a weight and an objective.
        unit: divide each loss of an image by the length of its gradient with respect to the maps, so that weights mean
            the same for losses of different scale.

    Raises:
        SettingsError: there are no terms, or a weight is not finite.
    """
    if not terms:
        raise SettingsError("weighted needs at least one term, for example weighted((1, excite), (0.5, bind)).")
    check_finite(weights=list(map(itemgetter(0), terms)))
    return Weighted(terms, unit)


def _unit(loss: Tensor, maps: AttentionMaps) -> Tensor:
    """A loss over the length of its gradient with respect to the maps, image by image."""
    read = [p for p in maps.layers.values() if p.requires_grad]
    if not read:
        return loss
    gradients = torch.autograd.grad(loss.sum(), read, retain_graph=True, allow_unused=True)
    squares = [g.flatten(1).square().sum(dim=1) for g in gradients if g is not None]
    length = torch.stack(squares).sum(dim=0).sqrt().clamp(min=1e-12)
    return loss / length.detach()


@dataclass(frozen=True)
class InTurn(_Combined):
    """Objectives one after the other, see `in_turn`."""

    objectives: tuple[Objective, ...]
    limit: float

    def __call__(self, maps: AttentionMaps, subjects: Subjects) -> Score:
        scores = [score_of(objective, maps, subjects) for objective in self.objectives]
        loss, parts = scores[-1].loss, dict(scores[-1].parts)
        for score in reversed(scores[:-1]):
            # A part that a later objective measures, too, is left to that one.
            limits = {**dict.fromkeys(score.parts, self.limit), **dict.fromkeys(parts, 1.0)}
            loss = torch.where(score.lacking(limits), score.loss, loss)
            parts = {**score.parts, **parts}
        return Score(loss, scores[-1].presence, parts)

    def settings(self) -> dict[str, Any]:
        """The objectives and the limit as plain values."""
        objectives = list(map(describe_objective, self.objectives))
        return {"name": "in_turn", "objectives": objectives, "limit": self.limit}


def in_turn(*objectives: Objective, limit: float = 0.05) -> Objective:
    """Follow, image by image, the first objective that finds something wrong: ``in_turn(divergence, excite)``.

    The gradients of two objectives can oppose each other, and in a sum the longer one wins. Here subjects are first
    brought apart, and then made strong.

    Args:
        objectives: where none before finds anything wrong, the last one is followed. A part of the score that several
            of them measure is left to the last of these.
        limit: the value, 0..1, up to which nothing of a part is wrong.

    Raises:
        SettingsError: there are fewer than two objectives, or the limit is out of range.
    """
    if len(objectives) < 2:
        raise SettingsError("in_turn needs at least two objectives, for example in_turn(divergence, excite).")
    if not 0 <= limit <= 1:
        raise SettingsError(f"limit={limit} must be between 0 and 1.")
    return InTurn(objectives, limit)
