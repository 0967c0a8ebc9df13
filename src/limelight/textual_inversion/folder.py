"""A training in a folder: it can be resumed after any interruption, and reports what was learned."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import FileError, SettingsError
from ..generation.generate import generate
from ..models import loading
from ..models.base import Model
from ..utils.files import json_text, lock_folder, png, write
from ..utils.images import grid
from ..utils.reading import from_python, reading
from .card import card, curve
from .config import TrainingConfig
from .dataset import Source, TrainingImages, sentences
from .low_rank import rank_of
from .state import TrainState
from .training import TrainStep, encode, held_loss, train_word
from .word import LearnedWord

STATE, WORD, LOSSES, FACTS = "state.safetensors", "learned_embeds.safetensors", "loss.csv", "word.json"
BUSY = "Another program is learning in '{folder}'. Wait until it ends, or choose another folder."


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
        word: the learned word.
        rows: one per step, and one before the first.
        stopped: whether it ended early, because nothing more was gained; `word` is then that of the best step.
    """

    word: LearnedWord
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
        """In numbers, for `word.json`."""
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


def _ignore(_: Any) -> None:
    """The callback of a caller that wants none."""


@dataclass(frozen=True)
class _Plan:
    """When a training saves, what it generates then, and whom it calls."""

    save_every: int
    patience: int | None
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    preview_steps: int
    on_step: Callable[[TrainStep], None]
    on_save: Callable[[Row], None]


def learn(
    model: Model | str | Path | None,
    images: Source,
    config: TrainingConfig | Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    start: LearnedWord | str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    patience: int | None = None,
    preview: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2, 3),
    preview_steps: int = 25,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    on_begin: Callable[[TrainState], None] = _ignore,
    on_step: Callable[[TrainStep], None] = _ignore,
    on_save: Callable[[Row], None] = _ignore,
) -> Report:
    """Learn a word from a few images and keep everything in a folder.

    The folder holds a training that can be resumed at any moment, whatever ends the program: `state.safetensors`. It
    also holds the word as diffusers reads it (`learned_embeds.safetensors`, `token_identifier.txt`, and that of every
    save in `steps/`), `word.json`, `previews/`, `loss.csv`, `loss.png` (with matplotlib) and a card (`README.md`).

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder, teal = tempfile.mkdtemp(), Image.new("RGB", (64, 64), "teal")
        >>> config = {"token": "<teal>", "init": "cat", "steps": 1, "batch": 1}
        >>> report = limelight.learn("pocket", teal, config, folder, seeds=[0], preview_steps=1, device="cpu")
        >>> report.word.token, report.rows[-1].step
        ('<teal>', 1)
        >>> limelight.LearnedWord.load(folder).token
        '<teal>'

    Args:
        model: a `Model`, or what `limelight.load` opens; None opens the model of the resumed training, or "pocket".
        images: a folder, an image or its file, or several of the latter; three to six images of one thing are usual.
        config: a `TrainingConfig`, or a mapping with some of its fields. Fields that a mapping leaves out are those of
            the resumed training, or those that suit the model (`TrainingConfig.suited`).
        folder: created if absent; every training needs its own.
        resume: continue the training in the folder. Its settings must stay the same, except `steps`.
        start: another learned word, or its file, whose vectors and changes of the denoiser the word begins with
            instead of those of `config.init`. Where `config` is a mapping without `vectors` or `rank`, the word gets as
            many, and the same rank.
        save_every: steps between saves, at least 1; by default a tenth of all, at least 50.
        patience: stop when so many saves in a row have not lowered the loss on fixed noise, and keep the best step's.
        preview: prompts to generate at every save, with the token in them, besides "a photo of a <token>".
        seeds: of the previews.
        preview_steps: denoising steps of the previews.
        device: where to open a model that is given by name, see `limelight.load`.
        dtype: of a model that is given by name; by default bfloat16 on CUDA and float32 elsewhere.
        on_begin: called with the training's state before the first step.
        on_step: called after every step.
        on_save: called after every save.

    Returns:
        The learned word and one row of numbers per step.

    Raises:
        FileError: the folder holds another training, is in use, or cannot be read or written.
        SettingsError: a setting is out of its range or does not fit the model, see `train_word`.
        KeyboardInterrupt: as it came; the last step is saved.
    """
    folder = Path(folder)
    if start is not None and not isinstance(start, LearnedWord):
        start = LearnedWord.load(start)
    saved = _saved(folder, resume)
    model = _opened(model, saved, device, dtype)
    if not isinstance(config, TrainingConfig):
        config = _settings(model, config, saved, start)

    # Find every mistake before anything is written.
    encoded = encode(model, images, config)
    state = saved or TrainState.begin(model, encoded, config, start)
    prompts = _previews(model, config, preview)
    every = save_every or max(config.steps // 10, 50)
    plan = _Plan(every, patience, prompts, tuple(seeds), preview_steps, on_step, on_save)

    with closing(train_word(model, encoded, config, state=state)) as steps, lock_folder(folder, BUSY):
        on_begin(replace(state, config=config))
        return _Training(model, encoded, config, folder, plan).run(steps, state)


def taken(folder: Path) -> bool:
    """Whether a folder holds a training or a learned word."""
    return any((folder / name).exists() for name in (STATE, WORD))


def _saved(folder: Path, resume: bool) -> TrainState | None:
    """The training to resume; None for a new one, which needs a free folder."""
    if resume:
        return TrainState.load(folder / STATE)
    if taken(folder):
        raise FileError(
            f"'{folder}' holds a training or a learned word already. Resume it (--resume), or choose another folder "
            "(--out)."
        )
    return None


def _opened(
    model: Model | str | Path | None, saved: TrainState | None, device: str | None, dtype: torch.dtype | None
) -> Model:
    """The model, opened in a precision that gradients survive if it is not open."""
    if isinstance(model, Model):
        return model
    if model is None:
        model = saved.about["model"] if saved else "pocket"
    if dtype is None:
        cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
        dtype = torch.bfloat16 if cuda else torch.float32
    return loading.load(model, device=device, dtype=dtype)


def _settings(
    model: Model, changes: Mapping[str, Any], saved: TrainState | None, start: LearnedWord | None
) -> TrainingConfig:
    """The settings of a training: the saved ones or those that suit the model, with changes."""
    changes = dict(changes)
    if start is not None:
        changes.setdefault("vectors", len(start.vectors[0]))
        changes.setdefault("rank", rank_of(start.changes))
    return TrainingConfig.suited(model, **changes) if saved is None else replace(saved.config, **changes)


def _previews(model: Model, config: TrainingConfig, preview: Sequence[str]) -> tuple[str, ...]:
    """The prompts of the previews.

    Raises:
        SettingsError: one of them lacks the token.
    """
    for prompt in preview:
        if config.token not in prompt:
            raise SettingsError(f"The preview '{prompt}' lacks the word that is learned: {config.token}.")
    return (config.text(sentences(model, config.templates)[0]), *preview)


class _Training:
    """The files of a training."""

    def __init__(self, model: Model, images: TrainingImages, config: TrainingConfig, folder: Path, plan: _Plan) -> None:
        self.model, self.images, self.config, self.folder, self.plan = model, images, config, folder, plan
        self.rows: list[Row] = []
        self.stopped = False
        self._state_there: TrainState | None = None  # the state that the folder holds
        self._report: Report | None = None  # what the folder's other files show

    def run(self, steps: Iterator[TrainStep], state: TrainState) -> Report:
        self.rows = [row for row in read_losses(self.folder / LOSSES) if row.step <= state.step]
        if not self.rows:
            self._save_state(state)  # from here on there is a training to resume
            self.rows.append(Row(state.step, None, None, None, None, state.norm, state.cosine))
            with state.word.bind(self.model):
                self._measure(state)

        self.stopped = self._done()
        try:
            while not self.stopped and (step := next(steps, None)) is not None:
                state = step.state
                self.rows.append(
                    Row(state.step, None, step.loss, step.attention, step.gradient, state.norm, state.cosine)
                )
                self.plan.on_step(step)
                if state.step % self.plan.save_every == 0 or state.step == self.config.steps:
                    self._measure(state)
                    self.stopped = self._done()
        except KeyboardInterrupt:
            self._save(state)
            raise
        return self._save(state)

    def _done(self) -> bool:
        """Whether the last `patience` measurements gained nothing."""
        patience = self.plan.patience
        held = [row.held for row in self.rows if row.held is not None]
        return patience is not None and len(held) > patience and min(held[-patience:]) >= min(held[:-patience])

    def _measure(self, state: TrainState) -> None:
        """Measure, generate and save while the model knows the word."""
        plan, prompts = self.plan, list(self.plan.prompts)
        held = held_loss(self.model, self.images, self.config)
        options: dict[str, Any] = {"steps": plan.preview_steps, "subjects": [()] * len(prompts), "record": False}
        results = generate(self.model, prompts, seeds=plan.seeds, **options)

        settings = {**results[0].settings, "prompt": prompts, "seeds": list(plan.seeds), "step": state.step}
        captions = [[f"seed {seed}" for seed in plan.seeds]]
        sheet = grid([result.images for result in results], prompts, title=f"step {state.step}", captions=captions)
        write(self.folder / "previews" / f"{state.step:06}.png", png(settings, sheet))
        state.word.save(self._kept(state.step))

        self.rows[-1] = replace(self.rows[-1], held=held)
        self._save(state)
        plan.on_save(self.rows[-1])

    def _kept(self, step: int) -> Path:
        """Where the word of a save is: a file, or a folder where it changes the denoiser."""
        name = f"learned_embeds-steps-{step}"
        return self.folder / "steps" / (name if self.config.rank else f"{name}.safetensors")

    def _save(self, state: TrainState) -> Report:
        """Write all files, the state last: any other may be newer than the state, resuming writes it again."""
        report = Report(state.word, tuple(self.rows), self.stopped)
        if self._report is not None and (self._report.rows, self._report.stopped) == (report.rows, report.stopped):
            return self._report
        if self.stopped:
            report = replace(report, word=LearnedWord.load(self._kept(report.best.step)))

        write(self.folder / LOSSES, losses(self.rows))
        report.word.save(self.folder)
        facts = {**report.word.about, "token": report.word.token, "report": report.facts()}
        write(self.folder / FACTS, json_text(facts, indent=1).encode())
        (self.folder / "concept.json").unlink(missing_ok=True)  # the name that earlier versions gave that file

        curves = curve(report.rows)
        if curves is not None:
            write(self.folder / "loss.png", png({}, curves))
        shown = f"previews/{report.held[-1].step:06}.png"
        write(self.folder / "README.md", card(report, shown, self.plan.prompts).encode())
        self._save_state(state)
        self._report = report
        return report

    def _save_state(self, state: TrainState) -> None:
        if state is not self._state_there:
            state.save(self.folder / STATE)
            (self.folder / "state.json").unlink(missing_ok=True)  # the part of it that earlier versions wrote apart
            self._state_there = state


def losses(rows: Sequence[Row]) -> bytes:
    """Rows as a CSV file; what was not measured is empty."""
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow([f.name for f in fields(Row)])
    writer.writerows(map(astuple, rows))
    return held.getvalue().encode()


def read_losses(path: Path) -> list[Row]:
    """Read the rows of a file of `losses`; none where there is no file.

    Raises:
        FileError: it cannot be read.
    """
    if not path.exists():
        return []
    rows = []
    with reading(path, "losses", "begin another training in another folder"), path.open(newline="") as file:
        for line in csv.DictReader(file):
            rows.append(from_python(Row, {name: cell or None for name, cell in line.items()}))
    return rows
