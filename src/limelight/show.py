"""Pictures of attention: what a person looks at. Every function takes what `generate` gives and returns a PIL image.

Maps are shown in matplotlib's perceptually even colours over the picture in grey, on one scale for all tiles of a
sheet, with a legend. This module needs matplotlib, which comes with ``pip install limelight[plots]``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .errors import SettingsError
from .maps import AttentionMaps
from .prompt import Prompt
from .result import Result

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
except ImportError as error:
    raise SettingsError("Pictures of attention need matplotlib; install it: pip install 'limelight[plots]'.") from error

ATTENTION, CHANGE = "inferno", "RdBu_r"
INK, FAINT, PAPER = "#1f2328", "#6e7781", "#ffffff"
# Colours that the colour-blind can tell apart: Masataka Okabe, Kei Ito, "Color Universal Design", 2008,
# https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SIDE, GAP, TEXT, SMALL = 224, 14, 15, 12
HEAD = TEXT + SMALL + 12  # a tile's caption


@dataclass(frozen=True)
class _Tile:
    image: Image.Image
    caption: str
    note: str = ""


@dataclass(frozen=True)
class _Scale:
    """What a colour stands for: the values at the ends of a colormap."""

    colours: str
    low: float
    high: float
    label: str

    def paint(self, values: np.ndarray) -> np.ndarray:
        """Values [height, width] to colours [height, width, 3] in 0..1."""
        share = (values - self.low) / (self.high - self.low) if self.high > self.low else np.zeros_like(values)
        return matplotlib.colormaps[self.colours](share.clip(0, 1))[..., :3]


def overlay(
    image: Image.Image, heat: Tensor, *, limit: float | None = None, opacity: float = 0.7, side: int = SIDE
) -> Image.Image:
    """A map over its picture.

    Args:
        heat: [height, width], not negative; resized to the picture (bilinear).
        limit: the value that has the brightest colour; by default the map's largest.
        opacity: 0 is the picture in grey, 1 the map alone.
        side: longer side of the result in pixels.
    """
    return _blend(image, heat, _attention(float(heat.max()) if limit is None else limit), opacity, side)


def strip(
    image: Image.Image,
    maps: AttentionMaps,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    columns: int = 6,
    side: int = SIDE,
) -> Image.Image:
    """A picture, and beside it a tile for every word: where it looked.

    Args:
        maps: of a batch that holds the picture: ``result.maps``, ``result.steps[10]``, ``maps.groups()["up 8x8"]``.
        words: words, phrases or token indices; by default every word of the prompt.
        index: which image of the batch it is.
        columns: most tiles in a row.

    Raises:
        PromptError: a word is not in the prompt.
        SettingsError: the picture is not one of these maps', or there is no such image.
        ProbeError: no maps were recorded.
    """
    heats = _heats(image, maps, words, index)
    scale = _attention(max(float(heat.max()) for heat in heats.values()))
    tiles = [_Tile(_sized(image, side), "picture"), *_word_tiles(image, heats, scale, side)]
    return _sheet(_wrapped(tiles, columns), [scale])


def compare(
    plain: Result, guided: Result, words: Sequence[str | int] | None = None, *, index: int = 0, side: int = SIDE
) -> Image.Image:
    """Before and after: a row for the pictures and for every word, plain, guided and what guidance changed.

    Args:
        plain, guided: results of the same prompt and seeds.
        words: by default the subjects that guidance put on stage.
        index: which image of the results.

    Raises:
        SettingsError: the results do not fit together.
    """
    if (plain.settings["prompt"], plain.seeds) != (guided.settings["prompt"], guided.seeds):
        raise SettingsError("The two results must have one prompt and the same seeds to be compared.")
    words = guided.subjects if words is None else words
    images = [result.images[_checked(index, len(result.images))] for result in (plain, guided)]
    before, after = (
        _heats(image, result.maps, words, index) for image, result in zip(images, (plain, guided), strict=True)
    )
    if any(before[word].shape != after[word].shape for word in before):
        raise SettingsError("The maps of the two results differ in size; draw both with the same size and resolution.")
    scale = _attention(max(float(heat.max()) for heats in (before, after) for heat in heats.values()))
    change = {word: after[word] - before[word] for word in before}
    most = max(float(heat.abs().max()) for heat in change.values()) or 1.0
    signed = _Scale(CHANGE, -most, most, "change")
    old, new = (np.asarray(_sized(image, side).convert("RGB"), dtype=np.float32) / 255 for image in images)
    moved = Image.fromarray((np.abs(new - old).mean(axis=2) * 255).round().astype(np.uint8)).convert("RGB")
    rows = [
        [
            _Tile(_sized(images[0], side), "plain"),
            _Tile(_sized(images[1], side), "guided"),
            _Tile(moved, "difference", "of the pictures"),
        ]
    ]
    columns = [
        _word_tiles(images[0], before, scale, side, " \u00b7 plain"),
        _word_tiles(images[1], after, scale, side, " \u00b7 guided"),
        _word_tiles(images[1], change, signed, side, " \u00b7 difference"),
    ]
    rows += [list(row) for row in zip(*columns, strict=True)]
    return _sheet(rows, [scale, signed])


def progress(
    result: Result,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    moments: int = 6,
    side: int = 160,
) -> Image.Image:
    """A row for every word and a column for some of the steps, from first to last: when it looked where.

    Raises:
        ProbeError: the result holds no single steps (``record="steps"``).
    """
    image, frames, scale = _over_steps(result, words, index)
    chosen = sorted({round(i * (len(frames) - 1) / max(moments - 1, 1)) for i in range(moments)})
    columns = [_word_tiles(image, frames[i], scale, side, note=f"step {i + 1} of {len(frames)}") for i in chosen]
    return _sheet([list(row) for row in zip(*columns, strict=True)], [scale])


def animation(
    result: Result,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    kind: Literal["webp", "gif"] = "webp",
    seconds: float = 6.0,
    side: int = SIDE,
) -> bytes:
    """The maps of every step over the finished picture, as the bytes of an endless animated WebP or GIF.

    Args:
        seconds: how long it takes from the first to the last step.

    Raises:
        ProbeError: the result holds no single steps (``record="steps"``).
    """
    if kind not in ("webp", "gif"):
        raise SettingsError(f"kind='{kind}' must be 'webp' or 'gif'.")
    image, heats, scale = _over_steps(result, words, index)
    frames = [
        _sheet(_wrapped(_word_tiles(image, heat, scale, side, note=f"step {i + 1} of {len(heats)}")), [scale])
        for i, heat in enumerate(heats)
    ]
    pause = max(round(1000 * seconds / len(frames)), 20)
    lasting = [*[pause] * (len(frames) - 1), 1500]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 85, "method": 2} if kind == "webp" else {"optimize": False}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=lasting, loop=0, **options)
    return buffer.getvalue()


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
    _checked(index, len(result.images))
    if not result.trace:
        raise SettingsError("There is no trace: nothing was guided; call generate() with a guidance.")
    names = [_name(result.maps.prompts[index], subject) for subject in result.subjects]
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
                below.plot(steps, shown, color=COLOURS[k % len(COLOURS)], label=label, **dots)
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


def every_word(prompt: Prompt) -> tuple[str, ...]:
    """The words that a model reads of a prompt as `Prompt.find` takes them: "a", "cat", "and", "a#2", "dog"."""
    seen: dict[str, int] = {}
    names = []
    for word in prompt.words:
        seen[word.key] = seen.get(word.key, 0) + 1
        if word.positions:
            names.append(word.text if seen[word.key] == 1 else f"{word.text}#{seen[word.key]}")
    return tuple(names)


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


def _attention(high: float) -> _Scale:
    return _Scale(ATTENTION, 0.0, high, "attention")


def _checked(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise SettingsError(f"There is no image {index}; there are {count}, counted from 0.")
    return index


def _name(prompt: Prompt, word: Any) -> str:
    if isinstance(word, str):
        return word
    return " ".join(prompt.tokens[i].removesuffix("</w>") for i in prompt.find(word))


def _heats(image: Image.Image, maps: AttentionMaps, words: Sequence[str | int] | None, index: int) -> dict[str, Tensor]:
    """The map of each word for one image, [height, width] in float32 on the CPU, by caption."""
    _checked(index, len(maps.prompts))
    prompt = maps.prompts[index]
    words = every_word(prompt) if words is None else words
    if isinstance(words, str) or not words:
        raise SettingsError("words must be a list with at least one word of the prompt, for example ['cat'].")
    height, width = maps.latent_size
    if abs(image.width * height - image.height * width) > 0.1 * image.height * width:
        raise SettingsError(
            f"A picture of {image.height}x{image.width} does not belong to maps of {height}x{width} latents; give the "
            "picture that was drawn with them."
        )
    own = maps.images(slice(index, index + 1))
    size = max((layer.size(maps.latent_size) for layer in maps.layers), default=None)
    return {_name(prompt, word): own.map(word, size)[0].detach().float().cpu() for word in words}


def _over_steps(
    result: Result, words: Sequence[str | int] | None, index: int
) -> tuple[Image.Image, list[dict[str, Tensor]], _Scale]:
    image = result.images[_checked(index, len(result.images))]
    # With record="all" single steps have more layers than the mean; the first one says if there is no step.
    frames = [
        _heats(image, result.steps[i].select(result.maps.layers.__contains__), words, index)
        for i in range(max(len(result.steps), 1))
    ]
    return image, frames, _attention(max(float(heat.max()) for frame in frames for heat in frame.values()))


def _sized(image: Image.Image, side: int) -> Image.Image:
    """With its longer side as given."""
    factor = side / max(image.size)
    size = max(round(image.width * factor), 1), max(round(image.height * factor), 1)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _blend(image: Image.Image, heat: Tensor, scale: _Scale, opacity: float, side: int) -> Image.Image:
    shown = _sized(image, side)
    resized = F.interpolate(heat.detach().float().cpu()[None, None], (shown.height, shown.width), mode="bilinear")[0, 0]
    grey = np.asarray(shown.convert("L"), dtype=np.float32)[..., None] / 255
    mixed = (1 - opacity) * grey + opacity * scale.paint(resized.numpy())
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def _word_tiles(
    image: Image.Image, heats: Mapping[str, Tensor], scale: _Scale, side: int, after: str = "", note: str = ""
) -> list[_Tile]:
    tiles = []
    for word, heat in heats.items():
        extremes = f"up to {heat.max():.2f}"
        if scale.low < 0:
            extremes = f"{heat.min():+.2f} to {heat.max():+.2f}" if heat.abs().max() >= 0.005 else "no change"
        tiles.append(_Tile(_blend(image, heat, scale, 0.7, side), word + after, note or extremes))
    return tiles


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _fitted(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels; what follows a dot at its end stays."""
    if _font(size).getlength(text) <= width:
        return text
    word, dot, kind = text.partition(" \u00b7 ")
    tail = "\u2026" + dot + kind
    while word and _font(size).getlength(word + tail) > width:
        word = word[:-1]
    return word + tail


def _wrapped(tiles: list[_Tile], columns: int = 6) -> list[list[_Tile]]:
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


def _sheet(rows: Sequence[Sequence[_Tile]], scales: Sequence[_Scale]) -> Image.Image:
    """Captioned tiles in rows and columns, with the legends at the right."""
    width, height = rows[0][0].image.size
    columns = max(len(row) for row in rows)
    bar = min(max(height, 96), 260)
    legend = 84
    sheet_size = (
        GAP + columns * (width + GAP) + len(scales) * legend,
        max(len(rows) * (height + HEAD + GAP), bar + HEAD + GAP) + GAP,
    )
    sheet = Image.new("RGB", sheet_size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        top = GAP + y * (height + HEAD + GAP)
        for x, tile in enumerate(row):
            left = GAP + x * (width + GAP)
            draw.text((left, top), _fitted(tile.caption, TEXT, width), INK, _font(TEXT))
            draw.text((left, top + TEXT + 5), _fitted(tile.note, SMALL, width), FAINT, _font(SMALL))
            sheet.paste(tile.image, (left, top + HEAD))
    for i, scale in enumerate(scales):
        _legend(sheet, scale, (GAP + columns * (width + GAP) + i * legend, GAP), bar)
    return sheet


def _legend(sheet: Image.Image, scale: _Scale, at: tuple[int, int], height: int) -> None:
    left, top = at
    draw = ImageDraw.Draw(sheet)
    draw.text((left, top), scale.label, INK, _font(SMALL))
    values = np.linspace(scale.high, scale.low, height)[:, None].repeat(14, axis=1)
    sheet.paste(Image.fromarray((scale.paint(values) * 255).round().astype(np.uint8)), (left, top + HEAD))
    for share in (0.0, 0.5, 1.0):
        value = scale.high + share * (scale.low - scale.high)
        text = f"{value:+.2f}" if scale.low < 0 and value else f"{value:.2f}"
        y = top + HEAD + share * (height - 1)
        draw.line((left + 14, y, left + 18, y), FAINT)
        draw.text((left + 22, y - SMALL * 0.6 if 0 < share < 1 else y - share * SMALL), text, INK, _font(SMALL))
