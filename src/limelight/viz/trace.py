"""What guidance did, as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

from ..errors import SettingsError
from ..generation.result import Result
from .theme import COLORS, FAINT, INK, PAPER, check_index, display_name, new_figure, plot_style, rendered


def trace(result: Result, *, index: int = 0, plain: Result | None = None, side: int = 760) -> Image.Image:
    """Plot what guidance did: the loss, and each subject's presence (its largest attention, 0..1), step by step.

    Diamonds are thresholds that the weakest subject must reach, triangles the steps at which the image had to be
    refined, with the number of tries.

        >>> import limelight
        >>> from limelight.viz.trace import trace
        >>> model = limelight.load("pocket", device="cpu")
        >>> guidance = limelight.AttendAndExcite.suited(model)
        >>> trace(limelight.generate(model, "a cat and a dog", guidance=guidance, steps=2)).size
        (760, 460)

    Args:
        plain: the same seeds with a guidance of scale 0, which watches and does not move: its curves are dashed.
        side: width of the plot in pixels; below 600 the legend stands above it.

    Raises:
        SettingsError: nothing was guided.
    """
    check_index(index, len(result.images))
    if not result.trace:
        raise SettingsError("There is no trace: nothing was guided; call generate() with a guidance.")

    with plot_style():
        figure = new_figure(side / 100, 4.6)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        if plain is not None and plain.trace:
            _curves(above, below, plain, index, dashed=True)
        _curves(above, below, result, index)
        if stays_plain(result, index):
            above.set_title("nothing was lacking: the image stays plain", loc="left", fontsize=9, color=INK)
        _mark_thresholds(below, result)
        _mark_refinements(above, result, index)
        if plain is not None:
            below.plot([], [], "--", color=FAINT, label="dashed: plain")

        _label_axes(above, below, result)
        narrow = {"loc": "outside upper left", "ncols": 3} if side < 600 else {"loc": "outside right upper"}
        figure.legend(**narrow, frameon=False, labelcolor=INK)
        return rendered(figure)


def stays_plain(result: Result, index: int) -> bool:
    """Whether the trace of an image is that of a single step, since it lacks nothing."""
    return len(result.measured(index)) < len(result.trace)


def _curves(above: Any, below: Any, run: Result, index: int, *, dashed: bool = False) -> None:
    """The loss above, and the presence of each subject below."""
    rows = run.measured(index)
    steps = _steps(rows)
    style: dict[str, Any] = {"linestyle": "-", "alpha": 1.0, "linewidth": 1.8}
    if dashed:
        style |= {"linestyle": "--", "alpha": 0.6}
    if len(steps) < 4:
        style["marker"] = "."

    above.plot(steps, _losses(rows, index), color=INK, **style)
    for k, subject in enumerate(run.subjects):
        presence = [row["presence"][index][k] for row in rows]
        label = None if dashed else _shortened(display_name(run.maps.prompts[index], subject))
        below.plot(steps, presence, color=COLORS[k % len(COLORS)], label=label, **style)


def _steps(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """The steps of some rows of a trace, counted from 1."""
    return [row["step"] + 1 for row in rows]


def _losses(rows: Iterable[Mapping[str, Any]], index: int) -> list[float]:
    """The losses of one image."""
    return [row["loss"][index] for row in rows]


def _shortened(name: str) -> str:
    if len(name) <= 24:
        return name
    return f"{name[:23]}\u2026"


def _mark_thresholds(below: Any, result: Result) -> None:
    """A diamond at each threshold that falls on a guided step."""
    guidance, last = result.settings["guidance"] or {}, result.trace[-1]["step"]
    points = []
    for key, value in guidance.get("thresholds", {}).items():
        step = _step(key, result.settings["steps"])
        if step <= last:
            points.append((step + 1, value))
    if not points:
        return

    steps, values = zip(*points, strict=True)
    below.scatter(steps, values, marker="D", s=34, color=INK, label="threshold", zorder=5, clip_on=False)


def _mark_refinements(above: Any, result: Result, index: int) -> None:
    """A triangle, with the number of tries, at each step at which the image was refined."""
    refined = [row for row in result.trace if row["refinements"][index]]
    if not refined:
        return

    steps, losses = _steps(refined), _losses(refined, index)
    look = {"facecolor": PAPER, "edgecolor": INK, "label": "refined", "zorder": 5, "clip_on": False}
    above.scatter(steps, losses, marker="^", s=44, **look)
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    for step, loss, row in zip(steps, losses, refined, strict=True):
        tries = row["refinements"][index]
        above.annotate(
            f"{tries} tries" if tries > 1 else "1 try",
            (step, loss),
            xytext=(0, 8 if loss < 0.75 else -16),
            textcoords="offset points",
            horizontalalignment="center",
            color=INK,
            fontsize=8,
            bbox=box,
        )


def _label_axes(above: Any, below: Any, result: Result) -> None:
    above.set_ylabel("loss", color=INK)
    below.set_ylabel("presence of a subject", color=INK)
    below.set_xlabel(f"step of {result.settings['steps']}", color=INK)
    below.set_xlim(0.5, max(row["step"] + 1 for row in result.trace) + 0.5)
    below.xaxis.get_major_locator().set_params(integer=True)

    for axes in (above, below):
        axes.set_ylim(-0.03, 1.03)
        axes.grid(color="#d8dee4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)


def _step(key: str, steps: int) -> int:
    """A threshold's key, as `Guidance.settings` writes it, as a step: "0.2" is a share of them, "10" a number."""
    if key.isdecimal():
        return int(key)
    return int(float(key) * steps + 0.5)
