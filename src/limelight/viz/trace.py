"""What guidance did, as a plot."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from ..errors import SettingsError
from ..generation.result import Result
from .theme import COLORS, FAINT, INK, PAPER, check_index, display_name


def trace(result: Result, *, index: int = 0, plain: Result | None = None, side: int = 760) -> Image.Image:
    """What guidance did: the loss, and each subject's presence (its largest attention, 0..1), step by step.

    Diamonds are thresholds that the weakest subject must reach, triangles the steps at which the image had to be
    refined, with the number of tries.

    Args:
        plain: the same drawn with a guidance of scale 0, which watches and does not move: its curves are dashed.
        side: width of the plot in pixels.

    Raises:
        SettingsError: nothing was guided.
    """
    check_index(index, len(result.images))
    if not result.trace:
        raise SettingsError("There is no trace: nothing was guided; call generate() with a guidance.")
    names = [display_name(result.maps.prompts[index], subject) for subject in result.subjects]
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": FAINT}):
        figure = Figure(
            figsize=(side / 100, 4.6), dpi=100, facecolor=PAPER, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        )
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        for run, style in ((plain, "--"), (result, "-")):
            if run is None or not run.trace:
                continue
            steps = [row["step"] + 1 for row in run.trace]
            dots = {"linestyle": style, "marker": "." if len(steps) < 4 else None, "linewidth": 1.8}
            dots["alpha"] = 0.6 if style == "--" else 1.0
            above.plot(steps, [row["loss"][index] for row in run.trace], color=INK, **dots)
            for k, name in enumerate(names):
                shown = [row["presence"][index][k] for row in run.trace]
                label = None if style == "--" else name if len(name) <= 24 else f"{name[:23]}\u2026"
                below.plot(steps, shown, color=COLORS[k % len(COLORS)], label=label, **dots)
        _mark(above, below, result, index)
        above.set_ylabel("loss", color=INK)
        below.set_ylabel("presence of a subject", color=INK)
        below.set_xlabel(f"step of {result.settings['steps']}", color=INK)
        below.set_xlim(0.5, max(row["step"] + 1 for row in result.trace) + 0.5)
        below.xaxis.get_major_locator().set_params(integer=True)
        if plain is not None:
            below.plot([], [], "--", color=FAINT, label="dashed: plain")
        for axes in (above, below):
            axes.set_ylim(-0.03, 1.03)
            axes.grid(color="#d8dee4", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=INK)
        figure.legend(loc="outside right upper", frameon=False, labelcolor=INK)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    with Image.open(buffer) as image:
        return image.convert("RGB")


def _mark(above: Any, below: Any, result: Result, index: int) -> None:
    """Thresholds, and the steps at which the image was refined."""
    guidance = result.settings["guidance"] or {}
    points = [
        (_step(key, result.settings["steps"]) + 1, value) for key, value in guidance.get("thresholds", {}).items()
    ]
    last = result.trace[-1]["step"] + 1
    points = [point for point in points if point[0] <= last]
    if points:
        below.scatter(
            *zip(*points, strict=True), marker="D", s=34, color=INK, label="threshold", zorder=5, clip_on=False
        )
    refined = [(row["step"] + 1, row["loss"][index], row["refinements"][index]) for row in result.trace]
    refined = [point for point in refined if point[2]]
    if refined:
        steps, losses, _ = zip(*refined, strict=True)
        above.scatter(
            steps, losses, marker="^", s=44, facecolor=PAPER, edgecolor=INK, label="refined", zorder=5, clip_on=False
        )
        for step, loss, tries in refined:
            above.annotate(
                f"{tries} tries" if tries > 1 else "1 try",
                (step, loss),
                xytext=(0, 8 if loss < 0.75 else -16),
                textcoords="offset points",
                horizontalalignment="center",
                color=INK,
                fontsize=8,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )


def _step(key: str, steps: int) -> int:
    """A threshold's key, as `Guidance.settings` writes it, as a step: "0.2" is a share of them, "10" a number."""
    return int(key) if key.isdecimal() else int(float(key) * steps + 0.5)
