"""Methods of guidance by name: what the command line, `limelight.preset` and evaluation call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import SettingsError, meant
from ..models.base import Model
from .attend_and_excite import AttendAndExcite, excite
from .base import Guidance, Objective
from .bind import bind
from .combined import in_turn, weighted
from .contrast import contrast
from .divergence import divergence
from .names import NAMES, RECOMMENDED
from .noise_search import NoiseSearch
from .overlap import overlap
from .self_cross import peak_overlap, self_cross

CONSTANT = (1.0, 1.0)


@dataclass(frozen=True)
class Preset:
    """A method.

    Attributes:
        objective: its loss.
        settings: its values for Stable Diffusion 1.x, where they are not those of `Guidance`.
    """

    objective: Objective
    settings: Mapping[str, Any] = field(default_factory=dict)


APART = {"mixing": 0.1, "binding": 0.1}
"""Parts of `divergence` up to which an image comes out right, after a tenth to a sixth of its steps: of the embedded
model's images nine of ten that come out wrong are above, and one of seven of the others."""

# Sources and formulas stand with the objectives.
PRESETS: Mapping[str, Preset] = {
    # Ours: images that lack nothing stay plain, subjects come apart first, and are made strong then.
    "focus-then-excite": Preset(
        in_turn(divergence, partial(excite, modifiers=True)),
        {"step_rule": "relative", "scale": 0.1, "look": 0.08, "targets": {**APART, "neglect": 0.8}},
    ),
    "focus": Preset(divergence, {"step_rule": "relative", "scale": 0.1, "until": 0.14}),
    "jedi": Preset(
        partial(divergence, power=1, sigma=0, spread=0.01, geometric=True),
        {"step_rule": "sign", "scale": 0.003, "until": 0.64, "decay": CONSTANT},
    ),
    "conform": Preset(partial(contrast, memory=True), {"until": 0.6}),
    "ebama": Preset(partial(bind, words="all", intensity=0.5, published=True), {"until": 0.52, "decay": CONSTANT}),
    "syngen": Preset(
        partial(bind, distance="kl", push="both", words="all", published=True), {"until": 0.5, "decay": CONSTANT}
    ),
    "self-cross": Preset(weighted((1, excite), (1, self_cross))),
    "initno": Preset(weighted((1, excite), (1, peak_overlap)), {"noise_search": NoiseSearch()}),
    "overlap": Preset(weighted((0.5, excite), (0.25, partial(overlap, sharpen=True)))),
}
ATTEND_AND_EXCITE = {"attend-and-excite": AttendAndExcite.suited, "attend-and-excite-fast": AttendAndExcite.fast}


def preset(name: str, model: Model, **changes: Any) -> Guidance:
    """The guidance of a name, with the settings that suit a model.

    "recommended" is the best one measured on the model at hand, which the model's folder names. Where none was
    measured, it is "conform": of the published methods that know the modifiers of subjects it has the best evidence on
    Stable Diffusion 1.4 (docs/results.md).

    Args:
        name: one of `limelight.guidance.names.NAMES`.
        model: its family or folder may have settings of its own, see `limelight.models.base.About`.
        changes: fields of `Guidance` to set otherwise.

    Raises:
        SettingsError: the name is unknown, or a setting is unknown or out of range.

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> limelight.preset("conform", model, until=0.2).until
        0.2
    """
    if name not in NAMES:
        raise SettingsError(f"Unknown guidance '{name}'. Choose one of: {', '.join(NAMES)}.{meant(name, NAMES)}")
    if name == RECOMMENDED:
        known = model.about.preset(RECOMMENDED)
        if known.get("preset") == RECOMMENDED:
            raise SettingsError(f"The limelight.json of '{model.name}' recommends '{name}'; let it name a method.")
        return preset(known.pop("preset", "conform"), model, **{**known, **changes})

    try:
        if name in ATTEND_AND_EXCITE:
            return ATTEND_AND_EXCITE[name](model, **changes)
        chosen = PRESETS[name]
        settings = {**chosen.settings, **model.about.preset("guidance"), **changes}
        return Guidance(objective=chosen.objective, **settings)
    except TypeError as error:
        raise SettingsError(f"The settings of guidance '{name}' do not fit: {error}.") from error
