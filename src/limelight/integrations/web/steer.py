"""The tab *Steer*: the same seeds, plain and guided, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ...errors import LimelightError
from ...generation.compare import Comparison
from ...guidance.names import NAMES, RECOMMENDED
from ...guidance.presets import preset
from ...models.base import Model
from . import parts
from .runs import Run, Stops, literal, refused

TITLE, NAME = "Steer", "steer"
EXAMPLE = "a red cat and a blue dog"


def build(model: Model, stops: Stops) -> None:
    """Put the tab into the page."""
    with gr.Row(elem_classes="ll-tab"):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(EXAMPLE, label="Prompt", max_lines=4, elem_id="steer-prompt")
            subjects = parts.subjects(parts.words_of(model, EXAMPLE), "steer-subjects")
            notes = gr.Markdown(elem_classes="ll-notes")
            method = gr.Dropdown(list(NAMES), value=RECOMMENDED, label="Method", elem_id="steer-method")
            with gr.Row(elem_classes="ll-fields"):
                seed, steps = parts.seed_and_steps()
            with gr.Row(elem_classes="ll-fields"):
                count = gr.Slider(1, parts.MOST_IMAGES, 2, step=1, label="Images", min_width=150)
                audition = gr.Slider(1, 8, 1, step=1, label="Audition", info="seeds to try for each", min_width=150)
            run, stop = parts.run_buttons("Generate", NAME)
        with gr.Column(scale=7, min_width=320):
            status = gr.Markdown("Each seed will be shown twice: plain, and guided.", elem_classes="ll-status")
            with gr.Row(elem_classes="ll-pair"):
                plain, guided = parts.gallery("Plain", "steer-plain"), parts.gallery("Guided", "steer-guided")

    def read(text: str) -> tuple[Any, str]:
        return read_prompt(model, text)

    def generate(
        text: str,
        chosen: Any,
        name: str,
        first: float,
        number: float,
        passes: float,
        tries: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        run = Run(model, stops.begin(request, NAME))
        yield from steered(run, text, chosen, name, parts.seeds_from(first, number), int(passes), int(tries))

    prompt.change(
        read, prompt, [subjects, notes], show_progress="hidden", trigger_mode="always_last", api_visibility="private"
    )
    begun = gr.on(
        [run.click, prompt.submit],
        generate,
        [prompt, subjects, method, seed, count, steps, audition],
        [plain, guided, status],
        show_progress="hidden",
        concurrency_id="model",
        api_name="steer",
    )
    parts.stopped_by(stop, stops, NAME, begun, status)


def read_prompt(model: Model, text: str) -> tuple[Any, str]:
    """The words of a prompt for the page, and what the model does not read as it is written."""
    try:
        return parts.words_of(model, text), literal(parts.notes_on(model, model.prompt(text)))
    except LimelightError as error:
        return {"words": [], "chosen": None, "boxes": {}, "shape": 1}, literal(str(error))


def steered(
    run: Run, text: str, chosen: Any, method: str, seeds: list[int], steps: int, tries: int
) -> Iterator[tuple[Any, ...]]:
    """Compare plain and guided images; yield what the two galleries and the line below the buttons show.

    Raises:
        gr.Error: a `LimelightError`, as one sentence.
    """
    with refused():
        parts.checked(text)
        asked = parts.chosen_of(chosen)
        guidance = preset(method, run.model)

    def starts(name: str) -> str:
        return "choosing seeds" if tries > 1 and name == "guided" else "begins"

    yield from parts.compared(
        run,
        text,
        {"plain": "Plain", "guided": "Guided"},
        _summary,
        starts=starts,
        guidance=guidance,
        place=asked.place or None,
        subjects=asked.subjects,
        seeds=seeds,
        steps=steps,
        audition=tries if tries > 1 else None,
    )


def _summary(comparison: Comparison) -> str:
    """What was guided, in a sentence."""
    guided = comparison.runs["guided"]
    names = ", ".join(map(str, guided.subjects))
    return literal(f"Guided: {names}. Each row is one seed: {', '.join(map(str, guided.seeds))}.")
