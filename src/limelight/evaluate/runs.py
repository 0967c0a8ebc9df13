"""Generate the images of a comparison: a list of jobs, of which exactly the missing ones are done."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, product, starmap
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..editing.attention_edits import changed
from ..editing.prompt_to_prompt import edit
from ..errors import PromptWarning, SettingsError
from ..generation.generate import generate
from ..generation.plan import checked, negatives, prompt_warnings
from ..generation.provenance import exact_provenance
from ..generation.result import Result
from ..models.base import Model
from ..models.loading import LoadOptions, check_options, load
from ..textual_inversion.word import LearnedWord
from ..utils.files import png
from ..utils.jsonl import Say
from ..utils.numbers import check_sampling
from ..utils.parallel import Executor, device_of, in_this_process, one_thread, open_executor
from .methods import Own, build, named
from .preservation import grown, mask_png
from .store import Key, Run, digest
from .suites import Case

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Progress = Callable[[int, int], None]
"""Called with how many images are there and how many there will be."""


@dataclass(frozen=True)
class Job:
    """One case, some seeds, one method.

    Its images are one pass, always the same one: numbers of a pass depend in their last digits on how many images it
    has, so a pass that was interrupted is generated again as a whole.
    """

    method: str
    case: Case
    seeds: tuple[int, ...]

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """Method, name of the case and seed of each image, as in the manifest."""
        return [(self.method, self.case.name, seed) for seed in self.seeds]


@dataclass(frozen=True)
class GeneratedPass:
    """The output of a job.

    Attributes:
        files: PNG files in the order of the job's seeds.
        masks: for each, the PNG file of the place that an edit is about; None where there is none.
        settings: the hash of what they depend on.
        calls: denoiser passes of each image.
        seconds: wall time of one image.
    """

    files: list[bytes]
    masks: list[bytes | None]
    settings: str
    calls: list[float]
    seconds: float


class Worker:
    """A model and the methods that generate with it: what a worker process keeps.

    Args:
        methods: by their labels, see `methods.named`.
        source, device, scheduler, loading: see `limelight.load`; an open model is taken as it is.
        options: of `limelight.generate`, the same for all methods.
        words: learned words that the prompts may use.
        slot: which of this machine's GPUs to take.
    """

    def __init__(
        self,
        methods: Mapping[str, Own],
        source: str | Path | Model | DiffusionPipeline,
        device: str | None,
        scheduler: str | None,
        loading: LoadOptions,
        options: dict[str, Any],
        words: Sequence[LearnedWord] = (),
        slot: int = 0,
    ) -> None:
        if isinstance(source, Model):
            self.model = source
        else:
            own = (
                device_of(slot, device) if isinstance(source, str | Path) else device
            )  # a live pipeline stays where it is
            self.model = load(source, device=own, scheduler=scheduler, **cast(Any, loading))
        self._bound = ExitStack()  # for as long as the worker lives
        for word in words:
            self._bound.enter_context(word.bind(self.model))
        if options.get("guidance_scale", 0) is None:
            options = {**options, "guidance_scale": self.model.guidance_scale}
        self.methods = {label: build(own, self.model) for label, own in methods.items()}
        common = {**options, **exact_provenance(self.model)}
        self._settings = {label: {**method.settings(), **common} for label, method in self.methods.items()}
        self._options = options

    def settings(self, job: None = None) -> dict[str, dict[str, Any]]:
        """Return all that the images of each method depend on."""
        return self._settings

    def check(self, cases: Sequence[Case]) -> tuple[str, ...]:
        """Return what the model does not read as it is written, as sentences.

        Raises:
            SettingsError: a method cannot generate a case.
        """
        lacking = sorted(self._options.keys() & {"eta", "clip_skip"})
        for method in self.methods.values():
            if method.edit is None:
                continue
            if lacking:
                raise SettingsError(f"Edits have no {lacking[0]}; leave it out.")
            for case in cases:
                method.edit(case)

        prompts = list(map(self.model.prompt, self._texts(cases)))
        return tuple(map(str, prompt_warnings(self.model, prompts, negatives(self._options.get("negative"), 1))))

    def _texts(self, cases: Sequence[Case]) -> list[str]:
        """Return every prompt that the methods read for the cases."""
        texts = set[str]()
        for method in self.methods.values():
            texts.update(map(method.prompt, cases))
            if method.edit is not None:
                texts.update(case.source for case in cases if case.source)
        return sorted(texts)

    def generate(self, job: Job) -> GeneratedPass:
        """Generate the images of a job."""
        with warnings.catch_warnings(), one_thread(self.model.device), _counted(self.model) as count:
            warnings.simplefilter("ignore", PromptWarning)  # `run` says it once, of all cases
            start = time.perf_counter()
            result, masks = self._images(job)
            seconds = (time.perf_counter() - start) / len(job.seeds)

        files = []
        for seed, image in zip(result.seeds, result.images, strict=True):  # after an audition not the job's
            files.append(png({**result.settings, "seed": seed}, image))
        settings = digest(self._settings[job.method])
        return GeneratedPass(files, masks, settings, _calls(result, count[0]), seconds)

    def _images(self, job: Job) -> tuple[Result, list[bytes | None]]:
        """Return the images of a job, and the mask of each: where the words are that an edit changes."""
        method, case = self.methods[job.method], job.case
        if method.edit is not None:
            return self._edited(job, method.edit(case)), [None] * len(job.seeds)
        if not method.marked or case.source is None:
            return self._sampled(job), [None] * len(job.seeds)

        words, _ = changed(self.model.prompt(case.source), self.model.prompt(case.prompt))
        if not words:
            return self._sampled(job), [None] * len(job.seeds)
        result = self._sampled(job, record=True)
        masks = torch.stack(list(map(result.maps.mask, words))).any(dim=0)
        return result, list(map(mask_png, grown(masks)))

    def _edited(self, job: Job, settings: dict[str, Any]) -> Result:
        """Edit the images of the case's source prompt."""
        assert job.case.source is not None  # or `check` would have refused it
        both = edit(
            self.model,
            job.case.source,
            job.case.prompt,
            seeds=job.seeds,
            batch=2 * len(job.seeds),
            record=False,
            **settings,
            **self._options,
        )
        return both.target

    def _sampled(self, job: Job, record: bool = False) -> Result:
        """Generate the images from noise."""
        method, case = self.methods[job.method], job.case
        return generate(
            self.model,
            method.prompt(case),
            subjects=case.subjects if case.wanted and method.needs_subjects else "auto",
            seeds=job.seeds,
            guidance=method.guidance,
            audition=method.audition,
            batch=len(job.seeds),
            record=record,
            **self._options,
        )


def run(
    folder: str | os.PathLike[str],
    cases: Sequence[Case],
    methods: Sequence[str] | Mapping[str, Own],
    seeds: Sequence[int],
    *,
    model: str | Path | Model | DiffusionPipeline = "pocket",
    device: str | None = None,
    scheduler: str | None = None,
    loading: LoadOptions | None = None,
    words: Sequence[LearnedWord] = (),
    batch: int = 8,
    steps: int = 50,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus_per_worker: float = 1,
    on_progress: Progress = lambda done, total: None,
    say: Say = lambda text: None,
    about: Mapping[str, str] | None = None,
    **options: Any,
) -> int:
    """Generate images of every case with every method and seed, and keep them in a folder.

    A second call generates what is missing, whatever ended the first; cases, methods and seeds may be added.

    Args:
        folder: see `limelight.evaluate.store`.
        cases: see `limelight.evaluate.suites`.
        methods: names of `methods.METHODS`, with settings of your own after colons ("attend-and-excite:scale=10"), or
            "module:object" for a guidance or an objective that can be imported. Or methods of your own by their names:
            ``{"plain": "plain", "mine": limelight.Guidance(...)}``.
        seeds: the same for all methods.
        model: see `limelight.load`. What is open (a model, or a live pipeline with its LoRA) works in this process.
        device, scheduler: see `limelight.load`; not of an open model.
        loading: how the weights are kept, ``{"dtype": "bfloat16", "quantize": "8bit", "offload": "model"}`` or a part
            of these, see `limelight.load`; not of an open model.
        words: learned words that the prompts may use.
        batch: most images in one pass, all of one case.
        engine, workers, address, gpus_per_worker: see `limelight.utils.parallel.open_executor`.
        on_progress: called with how many images are there and how many there will be, before the first and after each.
        say: called with a sentence about what had to be repaired.
        about: what reports show of this call, for example {"suite": "attend-excite"}; no image depends on it.
        steps, guidance_scale, height, width: see `limelight.generate`.
        options: others of `limelight.generate`: negative; and, but for edits, eta and clip_skip.

    Returns:
        How many images were generated.

    Raises:
        SettingsError: the folder's images were generated with other settings, a method cannot generate a case, ...
        FileError: the folder cannot be written, the disk is full, or another run writes it.
        PromptError: a subject is not in its prompt.
        ExecutorError: a job failed again and again.

    Examples:
        >>> import tempfile
        >>> from limelight.evaluate.suites import Case, wanted
        >>> cases = [Case("a cat and a dog", "animals", wanted("a cat and a dog"))]
        >>> run(tempfile.mkdtemp(), cases, ["plain"], seeds=[0, 1], steps=2, workers=1)
        2
    """
    # Before workers are started.
    check_sampling(steps=steps, height=height, width=width, guidance_scale=guidance_scale, batch=batch)
    check_options(loading or {})
    own = named(methods)
    if not isinstance(model, str | Path):
        opening = {"device": device, "scheduler": scheduler, "loading": loading} if isinstance(model, Model) else {}
        workers = in_this_process(type(model).__name__, engine, workers, **opening)
    jobs = _jobs(list(own), cases, sorted(set(checked(seeds))), batch)
    options |= {"steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
    start = partial(Worker, own, model, device, scheduler, loading or {}, options, tuple(words))
    with (
        Run(folder, say) as store,
        open_executor(
            start, engine=engine, workers=workers, address=address, gpus_per_worker=gpus_per_worker
        ) as executor,
    ):
        (_, settings), *_ = executor.map(Worker.settings, [None])
        (_, notes), *_ = executor.map(Worker.check, [tuple(cases)])
        for note in notes:
            say(note)

        store.expect(cases, {label: {**facts, "batch": batch} for label, facts in settings.items()})
        store.note(about or {})
        return _add_missing(store, executor, jobs, settings, on_progress)


def _jobs(methods: Sequence[str], cases: Sequence[Case], seeds: Sequence[int], batch: int) -> list[Job]:
    """Plan the passes of a run, the same whatever is there already."""
    if not (cases and methods and seeds):
        raise SettingsError("A run needs at least one prompt, one method and one seed.")

    parts = [tuple(seeds[i : i + batch]) for i in range(0, len(seeds), batch)]
    return list(starmap(Job, product(dict.fromkeys(methods), cases, parts)))


def _add_missing(
    store: Run, executor: Executor, jobs: Sequence[Job], settings: Mapping[str, Any], on_progress: Progress
) -> int:
    """Do the jobs of which an image is missing, add these images, and return how many they are."""
    wanted = set[Key](chain.from_iterable(map(attrgetter("keys"), jobs)))
    there = len(wanted & store.done.keys())
    generated = 0
    on_progress(there, len(wanted))

    left = [job for job in jobs if not store.done.keys() >= set(job.keys)]
    for job, result in executor.map(Worker.generate, left):
        if result.settings != digest(settings[job.method]):
            raise SettingsError(
                f"Two workers would generate '{job.method}' differently: they have other weights, versions or devices."
            )
        for key, file, mask, calls in zip(job.keys, result.files, result.masks, result.calls, strict=True):
            if key in store.done:
                continue
            store.add(key, file, mask, calls, result.seconds)
            generated += 1
            on_progress(there + generated, len(wanted))
    return generated


@contextmanager
def _counted(model: Model) -> Iterator[list[int]]:
    """Count denoiser passes: a pass for one branch of one image is one, also where guidance ends it early."""
    count = [0]

    def add(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count[0] += len(next(iter((*args, *kwargs.values()))))  # of images, however the family calls them

    handle = model.denoiser.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def _calls(result: Result, total: int) -> list[float]:
    """Return the passes of each image: refinements and searches are its own, all else is shared evenly."""
    extra = none = [0] * len(result.seeds)
    for row in result.trace:
        extra = list(map(sum, zip(extra, row["refinements"], row.get("searches", none), strict=True)))
    common = (total - sum(extra)) / len(extra)
    return [common + own for own in extra]
