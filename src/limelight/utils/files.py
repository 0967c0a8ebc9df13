"""Files: written whole or not at all, with harmless names."""

from __future__ import annotations

import importlib.resources
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image, PngImagePlugin

from ..errors import FileError


def png(settings: dict[str, Any], image: Image.Image) -> bytes:
    """A PNG with its settings inside."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("limelight", json.dumps(settings, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without its bytes
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise FileError(f"'{path}' cannot be written: {error.strerror or error}.") from error


@contextmanager
def lock_folder(
    folder: Path, busy: str = "'{folder}' is in use by another program; wait for it to end."
) -> Iterator[None]:
    """Keep other programs out of a folder for the time of a `with`, and remove the half-written files of killed ones.

    Args:
        folder: made if absent; the lock is its file `.lock`.
        busy: the message where another program holds the lock; "{folder}" in it stands for the folder.

    Raises:
        FileError: another program holds the lock, or the folder cannot be written.
    """
    with _held(folder / ".lock", folder, busy.format(folder=folder)):
        for part in folder.rglob(".*.part"):
            part.unlink(missing_ok=True)
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Keep other programs from writing a file for the time of a `with`.

    The lock is a hidden file beside it, which stays: removing it would let in a third program beside a second.

    Raises:
        FileError: another program holds the lock, or the folder cannot be written.
    """
    busy = f"'{path}' is being written by another program; wait for it to end, or choose another file."
    with _held(path.with_name(f".{path.name}.lock"), path, busy):
        yield


@contextmanager
def _held(where: Path, of: Path, busy: str) -> Iterator[None]:
    """Hold a lock, whose folder is made if absent."""
    lock = FileLock(where)
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise FileError(busy) from None
    except OSError as error:
        raise FileError(f"'{of}' cannot be written: {error.strerror or error}.") from error

    try:
        yield
    finally:
        lock.release()


def slug(text: str, length: int = 80) -> str:
    """Text as a harmless file name of at most `length` bytes: lower-case letters and digits, joined by hyphens."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    return "-".join(words).encode()[:length].decode(errors="ignore").strip("-") or "untitled"


DATA = importlib.resources.files("limelight") / "data"
