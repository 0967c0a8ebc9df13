"""The tab *Explain*: where every word looked, at every step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...generation.generate import generate
from ...generation.result import Result
from ...guidance.names import NAMES, RECOMMENDED
from ...guidance.presets import preset
from ...models.base import Model
from ...utils.files import png
from ...utils.html import data_url
from ...viz.sheets import every_word
from ...viz.theme import attention_scale
from ...viz.trace import trace
from . import parts
from .runs import Progress, Run, Stops, refused

TITLE, NAME = "Explain", "explain"
EXAMPLE = "a cat and a dog"
PLAIN = "none"
MOMENTS = 25
"""Most steps whose maps are sent to the page."""


def build(model: Model, stops: Stops) -> None:
    """Put the tab into the page."""
    with gr.Row(elem_classes="ll-tab"):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(EXAMPLE, label="Prompt", max_lines=4, elem_id="explain-prompt")
            method = gr.Dropdown([*NAMES, PLAIN], value=RECOMMENDED, label="Method")
            with gr.Row(elem_classes="ll-fields"):
                seed, steps = parts.seed_and_steps()
            run, stop = parts.run_buttons("Explain", NAME)
            status = gr.Markdown("Shows which part of the image each word attends to.", elem_classes="ll-status")
        with gr.Column(scale=7, min_width=320):
            overlay = parts.overlay("explain-overlay")

    def start(text: str, name: str, first: float, passes: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        yield from explained(Run(model, stops.begin(request, NAME)), text, name, int(first), int(passes))

    begun = gr.on(
        [run.click, prompt.submit],
        start,
        [prompt, method, seed, steps],
        [overlay, status],
        show_progress="hidden",
        concurrency_id="model",
        api_name="explain",
    )
    parts.stopped_by(stop, stops, NAME, begun, status)


def explained(run: Run, text: str, method: str, seed: int, steps: int) -> Iterator[tuple[Any, ...]]:
    """Generate one image; yield what the overlay and the line below the buttons show.

    Raises:
        gr.Error: a `LimelightError`, as one sentence.
    """
    with refused():
        parts.checked(text)
        guidance = None if method == PLAIN else preset(method, run.model)
    options: dict[str, Any] = {
        "subjects": "auto" if guidance else (),
        "seeds": [seed],
        "steps": steps,
        "record": "steps",
    }

    def work(run: Run) -> dict[str, Any]:
        return maps_for_page(generate(run.model, text, guidance=guidance, on_step=run.on_step, **options))

    for found in run.follow(work):
        if isinstance(found, Progress):
            shown = {"image": parts.png_url(found.images[0]), "words": []} if found.images else gr.skip()
            yield shown, found.text
        else:
            yield found, f"Seed {seed}, {steps} steps. Point at a word, or move to it with Tab."


def maps_for_page(result: Result) -> dict[str, Any]:
    """What `parts.overlay` shows: the first image, what guidance did, and the maps of its words on one scale: the mean,
    then some of the steps.
    """
    count = len(result.steps)
    moments = sorted({round(i * (count - 1) / (MOMENTS - 1)) for i in range(MOMENTS)})
    frames, labels = [result.maps], ["mean of all steps"]
    for i in moments:
        frames.append(result.steps[i].select(result.maps.layers.__contains__))
        labels.append(f"step {i + 1} of {count}")

    heats = {}
    for word in every_word(result.maps.prompts[0]):
        heats[word] = torch.stack([frame.map(word)[0].detach().float().cpu() for frame in frames])
    high = float(torch.stack(list(heats.values())).max())

    shown = []
    for word, rows in heats.items():
        shown.append({"word": word, "frames": [parts.png_url(_painted(heat, high)) for heat in rows]})
    return {
        "image": data_url(png({**result.settings, "seed": result.seeds[0]}, result.images[0])),
        "prompt": result.settings["prompt"],
        "words": shown,
        "labels": labels,
        "high": round(high, 3),
        "trace": parts.png_url(trace(result)) if result.trace else None,
    }


def _painted(heat: Tensor, high: float) -> Image.Image:
    """A map in the colors of the sheets, one pixel a cell."""
    return Image.fromarray((attention_scale(high).paint(heat.numpy()) * 255).round().astype(np.uint8))
