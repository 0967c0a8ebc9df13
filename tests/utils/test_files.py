"""Folders that two programs want."""

from __future__ import annotations

import pytest

from limelight import FileError
from limelight.utils.files import lock_file, lock_folder, write


def test_one_program_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with lock_folder(folder):
        with pytest.raises(FileError, match="new' is in use by another program"), lock_folder(folder):
            pass
        with pytest.raises(FileError, match="new' is busy"), lock_folder(folder, "'{folder}' is busy."):
            pass
    with pytest.raises(RuntimeError, match="stop"), lock_folder(folder):
        raise RuntimeError("stop")
    with lock_folder(folder):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"), lock_folder(tmp_path / "file"):
        pass


def left_by_a_kill(*paths):
    """Half-written files, as `write` names them while it writes."""
    parts = [path.with_name(f".{path.name}.0a1b2c3d.limelight-part") for path in paths]
    for part in parts:
        part.parent.mkdir(exist_ok=True)
        part.write_text("half")
    return parts


def test_what_killed_programs_left_is_removed_and_nothing_else(tmp_path):
    theirs = [tmp_path / name for name in (".film.mkv.part", ".a.png.1.part", "b.limelight-part", ".c.limelight-part")]
    for path in theirs:
        path.write_text("of another program")
    # What another limelight writes in a folder that it has locked is its own affair.
    outer, inner, busy, linked = left_by_a_kill(*(tmp_path / name / "a.png" for name in ("", "run", "busy", "else")))
    (tmp_path / "busy" / ".lock").touch()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "else")
    with lock_folder(tmp_path / "run"):
        assert [part.exists() for part in (outer, inner, busy, linked)] == [True, False, True, True]
    with lock_folder(tmp_path):
        assert [part.exists() for part in (outer, inner, busy, linked)] == [False, False, True, False]
    assert all(path.exists() for path in theirs)


def test_what_is_left_of_one_file(tmp_path):
    ours, other = left_by_a_kill(tmp_path / "a[1]", tmp_path / "a[1].b")
    with lock_file(tmp_path / "a[1]"):
        assert not ours.exists()
        assert other.exists()


@pytest.mark.parametrize(("error", "expected"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(), FileError)])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error, expected):
    def interrupted(file):
        assert len(list(tmp_path.glob(".a.????????.limelight-part"))) == 1
        raise error

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(expected):
        write(tmp_path / "a", b"content")
    assert not list(tmp_path.iterdir())
