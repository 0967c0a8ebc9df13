"""Files: written whole or not at all, with harmless names."""

from __future__ import annotations

import glob
import hashlib
import importlib.resources
import io
import json
import os
import re
import secrets
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image, PngImagePlugin

from ..errors import FileError, ModelError

LOCK = ".lock"
PART = ".limelight-part"  # how the name of a file ends while it is being written


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has no word for NaN and infinity.

    Raises:
        ModelError: it holds a number that is not finite.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError as error:
        raise ModelError(
            "A number that is to be stored is not finite (NaN or infinity). A computation has overflowed: load the "
            "model with dtype=torch.float32."
        ) from error


def png(settings: dict[str, Any], image: Image.Image) -> bytes:
    """A PNG with its settings inside."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("limelight", json_text(settings))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as users write it, where "~" is their home folder.

    Raises:
        FileError: there is no such user.
    """
    text = os.fspath(path)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # the locale has no letters for it, but the disk has
        text = os.fsdecode(text.encode(errors="surrogatepass"))
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise FileError(f"'{path}' cannot be found: {error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without its bytes
        part.replace(path)
    except BaseException as error:
        with suppress(OSError, ValueError):
            part.unlink()
        if not isinstance(error, (OSError, ValueError)):  # a ValueError of a name that the system cannot have
            raise
        raise FileError(f"'{path}' cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def digest(*contents: bytes) -> str:
    """Eight hexadecimal digits that tell files of one name from others with another content."""
    found = hashlib.sha256()
    for content in contents:
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()[:8]


def check_free(path: Path, content: bytes) -> None:
    """Refuse to replace a file that holds something else.

    Raises:
        FileError: it does, or cannot be read.
    """
    try:
        other = path.exists() and path.read_bytes() != content
    except OSError as error:
        raise FileError(f"'{path}' exists already and cannot be read: {error.strerror}.") from error
    if other:
        raise FileError(f"'{path}' exists already and holds something else. Name another file, or remove it.")


def write_new(folder: Path, stem: str, kind: str, content: bytes) -> Path:
    """Write a file whose name tells its content from any other: nothing else is overwritten.

    Args:
        folder: made if absent.
        stem: start of the name, see `slug`; the `digest` follows it, so that the same content has the same name.
        kind: the suffix without its dot.

    Raises:
        FileError: it cannot be written.
    """
    path = folder / f"{stem}-{digest(content)}.{kind}"
    write(path, content)
    return path


@contextmanager
def lock_folder(
    folder: Path, busy: str = "'{folder}' is in use by another program; wait for it to end."
) -> Iterator[None]:
    """Keep other programs out of a folder for the time of a `with`, and remove the half-written files of killed ones.

    Files of other programs, links, and folders inside that have a lock of their own are left alone.

    Args:
        folder: made if absent; the lock is its file `.lock`.
        busy: the message where another program holds the lock; "{folder}" in it stands for the folder.

    Raises:
        FileError: another program holds the lock, or the folder cannot be written.
    """
    with _held(folder / LOCK, folder, busy.format(folder=folder)):
        for where, folders, names in os.walk(folder):
            if Path(where) != folder and LOCK in names:
                folders.clear()
                continue
            _remove(Path(where).glob(f".*.????????{PART}"))
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Keep other programs from writing a file for the time of a `with`.

    The lock is a hidden file beside it, which stays: removing it would let in a third program beside a second. What
    killed programs have left half-written of the file is removed.

    Raises:
        FileError: another program holds the lock, or the folder cannot be written.
    """
    busy = f"'{path}' is being written by another program; wait for it to end, or choose another file."
    with _held(path.with_name(f".{path.name}{LOCK}"), path, busy):
        _remove(path.parent.glob(f".{glob.escape(path.name)}.????????{PART}"))
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


def _remove(parts: Iterable[Path]) -> None:
    """Remove half-written files; those that cannot be removed do no harm."""
    for part in parts:
        with suppress(OSError):
            part.unlink()


def slug(text: str, length: int = 80) -> str:
    """Text as a harmless file name of at most `length` bytes: lower-case letters and digits, joined by hyphens.

    Different texts may have the same: see `write_new` and `own_slug`.
    """
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    encoding = sys.getfilesystemencoding()  # its letters alone can be part of a name
    name = "-".join(words).encode(encoding, errors="ignore")[:length].decode(encoding, errors="ignore")
    return name.strip("-") or "untitled"


def own_slug(text: str, length: int = 80) -> str:
    """A `slug` that no other text has: where it does not tell the whole text, digits of the text's hash follow."""
    short = slug(text, length)
    if short.replace("-", " ") == text:
        return short
    return f"{short}-{digest(text.encode(errors='surrogatepass'))}"


DATA = importlib.resources.files("limelight") / "data"
