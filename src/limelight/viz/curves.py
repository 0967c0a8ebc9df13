"""Curves of weakened heads."""

from __future__ import annotations

from PIL import Image

from ..evaluate.weakening import Curves
from .theme import new_figure, rendered

ORDER_COLORS = {"MoRHF": "#FE7773", "LeRHF": "#5580A0", "random": "#999999"}


def curves(found: Curves) -> Image.Image:
    """Plot similarity to the concept's word against the number of weakened heads, with the area between the curves."""
    figure = new_figure(7.5, 5)
    axis = figure.subplots()

    for order, scores in found.scores.items():
        mean = found.mean(order)
        error = scores.mean(dim=2).std(dim=1) / max(scores.shape[1], 1) ** 0.5
        color = ORDER_COLORS[order]
        axis.plot(found.counts, mean, marker="o", color=color, label=order)
        if scores.shape[1] > 1:
            axis.fill_between(found.counts, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)

    title = found.experiment.concept
    if {"MoRHF", "LeRHF"} <= set(found.scores):
        title += f"   area between {found.between().shown()}"
    axis.set_title(title)
    axis.set_xlabel("weakened heads")
    axis.set_ylabel("CLIP similarity to the word")
    axis.legend(loc="upper right")
    return rendered(figure)
