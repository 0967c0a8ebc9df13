"""The explanation of a prompt as files: pictures and one HTML page that holds everything."""

from __future__ import annotations

import base64
import importlib.resources
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from ..errors import SettingsError
from ..generation.generate import generate
from ..generation.result import Result
from ..guidance.base import Guidance
from ..models.base import Model
from ..utils.files import png, slug, write
from .sheets import animation, every_word, progress, strip
from .sheets import compare as compare_runs
from .trace import trace

PAGE = importlib.resources.files("limelight") / "viz" / "templates" / "explain.html.jinja"


@dataclass(frozen=True)
class Figure:
    """One picture of an explanation.

    Attributes:
        name: what it shows, as a part of its file name: "words", "compare", "steps", "trace", "animation".
        title, alt: its heading, and what it shows for those who cannot see it.
        content: the bytes of its file.
        kind: "png" or "webp".
        width, height: in pixels.
    """

    name: str
    title: str
    alt: str
    content: bytes
    kind: str
    width: int
    height: int

    @property
    def inline(self) -> str:
        """Its content as a data URL."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prompt, drawn and explained.

    Attributes:
        runs: by name, "plain" and "guided" or one of them.
        words: whose maps are shown.
        figures: for each seed, its pictures.
    """

    runs: dict[str, Result]
    words: tuple[Any, ...]
    figures: tuple[tuple[Figure, ...], ...]

    @property
    def last(self) -> Result:
        """The guided run, or the only one."""
        return list(self.runs.values())[-1]

    def html(self) -> str:
        """One page with everything inside: pictures, prompt, seeds, settings and trace."""
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        result = self.last
        return environment.from_string(PAGE.read_text(encoding="utf-8")).render(
            prompt=result.settings["prompt"],
            words=self.words,
            names=[str(subject) for subject in result.subjects],
            seeds=list(zip(result.seeds, self.figures, strict=True)),
            runs=self.runs,
            settings={name: _rows(run.settings) for name, run in self.runs.items()},
            version=importlib.metadata.version("limelight"),
        )

    def save(self, folder: str | Path, *, html: bool = False) -> list[Path]:
        """Write the pictures, named after the prompt and the seed, and the page if it is wanted.

        Returns:
            What was written, the page last.

        Raises:
            SettingsError: the folder cannot be written.
        """
        folder, stem = Path(folder), slug(self.last.settings["prompt"], 60)
        written = []
        for seed, figures in zip(self.last.seeds, self.figures, strict=True):
            for figure in figures:
                written.append(folder / f"{stem}-{figure.name}-{seed}.{figure.kind}")
                write(written[-1], figure.content)
        if html:
            written.append(folder / f"{stem}-explain.html")
            write(written[-1], self.html().encode())
        return written


def explain(
    model: Model,
    prompt: str,
    *,
    words: Sequence[str | int] | None = None,
    guidance: Guidance | None = None,
    compare: bool = False,
    over_steps: bool = False,
    draw: Callable[..., Result] = generate,
    **options: Any,
) -> Explanation:
    """Draw a prompt and show where its words looked.

    Args:
        model: see `limelight.load`.
        words: whose maps to show; by default every word of the prompt.
        guidance: as in `generate`; None explains the plain model.
        compare: draw also without guidance, and show both and what changed.
        over_steps: show also when which word looked where.
        draw: what draws, with the arguments of `generate`, for example one that shows a progress bar.
        options: whatever else `generate` takes.

    Raises:
        PromptError: a word is not in the prompt.
        SettingsError: `compare` without a guidance.
    """
    if compare and guidance is None:
        raise SettingsError("There is nothing to compare without guidance; give one, or leave out the comparison.")
    parsed = model.prompt(prompt)
    shown = tuple(words) if words is not None else every_word(parsed)
    if not shown:
        raise SettingsError("There is no word to explain; the prompt is empty." if words is None else "words is empty.")
    for word in shown:
        parsed.find(word)  # before the drawing, which takes long
    # A guidance of scale 0 watches: the same picture as without it, and the trace that the guided one is compared with.
    watching = replace(guidance, scale=0.0, thresholds={}) if guidance else None
    kinds = {"plain": watching} if compare else {}
    kinds["guided" if guidance else "plain"] = guidance
    options = {"record": "steps" if over_steps else True, **options}
    runs = {name: draw(model, prompt, guidance=kind, **options) for name, kind in kinds.items()}
    seeds = range(len(runs[next(iter(runs))].seeds))
    moving = (shown if words is not None else next(iter(runs.values())).subjects or shown) if over_steps else ()
    return Explanation(runs, shown, tuple(_figures(runs, shown, moving, index) for index in seeds))


def _figures(runs: dict[str, Result], words: Sequence[Any], moving: Sequence[Any], index: int) -> tuple[Figure, ...]:
    """The pictures of one seed: of `words`, and of the words `moving` over the steps."""
    name, result = list(runs.items())[-1]
    prompt, subjects = result.settings["prompt"], result.subjects or words
    figures = [
        _still(
            "words",
            "Where every word looked",
            f"The {name} picture of \u201c{prompt}\u201d and, over it in grey, the attention maps of {_listed(words)}.",
            strip(result.images[index], result.maps, words, index=index),
            result,
            index,
        )
    ]
    if len(runs) > 1:
        figures.append(
            _still(
                "compare",
                "Before and after guidance",
                f"Plain picture, guided picture and their difference; below, the same for the attention of "
                f"{_listed(subjects)}.",
                compare_runs(runs["plain"], result, subjects, index=index),
                result,
                index,
            )
        )
    if result.trace:
        figures.append(
            _still(
                "trace",
                "What guidance did",
                "Curves over the guided steps: the loss, and the presence of each subject. The numbers are in the "
                "table.",
                trace(result, index=index, plain=runs.get("plain")),
                result,
                index,
            )
        )
    if moving:
        about = f"The attention maps of {_listed(moving)} at some of the steps, from the first to the last."
        figures.append(_still("steps", "Step by step", about, progress(result, moving, index=index), result, index))
        content = animation(result, moving, index=index)
        with Image.open(io.BytesIO(content)) as frames:
            width, height = frames.size
        about = f"The attention maps of {_listed(moving)} at every step, as an endless animation."
        figures.append(Figure("animation", "In motion", about, content, "webp", width, height))
    return tuple(figures)


def _listed(words: Sequence[Any]) -> str:
    return ", ".join(f"\u201c{word}\u201d" for word in words)


def _still(name: str, title: str, alt: str, image: Image.Image, result: Result, index: int) -> Figure:
    content = png({**result.settings, "seed": result.seeds[index]}, image)
    return Figure(name, title, alt, content, "png", *image.size)


def _rows(settings: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of a table."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            rows += _rows(value, f"{before}{key}: ")
        elif value not in (None, [], {}, ""):
            rows.append(
                (before + key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            )
    return rows
