"""Where the tests run, in which order, and names of files. The fixtures: tests/tiny.py, whose imports take seconds."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

import limelight

POCKET = Path(limelight.__file__).parent / "pocket"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def unhashed(path: Path) -> str:
    """The name of a saved file without the hash of its content."""
    return re.sub(r"-[0-9a-f]{8}(?=\.\w+$)", "", path.name)


def saved(folder: Path, name: str) -> Path:
    """The one file in a folder of this `unhashed` name."""
    (found,) = [path for path in folder.iterdir() if unhashed(path) == name]
    return found


# Files that take longest, first of all: the last file of a run would leave the other process without work.
LONGEST = (
    "test_attach.py",
    "test_cli.py",
    "test_counting.py",
    "test_diffusers.py",
    "test_families.py",
    "test_parallel.py",
    "test_web.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would put files of many tests first, not long ones
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.tiny")  # the process that only hands out tests does without


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    items.sort(key=lambda item: item.path.name not in LONGEST)
    missing = {
        "gpu": not torch.cuda.is_available(),
        "hub": not os.environ.get("LIMELIGHT_HUB"),
        "browser": not BROWSER,
        "cluster": not os.environ.get("LIMELIGHT_CLUSTER"),
    }
    reasons = {
        "gpu": "needs a CUDA device",
        "hub": "downloads gigabytes; set LIMELIGHT_HUB=1",
        "browser": "needs Chromium or Chrome on the path",
        "cluster": "takes minutes; set LIMELIGHT_CLUSTER=1",
    }
    for item in items:
        for marker in missing:
            if missing[marker] and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reasons[marker]))
