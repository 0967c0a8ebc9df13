"""Maps over a run: the running mean, and single steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import ProbeError
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt
from .maps import AttentionMaps, add, at_least_float32, join, none, scaled, without_heads


class RunningMean:
    """The mean of the maps of many passes, in the memory of one."""

    def __init__(self) -> None:
        self.count = 0
        self.total: AttentionMaps | None = None

    def add(self, maps: AttentionMaps) -> None:
        self.count += 1
        # Heads are averaged away: a whole run then costs one map per layer.
        maps = without_heads(maps)
        self.total = maps if self.total is None else add(self.total, maps)

    def result(self) -> AttentionMaps | None:
        return None if self.total is None else scaled(self.total, 1 / self.count)


class Recorder:
    """The attention maps that a pass keeps: the mean, and the single steps if they are asked for.

    Args:
        record: as in `limelight.generate`.
        averaged: the layers whose mean is kept.
    """

    def __init__(self, record: bool | str, averaged: Iterable[AttentionSite]) -> None:
        self.record, self.averaged = record, frozenset(averaged)
        self.mean, self.single = RunningMean(), list[AttentionMaps]()

    def add(self, maps: AttentionMaps | None) -> None:
        if maps is None:
            return
        self.mean.add(maps.select(self.averaged.__contains__))
        if self.record == "steps":
            self.single.append(spilled(without_heads(maps)))
        if self.record == "all":
            self.single.append(spilled(maps))

    def result(self, latents: Tensor, prompts: Sequence[Prompt]) -> tuple[AttentionMaps, list[list[AttentionMaps]]]:
        """The mean, without any layers where none was recorded, and the single steps of this one pass, if any."""
        mean = self.mean.result()
        if mean is None:
            mean = none(latents, prompts)
        if not self.single:
            return mean, []
        return mean, [self.single]


def spilled(maps: AttentionMaps) -> AttentionMaps:
    """A copy to be kept for long: in the main memory, as float16."""
    return maps.each(lambda p: p.to("cpu", torch.float16, copy=True))


def size_of(layers: Sequence[AttentionSite], latent_size: tuple[int, int], tokens: int, heads: bool) -> int:
    """Bytes that the `spilled` maps of one image and one step take, with or without their heads."""
    cells = 0
    for layer in layers:
        pixels = math.prod(layer.size(latent_size))
        cells += pixels * layer.heads if heads else pixels
    return cells * tokens * torch.float16.itemsize


class StepMaps(Sequence[AttentionMaps]):
    """The maps of every single step of a run: ``steps[10]["cat"]`` is a tensor [images, height, width].

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> result = limelight.generate(model, "a cat and a dog", steps=2, record="steps")
        >>> len(result.steps), "cat" in result.steps[0]
        (2, True)

    Args:
        parts: for each pass that generated some of the images, its steps.
        rows: which of all the images these are.
    """

    def __init__(self, parts: Sequence[Sequence[AttentionMaps]] = (), rows: slice = slice(None)) -> None:
        self.parts, self.rows = parts, rows

    def __getstate__(self) -> dict[str, Any]:
        # Results of one call share their parts; pickled, each takes its own rows alone.
        own = [self[i].each(Tensor.clone) for i in range(len(self))]
        return {"parts": [own] if own else [], "rows": slice(None)}

    def __len__(self) -> int:
        return len(self.parts[0]) if self.parts else 0

    @overload
    def __getitem__(self, index: int) -> AttentionMaps: ...
    @overload
    def __getitem__(self, index: slice) -> StepMaps: ...
    def __getitem__(self, index: int | slice) -> AttentionMaps | StepMaps:
        """
        Raises:
            ProbeError: no single steps were recorded.
        """
        if isinstance(index, slice):
            return StepMaps([part[index] for part in self.parts], self.rows)
        if not self.parts:
            raise ProbeError("The maps of single steps were not recorded; call generate() with record='steps'.")
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no step {index}; the run has {len(self)} steps.")
        return join([part[index] for part in self.parts]).images(self.rows)

    def mean(self) -> AttentionMaps:
        """The mean over these steps, with all layers and heads that they have; float32 or more."""
        first = self[0].each(at_least_float32)
        return scaled(reduce(add, map(self.__getitem__, range(1, len(self))), first), 1 / len(self))
