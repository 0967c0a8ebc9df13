"""Images in memory: read, fitted to a size, put side by side."""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from ..errors import MissingDependency, SettingsError
from .files import user_path
from .reading import reading, understood

Fit = Literal["crop", "stretch"]
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any] | Any
"""A file, the content of one, a PIL image, an array [height, width, channels] or a tensor [channels, height, width]."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What is read; each further decoder is one more that a file of others could attack. HEIF needs pillow-heif."""
SUFFIXES = frozenset(".avif .bmp .gif .heic .heif .jfif .jpeg .jpg .png .tif .tiff .webp".split())
_CURE = "take another copy of it, or save it as PNG in fewer pixels"
MOST_PIXELS = 178_956_970
"""Of one image: what Pillow takes for an attack, too."""


def open_image(source: ImageSource) -> Image.Image:
    """Read an image as 8-bit RGB: upright as its EXIF data say, white where it is transparent, black to white in full.

    16-bit values are scaled to 8 bits. Floats must lie between 0 and 1. Of an animation it is the first frame.

    Args:
        source: see `ImageSource`. Arrays and tensors may be grey, RGB or RGBA, with a first axis of one image.

    Raises:
        FileError: the file cannot be read or is not an image.
        MissingDependency: it is a HEIC file, and pillow-heif is not installed.
        SettingsError: what is in memory is not an image.
    """
    if isinstance(source, str | os.PathLike):
        path = user_path(source)
        with reading(path, cure=_CURE), open(path, "rb") as file:
            return _decoded(file)
    if isinstance(source, bytes):
        with understood("The image", cure=_CURE):
            return _decoded(io.BytesIO(source))
    if not isinstance(source, Image.Image):
        return _plain(_from_array(source))
    try:
        source.load()  # of a file that the caller has opened
    except (OSError, ValueError, SyntaxError) as error:
        raise SettingsError(f"The image cannot be read: {error}.") from error
    return _plain(source)


def _decoded(file: Any) -> Image.Image:
    """The image of an open file."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF is new in Pillow
    if _is_heif(file):
        _register_heif()
        formats = ["HEIF"]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of Pillow are for programmers
            with Image.open(file, formats=formats) as image:
                _check_size(*image.size)
                image.load()
                return _plain(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is not an image ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"its pixels are more than {MOST_PIXELS}") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"it is damaged ({error})") from error


def _is_heif(file: Any) -> bool:
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def _register_heif() -> None:
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingDependency(
            "A HEIC image needs pillow-heif. Install it: pip install pillow-heif; or save the image as JPEG or PNG."
        ) from error
    pillow_heif.register_heif_opener()


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise SettingsError(f"An image of {width} x {height} pixels is empty.")
    if width * height > MOST_PIXELS:
        raise SettingsError(f"{width} x {height} pixels are more than {MOST_PIXELS}; scale the image down.")


def _plain(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as an upright RGB image on white."""
    _check_size(*image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _from_levels(image)

    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except ValueError as error:
        raise SettingsError(f"An image of mode '{image.mode}' cannot be shown as RGB; convert it first.") from error


def _from_levels(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits, white where it has its transparent value."""
    values, clear = np.asarray(image), image.info.get("transparency")
    if image.mode == "I":
        # Pillow keeps 16 bits in it, but also whatever else was converted to it.
        if values.min() < 0 or not (255 < values.max() <= 65535 or values.max() == 0):
            raise SettingsError(
                f"32-bit whole numbers from {values.min()} to {values.max()} have no known white; give 8 or 16 bits."
            )
        values = values.astype(np.uint16)

    grey = _to_bytes(values)
    if isinstance(clear, int):
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _from_array(source: Any) -> Image.Image:
    """An array [height, width, channels] or a tensor [channels, height, width] as a PIL image."""
    if hasattr(source, "detach"):
        source = source.detach().cpu()
        values = np.asarray(source.float() if source.is_floating_point() else source)
        pixels = _to_bytes(_channels_last(values, likely=0))
    elif hasattr(source, "__array__"):
        pixels = _to_bytes(_channels_last(np.asarray(source), likely=-1))
    else:
        raise SettingsError(
            f"{type(source).__name__} is not an image; give a path, a PIL image, an array [height, width, channels] or "
            "a tensor [channels, height, width]."
        )

    if pixels.shape[2:] == (1,):
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _channels_last(values: np.ndarray[Any, Any], likely: int) -> np.ndarray[Any, Any]:
    """One image as [height, width] or [height, width, channels].

    Args:
        likely: where to look first for the channels' axis, 0 or -1.
    """
    shape = values.shape
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 2 and values.size:
        return values

    for axis in (likely, -1 - likely):
        if values.ndim == 3 and values.size and values.shape[axis] in (1, 3, 4):
            return np.moveaxis(values, axis, -1)
    raise SettingsError(
        f"{list(shape)} is not the shape of one image: an array is [height, width, channels], a tensor [channels, "
        "height, width], with 1, 3 or 4 channels."
    )


def _to_bytes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values as 8 bits: of 16 bits, or floats from 0 to 1."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.round(values / 257).astype(np.uint8)
    if values.dtype.kind != "f":
        raise SettingsError(f"{values.dtype} values have no known white; give uint8, uint16, or floats from 0 to 1.")

    low, high = values.min(), values.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # filters overshoot a little
        raise SettingsError(f"Floats from {low:.4g} to {high:.4g} have no known white; scale them to 0 to 1.")
    return np.round(values.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit = "crop") -> Image.Image:
    """Bring an image, read as by `open_image`, to one size.

    Args:
        size: height and width in pixels.
        fit: "crop" cuts it to the shape of `size` around its middle, "stretch" distorts it, as the authors of textual
            inversion do.
    """
    image, wanted = open_image(image), (size[1], size[0])
    if fit == "stretch":
        return image.resize(wanted, Image.Resampling.BICUBIC)
    return ImageOps.fit(image, wanted, Image.Resampling.BICUBIC)


def psnr(one: Image.Image, other: Image.Image) -> float:
    """The peak signal-to-noise ratio of two images of one size, in dB; infinite where they are equal."""
    error = np.square(np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float)).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def grid(
    rows: Sequence[Sequence[Image.Image]],
    labels: Sequence[str] = (),
    *,
    title: str = "",
    captions: Sequence[Sequence[str]] = (),
    gap: int = 4,
) -> Image.Image:
    """Put images of one size in rows and columns on white; images of less than 200 pixels are shown twice as large.

    Args:
        rows: from the top; a row may be shorter than others.
        labels: a line above each row.
        title: above everything, in as many lines as it takes.
        captions: for each row the captions above its images; rows at the end may lack them.
        gap: pixels between images.
    """
    zoom = 2 if max(rows[0][0].size) < _SMALL else 1
    width, height = rows[0][0].width * zoom, rows[0][0].height * zoom
    columns = max(len(row) for row in rows)
    lines = _lines(title, columns * (width + gap) - gap)
    heads = []
    for y in range(len(rows)):
        heads.append(_LINE * ((y < len(labels)) + (y < len(captions))))

    top = gap + _LINE * len(lines)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, top + sum(heads) + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((gap, gap + i * _LINE), line, _INK, font(_TEXT))

    for y, row in enumerate(rows):
        if y < len(labels):
            draw.text((gap, top), fitted(labels[y], _TEXT, sheet.width - 2 * gap), _INK, font(_TEXT))
        top += heads[y]
        for x, image in enumerate(row):
            left = gap + x * (width + gap)
            if y < len(captions):
                draw.text((left, top - _LINE), fitted(captions[y][x], _TEXT, width), _FAINT, font(_TEXT))
            sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        top += height + gap
    return sheet


_SMALL = 200  # of the embedded model
_TEXT, _LINE, _INK, _FAINT = 14, 20, "#1f2328", "#59636e"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of captions: DejaVu Sans where matplotlib brings it, which has more scripts, or else Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    if found and found.origin:
        file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)


def fitted(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels; what follows a dot at its end stays."""
    if font(size).getlength(text) <= width:
        return text
    word, dot, kind = text.partition(" \u00b7 ")
    tail = "\u2026" + dot + kind
    # By halves: letter by letter, a long text would take minutes.
    counts = range(1, len(word) + 1)
    kept = bisect_right(counts, False, key=lambda count: font(size).getlength(word[:count] + tail) > width)
    return word[:kept] + tail


def _lines(text: str, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, of whole words where they fit."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(_TEXT).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted(word, _TEXT, width))
    return lines
