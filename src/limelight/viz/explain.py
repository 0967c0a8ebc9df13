"""The explanation of a prompt as files: images and one HTML page that holds everything."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any, Unpack

from PIL import Image

from ..attention.export import Kind, exported, run_lengths
from ..attention.maps import AttentionMaps
from ..editing.image_maps import read_image
from ..errors import SettingsError
from ..generation.arguments import OnePromptOptions, check_model, guidance_of
from ..generation.generate import generate
from ..generation.plan import beside
from ..generation.result import Result
from ..guidance.base import Guidance
from ..models.base import Model
from ..prompts.prompt import Prompt
from ..prompts.subjects import compound_nouns
from ..prompts.tagging import FUNCTION_WORDS
from ..utils.files import png, slug, user_path, write_new
from ..utils.html import data_url, rendered
from ..utils.images import ImageSource
from .sheets import animation, compare_sheet, every_word, places_sheet, progress_sheet, strip_sheet
from .theme import Sheet
from .trace import stays_plain, trace

PAGE = importlib.resources.files("limelight") / "viz" / "templates" / "explain.html.jinja"


@dataclass(frozen=True)
class Figure:
    """One figure of an explanation.

    Attributes:
        name: what it shows, as a part of its file name: "words", "places", "compare", "steps", "trace", "animation".
        title, alt: its heading, and what it shows for those who cannot see it.
        content: the bytes of its file.
        kind: "png" or "webp".
        width, height: in pixels.
        sheet: its tiles, which the page shows one by one; None of a plot or an animation.
        narrow: the content of a plot for narrow screens.
    """

    name: str
    title: str
    alt: str
    content: bytes
    kind: str
    width: int
    height: int
    sheet: Sheet | None = None
    narrow: bytes = b""

    @property
    def inline(self) -> str:
        """Its content as a data URL."""
        return data_url(self.content, self.kind)

    @property
    def inline_narrow(self) -> str:
        """Its content for narrow screens as a data URL; empty where there is none."""
        return data_url(self.narrow) if self.narrow else ""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The runs of a prompt and the figures that explain them.

    Attributes:
        runs: by name, "plain" and "guided" or one of them; "given" alone for an image that existed before.
        words: whose maps are shown.
        figures: for each seed, its figures.
    """

    runs: dict[str, Result]
    words: tuple[Any, ...]
    figures: tuple[tuple[Figure, ...], ...]

    @property
    def last(self) -> Result:
        """The guided run, or the only one."""
        return list(self.runs.values())[-1]

    @property
    def _size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.last.images[0].height, self.last.images[0].width

    def html(self) -> str:
        """Render one page with everything inside: figures, prompt, seeds, settings and trace.

        Raises:
            MissingDependency: jinja2 is not installed.
        """
        result = self.last
        values = {
            "prompt": result.settings["prompt"],
            "words": self.words,
            "names": list(map(str, result.subjects)),
            "seeds": list(zip(result.seeds, self.figures, self.sentences(), strict=True)),
            "runs": self.runs,
            "settings": {name: _rows(run.settings) for name, run in self.runs.items()},
            "version": importlib.metadata.version("limelight"),
        }
        return rendered(PAGE, values, what="The HTML page", extra="plots")

    def sentences(self) -> tuple[str, ...]:
        """For each image a sentence: what guidance did, see `Result.sentences`, or where attention was highest."""
        said = self.last.sentences()
        if said:
            return tuple(f"Guidance: {text.partition(': ')[2]}." for text in said)

        found = []
        for index in range(len(self.last.seeds)):
            own = self.last.maps.images(slice(index, index + 1))
            highest = {str(word): float(own.map(word).max()) for word in self.last.subjects or self.words}
            order = sorted(highest, key=highest.__getitem__, reverse=True)
            found.append(f"Highest attention: {', '.join(f'{word} {highest[word]:.2f}' for word in order)}.")
        return tuple(found)

    def _repr_html_(self) -> str:
        """The page in a frame, as notebooks show an explanation."""
        return f'<iframe srcdoc="{escape(self.html())}" title="limelight" width="100%" height="720"></iframe>'

    def facts(self) -> dict[str, Any]:
        """The maps of the last run in numbers, as plain values for JSON.

        For each image its seed, for each word the mean and highest attention, the box (fractions of the image) and the
        mask at the image's size (see `limelight.attention.export.run_lengths`), and for each pair of words
        what their masks share: `AttentionMaps.iou`, and `AttentionMaps.ioa` of either in the other.
        """
        maps, images = self.last.maps, []
        for index, (seed, image) in enumerate(zip(self.last.seeds, self.last.images, strict=True)):
            own = maps.images(slice(index, index + 1))
            words = {str(word): _numbers(own, word, (image.height, image.width)) for word in self.words}
            pairs = [_pair(own, one, other) for one, other in combinations(self.words, 2)]
            images.append({"seed": seed, "words": words, "pairs": pairs})
        return {"prompt": self.last.settings["prompt"], "images": images, "settings": self.last.settings}

    def save(self, folder: str | Path, *, html: bool = False, export: Sequence[Kind] = ()) -> list[Path]:
        """Write the figures, named after the prompt and the seed, and the page if it is wanted.

        Names end with a short hash of what is in the file: another explanation never takes its place.

        Args:
            export: write also the maps of all images for other programs, see `limelight.attention.export.exported`.

        Returns:
            What was written, the page last.

        Raises:
            FileError: the folder cannot be written.
        """
        folder, stem = user_path(folder), slug(self.last.settings["prompt"], 60)
        written = []
        for seed, figures in zip(self.last.seeds, self.figures, strict=True):
            for figure in figures:
                written.append(write_new(folder, f"{stem}-{figure.name}-{seed}", figure.kind, figure.content))
        for kind in export:
            content = exported(self.last.maps, kind, self.words, size=None if kind != "json" else self._size)
            written.append(write_new(folder, f"{stem}-maps", kind, content))
        if html:
            written.append(write_new(folder, f"{stem}-explain", "html", self.html().encode()))
        return written


def explain(
    model: Model,
    prompt: str,
    *,
    words: Sequence[str | int] | None = None,
    also: str | Sequence[str] = (),
    image: ImageSource | None = None,
    exact: bool = False,
    guidance: Guidance | str | None = None,
    compare: bool = False,
    over_steps: bool = False,
    run: Callable[..., Result] = generate,
    **options: Unpack[OnePromptOptions],
) -> Explanation:
    """Generate images of a prompt, or take one that exists, and show where the words of the prompt look.

        >>> import limelight
        >>> from limelight.viz.explain import explain
        >>> model = limelight.load("pocket", device="cpu")
        >>> explanation = explain(model, "a cat and a dog", words=["cat", "dog"], steps=2)
        >>> [figure.name for figure in explanation.figures[0]]
        ['words']

    Args:
        model: see `limelight.load`.
        words: whose maps to show; by default every word of the prompt and its compound nouns ("fire truck"), and
            behind them the words without a content ("a", "and").
        also: words that are not in the prompt, whose maps are shown behind the others; the image does not change.
        image: an image that exists, and no further one is generated: see `limelight.read_image`, also for `exact`.
        guidance: as in `generate`; None explains the plain model.
        compare: generate also without guidance, and show both and what changed.
        over_steps: show also when which word looked where.
        run: what generates, with the arguments of `generate`, for example a function that shows a progress bar.
        options: the other arguments of `generate`; with an `image`, those of `read_image`.

    Raises:
        PromptError: a word is not in the prompt.
        SettingsError: `compare` without a guidance, or an option that an image that exists has not.
        FileError: the image cannot be read.
    """
    check_model(model)
    guidance, also = guidance_of(guidance, model), beside(also)
    shown = (*_shown_words(model.prompt(prompt), words), *also)
    given: dict[str, Any] = {"record": "steps" if over_steps else True, "also": also, **options}
    if image is not None:
        _check_given({"guidance": guidance, "compare": compare, **options})
        runs = {"given": read_image(model, image, prompt, exact=exact, **given)}
    elif exact:
        raise SettingsError("exact is for an image that exists; give it as image, or leave out exact.")
    else:
        runs = _generated(model, prompt, guidance, compare, run, given)

    name = list(runs)[-1]
    moving: Sequence[Any] = ()
    if over_steps:
        moving = shown if words is not None else runs[name].subjects or shown
    figures = [_Figures(runs, shown, moving, index).all() for index in range(len(runs[name].seeds))]
    return Explanation(runs, shown, tuple(figures))


def _check_given(options: dict[str, Any]) -> None:
    """Refuse options of generated images beside one that exists."""
    for name, value in options.items():
        if name not in ("steps", "seed", "height", "width", "record", "on_step") and value:
            raise SettingsError(f"{name} is for images that are generated; leave it out, or leave out image.")


def _generated(
    model: Model,
    prompt: str,
    guidance: Guidance | None,
    compare: bool,
    run: Callable[..., Result],
    given: dict[str, Any],
) -> dict[str, Result]:
    """The runs of `explain`, by name."""
    runs = {}
    if compare:
        if guidance is None:
            raise SettingsError("There is nothing to compare without guidance; give one, or leave out the comparison.")
        # A guidance of scale 0 watches: the same image as without it, and the trace to compare the guided one with.
        runs["plain"] = run(model, prompt, guidance=replace(guidance, scale=0.0, thresholds={}), **given)
    runs["guided" if guidance else "plain"] = run(model, prompt, guidance=guidance, **given)
    return runs


def _numbers(maps: AttentionMaps, word: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The map of a word in one image, in numbers."""
    heat = maps.map(word)
    return {
        "mean": float(heat.mean()),
        "highest": float(heat.max()),
        "box": maps.box(word)[0].tolist(),
        "mask": run_lengths(maps.mask(word, size=size)[0].cpu()),
    }


def _pair(maps: AttentionMaps, one: Any, other: Any) -> dict[str, Any]:
    """What the masks of two words share in one image; None where there is no mask."""
    shares = [maps.iou(one, other), maps.ioa(one, other), maps.ioa(other, one)]
    iou, first, second = (None if share.isnan() else float(share) for share in shares)
    return {"words": [str(one), str(other)], "iou": iou, "ioa": [first, second]}


def _shown_words(prompt: Prompt, words: Sequence[str | int] | None) -> tuple[str | int, ...]:
    """The words to show, checked before the images are generated, which takes long."""
    if words is None:
        names = every_word(prompt)
        small = [name for name in names if prompt.find_words(name)[0].key in FUNCTION_WORDS]
        content = [name for name in names if name not in small]
        shown: tuple[str | int, ...] = (*content, *compound_nouns(prompt), *small)
        empty = "There is no word to explain; the prompt is empty."
    else:
        shown, empty = tuple(words), "words is empty."
    if not shown:
        raise SettingsError(empty)
    for word in shown:
        prompt.find(word)
    return shown


@dataclass(frozen=True, eq=False)
class _Figures:
    """The figures of one seed: of `words`, and of the words `moving` over the steps."""

    runs: dict[str, Result]
    words: Sequence[Any]
    moving: Sequence[Any]
    index: int

    @property
    def name(self) -> str:
        return list(self.runs)[-1]

    @property
    def result(self) -> Result:
        return self.runs[self.name]

    def all(self) -> tuple[Figure, ...]:
        figures = [self.of_words()]
        if self.name == "given":
            figures.append(self.places())
        if len(self.runs) > 1:
            figures.append(self.comparison())
        if self.result.trace:
            figures.append(self.trace())
        if self.moving:
            figures += [self.steps(), self.animation()]
        return tuple(figures)

    def of_words(self) -> Figure:
        result, prompt = self.result, self.result.settings["prompt"]
        about = (
            f"The {self.name} image of \u201c{prompt}\u201d and, over it, the attention maps of {_listed(self.words)}."
        )
        sheet = strip_sheet(result.images[self.index], result.maps, self.words, index=self.index)
        return self._tiles("words", "Where every word looked", about, sheet)

    def places(self) -> Figure:
        about = f"For each of {_listed(self.words)}: its mask in color and its box as a frame, over the image in grey."
        sheet = places_sheet(self.result.images[self.index], self.result.maps, self.words, index=self.index)
        return self._tiles("places", "Masks and boxes", about, sheet)

    def comparison(self) -> Figure:
        subjects = self.result.subjects or self.words
        about = (
            f"Plain image, guided image and their difference; below, the same for the attention of {_listed(subjects)}."
        )
        sheet = compare_sheet(self.runs["plain"], self.result, subjects, index=self.index)
        return self._tiles("compare", "Before and after guidance", about, sheet)

    def trace(self) -> Figure:
        about = (
            "Curves over the guided steps: the loss, and the presence of each subject. The numbers are in the table."
        )
        if stays_plain(self.result, self.index):
            about = "Nothing was lacking at the step that was looked at, so that the image stays the plain one."
        shown, narrow = (trace(self.result, index=self.index, plain=self.runs.get("plain"), side=n) for n in (760, 380))
        return replace(self._still("trace", "What guidance did", about, shown), narrow=png({}, narrow))

    def steps(self) -> Figure:
        about = f"The attention maps of {_listed(self.moving)} at some of the steps, from the first to the last."
        return self._tiles("steps", "Step by step", about, progress_sheet(self.result, self.moving, index=self.index))

    def animation(self) -> Figure:
        content = animation(self.result, self.moving, index=self.index)
        with Image.open(io.BytesIO(content)) as frames:
            width, height = frames.size
        about = f"The attention maps of {_listed(self.moving)} at every step, as an endless animation."
        return Figure("animation", "In motion", about, content, "webp", width, height)

    def _tiles(self, name: str, title: str, alt: str, sheet: Sheet) -> Figure:
        return replace(self._still(name, title, alt, sheet.image()), sheet=sheet)

    def _still(self, name: str, title: str, alt: str, image: Image.Image) -> Figure:
        content = png({**self.result.settings, "seed": self.result.seeds[self.index]}, image)
        return Figure(name, title, alt, content, "png", *image.size)


def _listed(words: Sequence[Any]) -> str:
    return ", ".join(f"\u201c{word}\u201d" for word in words)


def _rows(settings: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of a table."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            rows += _rows(value, f"{before}{key}: ")
        elif value not in (None, [], {}, ""):
            values = value if isinstance(value, list) else [value]
            rows.append((before + key.replace("_", " "), ", ".join(map(str, values))))
    return rows
