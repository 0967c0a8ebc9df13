"""Draw the pictures of a comparison: a list of jobs, of which exactly the missing ones are done."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..editing.attention_edits import changed
from ..editing.prompt_to_prompt import edit
from ..errors import SettingsError, UnknownWords
from ..generation.generate import generate
from ..generation.provenance import exact_provenance
from ..generation.result import Result
from ..models.base import Model
from ..models.loading import load
from ..textual_inversion.word import LearnedWord
from ..utils.files import png
from ..utils.jsonl import Say
from ..utils.parallel import device_of, one_thread, open_executor
from .methods import build, parse
from .preservation import grown, written
from .store import Run, digest
from .suites import Case

Progress = Callable[[int, int], None]
"""Told how many pictures are there and how many there will be."""


@dataclass(frozen=True)
class Job:
    """One case, some seeds, one method. Its pictures are one pass, always the same one: numbers of a pass depend in
    their last digits on how many pictures it has, so a pass that was interrupted is drawn again whole."""

    method: str
    case: Case
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """What a job gave: PNG files in the order of its seeds, the hash of what they depend on, and what one cost."""

    files: list[bytes]
    settings: str
    calls: list[float]
    seconds: float


class Painter:
    """A model and the methods that draw with it: what a worker keeps.

    Args:
        labels: the methods, see `methods.parse`.
        source, device, scheduler: see `limelight.load`.
        options: of `limelight.generate`, the same for all methods.
        words: learned words that the prompts may use.
        slot: which of this machine's GPUs to take.
    """

    def __init__(
        self,
        labels: Sequence[str],
        source: str,
        device: str | None,
        scheduler: str | None,
        options: dict[str, Any],
        words: Sequence[LearnedWord] = (),
        slot: int = 0,
    ) -> None:
        self.model = load(source, device=device_of(slot, device), scheduler=scheduler)
        self._bound = ExitStack()  # for as long as the worker lives
        for word in words:
            self._bound.enter_context(word.bind(self.model))
        self.methods = {label: build(label, self.model) for label in labels}
        self._settings = {label: self._depends_on(label, options) for label in labels}
        self._hashes = {label: digest(settings) for label, settings in self._settings.items()}
        self._options = options

    def settings(self, job: None = None) -> dict[str, dict[str, Any]]:
        """All that the pictures of each method depend on."""
        return self._settings

    def check(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """The words of the cases that the model has never seen.

        Raises:
            SettingsError: a method cannot draw a case.
        """
        for edits in filter(None, (method.edit for method in self.methods.values())):
            for option in sorted(self._options.keys() & {"eta", "clip_skip"}):
                raise SettingsError(f"Edits have no {option}; leave it out.")
            for case in cases:
                edits(case)
        prompts = {method.prompt(case) for method in self.methods.values() for case in cases}
        return tuple(sorted({word for text in prompts for word in self.model.unknown(self.model.prompt(text))}))

    def draw(self, job: Job) -> Drawn:
        """Draw the pictures of a job."""
        with warnings.catch_warnings(), one_thread(self.model.device), _counted(self.model) as count:
            warnings.simplefilter("ignore", UnknownWords)  # `run` says it once, of all cases
            start = time.perf_counter()
            result, places = self._pictures(job)
            seconds = (time.perf_counter() - start) / len(job.seeds)
        files = [
            png({**result.settings, "seed": seed, **place}, image)
            for seed, image, place in zip(job.seeds, result.images, places, strict=True)
        ]
        return Drawn(files, self._hashes[job.method], _calls(result, count[0]), seconds)

    def _pictures(self, job: Job) -> tuple[Result, Sequence[dict[str, Any]]]:
        """What a job draws, and for each picture what else is written into its file."""
        method, case, count = self.methods[job.method], job.case, len(job.seeds)
        places: Sequence[dict[str, Any]] = [{}] * count
        if method.edit is not None:
            assert case.source is not None  # or `check` would have refused it
            both = edit(
                self.model, case.source, case.prompt, seeds=job.seeds, batch=2 * count, record=False,
                **method.edit(case), **self._options,
            )  # fmt: skip
            return both.target, places
        words: Sequence[str] = ()
        if method.marked and case.source is not None:
            words, _ = changed(self.model.prompt(case.source), self.model.prompt(case.prompt))
        result = generate(
            self.model,
            method.prompt(case),
            subjects=case.subjects if case.wanted and method.guidance is not None else "auto",
            seeds=job.seeds,
            guidance=method.guidance,
            batch=count,
            record=bool(words),
            **self._options,
        )
        if words:
            masks = torch.stack([result.maps.mask(word) for word in words]).any(dim=0)
            places = [{"edited": written(mask)} for mask in grown(masks)]
        return result, places

    def _depends_on(self, label: str, options: dict[str, Any]) -> dict[str, Any]:
        return {**self.methods[label].settings(), **options, **exact_provenance(self.model)}


def run(
    folder: str | os.PathLike[str],
    cases: Sequence[Case],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    model: str = "pocket",
    device: str | None = None,
    scheduler: str | None = None,
    words: Sequence[LearnedWord] = (),
    batch: int = 8,
    steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    share: float = 1,
    on_progress: Progress = lambda done, total: None,
    say: Say = lambda text: None,
    **options: Any,
) -> int:
    """Draw every case with every method and seed, and keep the pictures in a folder.

    Run again, it draws what is missing, whatever ended it before; more cases, methods and seeds may be asked for.

    Args:
        folder: see `limelight.evaluate.store`.
        cases: see `limelight.evaluate.suites`.
        methods: names of `methods.METHODS`, with settings of your own after colons ("attend-and-excite:scale=10").
        seeds: the same for all methods.
        model, device, scheduler: see `limelight.load`.
        words: learned words that the prompts may use.
        batch: most pictures in one pass, all of one case.
        engine, workers, address, share: see `limelight.utils.parallel.open_executor`.
        on_progress: told how many pictures are there, before the first and after each.
        say: told in a sentence what had to be mended.
        steps, guidance_scale, height, width: see `limelight.generate`.
        options: others of `limelight.generate`: negative; and, but for edits, eta and clip_skip.

    Returns:
        How many pictures were drawn.

    Raises:
        SettingsError: the folder's pictures were drawn with other settings, it cannot be written, the disk is full, ...
        PromptError: a subject is not in its prompt.
        ExecutorError: a job failed again and again.
    """
    for label in methods:
        parse(label)
    if not (cases and methods and seeds) or batch < 1:
        raise SettingsError("A run needs at least one prompt, one method, one seed and a batch of one picture.")
    seeds, drawn = sorted(set(seeds)), 0
    options |= {"steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    start = partial(Painter, tuple(methods), model, device, scheduler, options, tuple(words))
    with (
        Run(folder, say) as store,
        open_executor(start, engine=engine, workers=workers, address=address, gpus_per_worker=share) as executor,
    ):
        (_, settings), *_ = executor.map(Painter.settings, [None])
        (_, unknown), *_ = executor.map(Painter.check, [tuple(cases)])
        if unknown:
            say(str(UnknownWords(model, unknown)))
        store.expect(cases, {label: {**facts, "batch": batch} for label, facts in settings.items()})
        jobs = [
            Job(label, case, tuple(seeds[i : i + batch]))
            for label in dict.fromkeys(methods)
            for case in cases
            for i in range(0, len(seeds), batch)
        ]
        wanted = {(job.method, job.case.name, seed) for job in jobs for seed in job.seeds}
        there = len(wanted & store.done.keys())
        on_progress(there, len(wanted))
        left = [job for job in jobs if any((job.method, job.case.name, seed) not in store.done for seed in job.seeds)]
        expected = {label: digest(facts) for label, facts in settings.items()}
        for job, result in executor.map(Painter.draw, left):
            if result.settings != expected[job.method]:
                raise SettingsError(
                    f"Two workers would draw '{job.method}' differently: they have other weights, versions or devices."
                )
            for seed, file, calls in zip(job.seeds, result.files, result.calls, strict=True):
                if (job.method, job.case.name, seed) not in store.done:
                    store.add(job.method, job.case.name, seed, file, calls, result.seconds)
                    drawn += 1
                    on_progress(there + drawn, len(wanted))
    return drawn


@contextmanager
def _counted(model: Model) -> Iterator[list[int]]:
    """Counts denoiser passes: a pass for one branch of one picture is one, also where guidance ends it early."""
    count = [0]

    def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count[0] += len(args[0] if args else kwargs["sample"])

    handle = model.denoiser.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def _calls(result: Result, total: int) -> list[float]:
    """The passes of each picture: refinements are its own, all else is shared evenly."""
    extra = [sum(row["refinements"][i] for row in result.trace) for i in range(len(result.seeds))]
    common = (total - sum(extra)) / len(extra)
    return [common + own for own in extra]
