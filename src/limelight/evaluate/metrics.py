"""The scores as metrics of torchmetrics, which add up over batches and over processes. Extra `eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

from .clip import Captioner, Clip, image_image, image_text, minimum_object, text_text
from .detectors import Detector, check_scene
from .suites import Case


class _Mean(Metric):
    """The mean of one value a picture; pictures without a value do not count."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def add(self, values: Tensor) -> None:
        known = values[~values.isnan()].to(self.total)
        self.total, self.count = self.total + known.sum(), self.count + known.numel()

    def compute(self) -> Tensor:
        """The mean, NaN before the first picture."""
        return self.total / self.count


class ImageText(_Mean):
    """CLIP similarity to the whole prompt in 80 templates, -1..1."""

    higher_is_better = True

    def __init__(self, clip: Clip, paper: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._clip, self._paper = [clip], paper  # in a list: a backbone is no part of the metric's state

    def update(self, images: Sequence[Image.Image], prompt: str) -> None:
        """Pictures of one prompt."""
        self.add(image_text(self._clip[0], self._clip[0].images(images), prompt, self._paper))


class MinimumObject(ImageText):
    """CLIP similarity to the part of the prompt that the picture shows least, -1..1."""

    def update(self, images: Sequence[Image.Image], prompt: str) -> None:
        """Pictures of one prompt."""
        self.add(minimum_object(self._clip[0], self._clip[0].images(images), prompt, self._paper))


class ImageImage(ImageText):
    """CLIP similarity to other pictures, -1..1."""

    def update(self, images: Sequence[Image.Image], others: Sequence[Image.Image]) -> None:  # type: ignore[override]
        """Pictures, each with its other one."""
        self.add(image_image(self._clip[0].images(images), self._clip[0].images(others)))


class TextText(_Mean):
    """CLIP similarity of a caption of the picture to the prompt in 80 templates, -1..1."""

    higher_is_better = True

    def __init__(self, clip: Clip, captioner: Captioner, paper: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._backbones, self._paper = (clip, captioner), paper

    def update(self, images: Sequence[Image.Image], prompt: str) -> None:
        """Pictures of one prompt."""
        clip, captioner = self._backbones
        self.add(text_text(clip, captioner.captions(images, self._paper), prompt, self._paper))


class DetectionSuccess(_Mean):
    """Share of the pictures in which a detector finds all that the case wants, 0..1."""

    higher_is_better = True

    def __init__(self, detector: Detector, **options: Any) -> None:
        super().__init__(**options)
        self._detector = [detector]

    def update(self, images: Sequence[Image.Image], case: Case) -> None:
        """Pictures of one case."""
        found = self._detector[0].find(images, case.wanted)
        self.add(torch.tensor([float(not check_scene(seen, case.wanted).missing) for seen in found]))


class AttributeBinding(DetectionSuccess):
    """Share of the things wanted in a color that are there in it, 0..1."""

    def update(self, images: Sequence[Image.Image], case: Case) -> None:
        """Pictures of one case."""
        seen = [check_scene(found, case.wanted) for found in self._detector[0].find(images, case.wanted)]
        self.add(torch.tensor([float(right) for one in seen for right in one.colored if right is not None]))
