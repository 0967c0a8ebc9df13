"""Calls of the library with values that are out of range, far away or of another kind: all must be refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from PIL import Image

import limelight
from limelight.generation.calibrate import calibrate
from limelight.heads.counting import Counting
from limelight.heads.vocabulary import Concepts
from limelight.textual_inversion.config import TrainingConfig
from limelight.utils.images import open_image

NAN, INF = float("nan"), float("inf")
FAR = 10**5000
NO_COUNT = (0, -1, 1.5, NAN, INF, FAR, 10**9, "3", [1], True)
NO_SEED = (-1, 2**63, FAR, 0.5, NAN, "0-", None, [], [0, -1], range(10**9), itertools.count())
NO_NUMBER = (NAN, INF, -INF)
CONCEPTS = Concepts({"Animals": ("cat",), "Color": ("red",)})
IMAGE = Image.new("RGB", (32, 32), "red")


def _generate(model: Any, **options: Any) -> Any:
    return limelight.generate(model, "a cat", **{"subjects": [], "steps": 1, "height": 32, "width": 32, **options})


def _edit(model: Any, **options: Any) -> Any:
    return limelight.edit(model, "a red car", "a blue car", **{"steps": 1, "height": 32, "width": 32, **options})


def _invert(model: Any, **options: Any) -> Any:
    return limelight.invert_image(model, IMAGE, "a cat", **{"steps": 1, "size": (32, 32), **options})


def _calibrate(model: Any, **options: Any) -> Any:
    return calibrate(model, ["a cat"], **{"steps": 1, **options})


def _count(model: Any, **options: Any) -> Any:
    return Counting(CONCEPTS, ("a cat",), **options)


def _train(model: Any, **options: Any) -> Any:
    return TrainingConfig(**options)


def _audition(model: Any, **options: Any) -> Any:
    return limelight.Audition(**options)


def _guidance(model: Any, **options: Any) -> Any:
    return limelight.AttendAndExcite(**options)


def _open(model: Any, **options: Any) -> Any:
    return open_image(options["image"])


CALLS = [
    *((_generate, name, value) for name in ("steps", "height", "width", "batch") for value in NO_COUNT),
    *((_edit, name, value) for name in ("steps", "height", "width", "batch") for value in NO_COUNT),
    *((_invert, "steps", value) for value in NO_COUNT),
    *((_invert, "size", (value, 32)) for value in NO_COUNT),
    *((_calibrate, name, value) for name in ("steps", "batch") for value in NO_COUNT),
    *((_count, name, value) for name in ("steps", "batch", "blocks") for value in NO_COUNT),
    *((_train, name, value) for name in ("steps", "batch", "vectors", "accumulate", "size") for value in NO_COUNT),
    *((_audition, "candidates", value) for value in NO_COUNT),
    *((call, "seeds", value) for call in (_generate, _edit, _calibrate) for value in NO_SEED),
    *((call, "guidance_scale", value) for call in (_generate, _edit, _invert, _calibrate) for value in NO_NUMBER),
    *((_guidance, name, value) for name in ("scale", "until") for value in NO_NUMBER),
    *((_train, name, value) for name in ("lr", "flip", "weight_decay", "anchor_weight") for value in (*NO_NUMBER, -1)),
    *((_generate, "eta", value) for value in NO_NUMBER),
    *((_generate, "clip_skip", value) for value in (-1, 99, FAR, 0.5, NAN)),
    *((_generate, "record", value) for value in ("everything", 3, None)),
    *((_generate, "latents", value) for value in (torch.ones(1, 4, 3, 3), torch.full((1, 4, 4, 4), NAN))),
    *((_generate, "negative", value) for value in (3, ["a", "b"], [3])),
    *((_open, "image", value) for value in (None, 3, [], np.ones(3), np.full((4, 4, 3), NAN), torch.ones(2, 2, 2, 2))),
    *((_open, "image", value) for value in (b"", b"hello", np.ones((0, 4, 3)), Image.new("RGB", (0, 0)))),
]
