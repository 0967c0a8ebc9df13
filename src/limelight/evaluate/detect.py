"""What is in a picture, said by a detector of one's own choice: which subjects, where, in which colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ..judge import Detection, Judge, overlap
from ..scores import Clip
from ..suites import COLOURS, Wanted


class Detector(Protocol):
    """Says what of the wanted things is in pictures."""

    def knows(self, word: str) -> bool:
        """Whether it could find this at all."""

    def find(self, images: Sequence[Image.Image], things: Sequence[Wanted]) -> list[list[Detection]]:
        """What is in each picture of what `things` name, and of their likes; surest first."""


class Judged:
    """The embedded judge, for pictures of the embedded model."""

    def __init__(self) -> None:
        self._judge = Judge.load()

    def knows(self, word: str) -> bool:
        return word in self._judge.words

    def find(self, images: Sequence[Image.Image], things: Sequence[Wanted]) -> list[list[Detection]]:
        return self._judge.detect(images)


class OpenVocabulary:
    """A detector of transformers that looks for any words: OWLv2 or Grounding DINO.

    Matthias Minderer, Alexey Gritsenko, Neil Houlsby, "Scaling Open-Vocabulary Object Detection", 2023,
    https://arxiv.org/abs/2306.09683; Shilong Liu et al., "Grounding DINO: Marrying DINO with Grounded Pre-Training for
    Open-Set Object Detection", 2023, https://arxiv.org/abs/2303.05499. Of boxes that cover each other the surer one
    stands. A box's colour is the one that CLIP sees in it, as in Dhruba Ghosh, Hannaneh Hajishirzi, Ludwig Schmidt,
    "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment", 2023,
    https://arxiv.org/abs/2310.11513

    Args:
        source: a folder in transformers' layout, or a hub id such as "google/owlv2-base-patch16-ensemble" or
            "IDEA-Research/grounding-dino-base".
        clip: names colours.
        threshold: the score from which something counts as found.
    """

    def __init__(
        self, source: str | Path, clip: Clip, device: str | torch.device = "cpu", threshold: float = 0.3
    ) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(source, dtype=torch.float32)
        self._model.to(device).eval()
        self._processor: Any = AutoProcessor.from_pretrained(source)
        self._clip, self._threshold = clip, threshold

    def knows(self, word: str) -> bool:
        return True

    @torch.inference_mode()
    def find(self, images: Sequence[Image.Image], things: Sequence[Wanted]) -> list[list[Detection]]:
        words = list(dict.fromkeys(thing.word for thing in things))
        coloured = {thing.word for thing in things if thing.colour is not None}
        labels = [[f"a photo of a {word}" for word in words]] * len(images)
        inputs = self._processor(images=list(images), text=labels, return_tensors="pt").to(self._model.device)
        found = self._processor.post_process_grounded_object_detection(
            self._model(**inputs),
            threshold=self._threshold,
            target_sizes=[(image.height, image.width) for image in images],
            text_labels=labels,
        )
        return [self._read(image, boxes, words, coloured) for image, boxes in zip(images, found, strict=True)]

    def _read(self, image: Image.Image, found: Any, words: list[str], coloured: set[str]) -> list[Detection]:
        kept: list[Detection] = []
        for i in found["scores"].argsort(descending=True).tolist():
            # Grounding DINO answers with the words of the label that it saw, in one of its own tokenizer's spellings.
            said = found["text_labels"][i]
            word = next((word for word in words if word in said.split() or said.endswith(word)), None)
            left, top, right, bottom = found["boxes"][i].tolist()
            box = (left / image.width, top / image.height, right / image.width, bottom / image.height)
            box = tuple(min(max(side, 0.0), 1.0) for side in box)
            if word is None or any(overlap(box, other.box) >= 0.5 for other in kept):
                continue
            colour = self._colour(image, box, word) if word in coloured else ""
            kept.append(Detection(word, float(found["scores"][i]), box, colour))
        return kept

    def _colour(self, image: Image.Image, box: Sequence[float], word: str) -> str:
        left, top = int(box[0] * image.width), int(box[1] * image.height)
        right, bottom = int(box[2] * image.width), int(box[3] * image.height)
        crop = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        texts = self._clip.texts([f"a photo of a {colour} {word}" for colour in COLOURS])
        return COLOURS[int((self._clip.images([crop]) @ texts.T).argmax())]
