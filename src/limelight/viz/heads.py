"""Figures of head relevance: heat maps, similarities, steps. They need matplotlib (the extra ``plots``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..evaluate.weakening import Curves, strip
from ..heads.relevance import Relevance
from ..utils.files import png, slug, write_new
from .curves import curves
from .theme import COLORS, Rectangle, new_figure, rendered


def figures(relevance: Relevance, concepts: Sequence[str] = (), *, title: str = "") -> dict[str, Image.Image]:
    """All figures that the vectors have data for: "heatmaps" and "concepts", and "steps" where steps were counted.

    Args:
        relevance: the vectors.
        concepts: some of their concepts, for the heat maps; by default all.
        title: what they are of, for example the name of a model.
    """
    found = {"heatmaps": heatmaps(relevance, concepts, title=title), "concepts": similarities(relevance, title=title)}
    if relevance.counts is not None and len(relevance.counts) > 1:
        found["steps"] = steps(relevance, title=title)
    return found


def save_weakening(found: Curves, folder: Path, experiment: str, strips: int = 4) -> None:
    """Write the curves of an ordered weakening and strips of its first prompts into the folder of its images.

    Names end with a short hash of what is in the file: other seeds or numbers of heads never take its place.

    Args:
        found: the curves; `weakened` kept the images of their first seed.
        folder: where it kept them.
        experiment: its name, kept inside curves.png.
        strips: of how many prompts, at most.

    Raises:
        FileError: a file cannot be written.
    """
    for prompt, _ in found.experiment.prompts[:strips]:
        write_new(folder, slug(prompt), "png", png({"prompt": prompt}, strip(folder, found, prompt)))
    write_new(folder, "curves", "png", png({"experiment": experiment}, curves(found)))


def heatmaps(
    relevance: Relevance, concepts: Sequence[str] = (), *, columns: int = 4, marked: int = 5, title: str = ""
) -> Image.Image:
    """Layer x head for each concept (by default all), each on its own scale; layers in execution order from the top.

    Layers are named as `Relevance.top` names them: their group and their number in it. The most relevant heads have a
    frame. Layers have different numbers of heads in Stable Diffusion XL: what does not exist stays white.

    Args:
        concepts: some of the vectors' concepts.
        columns: at most so many heat maps in a row.
        marked: how many heads of each concept have a frame.
        title: what they are of, for example the name of a model.

    Raises:
        SettingsError: the vectors lack a concept.
    """
    names = [relevance.concepts[relevance.index(name)] for name in concepts or relevance.concepts]
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    widest = max(heads for _, heads in relevance.layers)
    layers = len(relevance.layers)
    width = columns * (max(0.24 * widest, 2.2) + 1.0)
    figure = new_figure(max(width, 5.5), rows * (max(0.15 * layers, 0.3 * min(layers, 6)) + 0.6) + 0.9)

    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        _heatmap(axis, relevance, name, widest, marked)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(
        f"{_titled('Relevance of attention heads', title)}\nframed: the {marked} most relevant", fontsize=10
    )
    figure.supxlabel("head", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    return rendered(figure)


def _titled(what: str, of: str) -> str:
    return f"{what}: {of}" if of else what


def _heatmap(axis: Any, relevance: Relevance, name: str, widest: int, marked: int) -> None:
    grid = torch.full((len(relevance.layers), widest), float("nan"))
    names, counts = [], dict[str, int]()
    first = 0
    for i, (group, heads) in enumerate(relevance.layers):
        grid[i, :heads] = relevance[name][first : first + heads]
        names.append(f"{group} {counts.setdefault(group, 0)}")
        counts[group] += 1
        first += heads

    axis.imshow(grid.numpy(), cmap="Blues", aspect="auto", interpolation="nearest", vmin=0)
    for head, _ in relevance.top(name, marked):
        corner = head.head - 0.5, names.index(f"{head.group} {head.layer}") - 0.5
        axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=COLORS[1], linewidth=1.5, clip_on=False))
    axis.set_title(f"{name} (most {float(grid.nan_to_num().max()):.1f})", fontsize=9)
    shown = range(0, len(names), 1 if len(names) <= 20 else 2)
    axis.set_yticks(shown, [names[i] for i in shown], fontsize=7)
    columns = range(0, widest, 1 if widest <= 10 else 2)
    axis.set_xticks(columns, list(map(str, columns)), fontsize=7)


def similarities(relevance: Relevance, *, title: str = "") -> Image.Image:
    """Cosine between the vectors of every two concepts."""
    side = 2.5 + 0.28 * len(relevance.concepts)
    figure = new_figure(side, side)
    _matrix(figure, relevance.similarity(), relevance.concepts, vmin=0.0, vmax=1.0)
    figure.suptitle(_titled("Cosine of concepts", title), fontsize=10)
    return rendered(figure)


def steps(relevance: Relevance, *, title: str = "") -> Image.Image:
    """Cosine between the vectors of every two steps, averaged over concepts.

    Raises:
        SettingsError: the vectors were imported without counts.
    """
    figure = new_figure(5.5, 4.8)
    _matrix(figure, relevance.step_similarity(), (), vmin=None, vmax=1.0)
    figure.suptitle(_titled("Cosine of steps", title), fontsize=10)
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
