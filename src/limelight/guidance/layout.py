"""Layout guidance: subjects in the boxes that they were given."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..errors import SettingsError
from .base import Score, Subjects
from .terms import mean_over, scored, word_maps


def inside(maps: AttentionMaps, subjects: Subjects) -> Score:
    """Bring the attention of each subject into its box.

    Minghao Chen, Iro Laina, Andrea Vedaldi, "Training-Free Layout Control with Cross-Attention Guidance", 2024,
    https://arxiv.org/abs/2304.03373

        loss = mean over subjects of (1 - sum of A in the box / sum of A)^2

    Cells that a box covers in part count in part.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: of each image; those without a box do not count.

    Raises:
        SettingsError: no subject has a box.
    """
    found = word_maps(maps, subjects)
    count = max(len(own) for own in subjects)
    boxes = torch.zeros_like(found.maps[:, :count])
    placed = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for image, own in enumerate(subjects):
        for k, subject in enumerate(own):
            if subject.box is not None:
                left, top, right, bottom = subject.box
                rows, columns = _covered(top, bottom, boxes.shape[2]), _covered(left, right, boxes.shape[3])
                boxes[image, k], placed[image, k] = torch.outer(rows, columns).to(boxes), True
    if not placed.any():
        raise SettingsError("Guidance into boxes needs a box; give for example place={'cat': (0, 0.4, 0.5, 1)}.")

    of_subjects = found.maps[:, :count]
    share = (of_subjects * boxes).sum(dim=(2, 3)) / of_subjects.sum(dim=(2, 3)).clamp(min=1e-30)
    outside = mean_over((1 - share) ** 2, placed)
    return scored(maps, subjects, outside, outside=outside)


def _covered(start: float, stop: float, cells: int) -> Tensor:
    """The share of each of so many cells in a row that lies between two fractions of the row."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    overlap = torch.minimum(edges[1:], torch.tensor(stop)) - torch.maximum(edges[:-1], torch.tensor(start))
    return overlap.clamp(min=0) * cells
