"""Pictures of head relevance: heat maps, similarities, curves. Drawn by matplotlib (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..heads.relevance import Relevance
from .theme import new_figure, rendered


def heatmaps(relevance: Relevance, concepts: Sequence[str] = (), *, columns: int = 7) -> Image.Image:
    """Layer x head for each concept (by default all), each on its own scale; layers in execution order from the top.

    Layers have different numbers of heads in Stable Diffusion XL: what does not exist stays white.
    """
    names = list(concepts) or list(relevance.concepts)
    widest = max(heads for _, heads in relevance.layers)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    size = (0.22 * widest + 0.9, 0.13 * len(relevance.layers) + 0.7)
    figure = new_figure(columns * size[0], rows * size[1])
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    starts = [i for i, (p, _) in enumerate(relevance.layers) if i == 0 or relevance.layers[i - 1][0] != p]
    for axis, name in zip(axes, names, strict=False):
        picture = torch.full((len(relevance.layers), widest), float("nan"))
        for row, part in zip(picture, relevance[name].split([h for _, h in relevance.layers]), strict=True):
            row[: len(part)] = part
        axis.imshow(picture.numpy(), cmap="Blues", aspect="auto", interpolation="nearest", vmin=0)
        axis.set_title(
            f"{relevance.concepts[relevance.index(name)]} (most {float(picture.nan_to_num().max()):.1f})", fontsize=9
        )
        axis.set_yticks(starts, [relevance.layers[i][0] for i in starts], fontsize=7)
        axis.set_xticks([0, widest - 1], ["0", str(widest - 1)], fontsize=7)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("head", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    return rendered(figure)


def similarities(relevance: Relevance) -> Image.Image:
    """Cosine between the vectors of every two concepts."""
    side = 2.5 + 0.28 * len(relevance.concepts)
    figure = new_figure(side, side)
    _matrix(figure, relevance.similarity(), relevance.concepts, vmin=0.0, vmax=1.0)
    return rendered(figure)


def steps(relevance: Relevance) -> Image.Image:
    """Cosine between the vectors of every two steps, averaged over concepts."""
    figure = new_figure(5.5, 4.8)
    _matrix(figure, relevance.step_similarity(), (), vmin=None, vmax=1.0)
    figure.axes[0].set_xlabel("step")
    figure.axes[0].set_ylabel("step")
    return rendered(figure)


def _matrix(figure: Any, values: Tensor, names: Sequence[str], **limits: Any) -> None:
    axis = figure.subplots()
    shown = axis.imshow(values.numpy(), cmap="Blues", interpolation="nearest", **limits)
    if names:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(shown, ax=axis, shrink=0.8)
