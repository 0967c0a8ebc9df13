"""Runs with the embedded model that is already in memory."""

import json
from pathlib import Path

import pytest

import limelight.evaluate.runs as module
from limelight.evaluate.runs import run
from limelight.evaluate.suites import attend_excite

CASES = attend_excite()[::60][:2]
METHODS = ("plain", "attend-and-excite")
SMALL = {"steps": 2, "height": 32, "width": 32}
IMAGES = len(CASES) * len(METHODS) * 3


@pytest.fixture
def quick(monkeypatch, pocket):
    """Runs with a model that is already there."""
    monkeypatch.setattr(module, "load", lambda *args, **options: pocket)

    def quickly(folder, **changes):
        return run(folder, CASES, METHODS, range(3), **{"batch": 2, "workers": 1, **SMALL, **changes})

    return quickly


@pytest.fixture(scope="session")
def whole(tmp_path_factory, pocket):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", lambda *args, **options: pocket)
        assert run(folder, CASES, METHODS, range(3), batch=2, workers=1, **SMALL) == IMAGES
    return folder


def content(folder: Path):
    """The manifest's rows, none of them twice, the images' bytes, and all else that lies there."""
    rows = (folder / "manifest.jsonl").read_text().splitlines()
    assert len(set(rows)) == len(rows)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    images = {name: path.read_bytes() for name, path in files.items() if name.endswith(".png")}
    assert images.keys() == {json.loads(row)["file"] for row in rows}
    others = set(files) - set(images) - {".lock"}
    return set(rows), images, others
