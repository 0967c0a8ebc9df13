"""Layout guidance: subjects in the boxes that they were given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..errors import SettingsError
from ..models.base import Model
from .base import Guidance, Score, Subjects
from .combined import weighted
from .terms import mean_over, scored, word_maps

# Measured on the embedded model; the layout is decided in the first steps.
ALONE: Mapping[str, Any] = {"step_rule": "relative", "scale": 0.05, "until": 0.12}


def inside(maps: AttentionMaps, subjects: Subjects, *, needed: bool = True) -> Score:
    """Bring the attention of each subject into its box.

    Minghao Chen, Iro Laina, Andrea Vedaldi, "Training-Free Layout Control with Cross-Attention Guidance", 2024,
    https://arxiv.org/abs/2304.03373

        loss = mean over subjects of (1 - sum of A in the box / sum of A)^2

    Cells that a box covers in part count in part.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: of each image; those without a box do not count.
        needed: whether it is an error that no subject has a box.

    Raises:
        SettingsError: no subject has a box.
    """
    found = word_maps(maps, subjects)
    count = max(map(len, subjects))
    boxes = torch.zeros_like(found.maps[:, :count])
    placed = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for image, own in enumerate(subjects):
        for k, subject in enumerate(own):
            if subject.box is not None:
                left, top, right, bottom = subject.box
                rows, columns = _covered(top, bottom, boxes.shape[2]), _covered(left, right, boxes.shape[3])
                boxes[image, k], placed[image, k] = torch.outer(rows, columns).to(boxes), True
    if needed and not placed.any():
        raise SettingsError("Guidance into boxes needs a box; give for example place={'cat': (0, 0.4, 0.5, 1)}.")

    of_subjects = found.maps[:, :count]
    share = (of_subjects * boxes).sum(dim=(2, 3)) / of_subjects.sum(dim=(2, 3)).clamp(min=1e-30)
    outside = mean_over((1 - share) ** 2, placed)
    return scored(maps, subjects, outside, outside=outside)


def into_boxes(guidance: Guidance | None, model: Model, weight: float = 1.0) -> Guidance:
    """Add `inside` to the objective of a guidance.

    Args:
        guidance: None brings subjects into their boxes and does nothing else.
        model: whose settings hold for guidance into boxes alone.
        weight: of `inside` against the guidance's own loss.

    Raises:
        SettingsError: the guidance reads maps of several sizes.
    """
    term = partial(inside, needed=False)  # the images of other prompts need not have boxes
    if guidance is None:
        return Guidance(objective=term, **{**ALONE, **model.about.preset("guidance")})
    if type(guidance).layers is not Guidance.layers:
        raise SettingsError(
            f"Boxes need guidance that reads attention maps of one size; {type(guidance).__name__} reads several. "
            "Choose another guidance."
        )
    settings = {field.name: getattr(guidance, field.name) for field in fields(Guidance)}
    settings["objective"] = weighted((1, guidance.objective_for(model)), (weight, term))
    return Guidance(**settings)


def _covered(start: float, stop: float, cells: int) -> Tensor:
    """The share of each of so many cells in a row that lies between two fractions of the row."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    overlap = torch.minimum(edges[1:], torch.tensor(stop)) - torch.maximum(edges[:-1], torch.tensor(start))
    return overlap.clamp(min=0) * cells
