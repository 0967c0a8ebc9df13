"""What the stages of a validation share: the model, the settings, the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluate.scoring import REAL
from ..models.base import Model
from ..models.embedded import EMBEDDED
from ..models.loading import load
from ..models.memory import Offload, Quantize
from ..utils.files import png, write
from ..utils.jsonl import Say
from .outcome import Figure, Outcome

BUDGET = 1800.0
"""Seconds for all stages, where the user names none."""
TUNING = 1_000
"""The first seed of what is tuned; reported images have seeds from 0."""


class Skip(Exception):  # noqa: N818 - not an error
    """A stage cannot run here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a validation depends on.

    Attributes:
        source: of the model, see `limelight.load`.
        device, scheduler: see `limelight.load`.
        dtype, quantize, offload: how the weights are kept, see there.
        steps: of every image.
        height, width: in pixels; None is the model's own.
        budget: seconds for all stages.
        backbones: "clip", "captioner" and "detector", each a hub id, a folder, "pocket" or "none".
    """

    source: str
    device: str | None = None
    dtype: str | None = None
    quantize: Quantize | None = None
    offload: Offload | None = None
    scheduler: str | None = None
    steps: int = 50
    height: int | None = None
    width: int | None = None
    budget: float = BUDGET
    backbones: Mapping[str, str] = field(default_factory=dict)

    @property
    def measured_by(self) -> dict[str, str]:
        """The backbones: the embedded ones for an embedded model, else those of the papers."""
        own = dict.fromkeys(REAL, "pocket") if self.source in EMBEDDED else REAL
        return {**own, **self.backbones}


@dataclass(kw_only=True)
class Context:
    """A validation that runs.

    Attributes:
        out: its folder.
        say: called with notes.
        show: called with how much of a stage is done, and of how much.
        done: the outcomes until now, by stage.
        backbones: those that can be had, once they were tried, see `limelight.validate.instruments.backbones`.
        began, until: when the stage that runs began and should end, by `time.monotonic`; without `until` it has no
            limit.
    """

    settings: Settings
    out: Path
    say: Say = lambda text: None
    show: Callable[[int, int], None] = lambda done, total: None
    done: dict[str, Outcome] = field(default_factory=dict)
    backbones: tuple[dict[str, str], list[str]] | None = None
    began: float = 0.0
    until: float | None = None

    @cached_property
    def model(self) -> Model:
        """The model, loaded at its first use."""
        settings = self.settings
        return load(
            settings.source,
            device=settings.device,
            dtype=settings.dtype,
            scheduler=settings.scheduler,
            quantize=settings.quantize,
            offload=settings.offload,
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.model.size_or_own(self.settings.height, self.settings.width)

    @property
    def common(self) -> dict[str, Any]:
        """Options of `limelight.generate` that all images share."""
        height, width = self.size
        return {"steps": self.settings.steps, "height": height, "width": width}

    @property
    def left(self) -> float:
        """Seconds that the stage still has."""
        if self.until is None:
            return float("inf")
        return self.until - time.monotonic()

    def room(self, done: int) -> bool:
        """Whether one more of the same kind fits into the stage, of which some are done; the first always does."""
        if done == 0:
            return True
        return self.left >= (time.monotonic() - self.began) / done

    def figure(self, stage: str, name: str, title: str, image: Image.Image) -> Figure:
        """Keep an image of a stage for the page."""
        file = Path("figures", f"{stage}-{name}.png")
        write(self.out / file, png({"model": self.settings.source}, image))
        return Figure(title, file.as_posix())
