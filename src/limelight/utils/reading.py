"""The one door for files of others: whatever is wrong with one becomes one sentence."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from typing_extensions import TypedDict  # typing's own cannot be checked before Python 3.12

from ..errors import FileError, LimelightError, MissingDependency

MOST = 300
"""Letters of a cause: those of libraries quote what they could not read."""


class Record(TypedDict):
    """An object of JSON: the keys of a subclass are checked, and others are kept."""

    __pydantic_config__ = {"extra": "allow", "strict": True, "allow_inf_nan": False}  # type: ignore[misc]  # noqa: RUF012


def record(name: str, keys: Mapping[str, Any]) -> Any:
    """A `Record` with keys that are known at run time alone."""
    found: Any = TypedDict(name, dict(keys))  # type: ignore[misc]
    found.__pydantic_config__ = Record.__pydantic_config__  # type: ignore[attr-defined]
    return found


@contextmanager
def reading(path: Any, what: str = "", cure: str = "get it or make it again") -> Iterator[None]:
    """Turn whatever goes wrong in a `with` that reads a file into one sentence.

    Args:
        path: the file. What is no regular file is refused before: a pipe would be waited for without end.
        what: what it should be, for example "concepts".
        cure: what to do where the content is wrong.

    Raises:
        FileError: the file cannot be read.
    """
    with understood(f"'{path}'", what, cure):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
            raise OSError(f"it is {kind}, not a file")
        yield


@contextmanager
def understood(name: str, what: str = "", cure: str = "get it or make it again") -> Iterator[None]:
    """The same for content that is no file of its own.

    Args:
        name: what to call it.
    """
    try:
        yield
    except FileError:
        raise
    except MissingDependency as error:
        raise MissingDependency(f"{name}: {error}") from error
    except OSError as error:
        raise FileError(f"{name} cannot be read: {cause(error)}.") from error
    except Exception as error:  # decoders raise whatever they like
        wanted = f" as {what}" if what else ""
        advice = "" if isinstance(error, LimelightError) else f"; {cure}"
        raise FileError(f"{name} cannot be read{wanted}: {cause(error)}{advice}.") from error


def from_json(schema: Any, text: str | bytes, where: str = "") -> Any:
    """The value of a JSON text, in the form that a type asks for.

    Args:
        schema: a type that pydantic knows, such as list[str] or a subclass of `Record`.
        where: what to call the text, for example "line 3".

    Raises:
        ValueError: the text is not JSON, or of another form.
    """
    return _fitting(_adapter(schema).validate_json, text, where)


def from_python(schema: Any, value: Any, where: str = "") -> Any:
    """A value, once it is clear that it has the form that a type asks for, see `from_json`.

    Raises:
        ValueError: it is of another form.
    """
    return _fitting(_adapter(schema).validate_python, value, where)


@cache
def _adapter(schema: Any) -> Any:
    from pydantic import TypeAdapter  # a fifth of a second, which `import limelight` need not cost

    return TypeAdapter(schema)


def _fitting(validate: Callable[[Any], Any], value: Any, where: str) -> Any:
    try:
        return validate(value)
    except ValueError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]  # type: ignore[attr-defined]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(": ".join(filter(None, (where, place, first["msg"])))) from None


def cause(error: Exception) -> str:
    """What is wrong, as a part of a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, TypeError | AttributeError | LookupError):
        return f"something in it is missing or of another kind ({type(error).__name__}: {_short(error)})"
    return _short(getattr(error, "strerror", None) or error)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    return next(filter(str.strip, str(error).splitlines()), type(error).__name__)


def _short(text: object) -> str:
    """A text on one line, without the end of its sentence."""
    line = " ".join(str(text).split()).rstrip(".") or type(text).__name__
    return line if len(line) <= MOST else f"{line[:MOST]}..."
