"""Folders that two programs want, images that cannot be read."""

from __future__ import annotations

import pytest
from PIL import Image

from limelight import FileError
from limelight.utils.files import lock_folder
from limelight.utils.images import fit_image, open_image


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


def test_images_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(FileError, match=r"broken\.png' cannot be read: it is not an image"):
        open_image(tmp_path / "broken.png")
    with pytest.raises(FileError, match=r"absent\.png' cannot be read: No such file"):
        open_image(tmp_path / "absent.png")


def test_images_are_fitted(tmp_path):
    Image.new("RGBA", (8, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    image = fit_image(open_image(tmp_path / "clear.png"), (6, 6))
    assert (image.mode, image.size, image.getpixel((3, 3))) == ("RGB", (6, 6), (255, 255, 255))
    halves = Image.new("RGB", (20, 10), "red")
    halves.paste("blue", (0, 0, 3, 10))
    assert fit_image(halves, (10, 10), "crop").getpixel((0, 5)) == (255, 0, 0)
    assert fit_image(halves, (10, 10), "stretch").getpixel((0, 5)) == (0, 0, 255)
