"""The stages of a validation: the one registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import SettingsError, meant
from . import calibrate, cost, editing, faithfulness, heads, load, maps, parity
from .context import Context
from .outcome import Outcome


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        title: its heading.
        claim: what it proves or refutes, or what it measures.
        share: of the time that is left, beside the shares of the other stages.
        run: does it.
    """

    title: str
    claim: str
    share: float
    run: Callable[[Context], Outcome]


# In the order in which they run. A new stage is a module and one more line here.
STAGES: dict[str, Stage] = {
    "load": Stage("Load", "The model opens, and an image comes out.", 1, load.run),
    "parity": Stage("Parity", "The same seed gives the image of diffusers' own pipeline.", 2, parity.run),
    "cost": Stage("Cost", "What a run costs in seconds and memory, beside diffusers' pipelines.", 3, cost.run),
    "maps": Stage("Maps", "The map of a word lies where a detector sees the thing.", 3, maps.run),
    "calibrate": Stage(
        "Calibrate", "Which step size, thresholds and blocks suit the model, on tuning prompts.", 4, calibrate.run
    ),
    "faithfulness": Stage(
        "Faithfulness",
        "Guided images show more of what the prompt names than plain ones with the same seeds.",
        12,
        faithfulness.run,
    ),
    "editing": Stage("Editing", "An edit follows its prompt and keeps more than a new image.", 4, editing.run),
    "heads": Stage(
        "Heads", "Heads look at the concepts that the shipped vectors name, and images follow them.", 4, heads.run
    ),
}


def chosen(names: Sequence[str] | None) -> tuple[str, ...]:
    """The stages to run, in their order; all of them by default. "load" always runs.

    Raises:
        SettingsError: there is no such stage.
    """
    if names is None:
        return tuple(STAGES)
    for name in names:
        if name not in STAGES:
            raise SettingsError(f"Unknown stage '{name}'. Choose some of: {', '.join(STAGES)}.{meant(name, STAGES)}")
    return tuple(name for name in STAGES if name in {"load", *names})
