"""Seconds and memory of a piece of work."""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch


class Cost(NamedTuple):
    """What one turn took.

    Attributes:
        seconds: wall time on a GPU; on a CPU the processor's time, which other work on the machine disturbs least.
        gibibytes: the most memory above what was there before.
    """

    seconds: float
    gibibytes: float


def measured(run: Callable[[], Any], device: torch.device) -> Cost:
    """Run once and say what it took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, start = torch.cuda.memory_allocated(device), time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        return Cost(seconds, (torch.cuda.max_memory_allocated(device) - before) / 2**30)

    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without it, or a kernel that does not allow it
            ctypes.CDLL(None).malloc_trim(0)  # what an earlier turn left in the heap is not there for this one
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident, start = _resident("VmRSS"), time.process_time()
    run()
    return Cost(time.process_time() - start, (_resident("VmHWM") - resident) / 2**20)


def median_ratio(ours: list[Cost], theirs: list[Cost]) -> float:
    """How many times as long the first of two takes, as the median over pairs of turns."""
    return median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))


def _resident(field: str) -> float:
    """KiB of this process, from the kernel's own account; the peak of its whole life elsewhere than on Linux."""
    if sys.platform == "linux":
        match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
        return float(match[1]) if match else 0.0
    if sys.platform == "win32":
        return 0.0
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
