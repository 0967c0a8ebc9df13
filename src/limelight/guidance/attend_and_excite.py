"""Attend-and-Excite: every subject owns a place of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from ..attention.maps import AttentionMaps
from ..errors import ModelError
from ..models.base import Model
from ..prompts.subjects import Subject
from .base import Guidance, Objective, Score, Subjects
from .terms import blur, sharpened, weakest_score


def excite(
    maps: AttentionMaps,
    subjects: Subjects,
    *,
    temperature: float = 100.0,
    smooth: bool = True,
    sigma: float = 0.5,
    own_tokens: bool | None = None,
    modifiers: bool = False,
) -> Score:
    """Every subject should own at least one place of the image: 1 - the largest attention of the weakest subject.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826

    The loss of an image is 1 - min over its subjects s of max over places of S_s, with the blurred maps S of
    `limelight.guidance.terms.sharpened`.

    Args:
        maps: of one size; averaged over layers and heads.
        subjects: of each image; their modifiers do not count by default.
        temperature: factor before the softmax.
        smooth: blur the maps before taking their maximum.
        sigma: width of the blur in map pixels, see `blur`.
        own_tokens: whether the softmax is over the prompt's own tokens alone; None asks `Prompt.padded`. (The released
            code has a flag for this, which is set for Stable Diffusion 2.1.)
        modifiers: add what a subject's modifiers get to its own. Where a modifier gets more than its noun, as "red" may
            in the place of a red car, the noun alone loses against it however plain the car is. (Ours.)
    """
    if modifiers:
        subjects = [[Subject(subject.all_positions) for subject in own] for own in subjects]
    of_subjects, absent = sharpened(maps.cross, subjects, temperature, own_tokens)
    return weakest_score(blur(of_subjects, sigma) if smooth else of_subjects, absent)


@dataclass(frozen=True, kw_only=True)
class AttendAndExcite(Guidance):
    """Attend-and-Excite with the paper's values: every subject owns a place of the image.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826

    Examples:
        >>> model = limelight.load("pocket", device="cpu")
        >>> guidance = limelight.AttendAndExcite.suited(model, until=1)
        >>> result = limelight.generate(model, "a cat and a dog", guidance=guidance, steps=2)
        >>> [row["step"] for row in result.trace]
        [0]

    Attributes:
        smooth: blur the maps before taking their maximum.
        own_tokens: take the softmax over the prompt's own tokens alone; None lets the model choose, see `excite`.
    """

    objective: Objective = field(init=False, repr=False, compare=False)
    thresholds: Mapping[float | int, float] = field(default_factory=lambda: {0: 0.05, 0.2: 0.5, 0.4: 0.8})
    smooth: bool = True
    own_tokens: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objective", partial(excite, smooth=self.smooth, own_tokens=self.own_tokens))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "objective": "excite"}  # its options are fields

    @classmethod
    def suited(cls, model: Model, **changes: Any) -> Self:
        """Take the settings that suit a model: the paper's, or those of its family or folder.

        Args:
            model: whose settings to take.
            changes: fields to set otherwise.

        Raises:
            ModelError: the settings in the model's folder do not fit.
        """
        return cls(**{**_known_settings(model), **changes})

    @classmethod
    def fast(cls, model: Model | None = None, **changes: Any) -> Self:
        """Add at most a tenth to the work of plain sampling: guide the first seventh of the steps, without refinement.

        Of 50 steps 7 are guided. On the embedded model that fixes as many images as guidance to the middle
        (docs/results.md, "How little guidance fixes as much").

        Args:
            model: take the scale of the step that suits it.
            changes: fields to set otherwise.
        """
        known = {} if model is None else _known_settings(model)
        return cls(**{**known, "until": 0.14, "thresholds": {}, **changes})


def _known_settings(model: Model) -> dict[str, Any]:
    """The settings that a model's family or folder gives, checked."""
    known = model.about.preset("attend_and_excite")
    try:
        AttendAndExcite(**known)
    except TypeError as error:
        raise ModelError(
            f"The guidance settings in the limelight.json of '{model.name}' do not fit: {error}."
        ) from error
    return known
