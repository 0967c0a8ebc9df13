"""Sums of objectives."""

from __future__ import annotations

from dataclasses import dataclass
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
    def reads(self) -> tuple[Kind, ...]:
        """What any of the terms reads."""
        return tuple(dict.fromkeys(kind for _, term in self.terms for kind in reads(term)))

    @property
    def remembers(self) -> bool:
        """Whether any of the terms does."""
        return any(remembers(term) for _, term in self.terms)

    def __call__(self, maps: AttentionMaps, subjects: Subjects) -> Score:
        scores = [term(maps, subjects) for _, term in self.terms]
        losses = [score.loss for score in scores]
        if self.unit:
            losses = [_unit(loss, maps) for loss in losses]

        loss = sum((weight * own for (weight, _), own in zip(self.terms, losses, strict=True)), torch.zeros(()))
        parts: dict[str, Tensor] = {}
        for score in scores:  # where two terms measure the same part, the worse one counts
            for name, part in score.parts.items():
                parts[name] = torch.maximum(parts[name], part) if name in parts else part
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
    check_finite(weights=[weight for weight, _ in terms])
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
