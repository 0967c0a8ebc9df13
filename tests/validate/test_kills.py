"""Kills in the middle of real stages: the same validation again finds what an undisturbed one does."""

import multiprocessing
import os
import signal

import pytest

from limelight.evaluate.store import Run
from limelight.validate import calibrate
from limelight.validate.context import Context

POCKETS = {"clip": "pocket", "captioner": "none", "detector": "pocket"}
SIZE = {"height": None, "width": None, "backbones": POCKETS}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(calibrate, "PROMPTS", 1)
    monkeypatch.setattr(calibrate, "FACTORS", (0.5, 1.0))
    monkeypatch.setattr(Context, "room", lambda self, done: done == 0)  # one prompt, however fast it is


def killed(check, model, stage, images):
    """Validate, and be killed when so many images are kept."""
    own, kept = Run.add, []

    def add(self, *args):
        own(self, *args)
        kept.append(args)
        if len(kept) == images:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.add = add
    check(model, stage, folder="killed", **SIZE)


def images_in(folder):
    """The images by their places, with their bytes and when they were written."""
    files = [path for path in folder.rglob("*.png") if path.stem.isdigit()]
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# One prompt: two step sizes, or the source, a new image and the edit.
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "before", "all_of_them"), [("calibrate", 1, 2), ("editing", 2, 3)])
def test_a_killed_stage_finds_what_an_undisturbed_one_does(check, pocket, tmp_path, stage, before, all_of_them):
    child = multiprocessing.get_context("fork").Process(target=killed, args=(check, pocket, stage, before))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / f"killed/stages/{stage}.json").exists()
    first = images_in(tmp_path / "killed" / stage)
    assert len(first) == before

    again = check(pocket, stage, folder="killed", **SIZE)[stage].record()
    undisturbed = check(pocket, stage, folder="undisturbed", **SIZE)[stage].record()
    assert {**again, "seconds": 0} == {**undisturbed, "seconds": 0}
    assert again["tables"]
    assert again["numbers"]

    found, expected = images_in(tmp_path / "killed" / stage), images_in(tmp_path / "undisturbed" / stage)
    assert first.items() < found.items()
    assert {file: content for file, (content, _) in found.items()} == {
        file: content for file, (content, _) in expected.items()
    }
    assert len(expected) == all_of_them
