"""Folders of runs: other settings, full disks, damage."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from limelight import FileError, SettingsError
from limelight.evaluate.runs import run
from limelight.evaluate.store import Run
from tests.evaluate.conftest import CASES, IMAGES, METHODS, SMALL, content


def test_changed_settings_are_refused(quick, whole):
    before = content(whole)
    with pytest.raises(SettingsError, match=r"other settings \(steps: 2 there, 3 now\)"):
        quick(whole, steps=3)
    with pytest.raises(SettingsError, match=r"batch: 2 there, 4 now"):
        quick(whole, batch=4)
    with pytest.raises(SettingsError, match=r"'attend-and-excite' with other settings \(steps: 2 there, 3 now\)"):
        run(whole, CASES, METHODS[1:], range(3), batch=2, workers=1, **{**SMALL, "steps": 3})
    changed = (replace(CASES[0], subset="mine"),)
    with pytest.raises(SettingsError, match="with another subset, subjects or concept"):
        run(whole, changed, METHODS, [0], batch=2, workers=1, **SMALL)
    with pytest.raises(SettingsError, match="unexpected keyword argument 'scales'"):
        run(whole, CASES, ["attend-and-excite:scales=3"], [0], workers=1, **SMALL)
    with pytest.raises(SettingsError, match="Unknown method 'magic'"):
        run(whole, CASES, ["magic"], [0], workers=1, **SMALL)
    with Run(whole), pytest.raises(FileError, match="is being written by another run"):
        quick(whole)
    assert content(whole) == before


def test_a_full_disk(quick, whole, tmp_path, monkeypatch):
    real, left = os.write, 5

    def full(file, data):
        nonlocal left
        left -= 1
        if left < 0:
            real(file, data[:10])  # some of it still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(FileError, match=r"'.*\.jsonl' cannot be written: No space left on device"):
            quick(tmp_path / "run")
    said = []
    quick(tmp_path / "run", say=said.append)
    assert said == []  # nothing half-written was left
    assert content(tmp_path / "run") == content(whole)


def test_folders_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(FileError, match="cannot be written"):
            quick(folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(FileError, match=r"'.*run\.json' cannot be read"):
        quick(tmp_path / "run")


def test_damage_is_named_and_mended(quick, whole, tmp_path):
    quick(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    images = [tmp_path / json.loads(line)["file"] for line in lines]
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:200])
    manifest.write_bytes(b"".join([*lines[:5], b"\x00\x00\n", *lines[6:-1], lines[-1][:-30]]))
    (tmp_path / ".a.png.0a1b2c3d.limelight-part").write_text("left by a kill")
    said = []
    assert quick(tmp_path, say=said.append) == 4
    assert [f"Line {n} of '{manifest}' {what}; its work is done again." in said for n, what in (
        (6, "cannot be read"), (IMAGES, "is cut off"))] == [True, True]  # fmt: skip
    assert f"'{images[0]}' is not there; it is generated again." in said
    assert any("has 200 bytes instead of" in text for text in said)
    assert content(tmp_path) == content(whole)


def test_an_image_without_its_mask_is_generated_again(tmp_path):
    """The mask is written before its image: a kill between the two leaves an image that is not there yet."""
    key, said = ("source", "a cat -> a dog", 0), []
    with Run(tmp_path) as store:
        store.expect([], {"source": {}})
        store.add(key, b"image", b"mask", 4.0, 1.0)
        folder = (tmp_path / store.done[key]["file"]).parent
    assert sorted(path.name for path in folder.iterdir()) == ["0.mask.png", "0.png"]
    with Run(tmp_path) as store:
        assert key in store.done
    (folder / "0.mask.png").unlink()
    with Run(tmp_path, said.append) as store:
        assert key not in store.done
    assert "0.mask.png' is missing; its image is generated again" in said[0]


def test_links_do_not_lead_out_of_a_run(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with Run(tmp_path / "run") as store:
        store.expect([], {"plain": {}})
        (tmp_path / "run" / "plain").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileError, match="is a link to a place outside the run"):
            store.add(("plain", "a cat", 0), b"image", None, 4.0, 1.0)
    assert not list((tmp_path / "elsewhere").iterdir())
