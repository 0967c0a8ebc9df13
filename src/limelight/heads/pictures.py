"""Pictures of head relevance: heat maps, similarities, curves. Drawn by matplotlib (the extra ``plots``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingsError
from .relevance import Relevance
from .weakening import Curves

COLOURS = {"MoRHF": "#FE7773", "LeRHF": "#5580A0", "random": "#999999"}


def heatmaps(relevance: Relevance, concepts: Sequence[str] = (), *, columns: int = 7) -> Image.Image:
    """Layer x head for each concept (by default all), each on its own scale; layers in execution order from the top.

    Layers have different numbers of heads in Stable Diffusion XL: what does not exist stays white.
    """
    names = list(concepts) or list(relevance.concepts)
    widest = max(heads for _, heads in relevance.layers)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    size = (0.22 * widest + 0.9, 0.13 * len(relevance.layers) + 0.7)
    figure = _figure(columns * size[0], rows * size[1])
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
    return _drawn(figure)


def similarities(relevance: Relevance) -> Image.Image:
    """Cosine between the vectors of every two concepts."""
    side = 2.5 + 0.28 * len(relevance.concepts)
    figure = _figure(side, side)
    _matrix(figure, relevance.similarity(), relevance.concepts, vmin=0.0, vmax=1.0)
    return _drawn(figure)


def steps(relevance: Relevance) -> Image.Image:
    """Cosine between the vectors of every two steps, averaged over concepts."""
    figure = _figure(5.5, 4.8)
    _matrix(figure, relevance.step_similarity(), (), vmin=None, vmax=1.0)
    figure.axes[0].set_xlabel("step")
    figure.axes[0].set_ylabel("step")
    return _drawn(figure)


def curves(found: Curves) -> Image.Image:
    """Similarity to the concept's word against the number of weakened heads, with the area between the curves."""
    figure = _figure(7.5, 5)
    axis = figure.subplots()
    for order, scores in found.scores.items():
        mean = found.mean(order)
        error = scores.mean(dim=2).std(dim=1) / max(scores.shape[1], 1) ** 0.5
        axis.plot(found.counts, mean, marker="o", color=COLOURS[order], label=order)
        if scores.shape[1] > 1:
            axis.fill_between(found.counts, mean - error, mean + error, color=COLOURS[order], alpha=0.15, linewidth=0)
    title = found.experiment.concept
    if {"MoRHF", "LeRHF"} <= set(found.scores):
        area, low, high = found.between()
        title += f"   area between {area:.3f} [{low:.3f}, {high:.3f}]"
    axis.set_title(title)
    axis.set_xlabel("weakened heads")
    axis.set_ylabel("CLIP similarity to the word")
    axis.legend(loc="upper right")
    return _drawn(figure)


def _matrix(figure: Any, values: Tensor, names: Sequence[str], **limits: Any) -> None:
    axis = figure.subplots()
    shown = axis.imshow(values.numpy(), cmap="Blues", interpolation="nearest", **limits)
    if names:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(shown, ax=axis, shrink=0.8)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no state
    except ImportError as error:
        raise SettingsError("Plots need matplotlib; install it with: pip install 'limelight[plots]'.") from error
    return Figure(figsize=(width, height), layout="constrained")


def _drawn(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB")
