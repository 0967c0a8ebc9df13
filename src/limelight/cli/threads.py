"""How many threads a small model computes in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

from ..models.embedded import EMBEDDED

MOST = 4
"""Threads of a small model: with more, they wait for each other longer than they compute."""
SMALL = 200_000_000
"""Bytes of a folder that holds a small model."""
_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def choose_threads(model: object) -> None:
    """Let a small model compute in as many threads as there are idle cores, at most `MOST`.

    On busy cores each thread waits for those that have no core, hundreds of times a step: a command then takes thirty
    times as long. Left alone are large models, a number in the environment, and a program that has imported torch
    already and may have set a number of its own.

    Args:
        model: as it is given to a command.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _SETTINGS) or not _is_small(model):
        return
    os.environ["OMP_NUM_THREADS"] = str(idle_threads())  # torch reads it when it is imported


def _is_small(model: object) -> bool:
    if model in EMBEDDED:
        return True
    folder = Path(str(model))
    return folder.is_dir() and sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < SMALL


def idle_threads() -> int:
    """Cores of this process that have nothing to do, at least one and at most `MOST`."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    quota = _quota()
    if quota is not None:
        cores = min(cores, quota)

    busy = psutil.getloadavg()[0]
    return max(1, min(MOST, round(cores - busy)))


def _quota() -> int | None:
    """The cores that a container may use; None where there is no limit."""
    try:
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(most) // int(period))
    except (OSError, ValueError):
        return None
