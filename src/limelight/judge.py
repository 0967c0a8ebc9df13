"""An independent judge of pictures: which subjects are there, where, and in which colour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from .models import POCKET
from .suites import Wanted

SIDE, STRIDE = 128, 8


@dataclass(frozen=True)
class Detection:
    """One thing that a detector found.

    Attributes:
        word: what it is.
        score: how sure the detector is, 0..1.
        box: left, top, right, bottom as fractions of the picture, 0..1.
        colour: its colour word.
    """

    word: str
    score: float
    box: tuple[float, float, float, float]
    colour: str


class Judge(nn.Module):
    """A small detector of the embedded model's subjects and colours, trained on drawings that the model never saw.

    Every cell of a 16 x 16 grid says which subject has its middle there, how far off its borders are and what colour it
    has, as in Xingyi Zhou, Dequan Wang, Philipp Krähenbühl, "Objects as Points", 2019, https://arxiv.org/abs/1904.07850

    Args:
        words: the subjects that it tells apart.
        colours: the colour words that it tells apart.
        threshold: the score from which a subject counts as found.
    """

    def __init__(self, words: Sequence[str], colours: Sequence[str], threshold: float = 0.3) -> None:
        super().__init__()
        self.words, self.colours, self.threshold = tuple(words), tuple(colours), threshold
        self.fine = nn.Sequential(
            nn.Conv2d(3, 48, 4, stride=4), nn.BatchNorm2d(48), _Block(48), _down(48, 96), _Block(96), _Block(96)
        )
        self.coarse = nn.Sequential(_down(96, 192), *(_Block(192) for _ in range(4)), nn.Conv2d(192, 96, 1))
        self.head = nn.Sequential(_Block(96), nn.BatchNorm2d(96), nn.GELU())
        self.out = nn.Conv2d(96, len(self.words) + 4 + len(self.colours), 1)
        assert self.out.bias is not None
        self.out.bias.data[: len(self.words)] = -4.0  # at first nothing is anywhere

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels [B, 3, 128, 128] in -1..1 to what each cell of the 16 x 16 grid says.

        Returns:
            Logits of the subjects [B, words, 16, 16], distances from the cell's middle to the left, top, right and
            bottom border in cells [B, 4, 16, 16], logits of the colours [B, colours, 16, 16].
        """
        fine = self.fine(pixels)
        # At the head the cells see the whole picture as well as their own part of it.
        joined = fine + F.interpolate(self.coarse(fine), scale_factor=2, mode="bilinear")
        words, sides, colours = self.out(self.head(joined)).split([len(self.words), 4, len(self.colours)], dim=1)
        return words, F.softplus(sides), colours

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image], threshold: float | None = None) -> list[list[Detection]]:
        """What is in each picture, surest first. Two detections never share a place: the surer one stands.

        Args:
            images: of any size; they are resized to 128 x 128.
            threshold: the score from which something counts as found; by default the judge's own.
        """
        if not images:
            return []
        resized = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2)
        outputs = [self(part.float() / 127.5 - 1) for part in pixels.split(64)]
        words, sides, colours = (torch.cat(part) for part in zip(*outputs, strict=True))
        scores = words.sigmoid()
        peaks = scores * (scores == F.max_pool2d(scores, 3, stride=1, padding=1))
        limit = self.threshold if threshold is None else threshold
        return [self._read(p, s, c, limit) for p, s, c in zip(peaks, sides, colours, strict=True)]

    def _read(self, peaks: Tensor, sides: Tensor, colours: Tensor, threshold: float) -> list[Detection]:
        found: list[Detection] = []
        index = (peaks >= threshold).nonzero()
        order = peaks[tuple(index.T)].argsort(descending=True)
        for k, y, x in index[order].tolist():
            left, top, right, bottom = sides[:, y, x].tolist()
            cells = SIDE / STRIDE
            box = (
                (x + 0.5 - left) / cells,
                (y + 0.5 - top) / cells,
                (x + 0.5 + right) / cells,
                (y + 0.5 + bottom) / cells,
            )
            clipped = tuple(min(max(v, 0.0), 1.0) for v in box)
            if all(overlap(clipped, other.box) < 0.5 for other in found):
                colour = self.colours[int(colours[:, y, x].argmax())]
                found.append(Detection(self.words[k], float(peaks[k, y, x]), clipped, colour))
        return found

    @classmethod
    def load(cls, path: Path = POCKET / "judge.safetensors") -> Judge:
        """Read a judge as `recipes/pocket/judge.py` writes it; by default the one in this package."""
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["judge"])
            judge = cls(facts["words"], facts["colours"], facts["threshold"])
            judge.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
        return judge.eval()


@dataclass(frozen=True)
class Verdict:
    """What a picture shows of what it should show.

    Attributes:
        present: for each wanted thing, whether it is there.
        coloured: for each, whether it is there in its colour; None where any colour will do.
    """

    present: tuple[bool, ...]
    coloured: tuple[bool | None, ...]

    @property
    def neglected(self) -> bool:
        """Whether anything is missing."""
        return not all(self.present)


def verdict(found: Sequence[Detection], things: Sequence[Wanted]) -> Verdict:
    """Compare what a detector found with what a prompt asks for. One detection serves one wanted thing."""
    left, present, coloured = list(found), [], []
    for thing in things:
        same = [d for d in left if d.word == thing.word]
        best = max(same, key=lambda d: (d.colour == thing.colour, d.score), default=None)
        if best:
            left.remove(best)
        present.append(best is not None)
        coloured.append(None if thing.colour is None else best is not None and best.colour == thing.colour)
    return Verdict(tuple(present), tuple(coloured))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
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
