"""Passes that fit into memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..attention.maps import AttentionMaps, join
from ..errors import LimelightError, ModelError, SettingsError
from ..guidance.base import Guidance, Move, Score
from ..models.base import Model
from ..utils.numbers import MOST_IMAGES, check_whole
from ..utils.torch import exclusive, undone

Done = TypeVar("Done")
"""What one pass gives."""


@dataclass(frozen=True, eq=False)
class PassResult:
    """Some images of a call.

    Attributes:
        images: one per row.
        latents: the finished latents [images, channels, height, width].
        maps: the mean maps.
        moves: (index, timestep, move) of the guided steps.
        steps: for each pass, the maps of its single steps.
        searches: gradient passes of the search for the noise of each image, int64 [images]; None without a search.
    """

    images: list[Any]
    latents: Tensor
    maps: AttentionMaps
    moves: list[tuple[int, float, Move]]
    steps: list[list[AttentionMaps]] = field(default_factory=list)
    searches: Tensor | None = None

    @classmethod
    def join(cls, parts: list[PassResult]) -> PassResult:
        """Several passes as one."""
        if len(parts) == 1:
            return parts[0]

        moves = []
        for same in zip(*(part.moves for part in parts), strict=True):
            index, timestep, _ = same[0]
            moves.append((index, timestep, _joined([move for _, _, move in same])))

        latents, maps = torch.cat([part.latents for part in parts]), join([part.maps for part in parts])
        images = list(chain.from_iterable(part.images for part in parts))
        return cls(
            images,
            latents,
            maps,
            moves,
            list(chain.from_iterable(part.steps for part in parts)),
            _searches(parts),
        )

    def part(self, rows: slice) -> tuple[list[Any], Tensor, AttentionMaps]:
        """Images, latents and maps of some rows, in memory of their own: kept or pickled, they hold no other row."""
        maps = self.maps.images(rows)
        return self.images[rows], _own(self.latents[rows]), maps.each(_own)


def _searches(parts: list[PassResult]) -> Tensor | None:
    """The passes of all searches for a noise; None where there were none."""
    found = [part.searches for part in parts if part.searches is not None]
    if not found:
        return None
    return torch.cat(found)


def _own(rows: Tensor) -> Tensor:
    """A slice without the rest of its storage."""
    if rows.untyped_storage().nbytes() == rows.nbytes:
        return rows
    return rows.clone()


def _joined(moves: list[Move]) -> Move:
    """One step's moves of several passes."""
    latents, refinements = zip(*map(attrgetter("latents", "refinements"), moves), strict=True)
    score = _joined_scores([Score(move.loss, move.presence, move.parts) for move in moves])
    looked = [move.plain for move in moves if move.plain is not None]
    plain = _joined_scores(looked) if looked else None
    return Move(torch.cat(latents), *score, torch.cat(refinements), plain=plain)


def _joined_scores(scores: Sequence[Score]) -> Score:
    """The scores of several passes; images with fewer subjects than others are filled up with NaN."""
    most = max(score.presence.shape[1] for score in scores)
    wide = [F.pad(score.presence, (0, most - score.presence.shape[1]), value=float("nan")) for score in scores]
    parts = {}
    for name in scores[0].parts:
        parts[name] = torch.cat([score.parts[name] for score in scores])
    return Score(torch.cat([score.loss for score in scores]), torch.cat(wide), parts)


def decoded(
    model: Model,
    latents: Tensor,
    guidance_scale: float,
    guidance: Guidance | None = None,
    edits: Sequence[Any] = (),
) -> list[Image.Image]:
    """Decode finished latents, see `check_latents`."""
    check_latents(model, latents, guidance_scale, guidance, edits)
    return model.decode(latents)


def check_latents(
    model: Model,
    latents: Tensor,
    guidance_scale: float,
    guidance: Guidance | None = None,
    edits: Sequence[Any] = (),
) -> None:
    """Refuse finished latents that are not finite, of which images would be black.

    Args:
        guidance_scale, guidance, edits: of the run, to name the cause.

    Raises:
        SettingsError, ModelError: some are not, by the settings or by the model itself.
    """
    if not bool(latents.isfinite().all()):
        raise _overflow(model, guidance_scale, guidance, edits)


def _overflow(model: Model, guidance_scale: float, guidance: Guidance | None, edits: Sequence[Any]) -> LimelightError:
    """Why latents are not finite, most likely."""
    what = "The latents are not finite (NaN or infinity), so that the image would be black"
    broken = _broken_weight(model)
    if broken:
        return ModelError(f"{what}: the weight '{broken}' of '{model.name}' is not. Take another copy of the model.")

    half, suspects = model.dtype == torch.float16, []
    if abs(guidance_scale) > 100:
        suspects.append(f"guidance_scale={guidance_scale}")
    if guidance is not None and (guidance.scale > 1000 or not half):
        suspects.append(f"scale={guidance.scale} of the guidance")
    if edits and not half:
        suspects.append("the factors of the attention edits")
    if suspects:
        return SettingsError(f"{what}. Lower {' or '.join(suspects)}.")

    if half:
        return ModelError(f"{what}: '{model.name}' overflows in float16. Load it with dtype=torch.float32.")
    return ModelError(f"{what}: '{model.name}' computes them in {model.dtype}; its weights or scheduler do not fit.")


def _broken_weight(model: Model) -> str | None:
    """The name of a weight of the denoiser that is not finite."""
    for name, weight in model.denoiser.named_parameters():
        if weight.device.type != "meta" and not bool(weight.isfinite().all()):  # "meta": it is offloaded
            return name
    return None


# Where the error has no class of its own: CPU, MPS, cuBLAS, oneDNN.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "could not create a primitive")


def in_passes(
    model: Model,
    run: Callable[[range, bool], Done],
    count: int,
    batch: int | None,
    size: tuple[int, int],
    *,
    lean: bool,
    rows: int = 1,
) -> list[Done]:
    """Generate `count` images, or groups of `rows` images, in passes of at most `batch` images; other threads wait
    until this one has them all.

    By default 8 on a CPU, 64 elsewhere. Where memory runs out: first the model makes room, then passes become smaller,
    last `run` is asked to be lean.
    """
    if batch is None:
        batch = {"cpu": 8}.get(model.device.type, 64)
    check_whole(MOST_IMAGES, batch=batch)
    with exclusive(model.denoiser), undone(partial(model.stow, away=False)):
        return _in_passes(model, run, count, max(batch // rows, 1), size, lean)


def _in_passes(
    model: Model, run: Callable[[range, bool], Done], count: int, limit: int, size: tuple[int, int], lean: bool
) -> list[Done]:
    done: list[Done] = []
    start = 0
    while start < count:
        rows = range(start, min(start + limit, count))
        try:
            done.append(run(rows, lean))
            start = rows.stop
            continue
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise

        # Only here, where the error and with it the tensors of the failed pass are gone, is there room again.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if model.stow():
            continue
        if len(rows) > 1:
            limit = (len(rows) + 1) // 2
        elif not lean:
            lean = True
        else:
            raise SettingsError(
                f"An image of {size[0]}x{size[1]} does not fit into memory; generate a smaller one, or load the model "
                "as float16."
            )
    return done


@contextmanager
def limited(device: torch.device, memory: float | None) -> Iterator[None]:
    """Let the process take at most `memory` gibibytes on a CUDA device."""
    if memory is None:
        yield
        return
    if device.type != "cuda" or memory <= 0:
        raise SettingsError(f"memory={memory} must be positive, and is kept on CUDA alone; elsewhere choose a batch.")

    share = min(memory * 2**30 / torch.cuda.get_device_properties(device).total_memory, 1.0)
    own = object()

    # A device has one limit for the whole process: the least of those of all calls that run.
    def keep(limit: float | None) -> None:
        with _GUARD:
            _LIMITS.pop(own, None)
            if limit is not None:
                _LIMITS[own] = (device, limit)
            least = min((value for where, value in _LIMITS.values() if where == device), default=1.0)
            torch.cuda.set_per_process_memory_fraction(least, device)

    with undone(partial(keep, None)):
        keep(share)
        yield


_LIMITS: dict[object, tuple[torch.device, float]] = {}
_GUARD = threading.RLock()
