"""Colors, fonts, tiles and legends of all figures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import MissingDependency, SettingsError
from ..prompts.prompt import Prompt
from ..utils.html import data_url
from ..utils.images import fitted, font

try:
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, no state
    from matplotlib.patches import Rectangle as Rectangle
except ImportError as error:
    raise MissingDependency("Figures need matplotlib. Install it: pip install 'limelight[plots]'.") from error

ATTENTION, CHANGE = "inferno", "RdBu_r"
INK, FAINT, PAPER = "#1f2328", "#6e7781", "#ffffff"
# Colors that the color-blind can tell apart: Masataka Okabe, Kei Ito, "Color Universal Design", 2008,
# https://jfly.uni-koeln.de/color/
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SIDE, GAP, TEXT, SMALL = 224, 14, 15, 12
HEAD = TEXT + SMALL + 12  # a tile's caption


@dataclass(frozen=True)
class Tile:
    """An image with a caption and a note in smaller letters below it."""

    image: Image.Image
    caption: str
    note: str = ""

    @property
    def inline(self) -> str:
        """The image as a data URL."""
        buffer = io.BytesIO()
        self.image.save(buffer, "WEBP", quality=92)
        return data_url(buffer.getvalue(), "webp")


@dataclass(frozen=True)
class Scale:
    """What a color stands for: the values at the ends of a colormap."""

    colors: str
    low: float
    high: float
    label: str

    def paint(self, values: np.ndarray) -> np.ndarray:
        """Values [height, width] to colors [height, width, 3] in 0..1."""
        share = (values - self.low) / (self.high - self.low) if self.high > self.low else np.zeros_like(values)
        return matplotlib.colormaps[self.colors](share.clip(0, 1))[..., :3]

    @property
    def inline(self) -> str:
        """Its colors from low to high as a strip, as a data URL."""
        buffer = io.BytesIO()
        painted = self.paint(np.linspace(self.low, self.high, 256)[None])
        Image.fromarray((painted * 255).round().astype(np.uint8)).save(buffer, "PNG")
        return data_url(buffer.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure; width and height in inches of 100 pixels."""
    return Figure(figsize=(width, height), layout="constrained")


def plot_style() -> AbstractContextManager[None]:
    """The fonts and colors of plots, for the time of a `with`."""
    return matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": FAINT})


def rendered(figure: Figure) -> Image.Image:
    """A matplotlib figure as an RGB image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with Image.open(buffer) as image:
        return image.convert("RGB")


def attention_scale(high: float) -> Scale:
    """Colors of attention from 0 to `high`."""
    return Scale(ATTENTION, 0.0, high, "attention")


def check_index(index: int, count: int) -> int:
    """The index, if it is one of `count` images.

    Raises:
        SettingsError: it is not.
    """
    if not 0 <= index < count:
        raise SettingsError(f"There is no image {index}; there are {count}, counted from 0.")
    return index


def display_name(prompt: Prompt, word: Any) -> str:
    """A word as the user wrote it; the tokens of the prompt where it is given by indices."""
    if isinstance(word, str):
        return word
    return " ".join(prompt.tokens[i].removesuffix("</w>") for i in prompt.find(word))


def sized(image: Image.Image, side: int) -> Image.Image:
    """Resize an image so that its longer side has `side` pixels; in RGB."""
    factor = side / max(image.size)
    size = max(round(image.width * factor), 1), max(round(image.height * factor), 1)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def blend(image: Image.Image, heat: Tensor, scale: Scale, opacity: float, side: int) -> Image.Image:
    """Lay a map [height, width] over its image; an opacity of 1 shows the map alone."""
    shown = sized(image, side)
    resized = F.interpolate(heat.detach().float().cpu()[None, None], (shown.height, shown.width), mode="bilinear")[0, 0]
    pixels = np.asarray(shown, dtype=np.float32) / 255
    mixed = (1 - opacity) * pixels + opacity * scale.paint(resized.numpy())
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def wrapped(tiles: list[Tile], columns: int = 6) -> list[list[Tile]]:
    """Break a line of tiles into rows."""
    return [tiles[i : i + columns] for i in range(0, len(tiles), columns)]


@dataclass(frozen=True)
class Sheet:
    """Captioned tiles of one size in rows, and what their colors stand for."""

    rows: Sequence[Sequence[Tile]]
    scales: Sequence[Scale] = ()

    def image(self) -> Image.Image:
        """All of it as one image, with the legends at the right."""
        return _sheet_image(self.rows, self.scales)


def _sheet_image(rows: Sequence[Sequence[Tile]], scales: Sequence[Scale]) -> Image.Image:
    width, height = rows[0][0].image.size
    columns = max(map(len, rows))
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
            draw.text((left, top), fitted(tile.caption, TEXT, width), INK, font(TEXT))
            draw.text((left, top + TEXT + 5), fitted(tile.note, SMALL, width), FAINT, font(SMALL))
            sheet.paste(tile.image, (left, top + HEAD))

    for i, scale in enumerate(scales):
        _legend(sheet, scale, (GAP + columns * (width + GAP) + i * legend, GAP), bar)
    return sheet


def _legend(sheet: Image.Image, scale: Scale, at: tuple[int, int], height: int) -> None:
    left, top = at
    draw = ImageDraw.Draw(sheet)
    draw.text((left, top), scale.label, INK, font(SMALL))
    values = np.linspace(scale.high, scale.low, height)[:, None].repeat(14, axis=1)
    sheet.paste(Image.fromarray((scale.paint(values) * 255).round().astype(np.uint8)), (left, top + HEAD))

    for share in (0.0, 0.5, 1.0):
        value = scale.high + share * (scale.low - scale.high)
        text = f"{value:+.2f}" if scale.low < 0 and value else f"{value:.2f}"
        y = top + HEAD + share * (height - 1)
        draw.line((left + 14, y, left + 18, y), FAINT)
        draw.text((left + 22, y - SMALL * 0.6 if 0 < share < 1 else y - share * SMALL), text, INK, font(SMALL))
