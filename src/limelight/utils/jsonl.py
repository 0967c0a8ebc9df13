"""The one append-only log."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import FileError
from .files import json_text, write
from .reading import from_json, reading

Say = Callable[[str], None]


class Log:
    """Rows of JSON in a file, one a line, that are only ever added.

    What cannot be read is named and left out; a last line that was cut off is removed.

    Args:
        path: made if absent.
        schema: what a row is, see `from_json`.
        say: called with a sentence for each line that is wrong.

    Attributes:
        rows: those that are there.

    Raises:
        FileError: the file cannot be read or written.
    """

    def __init__(self, path: Path, schema: Any, say: Say) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = _content(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise FileError(f"'{path}' cannot be written: {error.strerror or error}.") from error

        damaged = False
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            row = _row(line, schema)
            if row is None:
                damaged = True
                what = "is cut off" if not line.endswith(b"\n") else "cannot be read"
                say(f"Line {number} of '{path}' {what}; its work is done again.")
            else:
                self.rows.append(row)
        if damaged:
            self.keep(self.rows)

    def add(self, rows: Iterable[Mapping[str, Any]], durable: bool = True) -> None:
        """Add rows, which are on the disk when this returns (if `durable`); where that fails, none of them is.

        Raises:
            FileError: the disk is full, say.
        """
        added = [dict(row) for row in rows]
        content = b"".join(json_text(row).encode() + b"\n" for row in added)
        before = os.fstat(self._file).st_size

        try:
            while content:
                content = content[os.write(self._file, content) :]
            if durable:
                os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, before)
            raise FileError(f"'{self.path}' cannot be written: {error.strerror or error}.") from error

        self.rows += added

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Keep these rows alone."""
        write(self.path, b"".join(json_text(row).encode() + b"\n" for row in rows))
        self.rows = list(rows)
        os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        os.close(self._file)


def read_rows(path: Path, schema: Any) -> Iterator[dict[str, Any]]:
    """The rows of a log that another process may be writing: lines that cannot be read are passed over.

    Args:
        schema: what a row is, see `from_json`.

    Raises:
        FileError: the file cannot be read.
    """
    rows = (_row(line, schema) for line in _content(path).splitlines(keepends=True))
    return (row for row in rows if row is not None)


def _content(path: Path) -> bytes:
    if not path.exists():
        return b""
    with reading(path):
        return path.read_bytes()


def _row(line: bytes, schema: Any) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = from_json(schema, line)
    except ValueError:
        return None
    return row if line.endswith(b"\n") else None
