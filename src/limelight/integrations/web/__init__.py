"""A web page around one model, with Gradio: steer, explain, edit, heads, learn. It needs the extra ``web``.

| module | holds |
|---|---|
| `page` | `build`: the page and how it is served |
| `runs` | runs in threads, with previews, that can be stopped |
| `parts` | what the tabs share: components of the page's own, images with their settings |
| `steer`, `explain`, `edit`, `heads`, `learn` | one tab each |
"""

from __future__ import annotations

from typing import Any


def build(model: Any, *, at_once: int = 2) -> Any:
    """Build the page, see `limelight.integrations.web.page.build`."""
    from .page import build as build_page

    return build_page(model, at_once=at_once)
