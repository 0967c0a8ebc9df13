"""Sheets of attention maps. Every function takes what `generate` gives; all but `animation` return a PIL image.

Maps are shown in matplotlib's perceptually even colors over the image, on one scale for all tiles of a
sheet, with a legend. This module needs matplotlib, which comes with ``pip install limelight[plots]``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor

from ..attention.maps import AttentionMaps
from ..errors import SettingsError
from ..generation.result import Result
from ..prompts.prompt import Prompt, occurrence_name
from .theme import (
    CHANGE,
    COLORS,
    SIDE,
    Scale,
    Sheet,
    Tile,
    attention_scale,
    blend,
    check_index,
    display_name,
    sized,
    wrapped,
)

OPACITY = 0.55
"""How much of the color of a map is over the image."""


def overlay(
    image: Image.Image, heat: Tensor, *, limit: float | None = None, opacity: float = OPACITY, side: int = SIDE
) -> Image.Image:
    """Lay a map over its image.

    Args:
        heat: [height, width], not negative; resized to the image (bilinear).
        limit: the value that has the brightest color; by default the map's largest.
        opacity: 0 is the image, 1 the map alone.
        side: longer side of the result in pixels.
    """
    if limit is None:
        limit = float(heat.max())
    return blend(image, heat, attention_scale(limit), opacity, side)


def strip(
    image: Image.Image,
    maps: AttentionMaps,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    columns: int = 6,
    side: int = SIDE,
) -> Image.Image:
    """Show an image, and beside it a tile for every word: where it looked.

        >>> import limelight
        >>> from limelight.viz import sheets
        >>> model = limelight.load("pocket", device="cpu")
        >>> result = limelight.generate(model, "a cat and a dog", steps=2)
        >>> sheets.strip(result.images[0], result.maps, ["cat", "dog"]).size
        (812, 291)

    Args:
        maps: of a batch that holds the image: ``result.maps``, ``result.steps[10]``, ``maps.groups()["up 8x8"]``.
        words: words, phrases or token indices; by default every word of the prompt.
        index: which image of the batch it is.
        columns: most tiles in a row.

    Raises:
        PromptError: a word is not in the prompt.
        SettingsError: the image does not fit the maps, or the index is out of range.
        ProbeError: no maps were recorded.
    """
    return strip_sheet(image, maps, words, index=index, columns=columns, side=side).image()


def strip_sheet(
    image: Image.Image,
    maps: AttentionMaps,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    columns: int = 6,
    side: int = SIDE,
) -> Sheet:
    """The tiles of `strip`."""
    heats = _heats(image, maps, words, index)
    scale = attention_scale(_largest([heats]))
    height, width = next(iter(heats.values())).shape
    tiles = [Tile(sized(image, side), "image", f"{width} x {height} maps")]
    tiles += _word_tiles(image, heats, scale, side)
    return Sheet(wrapped(tiles, columns), [scale])


def places(
    image: Image.Image,
    maps: AttentionMaps,
    words: Sequence[str | int] | None = None,
    *,
    threshold: float = 0.2,
    index: int = 0,
    columns: int = 6,
    side: int = SIDE,
) -> Image.Image:
    """Show for every word its mask in color and its box as a frame, see `AttentionMaps.mask` and `AttentionMaps.box`.

    Args:
        maps, words, index, columns: as in `strip`.
        threshold: of masks and boxes.
    """
    return places_sheet(image, maps, words, threshold=threshold, index=index, columns=columns, side=side).image()


def places_sheet(
    image: Image.Image,
    maps: AttentionMaps,
    words: Sequence[str | int] | None = None,
    *,
    threshold: float = 0.2,
    index: int = 0,
    columns: int = 6,
    side: int = SIDE,
) -> Sheet:
    """The tiles of `places`."""
    heats = _heats(image, maps, words, index)
    own, shown = maps.images(slice(index, index + 1)), sized(image, side)
    tiles = [Tile(shown, "image")]
    for name, word in zip(heats, every_word(maps.prompts[index]) if words is None else words, strict=True):
        mask = own.mask(word, threshold, (shown.height, shown.width))[0].cpu().numpy()
        tiles.append(Tile(_marked(shown, mask, own.box(word, threshold)[0].tolist()), name, f"{mask.mean():.0%}"))
    return Sheet(wrapped(tiles, columns))


def _marked(image: Image.Image, mask: np.ndarray, box: Sequence[float]) -> Image.Image:
    """An image in grey, but for a mask, with a frame around a box."""
    pixels = np.asarray(image, dtype=np.float32)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None].repeat(3, axis=2)
    marked = Image.fromarray(np.where(mask[..., None], pixels, 0.4 * grey + 0.6 * 255).astype(np.uint8))
    width, height = image.size
    edges = [box[0] * width, box[1] * height, box[2] * width - 1, box[3] * height - 1]
    if box[2] > box[0]:
        ImageDraw.Draw(marked).rectangle(edges, outline=COLORS[1], width=2)
    return marked


def compare(
    plain: Result, guided: Result, words: Sequence[str | int] | None = None, *, index: int = 0, side: int = SIDE
) -> Image.Image:
    """Compare two runs: a row for the images and for every word, plain, guided and what guidance changed.

    Args:
        plain, guided: results of the same prompt and seeds.
        words: by default the guided subjects.
        index: which image of the results.

    Raises:
        SettingsError: the results do not fit together.
    """
    return compare_sheet(plain, guided, words, index=index, side=side).image()


def compare_sheet(
    plain: Result, guided: Result, words: Sequence[str | int] | None = None, *, index: int = 0, side: int = SIDE
) -> Sheet:
    """The tiles of `compare`."""
    if (plain.settings["prompt"], plain.seeds) != (guided.settings["prompt"], guided.seeds):
        raise SettingsError("The two results must have one prompt and the same seeds to be compared.")
    if words is None:
        words = guided.subjects
    old, new = _image(plain, index), _image(guided, index)
    before, after = _heats(old, plain.maps, words, index), _heats(new, guided.maps, words, index)
    change = _change(before, after)

    scale = attention_scale(_largest([before, after]))
    most = max(float(heat.abs().max()) for heat in change.values()) or 1.0
    signed = Scale(CHANGE, -most, most, "change")

    images = [
        Tile(sized(old, side), "plain"),
        Tile(sized(new, side), "guided"),
        _difference(old, new, side),
    ]
    columns = [
        _word_tiles(old, before, scale, side, " \u00b7 plain"),
        _word_tiles(new, after, scale, side, " \u00b7 guided"),
        _word_tiles(new, change, signed, side, " \u00b7 difference"),
    ]
    return Sheet([images, *zip(*columns, strict=True)], [scale, signed])


def _change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What guidance added to the map of each word."""
    change = {}
    for word, heat in before.items():
        if heat.shape != after[word].shape:
            raise SettingsError(
                "The maps of the two results differ in size; generate both with the same size and resolution."
            )
        change[word] = after[word] - heat
    return change


def _difference(old: Image.Image, new: Image.Image, side: int) -> Tile:
    """The absolute difference of two images, the mean of the three colors: the darker, the more."""
    change = ImageChops.difference(sized(old, side), sized(new, side))
    grey = 255 - np.asarray(change, dtype=np.float32).mean(axis=2)
    note = "of the images; darker is more" if change.getbbox() else "no change"
    return Tile(Image.fromarray(grey.round().astype(np.uint8)).convert("RGB"), "difference", note)


def progress(
    result: Result,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    moments: int = 6,
    side: int = 160,
) -> Image.Image:
    """Show a row for every word and a column for some of the steps, from first to last: when it looked where.

    Raises:
        ProbeError: the result has no maps of single steps (``record="steps"``).
    """
    return progress_sheet(result, words, index=index, moments=moments, side=side).image()


def progress_sheet(
    result: Result,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    moments: int = 6,
    side: int = 160,
) -> Sheet:
    """The tiles of `progress`."""
    image, frames, scale = _over_steps(result, words, index)
    columns = []
    for i in sorted({round(i * (len(frames) - 1) / max(moments - 1, 1)) for i in range(moments)}):
        columns.append(_word_tiles(image, frames[i], scale, side, note=f"step {i + 1} of {len(frames)}"))
    return Sheet(list(zip(*columns, strict=True)), [scale])


def animation(
    result: Result,
    words: Sequence[str | int] | None = None,
    *,
    index: int = 0,
    kind: Literal["webp", "gif"] = "webp",
    seconds: float = 6.0,
    side: int = SIDE,
) -> bytes:
    """Animate the maps of every step over the finished image; the bytes of an endless WebP or GIF.

    Args:
        seconds: how long it takes from the first to the last step.

    Raises:
        ProbeError: the result has no maps of single steps (``record="steps"``).
    """
    if kind not in _ENCODING:
        raise SettingsError(f"kind='{kind}' must be 'webp' or 'gif'.")
    image, heats, scale = _over_steps(result, words, index)
    frames = []
    for i, heat in enumerate(heats):
        tiles = _word_tiles(image, heat, scale, side, note=f"step {i + 1} of {len(heats)}")
        frames.append(Sheet(wrapped(tiles), [scale]).image())

    pause = max(round(1000 * seconds / len(frames)), 20)
    lasting = [*[pause] * (len(frames) - 1), 1500]
    buffer = io.BytesIO()
    options = _ENCODING[kind]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=lasting, loop=0, **options)
    return buffer.getvalue()


_ENCODING: Mapping[str, Mapping[str, Any]] = {"webp": {"quality": 85, "method": 2}, "gif": {"optimize": False}}


def every_word(prompt: Prompt) -> tuple[str, ...]:
    """The words that a model reads of a prompt as `Prompt.find` takes them: "a", "cat", "and", "a#2", "dog"."""
    seen: dict[str, int] = {}
    names = []
    for word in prompt.words:
        seen[word.key] = seen.get(word.key, 0) + 1
        if word.positions:
            names.append(occurrence_name(word.text, seen[word.key]))
    return tuple(names)


def _heats(image: Image.Image, maps: AttentionMaps, words: Sequence[str | int] | None, index: int) -> dict[str, Tensor]:
    """The map of each word for one image, [height, width] in float32 on the CPU, by caption."""
    check_index(index, len(maps.prompts))
    prompt = maps.prompts[index]
    if words is None:
        words = every_word(prompt)
    if isinstance(words, str) or not words:
        raise SettingsError("words must be a list with at least one word of the prompt, for example ['cat'].")
    height, width = maps.latent_size
    if abs(image.width * height - image.height * width) > 0.1 * image.height * width:
        raise SettingsError(
            f"An image of {image.height}x{image.width} does not belong to maps of {height}x{width} latents; give the "
            "image that was generated with them."
        )
    own = maps.images(slice(index, index + 1))
    size = max((layer.size(maps.latent_size) for layer in maps.layers), default=None)
    return {display_name(prompt, word): own.map(word, size)[0].detach().float().cpu() for word in words}


def _image(result: Result, index: int) -> Image.Image:
    return result.images[check_index(index, len(result.images))]


def _over_steps(
    result: Result, words: Sequence[str | int] | None, index: int
) -> tuple[Image.Image, list[dict[str, Tensor]], Scale]:
    image, frames = _image(result, index), []
    for i in range(max(len(result.steps), 1)):  # the first one says if there is no step
        # With record="all" single steps have more layers than the mean.
        maps = result.steps[i].select(result.maps.layers.__contains__)
        frames.append(_heats(image, maps, words, index))
    return image, frames, attention_scale(_largest(frames))


def _largest(frames: Sequence[Mapping[str, Tensor]]) -> float:
    """The largest value of all maps."""
    highest = []
    for frame in frames:
        highest += [float(heat.max()) for heat in frame.values()]
    return max(highest)


def _word_tiles(
    image: Image.Image, heats: Mapping[str, Tensor], scale: Scale, side: int, after: str = "", note: str = ""
) -> list[Tile]:
    tiles = []
    for word, heat in heats.items():
        if scale.low == 0:
            extremes = f"up to {heat.max():.2f}"
        elif heat.abs().max() < 0.005:
            extremes = "no change"
        else:
            extremes = f"{heat.min():+.2f} to {heat.max():+.2f}"
        tiles.append(Tile(blend(image, heat, scale, OPACITY, side), word + after, note or extremes))
    return tiles
