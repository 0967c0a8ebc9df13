"""Pages that hold everything inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import MissingDependency


class _Template(Protocol):
    def read_text(self, encoding: str) -> str: ...


def rendered(template: _Template, values: Mapping[str, Any], *, what: str, extra: str, trim: bool = True) -> str:
    """Fill in a template of jinja2; values that are text are escaped.

    Args:
        template: its file in the package.
        values: by the names that the template uses.
        what: what it becomes, for example "A report".
        extra: of limelight, which installs jinja2.
        trim: leave out the white space around lines that are statements alone.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise MissingDependency(f"{what} needs jinja2. Install it: pip install 'limelight[{extra}]'.") from error

    environment = Environment(autoescape=True, trim_blocks=trim, lstrip_blocks=trim)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)


def data_url(content: bytes, kind: str = "png") -> str:
    """The content of an image file as a URL, by its kind: "png", "webp", "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
