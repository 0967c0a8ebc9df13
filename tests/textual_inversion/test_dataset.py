"""Sentences and images of a training."""

from __future__ import annotations

import pytest
from PIL import Image

from limelight.errors import FileError, SettingsError
from limelight.textual_inversion.config import TrainingConfig
from limelight.textual_inversion.dataset import read_images, sentences
from limelight.utils.images import fit_image


def test_sentences_have_one_place_for_the_word(tiny, pocket):
    for kind, count in (("object", 27), ("style", 19)):
        found = sentences(tiny, kind)
        assert len(set(found)) == count
        assert all(text.count("{}") == 1 for text in found)
    assert set(sentences(pocket, "object")) == {"a photo of a {}", "a picture of a {}", "a drawing of a {}"}
    with pytest.raises(SettingsError, match="was not trained with the words of any sentence of 'style'"):
        sentences(pocket, "style")
    with pytest.raises(SettingsError, match="needs one place"):
        TrainingConfig(templates=["a photo"])


def test_pictures_are_read_upright_and_other_files_are_not(folder, tmp_path):
    assert len(read_images(folder)) == 3
    left = Image.new("RGB", (40, 20), "black")
    left.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, the camera on its side: its left is the top
    left.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = fit_image(read_images(tmp_path / "turned.jpg")[0], (40, 20))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] > 250
    assert upright.getpixel((10, 35))[0] < 5
    cut, stretched = (fit_image(left, (20, 20), fit) for fit in ("crop", "stretch"))
    assert [cut.getpixel((x, 10))[0] > 127 for x in (2, 8, 12)] == [True, True, False]
    assert [stretched.getpixel((x, 10))[0] > 127 for x in (2, 8, 12)] == [True, True, False]
    assert fit_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (8, 8)).getpixel((4, 4)) == (255, 255, 255)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(FileError, match=r"broken.png' cannot be read"):
        read_images(tmp_path / "broken.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.raw").touch()
    with pytest.raises(FileError, match=r"has no images.*It has: 1 \.raw"):
        read_images(tmp_path / "none")
