"""Sums of objectives."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..errors import SettingsError
from ..utils.numbers import check_finite
from .base import Kind, Objective, Score, Subjects, describe_objective, reads, remembers


@dataclass(frozen=True)
class Weighted:
    """A weighted sum of objectives, see `weighted`."""

    terms: tuple[tuple[float, Objective], ...]
    unit: bool = False

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The terms without their weights."""
        return tuple(map(itemgetter(1), self.terms))

    @property
    def reads(self) -> tuple[Kind, ...]:
        """What any of the terms reads."""
        return tuple(dict.fromkeys(chain.from_iterable(map(reads, self.objectives))))

    @property
    def remembers(self) -> bool:
        """Whether any of the terms does."""
        return any(map(remembers, self.objectives))

    def __call__(self, maps: AttentionMaps, subjects: Subjects) -> Score:
        scores, loss = [], torch.zeros(())
        parts: dict[str, Tensor] = {}
        for weight, term in self.terms:
            score = term(maps, subjects)
            own = score.loss
            if self.unit:
                own = _unit(own, maps)
            loss = loss + weight * own
            scores.append(score)

            for name, part in score.parts.items():
                # Where two terms measure the same part, the worse one counts.
                parts[name] = torch.maximum(parts.get(name, part), part)
        return Score(loss, scores[0].presence, parts)

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
