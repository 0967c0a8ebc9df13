"""An independent detector of images: which subjects are there, where, and in which color."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..models.embedded import POCKET
from ..prompts.subjects import Box
from ..utils.progress import quiet_loading
from ..utils.tensors import read_tensors
from .clip import CODELESS, WEIGHTS, Clip
from .suites import COLORS, Wanted

SIDE, STRIDE = 128, 8
SAME = 0.5
"""The overlap from which two boxes are one thing's: Mark Everingham et al., "The Pascal Visual Object Classes (VOC)
Challenge", 2010, https://doi.org/10.1007/s11263-009-0275-4"""


@dataclass(frozen=True)
class Detection:
    """One thing that a detector found.

    Attributes:
        word: what it is.
        score: how sure the detector is, 0..1.
        box: left, top, right, bottom as fractions of the image, 0..1.
        color: its color word.
        also: what else the same place could be, surest first: a mixture of a cat and a dog is both.
        sense: which meaning of the word: "computer" of a mouse; "" of a word's first or only one.
    """

    word: str
    score: float
    box: Box
    color: str
    also: tuple[str, ...] = ()
    sense: str = ""

    @property
    def name(self) -> str:
        """The word with its sense: "mouse (computer)"."""
        return f"{self.word} ({self.sense})" if self.sense else self.word


class PocketDetector(nn.Module):
    """A small detector of the embedded model's subjects and colors. But for 33 of the newer things it learned from
    drawings that the model never saw.

    Every cell of a 16 x 16 grid says which subject has its middle there, how far off its borders are and what color it
    has, as in Xingyi Zhou, Dequan Wang, Philipp Krähenbühl, "Objects as Points", 2019, https://arxiv.org/abs/1904.07850

    Args:
        names: the subjects that it tells apart: words, and other senses of them as "mouse (computer)".
        colors: the color words that it tells apart.
        threshold: the score from which a subject counts as found.
        mixture: the probability from which a place counts as a mixture of two subjects.

    Attributes:
        words: what the names are senses of, each once.
    """

    def __init__(
        self, names: Sequence[str], colors: Sequence[str], threshold: float = 0.3, mixture: float = 0.8
    ) -> None:
        super().__init__()
        self.names, self.colors, self.threshold, self.mixture = tuple(names), tuple(colors), threshold, mixture
        self._senses = tuple(name.removesuffix(")").partition(" (")[::2] for name in names)
        self.words = tuple(dict.fromkeys(word for word, _ in self._senses))
        self.fine = nn.Sequential(
            nn.Conv2d(3, 48, 4, stride=4), nn.BatchNorm2d(48), _Block(48), _down(48, 96), _Block(96), _Block(96)
        )
        self.coarse = nn.Sequential(_down(96, 192), *(_Block(192) for _ in range(4)), nn.Conv2d(192, 96, 1))
        self.head = nn.Sequential(_Block(96), nn.BatchNorm2d(96), nn.GELU())
        self.out = nn.Conv2d(96, sum(self._channels), 1)
        assert self.out.bias is not None
        self.out.bias.data[: len(self.names)] = -4.0  # at first nothing is anywhere

    @property
    def _channels(self) -> list[int]:
        return [len(self.names), 4, len(self.colors), 1]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels [B, 3, 128, 128] in -1..1 to what each cell of the 16 x 16 grid says.

        Returns:
            Logits of the subjects [B, names, 16, 16], distances from the cell's middle to the left, top, right and
            bottom border in cells [B, 4, 16, 16], logits of the colors [B, colors, 16, 16], logits of a mixture
            [B, 1, 16, 16].
        """
        fine = self.fine(pixels)
        # At the head the cells see the whole image as well as their own part of it.
        joined = fine + F.interpolate(self.coarse(fine), scale_factor=2, mode="bilinear")
        names, sides, colors, mixtures = self.out(self.head(joined)).split(self._channels, dim=1)
        return names, F.softplus(sides), colors, mixtures

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], threshold: float | None = None) -> list[list[Detection]]:
        """What is in each image, surest first. Two detections never share a place: the surer one stands.

        Args:
            images: of any size; they are resized to 128 x 128.
            threshold: the score from which something counts as found; by default the detector's own.
        """
        if not images:
            return []

        resized = []
        for image in images:
            resized.append(np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
        outputs = [self(part.float() / 127.5 - 1) for part in pixels.split(64)]
        names, sides, colors, mixtures = map(torch.cat, zip(*outputs, strict=True))

        scores = names.sigmoid()
        peaks = scores * (scores == F.max_pool2d(scores, 3, stride=1, padding=1))
        if threshold is None:
            threshold = self.threshold
        mixed = mixtures.sigmoid() >= self.mixture
        peaks = peaks * (peaks >= torch.where(mixed, threshold / 2, threshold))  # each is but half there
        return list(map(self._read, peaks, sides, colors, mixed[:, 0]))

    def _read(self, peaks: Tensor, sides: Tensor, colors: Tensor, mixed: Tensor) -> list[Detection]:
        """What one image shows, of its cells with a peak."""
        found: list[Detection] = []
        index = peaks.nonzero()
        order = peaks[tuple(index.T)].argsort(descending=True)
        for k, row, column in index[order].tolist():
            score, color = float(peaks[k, row, column]), self.colors[int(colors[:, row, column].argmax())]
            left, top, right, bottom = sides[:, row, column].tolist()
            cells = SIDE / STRIDE
            x, y = column + 0.5, row + 0.5  # the cell's middle
            box = _clipped((x - left) / cells, (y - top) / cells, (x + right) / cells, (y + bottom) / cells)
            word, sense = self._senses[k]
            _add(Detection(word, score, box, color, sense=sense), found, bool(mixed[row, column]))
        return found

    def knows(self, word: str) -> bool:
        """Whether it could find this at all."""
        return word in self.words

    def find(self, images: Sequence[Image.Image], things: Sequence[Wanted]) -> list[list[Detection]]:
        """As `detect`: it looks for all that it knows, whatever is wanted."""
        return self.detect(images)

    @classmethod
    def load(cls, path: Path = POCKET / "detector.safetensors") -> PocketDetector:
        """Read a detector as `recipes/pocket/detector.py` writes it; by default the one in this package."""
        weights, metadata = read_tensors(path)
        facts = json.loads(metadata["detector"])
        detector = cls(facts["names"], facts["colors"], facts["threshold"], facts["mixture"])
        detector.load_state_dict(weights)  # which turns them into float32
        return detector.eval()


@dataclass(frozen=True)
class SceneCheck:
    """What an image shows of what it should show.

    Attributes:
        present: for each wanted thing, whether it is there.
        colored: for each, whether it is there in its color; None where any color will do.
        mixed: whether something in it could be two of the wanted things.
    """

    present: tuple[bool, ...]
    colored: tuple[bool | None, ...]
    mixed: bool = False

    @property
    def missing(self) -> bool:
        """Whether anything is missing."""
        return not all(self.present)


def check_scene(found: Sequence[Detection], things: Sequence[Wanted]) -> SceneCheck:
    """Compare what a detector found with what a prompt asks for. One detection serves one wanted thing."""
    left, present, colored = list(found), [], []
    for thing in things:
        same = [d for d in left if d.word == thing.word]
        best = max(same, key=lambda d: (d.color == thing.color, d.score), default=None)
        if best:
            left.remove(best)
        present.append(best is not None)
        colored.append(None if thing.color is None else best is not None and best.color == thing.color)

    words = {thing.word for thing in things}
    mixed = any(d.word in words and words.intersection(d.also) for d in found)
    return SceneCheck(tuple(present), tuple(colored), mixed)


def _clipped(*box: float) -> Box:
    """A box (left, top, right, bottom) without what lies outside the image."""
    left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in box)
    return left, top, right, bottom


def _add(detection: Detection, found: list[Detection], mixed: bool = True) -> None:
    """Take up a detection; of the surer one that has its place, make it what that is `mixed` with, or pass over it."""
    for i, other in enumerate(found):
        if overlap(detection.box, other.box) >= SAME:
            if mixed and detection.word not in (other.word, *other.also):
                found[i] = replace(other, also=(*other.also, detection.word))
            return
    found.append(detection)


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom).

    >>> overlap((0, 0, 2, 1), (1, 0, 2, 1))
    0.5
    """
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / area if area > 0 else 0.0


class _Block(nn.Module):
    """A residual block: 5 x 5 a channel, then two pointwise layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 3 * width, 1),
            nn.GELU(),
            nn.Conv2d(3 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _down(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(before), nn.Conv2d(before, after, 2, stride=2))


class Detector(Protocol):
    """Find wanted things in images."""

    def knows(self, word: str) -> bool:
        """Whether it could find this at all."""

    def find(self, images: Sequence[Image.Image], things: Sequence[Wanted]) -> list[list[Detection]]:
        """What is in each image of what `things` name, and of their likes; surest first."""


class OpenVocabulary:
    """A detector of transformers that looks for any words: OWLv2 or Grounding DINO.

    Matthias Minderer, Alexey Gritsenko, Neil Houlsby, "Scaling Open-Vocabulary Object Detection", 2023,
    https://arxiv.org/abs/2306.09683; Shilong Liu et al., "Grounding DINO: Marrying DINO with Grounded Pre-Training for
    Open-Set Object Detection", 2023, https://arxiv.org/abs/2303.05499. Of boxes that cover each other the surer one
    stands. A box's color is the one that CLIP sees in it, as in Dhruba Ghosh, Hannaneh Hajishirzi, Ludwig Schmidt,
    "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", 2023,
    https://arxiv.org/abs/2310.11513

    Args:
        source: a folder in transformers' layout, or a hub id such as "google/owlv2-base-patch16-ensemble" or
            "IDEA-Research/grounding-dino-base".
        clip: names colors.
        threshold: the score from which something counts as found.
    """

    @quiet_loading()
    def __init__(
        self, source: str | Path, clip: Clip, device: str | torch.device = "cpu", threshold: float = 0.3
    ) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(source, **WEIGHTS).to(device).eval()
        self._processor: Any = AutoProcessor.from_pretrained(source, **CODELESS)
        self._clip, self._threshold = clip, threshold

    def knows(self, word: str) -> bool:
        return True

    @torch.inference_mode()
    def find(self, images: Sequence[Image.Image], things: Sequence[Wanted]) -> list[list[Detection]]:
        words = list(dict.fromkeys(thing.word for thing in things))
        colored = {thing.word for thing in things if thing.color is not None}
        labels = [[f"a photo of a {word}" for word in words]] * len(images)
        inputs = self._processor(images=list(images), text=labels, return_tensors="pt").to(self._model.device)
        found = self._processor.post_process_grounded_object_detection(
            self._model(**inputs),
            threshold=self._threshold,
            target_sizes=[(image.height, image.width) for image in images],
            text_labels=labels,
        )
        return [self._read(image, boxes, words, colored) for image, boxes in zip(images, found, strict=True)]

    def _read(self, image: Image.Image, found: Any, words: list[str], colored: set[str]) -> list[Detection]:
        kept: list[Detection] = []
        for i in found["scores"].argsort(descending=True).tolist():
            # Grounding DINO answers with the words of the label that it saw, in one of its own tokenizer's spellings.
            said = found["text_labels"][i]
            word = next((word for word in words if word in said.split() or said.endswith(word)), None)
            left, top, right, bottom = found["boxes"][i].tolist()
            box = _clipped(left / image.width, top / image.height, right / image.width, bottom / image.height)
            if word is not None:
                color = self._color(image, box, word) if word in colored else ""
                _add(Detection(word, float(found["scores"][i]), box, color), kept)
        return kept

    def _color(self, image: Image.Image, box: Sequence[float], word: str) -> str:
        left, top = int(box[0] * image.width), int(box[1] * image.height)
        right, bottom = int(box[2] * image.width), int(box[3] * image.height)
        crop = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        texts = self._clip.texts([f"a photo of a {color} {word}" for color in COLORS])
        return COLORS[int((self._clip.images([crop]) @ texts.T).argmax())]
