"""Attention maps for other programs: NumPy, TIFF, and masks in the run-length encoding of COCO."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, TiffImagePlugin
from torch import Tensor

from ..errors import SettingsError
from ..utils.files import json_text, user_path, write
from .maps import AttentionMaps

Kind = Literal["npz", "tif", "json"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_DESCRIPTION = 270  # the tag ImageDescription of TIFF


def save_maps(
    maps: AttentionMaps,
    path: str | os.PathLike[str],
    words: Sequence[str | int] | None = None,
    *,
    size: tuple[int, int] | None = None,
    threshold: float = 0.2,
) -> None:
    """Write the maps of some words to a file, see `exported`.

    Args:
        path: its suffix says how: ".npz", ".tif" (or ".tiff"), ".json".

    Raises:
        PromptError: a word is not in the prompt.
        SettingsError: another suffix.
        FileError: the file cannot be written.

    Examples:
        >>> import tempfile, pathlib
        >>> model = limelight.load("pocket", device="cpu")
        >>> maps = limelight.generate(model, "a cat and a dog", steps=2).maps
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "maps.npz"
        ...     save_maps(maps, path, ["cat", "dog"])
        ...     stored = np.load(path)
        ...     stored["words"].tolist(), stored["maps"].shape
        (['cat', 'dog'], (2, 1, 8, 8))
    """
    target = user_path(path)
    kind = {"tiff": "tif"}.get(target.suffix.lower()[1:], target.suffix.lower()[1:])
    if kind not in KINDS:
        raise SettingsError(f"'{target.name}' must end with .npz, .tif or .json; these are the formats of maps.")
    write(target, exported(maps, kind, words, size=size, threshold=threshold))


def exported(
    maps: AttentionMaps,
    kind: Kind,
    words: Sequence[str | int] | None = None,
    *,
    size: tuple[int, int] | None = None,
    threshold: float = 0.2,
) -> bytes:
    """The content of a file of maps.

    Args:
        kind: "npz" has the arrays ``words`` [words] and ``maps``, float32 [words, images, height, width]. "tif" is a
            stack of float32 pages, one for each word and image, the images of the first word first; the description of
            its first page names the words. "json" are masks and boxes in COCO's format.
        words: by default every word of the first prompt.
        size: height and width of the maps, by default their own; of the masks, by default the latents'.
        threshold: of the masks, see `AttentionMaps.mask`.
    """
    chosen = list(maps) if words is None else list(words)
    if not chosen:
        raise SettingsError("words is empty; name at least one word of the prompt.")
    if kind == "json":
        return json_text(_coco(maps, chosen, size or maps.latent_size, threshold)).encode()

    names = list(map(str, chosen))
    stack = torch.stack([maps.map(word, size) for word in chosen]).detach().float().cpu().numpy()
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez_compressed(buffer, words=np.array(names), maps=stack)
        return buffer.getvalue()

    pages = list(map(Image.fromarray, stack.reshape(-1, *stack.shape[2:])))
    facts = TiffImagePlugin.ImageFileDirectory_v2()
    facts[_DESCRIPTION] = json_text({"words": names, "images": stack.shape[1]})
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], tiffinfo=facts)
    return buffer.getvalue()


def _coco(
    maps: AttentionMaps, words: Sequence[str | int], size: tuple[int, int], threshold: float
) -> dict[str, list[Any]]:
    """The masks of words as COCO's annotations: words are categories."""
    height, width = size
    annotations = list[dict[str, Any]]()
    for category, word in enumerate(words, start=1):
        masks, boxes = maps.mask(word, threshold, size).cpu(), maps.box(word, threshold).tolist()
        for image, (mask, (left, top, right, bottom)) in enumerate(zip(masks, boxes, strict=True)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "segmentation": run_lengths(mask),
                    "area": int(mask.sum()),
                    "bbox": [left * width, top * height, (right - left) * width, (bottom - top) * height],
                    "iscrowd": 1,  # as COCO marks masks in run lengths
                }
            )
    images = [{"id": i, "height": height, "width": width} for i in range(len(maps.prompts))]
    categories = [{"id": i, "name": str(word)} for i, word in enumerate(words, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """A mask in the compressed run-length encoding of COCO, as ``pycocotools.mask`` reads it.

    Tsung-Yi Lin et al., "Microsoft COCO: Common Objects in Context", 2014, https://arxiv.org/abs/1405.0312. Runs of
    zeros and ones take turns, zeros first, column by column. From the fourth on, a run is stored as the difference to
    the run two before it; numbers are in groups of five bits, the lowest first, as characters from "0" on.

    Args:
        mask: bool [height, width].
    """
    flat = mask.T.flatten().int()
    edges = torch.cat([flat.new_zeros(1), flat, 1 - flat[-1:]]).diff().nonzero()[:, 0].tolist()
    runs = [stop - start for start, stop in zip([0, *edges], edges, strict=False)]

    text = ""
    for i, run in enumerate(runs):
        text += _number(run - runs[i - 2] if i > 2 else run)
    return {"size": list(mask.shape), "counts": text}


def _number(value: int) -> str:
    """A number in groups of five bits, each with a sixth that says whether another one follows."""
    text = ""
    while True:
        bits, value = value & 31, value >> 5
        done = value == (-1 if bits & 16 else 0)
        text += chr(48 + (bits if done else bits | 32))
        if done:
            return text
