"""Run a validation: stage after stage, each kept in a file, so that a killed one goes on where it was."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from ..errors import LimelightError, MissingDependency, PromptWarning, SettingsError, SizeWarning
from ..evaluate.store import difference
from ..generation.provenance import fingerprint
from ..models.loading import LoadOptions, check_options
from ..utils.files import check_free, json_text, lock_folder, user_path, write
from ..utils.jsonl import Say
from ..utils.numbers import check_sampling
from ..utils.reading import first_line, from_json, reading
from .context import BUDGET, Context, Settings, Skip
from .machine import versions
from .outcome import FINAL, Outcome
from .report import write_report
from .stages import STAGES, chosen


def validate(
    source: str = "pocket",
    out: str | os.PathLike[str] = "validation",
    *,
    stages: Sequence[str] | None = None,
    budget: float = BUDGET,
    device: str | None = None,
    loading: LoadOptions | None = None,
    scheduler: str | None = None,
    steps: int = 50,
    height: int | None = None,
    width: int | None = None,
    backbones: Mapping[str, str] | None = None,
    save_preset: str | os.PathLike[str] | None = None,
    say: Say = lambda text: None,
    on_stage: Callable[[str, Outcome | None], None] = lambda name, outcome: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Check on a model what limelight claims, and write validation.html, validation.json and validation.md.

    Every stage that is done is kept. A second call with the same settings does what is missing, whatever ended the
    first; stages may be added, and those that were skipped or broken are tried again.

    Args:
        source: see `limelight.load`.
        out: folder, made if absent.
        stages: names of `limelight.validate.stages.STAGES`; by default all. "load" is always among them.
        budget: seconds; how many images a stage takes follows from it.
        device, scheduler: see `limelight.load`.
        loading: how the weights are kept, ``{"dtype": "bfloat16", "quantize": "8bit"}`` for example, see there.
        steps, height, width: of the images; see `limelight.generate`.
        backbones: "clip", "captioner" and "detector", each a hub id, a folder, "pocket" or "none"; by default the
            embedded ones for the embedded model, and the papers' for others.
        save_preset: where a limelight.json with what stage "calibrate" chose is written, a folder or a file. A model's
            folder that holds it is loaded with these settings.
        say: called with notes.
        on_stage: called with each stage before it (and None) and after it.
        on_progress: called with how much of a stage is done, and of how much.

    Returns:
        The path of the page.

    Raises:
        SettingsError: a setting is out of range, or the folder has a validation with other settings.
        FileError: the folder cannot be written, or another program writes it, or another preset is where it is saved.
        MissingDependency: jinja2 is not installed.

    Examples:
        >>> import tempfile
        >>> page = validate("pocket", tempfile.mkdtemp(), stages=["load"], device="cpu")
        >>> page.name
        'validation.html'
    """
    names = chosen(stages)
    if save_preset is not None and "calibrate" not in names:
        raise SettingsError("save_preset needs the stage 'calibrate'; add it to stages.")
    _check(budget, loading or {}, steps, height, width)
    settings = Settings(
        source=source,
        device=device,
        **cast(Any, loading or {}),
        scheduler=scheduler,
        steps=steps,
        height=height,
        width=width,
        budget=float(budget),
        backbones=dict(backbones or {}),
    )
    folder = user_path(out)
    with lock_folder(folder):
        _expect(folder, settings)
        context = Context(settings=settings, out=folder, say=say, show=on_progress, done=_read(folder))
        for name in names:
            if name not in context.done:
                _work(context, names, name, on_stage)
            on_stage(name, context.done[name])
        page = write_report(folder, settings, context.done)
        if save_preset is not None:
            _save_preset(user_path(save_preset), context.done["calibrate"])
        return page


def _save_preset(path: Path, outcome: Outcome) -> None:
    """Write what was calibrated.

    Raises:
        SettingsError: nothing was.
        FileError: another file is there, or it cannot be written.
    """
    if "preset" not in outcome.facts:
        raise SettingsError(
            f"There is no preset to save, as the stage 'calibrate' is {outcome.verdict}: {outcome.summary}"
        )
    if path.suffix != ".json":
        path = path / "limelight.json"
    content = json_text(outcome.facts["preset"], indent=1).encode() + b"\n"
    check_free(path, content)
    write(path, content)


def _check(budget: float, loading: LoadOptions, steps: int, height: int | None, width: int | None) -> None:
    check_sampling(steps=steps, height=height, width=width)
    if not 1 <= budget <= 1e7:
        raise SettingsError(f"budget={budget} must be a number of seconds, at least 1.")
    check_options(loading)


def _expect(folder: Path, settings: Settings) -> None:
    """Agree with what the folder has on what is validated.

    Raises:
        SettingsError: it has a validation with other settings or versions.
    """
    path = folder / "settings.json"
    wanted = {**asdict(settings), "versions": versions()}
    if not path.exists():
        write(path, json_text(wanted, indent=1).encode() + b"\n")
        return

    with reading(path, "the settings of a validation", "choose another folder"):
        there = from_json(dict[str, Any], path.read_bytes())
    if there != wanted:
        raise SettingsError(
            f"'{folder}' has a validation with other settings ({difference(there, wanted)}); choose another folder, "
            "or those settings."
        )


def _read(folder: Path) -> dict[str, Outcome]:
    """The outcomes that are there and stay."""
    found = {}
    for name in STAGES:
        path = folder / "stages" / f"{name}.json"
        if path.exists():
            with reading(path, "a stage of a validation", "remove it"):
                outcome = Outcome.read(path.read_bytes())
            if outcome.verdict in FINAL:
                found[name] = outcome
    return found


def _work(context: Context, names: Sequence[str], name: str, on_stage: Callable[[str, Outcome | None], None]) -> None:
    """Run a stage, and keep its outcome."""
    on_stage(name, None)
    context.began = time.monotonic()
    context.until = context.began + _seconds(context, names, name)
    outcome = replace(_outcome(context, name), stage=name, seconds=round(time.monotonic() - context.began, 2))
    context.done[name] = outcome
    write(context.out / "stages" / f"{name}.json", json_text(outcome.record(), indent=1).encode() + b"\n")


def _seconds(context: Context, names: Sequence[str], name: str) -> float:
    """The time of a stage: its share of what the stages before it have left."""
    spent = sum(outcome.seconds for outcome in context.done.values())
    left = [STAGES[other].share for other in names if other not in context.done]
    return max(context.settings.budget - spent, 0.0) * STAGES[name].share / sum(left)


def _outcome(context: Context, name: str) -> Outcome:
    """What a stage finds, whatever happens."""
    load = context.done.get("load")
    if load is not None and load.verdict == "broken":
        return Outcome(verdict="skipped", summary="The model cannot be opened.")
    if load is not None:
        _check_weights(context, load)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptWarning)
            warnings.simplefilter("ignore", SizeWarning)
            return STAGES[name].run(context)
    except (Skip, MissingDependency) as reason:
        return Outcome(verdict="skipped", summary=str(reason))
    except LimelightError as error:
        return Outcome(verdict="broken", summary=str(error))
    except Exception as error:
        return Outcome(verdict="broken", summary=f"{type(error).__name__}: {first_line(error)}")


def _check_weights(context: Context, load: Outcome) -> None:
    """Refuse to go on with another model of the same name."""
    found = fingerprint(context.model)
    if found != load.facts.get("weights", found):
        raise SettingsError(
            f"'{context.settings.source}' has other weights than when the validation in '{context.out}' began; choose "
            "another folder."
        )
