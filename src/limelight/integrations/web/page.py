"""The page: its tabs, its look, and how it is served."""

from __future__ import annotations

import html
import os
import tempfile
from typing import Any

from ...errors import MissingDependency
from ...models.base import Model
from ...utils.numbers import check_whole

try:
    import gradio as gr
except ImportError as error:
    raise MissingDependency("The web page needs gradio. Install it: pip install 'limelight[web]'.") from error

from . import edit, explain, heads, learn, steer
from .parts import asset
from .runs import Stops

MOST_WAITING = 64
"""Runs in the queue; who comes later is asked to try again."""
MOST_BYTES = "20mb"
"""Of one upload."""
KEPT = 6 * 3600
"""Seconds for which images stay on the disk for a browser to fetch."""
TABS = (steer, explain, edit, heads, learn)


class Page(gr.Blocks):  # type: ignore[misc]
    """The page. `launch` takes the options of Gradio's own; by default there is no share link, and only this machine
    can reach it.
    """

    def launch(self, *args: Any, **options: Any) -> Any:
        """Serve the page, see `gradio.Blocks.launch`."""
        chosen = {
            "share": False,
            "theme": _theme(),
            "css": asset("page.css"),
            "max_file_size": MOST_BYTES,
            "footer_links": ["api"],
            "show_error": False,
            "enable_monitoring": False,
            "ssr_mode": False,
            "run_history": False,
            "pwa": False,
        }
        return super().launch(*args, **{**chosen, **options})


def build(model: Model, *, at_once: int = 2) -> Page:
    """Build the page around a model.

    Its tabs call what the command line calls: `limelight.compare`, `limelight.generate`, `limelight.edit`,
    `limelight.learn` and the functions of `limelight.heads`. Several people may use it at once; each gets the images
    that the same call gives alone.

    Args:
        model: see `limelight.load`. All runs share it.
        at_once: runs at a time, each in the memory that `limelight.generate` takes; the others wait in a queue. Beside
            them, one word at a time is learned.

    Raises:
        MissingDependency: gradio or matplotlib is not installed.
        SettingsError: `at_once` is not a positive whole number.

    Examples:
        >>> page = build(limelight.load("pocket", device="cpu"))
        >>> page.title
        'limelight'
        >>> page.launch()  # doctest: +SKIP
    """
    check_whole(MOST_WAITING, at_once=at_once)
    # Gradio reads the folder of a component's files when the component is made.
    os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp(prefix="limelight-web-"))
    stops = Stops()

    with Page(title="limelight", analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        gr.HTML(_head(model), elem_id="head")
        for tab in TABS:
            with gr.Tab(tab.TITLE, id=tab.NAME):
                tab.build(model, stops)
        page.unload(stops.leave)
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=at_once)
    return page


def _head(model: Model) -> str:
    height, width = model.default_size
    about = f"{html.escape(model.name)} \u00b7 {width} \u00d7 {height} pixels \u00b7 {model.device}"
    return f'<header><h1>limelight</h1><p>Every word gets its moment on stage.</p><p class="model">{about}</p></header>'


def _theme() -> gr.themes.Base:
    """A calm look that loads no font from elsewhere."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="sm", spacing_size="md", font=fonts, font_mono=mono
    )
    return theme.set(block_border_width="0px", block_shadow="none", block_padding="0px", block_label_margin="0px")
