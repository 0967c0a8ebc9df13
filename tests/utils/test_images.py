"""Every image that users have, read by one function: what white is, what is refused, and that all callers use it."""

from __future__ import annotations

import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight import FileError, MissingDependency, SettingsError
from limelight.textual_inversion.dataset import TrainingImages, read_images
from limelight.utils.images import fit_image, fitted, font, open_image

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
COLORS = np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=-1)


def pixels(source):
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_an_opaque_image_stays_as_it_is(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        Image.fromarray(COLORS),
    ):
        assert np.array_equal(pixels(source), COLORS)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (COLORS, COLORS),
        (COLORS[None], COLORS),
        (COLORS.astype(np.uint16) * 257, COLORS),
        (COLORS / 255, COLORS),
        ((COLORS / 255).astype(np.float16), COLORS),
        (RAMP, RAMP[..., None].repeat(3, -1)),
        (RAMP[..., None], RAMP[..., None].repeat(3, -1)),
        (RAMP > 100, np.where(RAMP > 100, 255, 0)[..., None].repeat(3, -1)),
        (torch.from_numpy(COLORS).permute(2, 0, 1), COLORS),
        (torch.from_numpy(COLORS).permute(2, 0, 1)[None] / 255, COLORS),
        ((torch.from_numpy(COLORS).permute(2, 0, 1) / 255).bfloat16().requires_grad_(), None),
        (np.dstack([COLORS, np.zeros((8, 8), np.uint8)]), np.full_like(COLORS, 255)),
    ],
)  # fmt: skip
def test_arrays_and_tensors(source, wanted):
    found = pixels(source)
    if wanted is None:  # bfloat16 has 8 bits, sign and exponent apart
        assert np.abs(found.astype(int) - COLORS).max() <= 1
    else:
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (COLORS.astype(int), "int64 values have no known white"),
        (COLORS.astype(float), "Floats from 0 to 255 have no known white"),
        (torch.randn(3, 8, 8).clamp(-1, 1), "have no known white"),
        (np.full((8, 8, 3), np.nan), "Floats from nan to nan"),
        (np.zeros((8, 8, 2)), r"\[8, 8, 2\] is not the shape of one image"),
        (np.zeros((2, 8, 8, 3)), "is not the shape of one image"),
        (np.zeros((0, 8, 3)), "is not the shape of one image"),
        (7, "int is not an image; give a path"),
        (None, "NoneType is not an image"),
        (Image.fromarray(np.full((4, 4), 100, np.int32)), "32-bit whole numbers from 100 to 100 have no known white"),
        (Image.fromarray(np.full((4, 4), 2**20, np.int32)), "have no known white"),
    ],
)
def test_what_has_no_known_white_is_refused(source, message):
    with pytest.raises(SettingsError, match=message):
        open_image(source)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}")[..., 0], RAMP)
    assert np.array_equal(pixels(Image.fromarray(RAMP.astype(np.int32) * 257))[..., 0], RAMP)


def test_floats_are_scaled(tmp_path):
    Image.fromarray((RAMP / 255).astype(np.float32)).save(tmp_path / "a.tif")
    assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], RAMP)
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(FileError, match=r"b\.tif' cannot be read: Floats from 0 to 255"):
        open_image(tmp_path / "b.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "I;16"])
def test_what_is_transparent_is_white(tmp_path, mode):
    """The left half is transparent, and black below."""
    image, options = Image.new("RGBA", (4, 2), (0, 0, 0, 0)), {}
    image.paste((200, 200, 200, 255), (2, 0, 4, 2))
    if mode in ("RGB", "L"):
        image, options = image.convert(mode), {"transparency": (0, 0, 0) if mode == "RGB" else 0}
    elif mode == "I;16":
        image, options = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257), {"transparency": 0}
    elif mode == "P":
        image = image.quantize()
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png", **options)
    assert pixels(tmp_path / "a.png")[..., 0].tolist() == [[255, 255, 200, 200]] * 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_turned_as_the_camera_says(tmp_path, suffix):
    image = Image.new("RGB", (16, 8), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    assert open_image(tmp_path / f"a.{suffix}").size == (8, 16)
    grey = Image.fromarray(np.zeros((8, 16), np.uint16))
    grey.save(tmp_path / "b.png", exif=exif)
    assert open_image(tmp_path / "b.png").size == (8, 16)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    assert np.array_equal(pixels("~/a.png"), COLORS)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side):
    """A small file that says it is a huge image."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [13_400, 50_000])
def test_huge_images_are_refused_before_they_are_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    with pytest.raises(FileError, match=r"bomb\.png' cannot be read: .* more than 178956970"):
        open_image(tmp_path / "bomb.png")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    Image.fromarray(COLORS).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-60])
    os.mkfifo(tmp_path / "fifo.png")
    Image.fromarray(COLORS).save(tmp_path / "a.ppm")
    for name, message in {
        "broken.png": "it is not an image",
        "absent.png": "No such file",
        "cut.png": "it is damaged",
        "fifo.png": "it is a pipe, a device or a socket",
        ".": "it is a folder",
        "a.ppm": "it is not an image",
        "a\0b": "embedded null",
    }.items():
        with pytest.raises(FileError, match=f"cannot be read: {message}"):
            open_image(tmp_path / name)
    with pytest.raises(FileError, match="'/dev/zero' cannot be read: it is a pipe, a device or a socket"):
        open_image("/dev/zero")
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(SettingsError, match="The image cannot be read"):
        open_image(image)


def test_heic_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(40))
    Image.fromarray(COLORS).save(tmp_path / "b.png")
    for read in (open_image, read_images, lambda path: read_images(path.parent)):
        with pytest.raises(MissingDependency, match=r"a\.heic': A HEIC image needs pillow-heif"):
            read(tmp_path / "a.heic")


def test_images_are_fitted(tmp_path):
    Image.new("RGBA", (8, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    image = fit_image(open_image(tmp_path / "clear.png"), (6, 6))
    assert (image.mode, image.size, image.getpixel((3, 3))) == ("RGB", (6, 6), (255, 255, 255))
    halves = Image.new("RGB", (20, 10), "red")
    halves.paste("blue", (0, 0, 3, 10))
    assert fit_image(halves, (10, 10), "crop").getpixel((0, 5)) == (255, 0, 0)
    assert fit_image(halves, (10, 10), "stretch").getpixel((0, 5)) == (0, 0, 255)


def test_editing_and_learning_see_the_same_white(tiny, tmp_path):
    clear, white = tmp_path / "clear.png", Image.new("RGB", (32, 32), "white")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(clear)
    array = np.full((32, 32, 3), 255, np.uint8)
    noises = [
        limelight.invert_image(tiny, source, "a car", steps=1).noise
        for source in (white, clear, str(clear), array, torch.ones(3, 32, 32))
    ]
    assert all(torch.equal(noise, noises[0]) for noise in noises)
    digests = {TrainingImages.encode(tiny, source, mirrored=False).digest for source in (white, clear, [array], array)}
    assert len(digests) == 1
    one = limelight.edit(tiny, "a red car", "a blue car", image=str(clear), steps=1)
    other = limelight.edit(tiny, "a red car", "a blue car", image=white, steps=1)
    assert torch.equal(one.target.latents, other.target.latents)


@pytest.mark.parametrize("kind", ["", " \u00b7 0.31"])
def test_captions_are_cut_to_a_width(monkeypatch, kind):
    """As long as fits, whatever their length: the width is measured a few times, and not once for each letter."""
    text, measured = "cat and dog " * 3000, []
    length = font(14).getlength
    monkeypatch.setattr(font(14), "getlength", lambda text: measured.append(text) or length(text))
    cut = fitted(text + kind, 14, 300)
    assert len(measured) < 30

    kept = cut.removesuffix("\u2026" + kind)
    assert text.startswith(kept)
    assert length(cut) <= 300 < length(text[: len(kept) + 1] + "\u2026" + kind)
    assert fitted("a cat" + kind, 14, 300) == "a cat" + kind
    assert fitted("a cat" + kind, 14, 1) == "\u2026" + kind
