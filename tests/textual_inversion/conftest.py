"""Models and folders of images."""

from __future__ import annotations

import pytest

import limelight
from tests.textual_inversion.images import patches


@pytest.fixture(params=["tiny", "tiny_xl"])
def model(request):
    found = request.getfixturevalue(request.param)
    return found if request.param == "tiny" else limelight.load(found)


@pytest.fixture
def folder(tmp_path):
    """Images in files, between files of other kinds."""
    where = tmp_path / "images"
    where.mkdir()
    for i, image in enumerate(patches()):
        image.save(where / f"{i}.png")
    for name in (".DS_Store", "._0.png", "notes.txt"):
        (where / name).write_bytes(b"no image")
    return where
