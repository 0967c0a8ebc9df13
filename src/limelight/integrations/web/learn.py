"""The tab *Learn*: a word for what a few images show."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ...errors import ModelError, SettingsError
from ...models.base import Model
from ...textual_inversion.folder import WORD, Row
from ...textual_inversion.folder import learn as learn_word
from ...textual_inversion.training import TrainStep
from ...utils.files import slug
from . import parts
from .runs import Progress, Run, Stops, literal, refused

TITLE, NAME = "Learn", "learn"
MOST_FILES, MOST_TRAINING = 20, 3000
SAVES = 5
"""Previews of a training, after the first."""
LEAST_BETWEEN = 10
"""Steps between previews at least: a preview takes as long as several steps."""


def build(model: Model, stops: Stops) -> None:
    """Put the tab into the page; for a model that cannot learn words it says so."""
    try:
        model.require("learn")
    except ModelError as error:
        gr.Markdown(str(error))
        return

    with gr.Row(elem_classes="ll-tab"):
        with gr.Column(scale=5, min_width=320):
            files = gr.File(
                label="Images of one thing; three to six are usual",
                file_count="multiple",
                file_types=["image"],
                type="filepath",
                height=180,
                elem_id="learn-images",
            )
            with gr.Row(elem_classes="ll-fields"):
                token = gr.Textbox("<my-cat>", label="The new word", min_width=130)
                init = gr.Textbox("cat", label="A word for what it is", min_width=130)
            steps = gr.Slider(1, MOST_TRAINING, 300, step=1, label="Training steps")
            run, stop = parts.run_buttons("Learn", NAME)
        with gr.Column(scale=7, min_width=320):
            status = gr.Markdown("Previews appear while the word is learned.", elem_classes="ll-status")
            with gr.Row(elem_classes="ll-pair"):
                preview = parts.gallery("Preview", "learn-preview")
            word = gr.File(label="The learned word, a file", interactive=False, elem_id="learn-word")

    def start(
        paths: list[str] | None, name: str, like: str, number: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        run = Run(model, stops.begin(request, NAME))
        yield from learned(run, paths or [], name.strip(), like.strip(), int(number))

    begun = run.click(
        start,
        [files, token, init, steps],
        [preview, word, status],
        show_progress="hidden",
        concurrency_limit=1,
        api_name="learn",
    )
    parts.stopped_by(stop, stops, NAME, begun, status)


def learned(run: Run, paths: list[str], token: str, init: str, steps: int) -> Iterator[tuple[Any, ...]]:
    """Learn a word; yield what the preview, the file and the line above them show.

    Raises:
        gr.Error: a `LimelightError`, as one sentence.
    """
    with refused():
        if not 1 <= len(paths) <= MOST_FILES:
            raise SettingsError(f"Upload 1 to {MOST_FILES} images of one thing; there are {len(paths)}.")

    config = {"token": token, "init": init or None, "steps": steps}
    for found in run.follow(lambda run: _word(run, paths, config)):
        if isinstance(found, Progress):
            yield [(image, found.text) for image in found.images] or gr.skip(), gr.skip(), found.text
        else:
            with tempfile.TemporaryDirectory() as folder:  # Gradio copies the file before it asks for more
                path = Path(folder) / f"{slug(token)}.safetensors"
                path.write_bytes(found)
                shown = literal(token)
                yield gr.skip(), str(path), f"Learned {shown}. Load the file and write {shown} in prompts."


def _word(run: Run, paths: list[str], config: dict[str, Any]) -> bytes:
    """Learn a word; returns its file."""
    steps = config["steps"]
    run.title = "Learn"
    run.report("begins")
    with tempfile.TemporaryDirectory(prefix="limelight-learn-") as name:
        folder = Path(name)

        def on_step(step: TrainStep) -> None:
            run.report(f"step {step.state.step} of {steps}")

        def on_save(row: Row) -> None:
            with Image.open(folder / "previews" / f"{row.step:06}.png") as opened:
                run.report(f"step {row.step} of {steps}", (opened.convert("RGB"),))

        every = max(steps // SAVES, LEAST_BETWEEN)
        model = _apart(run.model)
        learn_word(model, paths, config, folder, save_every=every, seeds=[0], on_step=on_step, on_save=on_save)
        return (folder / WORD).read_bytes()


def _apart(model: Model) -> Model:
    """The same model with tokenizers and text encoders of its own, so that no other run reads the word meanwhile."""
    own = model.for_one_run()
    pipeline: Any = copy.copy(own.pipeline)  # type: ignore[attr-defined]
    copies: dict[int, Any] = {}
    for name in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "bert"):
        part = getattr(pipeline, name, None)
        if part is not None:
            setattr(pipeline, name, copy.deepcopy(part, copies))
    own.pipeline = pipeline  # type: ignore[attr-defined]
    return own
