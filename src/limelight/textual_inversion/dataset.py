"""The images that a word is learned from, and the sentences that it is put in."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import FileError, SettingsError
from ..models.base import Model
from ..utils.files import DATA, user_path
from ..utils.images import SUFFIXES, Fit, ImageSource, fit_image, open_image

Source = ImageSource | Sequence[ImageSource]
"""A folder, an image or its file, see `ImageSource`, or several of the latter."""
_SENTENCES: WeakKeyDictionary[Model, dict[tuple[str, frozenset[str]], tuple[str, ...]]] = WeakKeyDictionary()
"""For each model, the sentences of each list that it knows all words of: they are parsed once."""


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """Images as their latents' distributions, so that training never runs the autoencoder.

    Attributes:
        mean: [images, 1 or 2, channels, height, width]: of each image as it is and, where there are two, mirrored.
        std: the same of the standard deviation.
        images: the images as the model sees them.
        digest: sixteen hexadecimal digits that tell these images from others.
    """

    mean: Tensor
    std: Tensor
    images: tuple[Image.Image, ...]
    digest: str

    @classmethod
    def encode(
        cls,
        model: Model,
        source: Source,
        *,
        size: tuple[int, int] | None = None,
        fit: Fit = "crop",
        mirrored: bool = True,
    ) -> TrainingImages:
        """Read images and run the autoencoder once for each.

        Args:
            source: see `Source`; of a folder, every file whose name ends like an image's.
            size: height and width in pixels; by default the model's own.
            fit: see `fit_image`.
            mirrored: also encode each image's mirror image.

        Raises:
            FileError: a folder has no images, or one of them cannot be read.
        """
        images = tuple(fit_image(image, size or model.default_size, fit) for image in read_images(source))
        found, mean, std = hashlib.sha256(), list[Tensor](), list[Tensor]()
        for image in images:  # one by one: an autoencoder takes more memory than a denoiser
            found.update(repr(image.size).encode() + image.tobytes())
            views = [image]
            if mirrored:
                views.append(ImageOps.mirror(image))
            means, deviations = zip(*[model.posterior([view]) for view in views], strict=True)
            mean.append(torch.cat(means))
            std.append(torch.cat(deviations))
        return cls(torch.stack(mean), torch.stack(std), images, found.hexdigest()[:16])

    def __len__(self) -> int:
        return len(self.images)


def read_images(source: Source) -> list[Image.Image]:
    """Images in memory, those of a folder in the order of their names.

    Raises:
        FileError: a folder has none, or one cannot be read.
        SettingsError: the list is empty.
    """
    if isinstance(source, str | Path):
        return list(map(open_image, _files(user_path(source))))
    if not isinstance(source, list | tuple):
        return [open_image(source)]
    if not source:
        raise SettingsError("The list of images is empty.")
    return list(chain.from_iterable(map(read_images, source)))


def _files(path: Path) -> list[Path]:
    """The image files of a folder, or the one file."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileError(f"'{path}' is neither a folder nor an image.")

    # Files whose name begins with a dot are the system's own, whatever they end with.
    there = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    found = [p for p in there if p.suffix.lower() in SUFFIXES]
    if not found:
        raise FileError(
            f"'{path}' has no images; an image's name ends with {', '.join(sorted(SUFFIXES))}. It has: "
            f"{_listed(there)}."
        )
    return found


def _listed(paths: Sequence[Path]) -> str:
    """How many files of each suffix there are, in words."""
    count = Counter(path.suffix.lower() or "no suffix" for path in paths)
    return ", ".join(f"{n} {suffix}" for suffix, n in sorted(count.items())) or "nothing at all"


def sentences(model: Model, templates: str | Sequence[str]) -> tuple[str, ...]:
    """The sentences in which a word is learned, each with one place for it: {}.

    Args:
        model: where it is known which words it was trained with, sentences with other words are left out.
        templates: "object", "style" (the project's own lists), or sentences, of which none is left out.

    Raises:
        SettingsError: there is none left, or a sentence has no place for the word, or several.
    """
    if not isinstance(templates, str):
        check_sentences(templates)
        return tuple(templates)
    words = model.about.words
    listed = (DATA / f"learning_{templates}.txt").read_text().splitlines()
    if words is None:
        return tuple(listed)

    known = _SENTENCES.setdefault(model, {})
    if (templates, words) not in known:
        known[templates, words] = tuple(
            text for text in listed if not model.unknown(model.prompt(text.replace("{}", "")))
        )
    found = known[templates, words]
    if not found:
        raise SettingsError(
            f"'{model.name}' was not trained with the words of any sentence of '{templates}' ('{listed[0]}', ...); "
            "give sentences of your own, for example 'a drawing of a {}'."
        )
    return found


def check_sentences(templates: Sequence[str]) -> None:
    """Raises SettingsError where sentences are none or have no single place for a word."""
    if not templates:
        raise SettingsError("The list of sentences is empty; give for example 'a photo of a {}'.")
    for text in templates:
        if text.count("{}") != 1:
            raise SettingsError(f"The sentence '{text}' needs one place for the word: {{}}, as in 'a photo of a {{}}'.")
