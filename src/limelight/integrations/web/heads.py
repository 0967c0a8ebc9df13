"""The tab *Heads*: which attention heads a concept needs, and what strengthening them does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ...errors import SettingsError
from ...heads.gains import strengthen
from ...heads.relevance import Relevance, relevance_for
from ...models.base import Model
from ...viz.heads import heatmaps
from . import parts
from .runs import Run, Stops, literal, refused

TITLE, NAME = "Heads", "heads"


def build(model: Model, stops: Stops) -> None:
    """Put the tab into the page; without vectors for the model it says so."""
    try:
        relevance = relevance_for(model)
    except SettingsError as error:
        gr.Markdown(str(error))
        return

    with gr.Row(elem_classes="ll-tab"):
        with gr.Column(scale=5, min_width=320):
            concept = gr.Dropdown(list(relevance.concepts), value=relevance.concepts[0], label="Concept")
            prompt = gr.Textbox("a cat and a red car", label="Prompt", max_lines=4)
            word = gr.Textbox("cat", label="Word to strengthen by the heads of the concept")
            with gr.Row(elem_classes="ll-fields"):
                seed, steps = parts.seed_and_steps()
            run, stop = parts.run_buttons("Strengthen", NAME)
        with gr.Column(scale=7, min_width=320):
            heads = gr.HTML(heads_of(relevance, relevance.concepts[0]), elem_id="heads-map")
            status = gr.Markdown("Layers from top to bottom, heads from left to right.", elem_classes="ll-status")
            with gr.Row(elem_classes="ll-pair"):
                plain, edited = parts.gallery("Plain", "heads-plain"), parts.gallery("Strengthened", "heads-edited")

    def start(
        text: str, name: str, which: str, first: float, passes: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        run = Run(model, stops.begin(request, NAME))
        yield from strengthened(run, relevance, text, name, which, int(first), int(passes))

    def show(name: str) -> str:
        return heads_of(relevance, name)

    concept.change(show, concept, heads, show_progress="hidden", api_visibility="private")
    begun = gr.on(
        [run.click, prompt.submit, word.submit],
        start,
        [prompt, word, concept, seed, steps],
        [plain, edited, status],
        show_progress="hidden",
        concurrency_id="model",
        api_name="heads",
    )
    parts.stopped_by(stop, stops, NAME, begun, status)


def heads_of(relevance: Relevance, concept: str) -> str:
    """The heat map of a concept and its most relevant heads."""
    rows = "; ".join(f"{head} ({value:.1f})" for head, value in relevance.top(concept, 3))
    url, about = parts.png_url(heatmaps(relevance, [concept])), f"Relevance of every head to {concept}, by layer"
    image, caption = f'<img src="{url}" alt="{about}">', f"<figcaption>Most relevant: {rows}</figcaption>"
    return f'<figure class="ll-heads">{image}{caption}</figure>'


def strengthened(
    run: Run, relevance: Relevance, text: str, word: str, concept: str, seed: int, steps: int
) -> Iterator[tuple[Any, ...]]:
    """Compare plain and strengthened; yield what the two galleries and the line above them show.

    Raises:
        gr.Error: a `LimelightError`, as one sentence.
    """
    with refused():
        parts.checked(text)
        edits = [strengthen(word.strip(), concept, head_vectors=relevance)]
    yield from parts.compared(
        run,
        text,
        {"plain": "Plain", "edited": "Strengthened"},
        lambda comparison: literal(f"\u201c{word}\u201d, strengthened by the heads of {concept}."),
        edits=edits,
        subjects=(),
        seeds=[seed],
        steps=steps,
    )
