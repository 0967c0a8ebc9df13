"""Images in memory: read, fitted to a size, put side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from ..errors import FileError

Fit = Literal["crop", "stretch"]


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image into memory.

    Raises:
        FileError: the file cannot be read or is not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is not an image"
        raise FileError(f"'{path}' cannot be read: {reason}.") from None


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit = "crop") -> Image.Image:
    """Turn an image upright (as its EXIF data say), into RGB, white where it is transparent, and to one size.

    Args:
        size: height and width in pixels.
        fit: "crop" cuts it to the shape of `size` around its middle, "stretch" distorts it, as the authors of textual
            inversion do.
    """
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")

    wanted = (size[1], size[0])
    if fit == "stretch":
        return image.resize(wanted, Image.Resampling.BICUBIC)
    return ImageOps.fit(image, wanted, Image.Resampling.BICUBIC)


def grid(rows: Sequence[Sequence[Image.Image]], labels: Sequence[str] | None = None, gap: int = 4) -> Image.Image:
    """Put images of one size in rows and columns on white, with a label above each row."""
    width, height = rows[0][0].size
    head = 18 if labels else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + gap + head) + gap), "white")

    for y, row in enumerate(rows):
        top = gap + y * (height + gap + head)
        if labels:
            ImageDraw.Draw(sheet).text((gap, top), labels[y], fill="black", font=ImageFont.load_default(13))
        for x, image in enumerate(row):
            sheet.paste(image, (gap + x * (width + gap), top + head))
    return sheet
