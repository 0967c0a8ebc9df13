"""Plain and guided images of the same seeds, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from PIL import Image

from ..attention.edits import BindableEdit, Edit
from ..errors import SettingsError
from ..guidance.base import Guidance
from ..models.base import Model
from ..prompts.subjects import Place
from ..utils.files import png, slug, user_path, write_new
from ..utils.images import grid
from .arguments import OnePromptOptions, check_model, guidance_of
from .generate import generate
from .result import Result


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several runs of the same prompt and seeds.

    Attributes:
        runs: the result of each run by its name, for example "plain" and "guided", in the order of the rows.
    """

    runs: Mapping[str, Result]

    @property
    def prompt(self) -> str:
        """The prompt of all runs."""
        prompt: str = next(iter(self.runs.values())).settings["prompt"]
        return prompt

    def sentences(self) -> tuple[str, ...]:
        """What guidance did, one sentence per seed, see `Result.sentences`."""
        return list(self.runs.values())[-1].sentences()

    def grid(self) -> Image.Image:
        """The prompt, and one row per run, with its name above it; one column per seed."""
        rows = [result.images for result in self.runs.values()]
        seeds = next(iter(self.runs.values())).seeds
        return grid(rows, list(self.runs), title=self.prompt, captions=[[f"seed {seed}" for seed in seeds]])

    def _repr_png_(self) -> bytes:
        """The `grid`, as notebooks show a comparison."""
        return png({}, self.grid())

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the files of every run, as `Result.save` does, and the grid.

        Args:
            folder: made if absent.

        Returns:
            The paths of the images, run by run; each name holds the words of the prompt, the run, the seed and a short
            hash, see `Result.save`. The last path is the grid, whose PNG holds the settings of the last run, the seeds
            and the names of the rows.

        Raises:
            FileError: the folder cannot be written.
        """
        paths = []
        for name, result in self.runs.items():
            paths += result.save(folder, f"{slug(self.prompt, 70)} {name}")

        last = list(self.runs.values())[-1]
        content = png({**last.settings, "seeds": list(last.seeds), "rows": list(self.runs)}, self.grid())
        return [*paths, write_new(user_path(folder), f"{slug(self.prompt, 70)}-grid", "png", content)]


def compare(
    model: Model,
    prompt: str,
    *,
    guidance: Guidance | str | None = None,
    edits: Sequence[Edit | BindableEdit] = (),
    place: Place | None = None,
    on_run: Callable[[str], None] = lambda name: None,
    **options: Unpack[OnePromptOptions],
) -> Comparison:
    """Generate the same seeds twice: plainly, and with guidance, boxes or edits.

    Args:
        model: see `limelight.load`.
        prompt: one prompt.
        guidance: e.g. `AttendAndExcite()` or the name of a preset; the second run is then called "guided".
        edits: attention edits of the second run, e.g. `HeadGain`; without guidance it is called "edited".
        place: boxes of subjects in the second run, see `limelight.generate`.
        on_run: called with the name of each run before it starts, e.g. for the title of a progress bar.
        options: of both runs, see `limelight.generate`.

    Raises:
        SettingsError: there is neither guidance nor a box nor an edit, so that both runs would be the same.
        PromptError, SettingsError: see `limelight.generate`.

    Examples:
        >>> import limelight
        >>> model = limelight.load("pocket", device="cpu")
        >>> guidance = limelight.AttendAndExcite.suited(model)
        >>> comparison = limelight.compare(model, "a cat and a dog", guidance=guidance, steps=2)
        >>> list(comparison.runs)
        ['plain', 'guided']
    """
    check_model(model)
    guidance = guidance_of(guidance, model)
    if guidance is None and not edits and not place:
        raise SettingsError("compare needs guidance, boxes or edits; without them both runs are the same.")
    name = "guided" if guidance or place else "edited"

    # The changed run first: a word or concept that does not exist fails before any image is generated.
    on_run(name)
    changed = generate(model, prompt, guidance=guidance, place=place, edits=edits, **options)
    on_run("plain")
    plain = generate(model, prompt, **options)
    return Comparison({"plain": plain, name: changed})
