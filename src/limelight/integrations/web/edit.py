"""The tab *Edit*: change an image, generated or one's own, by changing its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ...editing.prompt_to_prompt import EditResult
from ...editing.prompt_to_prompt import edit as edit_image
from ...models.base import Model
from ...models.loading import with_scheduler
from . import parts
from .runs import Progress, Run, Stops, literal, refused

TITLE, NAME = "Edit", "edit"


def build(model: Model, stops: Stops) -> None:
    """Put the tab into the page."""
    with gr.Row(elem_classes="ll-tab"):
        with gr.Column(scale=5, min_width=320):
            source = gr.Textbox("a red car", label="What the image shows", max_lines=4)
            target = gr.Textbox("a blue car", label="What it should show instead", max_lines=4)
            local = gr.Textbox("", label="Change only the place of", placeholder="a word, for example car")
            photo = gr.Image(
                label="A photo of your own, which the first prompt describes", type="filepath", sources=["upload"],
                height=180,
            )  # fmt: skip
            with gr.Row(elem_classes="ll-fields"):
                seed, steps = parts.seed_and_steps()
            run, stop = parts.run_buttons("Edit", NAME)
        with gr.Column(scale=7, min_width=320):
            status = gr.Markdown("The image before, and the same image after the edit.", elem_classes="ll-status")
            with gr.Row(elem_classes="ll-pair"):
                before, after = parts.gallery("Before", "edit-before"), parts.gallery("After", "edit-after")

    def start(
        old: str, new: str, words: str, path: str | None, first: float, passes: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        yield from edited(Run(model, stops.begin(request, NAME)), old, new, words, path, int(first), int(passes))

    inputs = [source, target, local, photo, seed, steps]
    begun = gr.on(
        [run.click, target.submit],
        start,
        inputs,
        [before, after, status],
        show_progress="hidden",
        concurrency_id="model",
        api_name="edit",
    )
    parts.stopped_by(stop, stops, NAME, begun, status)


def edited(
    run: Run, source: str, target: str, local: str, photo: str | None, seed: int, steps: int
) -> Iterator[tuple[Any, ...]]:
    """Edit one image; yield what the two galleries and the line above them show.

    Raises:
        gr.Error: a `LimelightError`, as one sentence.
    """
    with refused():
        parts.checked(source), parts.checked(target)
        model = run.model if photo is None else with_scheduler(run.model, "ddim")
    words = [word.strip() for word in local.split(",") if word.strip()]

    def work(run: Run) -> EditResult:
        run.title = "Edit"
        run.report("begins" if photo is None else "inverts the photo")
        return edit_image(
            model, source, target, seeds=[seed], image=photo, local=words or None, steps=steps, on_step=run.on_step
        )

    for found in run.follow(work):
        if isinstance(found, Progress):
            rows = [
                parts.previews([image], name) for image, name in zip(found.images, ("Before", "After"), strict=False)
            ]
            yield *(rows or [gr.skip(), gr.skip()]), found.text
        else:
            before, after = parts.captioned(found.source, "Before"), parts.captioned(found.target, "After")
            yield before, after, literal(f"\u201c{source}\u201d became \u201c{target}\u201d.")
