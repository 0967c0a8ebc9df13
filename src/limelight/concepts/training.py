"""A training in a folder, which goes on where it was whatever ended it, and tells what was learned."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import SettingsError
from ..generate import generate
from ..models.base import Model
from ..result import grid, png, write
from .concept import Concept
from .inversion import TrainStep, encode, held_loss, invert
from .pictures import Pictures, Source, sentences
from .report import card, curve
from .state import InversionConfig, TrainState

STATE, CONCEPT, LOSSES = "state", "learned_embeds.safetensors", "loss.csv"


@dataclass(frozen=True)
class Row:
    """A line of `loss.csv`: how the training stood after a step; before the first, where a training has no loss yet.

    Attributes:
        step: how many steps were done.
        held: `held_loss`; None where it was not measured.
        loss, attention, gradient: see `TrainStep`.
        norm, cosine: see `TrainState`.
    """

    step: int
    held: float | None
    loss: float | None
    attention: float | None
    gradient: float | None
    norm: float
    cosine: float


@dataclass(frozen=True)
class Report:
    """What a training came to.

    Attributes:
        concept: the learned word.
        rows: one per step, and one before the first.
        stopped: whether it ended early, because nothing more was gained; `concept` is then that of the best step.
    """

    concept: Concept
    rows: tuple[Row, ...]
    stopped: bool

    @property
    def held(self) -> tuple[Row, ...]:
        """The rows in which the loss on fixed noise was measured."""
        return tuple(row for row in self.rows if row.held is not None)

    @property
    def best(self) -> Row:
        """The row with the least loss on fixed noise."""
        return min(self.held, key=lambda row: row.held or 0.0)

    def facts(self) -> dict[str, Any]:
        """In numbers, for `concept.json`."""
        last = self.rows[-1]
        return {
            "steps": last.step,
            "stopped_early": self.stopped,
            "held_loss_at_first": self.held[0].held,
            "held_loss": self.held[-1].held,
            "best_step": self.best.step,
            "held_loss_at_best": self.best.held,
            "cosine_to_init": last.cosine,
            "norm_of_init": last.norm,
        }


def learn(
    model: Model,
    source: Source,
    config: InversionConfig,
    folder: Path,
    *,
    resume: bool = False,
    start: Concept | None = None,
    every: int | None = None,
    patience: int | None = None,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2, 3),
    preview_steps: int = 25,
    on_step: Callable[[TrainStep], None] = lambda step: None,
    on_save: Callable[[Row], None] = lambda row: None,
) -> Report:
    """Learn a word and keep everything in a folder.

    The folder holds, at any moment and whatever ends the program, a training that can go on: `state.safetensors` and
    `state.json`; besides them the word as diffusers reads it (`learned_embeds.safetensors`, `token_identifier.txt`,
    that of every save in `steps/`), `concept.json`, `previews/`, `loss.csv`, `loss.png` (with matplotlib) and a card
    (`README.md`).

    Args:
        source: the pictures, see `limelight.concepts.pictures.Source`.
        folder: made if absent; of its own for every training.
        resume: go on with the training in the folder, whose settings must be these but for `steps`.
        start: another concept whose vectors the word begins with, instead of `config.init`'s.
        every: steps between saves; by default a tenth of all, at least 50.
        patience: end when so many saves in a row have not lowered the loss on fixed noise, and keep the best step's.
        prompts: to be drawn at every save, with the token in them; besides "a photo of a <token>".
        seeds, preview_steps: of those pictures.
        on_step, on_save: called after every step and every save.

    Raises:
        SettingsError: the folder holds another training, or is in use; or see `invert`.
        KeyboardInterrupt: as it came; the last step is saved.
    """
    if not resume:
        _check_free(folder)
    # Whatever is wrong is found out before anything is written.
    pictures = encode(model, source, config)
    begun = None if start is None else start.vectors
    state = TrainState.load(folder / STATE) if resume else TrainState.begin(model, pictures, config, begun)
    training = _Training(model, pictures, config, folder, tuple(prompts), tuple(seeds), preview_steps)
    with closing(invert(model, pictures, config, state=state)) as steps, _alone(folder):
        return training.run(steps, state, every or max(config.steps // 10, 50), patience, on_step, on_save)


def taken(folder: Path) -> bool:
    """Whether a folder holds a training or a concept."""
    return any((folder / name).exists() for name in (f"{STATE}.json", f"{STATE}.safetensors", CONCEPT))


def _check_free(folder: Path) -> None:
    if taken(folder):
        raise SettingsError(
            f"'{folder}' holds a training or a concept already; go on with it (--resume), or choose another folder "
            "(--out)."
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder one's own."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingsError(
            f"Another program is learning in '{folder}'; wait for it, or choose another folder."
        ) from None
    except OSError as error:
        raise SettingsError(f"'{folder}' cannot be written: {error.strerror or error}.") from error
    try:
        for part in folder.rglob(".*.part"):  # of a training that was killed while it wrote
            part.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


class _Training:
    """What a training writes."""

    def __init__(
        self,
        model: Model,
        pictures: Pictures,
        config: InversionConfig,
        folder: Path,
        prompts: tuple[str, ...],
        seeds: tuple[int, ...],
        preview_steps: int,
    ) -> None:
        self.model, self.pictures, self.config, self.folder = model, pictures, config, folder
        self.prompts = (config.text(sentences(model, config.templates)[0]), *prompts)
        for prompt in self.prompts:
            if config.token not in prompt:
                raise SettingsError(f"The preview '{prompt}' lacks the word that is learned: {config.token}.")
        self.seeds, self.preview_steps = seeds, preview_steps
        self.rows: list[Row] = []
        self.stopped = False

    def run(
        self,
        steps: Iterator[TrainStep],
        state: TrainState,
        every: int,
        patience: int | None,
        on_step: Callable[[TrainStep], None],
        on_save: Callable[[Row], None],
    ) -> Report:
        self.rows = [row for row in read_losses(self.folder / LOSSES) if row.step <= state.step]
        if not self.rows:
            state.save(self.folder / STATE)  # from here on there is a training to go on with
            with state.concept.bind(self.model):
                self._measure(state, Row(state.step, None, None, None, None, state.norm, state.cosine), on_save)
        self.stopped = self._done(patience)
        try:
            while not self.stopped and (step := next(steps, None)) is not None:
                state = step.state
                self.rows.append(
                    Row(state.step, None, step.loss, step.attention, step.gradient, state.norm, state.cosine)
                )
                on_step(step)
                if state.step % every == 0 or state.step == self.config.steps:
                    self._measure(state, self.rows.pop(), on_save)
                    self.stopped = self._done(patience)
        except KeyboardInterrupt:
            self._save(state)
            raise
        return self._save(state)

    def _done(self, patience: int | None) -> bool:
        """Whether the last `patience` measurements gained nothing."""
        held = [row.held for row in self.rows if row.held is not None]
        return patience is not None and len(held) > patience and min(held[-patience:]) >= min(held[:-patience])

    def _measure(self, state: TrainState, row: Row, on_save: Callable[[Row], None]) -> None:
        """Measure, draw and save while the model knows the word."""
        row = replace(row, held=held_loss(self.model, self.pictures, self.config))
        options: dict[str, Any] = {"steps": self.preview_steps, "subjects": [()] * len(self.prompts), "record": False}
        drawn = generate(self.model, list(self.prompts), seeds=self.seeds, **options)
        settings = {**drawn[0].settings, "prompt": list(self.prompts), "seeds": list(self.seeds), "step": state.step}
        sheet = grid([result.images for result in drawn], list(self.prompts))
        write(self.folder / "previews" / f"{state.step:06}.png", png(settings, sheet))
        state.concept.save(self._kept(state.step))
        self.rows.append(row)
        self._save(state)
        on_save(row)

    def _kept(self, step: int) -> Path:
        return self.folder / "steps" / f"learned_embeds-steps-{step}.safetensors"

    def _save(self, state: TrainState) -> Report:
        """Everything but the state may be newer than the state: going on writes it again."""
        report = Report(state.concept, tuple(self.rows), self.stopped)
        if self.stopped:
            report = replace(report, concept=Concept.load(self._kept(report.best.step)))
        write(self.folder / LOSSES, losses(self.rows))
        report.concept.save(self.folder)
        facts = {**report.concept.about, "token": report.concept.token, "report": report.facts()}
        write(self.folder / "concept.json", json.dumps(facts, indent=1, ensure_ascii=False).encode())
        drawn = curve(report.rows)
        if drawn is not None:
            write(self.folder / "loss.png", png({}, drawn))
        shown = f"previews/{report.held[-1].step:06}.png"
        write(self.folder / "README.md", card(report, shown, self.prompts).encode())
        state.save(self.folder / STATE)
        return report


def losses(rows: Sequence[Row]) -> bytes:
    """Rows as a CSV file; what was not measured is empty."""
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    names = [f.name for f in fields(Row)]
    writer.writerow(names)
    for row in rows:
        writer.writerow(["" if (value := getattr(row, name)) is None else repr(value) for name in names])
    return held.getvalue().encode()


def read_losses(path: Path) -> list[Row]:
    """The rows of a file of `losses`; none where there is no file.

    Raises:
        SettingsError: it cannot be read.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        return [Row(int(x.pop("step")), **{k: float(v) if v else None for k, v in x.items()}) for x in lines]  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"'{path}' cannot be read: {error}.") from error
