"""What the tabs share: components of the page's own, and images that carry their settings."""

from __future__ import annotations

import importlib.resources
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from ...errors import SettingsError
from ...generation.compare import Comparison, compare
from ...generation.plan import prompt_warnings
from ...generation.result import Result
from ...models.base import Model
from ...prompts.prompt import Prompt
from ...prompts.subjects import Place, described_nouns
from ...prompts.tagging import FUNCTION_WORDS
from ...utils.files import png
from ...utils.html import data_url
from ...viz.sheets import every_word
from .runs import Progress, Run, Stops

ASSETS = importlib.resources.files("limelight.integrations.web") / "assets"
LONGEST_PROMPT = 2000  # characters
MOST_IMAGES, MOST_STEPS = 8, 100
LAST_SEED = 2**31 - 1


def asset(name: str) -> str:
    """A file of the page."""
    return (ASSETS / name).read_text("utf-8")


@dataclass(frozen=True)
class Chosen:
    """The subjects that the user chose.

    Attributes:
        subjects: their names, or "auto".
        place: the boxes of some.
    """

    subjects: Any = "auto"
    place: Place = field(default_factory=dict)


def subjects(value: Any, name: str) -> gr.HTML:
    """The words of a prompt as buttons, and a canvas on which each subject can be given a box."""
    found = gr.HTML(
        value, html_template='<div class="ll-subjects"></div>', js_on_load=asset("subjects.js"), elem_id=name
    )
    kinds = [{"type": "array", "items": {"type": "string"}}, {"type": "object"}, {"type": "null"}]
    return _documented(found, {"anyOf": kinds}, ["cat", "dog"])


def chosen_of(value: Any) -> Chosen:
    """What the page or a client sends as `subjects`: null (the nouns are the subjects), a list of words, or
    ``{"chosen": ["cat"], "boxes": {"cat": [0, 0.4, 0.5, 1]}}``.

    Raises:
        SettingsError: it is nothing of the three.
    """
    if value is None:
        return Chosen()
    if isinstance(value, list):
        value = {"chosen": value}
    chosen, boxes = None, None
    if isinstance(value, dict):
        chosen, boxes = value.get("chosen"), value.get("boxes") or {}
    if not isinstance(boxes, dict) or not isinstance(chosen, list | None):
        raise SettingsError("The subjects must be null, a list of words, or an object with 'chosen' and 'boxes'.")
    return Chosen("auto" if chosen is None else chosen, boxes)


def overlay(name: str) -> gr.HTML:
    """An image with the attention of one word over it, the words as buttons and the steps as a slider."""
    found = gr.HTML(None, html_template='<div class="ll-overlay"></div>', js_on_load=asset("overlay.js"), elem_id=name)
    return _documented(found, {"type": "object"}, {"image": "data:image/png;base64,", "words": []})


def _documented(component: gr.HTML, schema: dict[str, Any], example: Any) -> gr.HTML:
    """Say in the API what the values of a component are."""
    # Not by a subclass: Gradio writes a file beside the source of each.
    component.api_info, component.example_payload = lambda: schema, lambda: example
    return component


def words_of(model: Model, text: str) -> dict[str, Any]:
    """The words of a prompt for `subjects`: what describes a noun stands under it.

    Raises:
        SettingsError: the prompt is too long.
    """
    prompt, height, width = model.prompt(checked(text)), *model.default_size
    found, described = [], set[tuple[int, int]]()
    for name in described_nouns(prompt):
        *before, noun = prompt.find_words(name)
        described |= {word.span for word in (*before, noun)}
        found.append((noun.span, name, noun.text, [word.text for word in before], "noun"))

    for name in every_word(prompt):
        (word,) = prompt.find_words(name)
        if word.span not in described:
            kind = "small" if word.key in FUNCTION_WORDS else "word"
            found.append((word.span, name, word.text, [], kind))

    keys = ("name", "text", "modifiers", "kind")
    words = [dict(zip(keys, parts[1:], strict=True)) for parts in sorted(found, key=lambda parts: parts[0])]
    return {"words": words, "chosen": None, "boxes": {}, "shape": width / height}


def notes_on(model: Model, prompt: Prompt) -> str:
    """What the model does not read as it is written, in sentences."""
    return " ".join(map(str, prompt_warnings(model, [prompt])))


def checked(prompt: str) -> str:
    """A prompt that is neither empty nor of a size that only an attack has.

    Raises:
        SettingsError: it is.
    """
    if not prompt.strip():
        raise SettingsError("The prompt is empty. Write what to show, for example: a cat and a dog.")
    if len(prompt) > LONGEST_PROMPT:
        raise SettingsError(f"The prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are taken.")
    return prompt


def seeds_from(first: float, count: float) -> list[int]:
    """So many seeds from the first on."""
    return list(range(int(first), int(first) + int(count)))


def captioned(result: Result, name: str) -> list[tuple[Image.Image, str]]:
    """The images of a result with their captions, each with its settings inside as `Result.save` writes them."""
    found = []
    for seed, image in zip(result.seeds, result.images, strict=True):
        found.append((with_settings({**result.settings, "seed": seed}, image), f"{name}, seed {seed}"))
    return found


def with_settings(settings: Mapping[str, Any], image: Image.Image) -> Image.Image:
    """An image whose file will hold its settings."""
    opened = Image.open(io.BytesIO(png(dict(settings), image)))
    opened.load()
    return opened


def previews(images: Sequence[Image.Image], name: str) -> list[tuple[Image.Image, str]]:
    """Unfinished images with their captions."""
    return [(image, f"{name}, unfinished") for image in images]


def compared(
    run: Run,
    text: str,
    names: Mapping[str, str],
    summary: Callable[[Comparison], str],
    *,
    starts: Callable[[str], str] = lambda name: "begins",
    **options: Any,
) -> Iterator[tuple[Any, ...]]:
    """Generate a prompt in two ways; yield what a gallery for each and the line beside them show.

    Args:
        names: the titles of the galleries by the names of the runs, see `limelight.Comparison.runs`.
        summary: what the line says at the end.
        starts: what it says when the run of a name starts.
        options: of `limelight.compare`.

    Raises:
        gr.Error: a `LimelightError`, as one sentence.
    """

    def work(run: Run) -> Comparison:
        def begins(name: str) -> None:
            run.title = names[name]
            run.report(starts(name))

        return compare(run.model, text, on_run=begins, on_step=run.on_step, **options)

    shown: dict[str, Any] = {title: [] for title in names.values()}  # the first report empties the galleries
    for found in run.follow(work):
        if isinstance(found, Progress):
            if found.images:
                shown[found.title] = previews(found.images, found.title)
            yield *shown.values(), found.text
            # Only what is new is sent again: a browser may still fetch the files of the others.
            shown = dict.fromkeys(names.values(), gr.skip())
        else:
            rows = [captioned(result, names[name]) for name, result in found.runs.items()]
            yield *rows, summary(found)


def png_url(image: Image.Image) -> str:
    """An image as a PNG inside a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_url(buffer.getvalue())


def gallery(label: str, name: str) -> gr.Gallery:
    """A gallery of images that stay lossless, one a row, under a heading."""
    with gr.Column(min_width=140):
        gr.HTML(f"<h2>{label}</h2>", elem_classes="ll-heading")
        return gr.Gallery(
            label=label,
            show_label=False,
            format="png",
            columns=1,
            object_fit="contain",
            height="auto",
            elem_id=name,
            interactive=False,
            buttons=["download", "fullscreen"],
        )


def run_buttons(run: str, name: str) -> tuple[gr.Button, gr.Button]:
    """The button that begins a run, and the one that stops it."""
    with gr.Row(elem_classes="ll-fields"):
        begin = gr.Button(run, variant="primary", elem_id=f"{name}-run")
        stop = gr.Button("Stop", elem_id=f"{name}-stop", min_width=80, scale=0)
    return begin, stop


def seed_and_steps(steps: int = 50) -> tuple[gr.Number, gr.Slider]:
    """Fields for the first seed and the number of steps."""
    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LAST_SEED, min_width=110)
    return seed, gr.Slider(1, MOST_STEPS, steps, step=1, label="Steps", min_width=180)


def stopped_by(stop: gr.Button, stops: Stops, tab: str, run: Any, status: gr.Markdown) -> None:
    """Let a button end the run of a tab, also while it waits in the queue."""

    def end(request: gr.Request) -> str:
        stops.stop(request, tab)
        return "Stopped."

    options: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    ended = stop.click(end, None, status, cancels=[run], **options)
    ended.then(end, None, status, **options)  # again: a report that was on its way may have come after it
