"""Folders that two programs want."""

from __future__ import annotations

import pytest

from limelight import FileError
from limelight.utils.files import lock_folder


def test_one_program_at_a_time(tmp_path):
    folder = tmp_path / "new"
    with lock_folder(folder):
        with pytest.raises(FileError, match="new' is in use by another program"), lock_folder(folder):
            pass
        with pytest.raises(FileError, match="new' is busy"), lock_folder(folder, "'{folder}' is busy."):
            pass
    (folder / ".a.png.1.part").write_text("half")
    with lock_folder(folder):
        assert not (folder / ".a.png.1.part").exists()
    with pytest.raises(RuntimeError, match="stop"), lock_folder(folder):
        raise RuntimeError("stop")
    with lock_folder(folder):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"), lock_folder(tmp_path / "file"):
        pass
