"""What a call of `edit` will do: everything that is checked, parsed or built once, before the first image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..attention.edits import Edit
from ..errors import SettingsError
from ..generation.provenance import given, provenance
from ..heads.relevance import Relevance
from ..models.base import Model
from ..prompts.prompt import Prompt, aligned
from ..utils.images import ImageSource
from ..utils.numbers import MOST_SIDE, MOST_STEPS, check_finite, check_whole
from .attention_edits import Mode, SelfAttention, Window, by_word, cross_attention, places_of, steps_of
from .image_inversion import Inversion, InversionSettings, invert


@dataclass(frozen=True, eq=False, kw_only=True)
class EditSettings:
    """The options that all images of a call share. Each is described in `limelight.edit`.

    Attributes:
        branches: how many the guidance scale asks for, see `Model.branches`.
        height, width: in pixels.
    """

    null_text: bool
    mode: Mode
    cross_steps: Window | Mapping[str, Window]
    self_steps: Window | None
    strengthen: Mapping[str, str]
    head_vectors: Relevance | str | Path | None
    local: str | Sequence[str] | None
    reweight: Mapping[str, float]
    published: bool
    steps: int
    guidance_scale: float
    branches: int
    negative: str
    height: int
    width: int
    record: bool

    def __post_init__(self) -> None:
        check_finite(
            cross_steps=self.cross_steps,
            self_steps=self.self_steps,
            reweight=self.reweight,
            guidance_scale=self.guidance_scale,
        )
        check_whole(MOST_STEPS, steps=self.steps)
        check_whole(MOST_SIDE, height=self.height, width=self.width)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def encoded_negative(self) -> str | None:
        """The negative prompt; None where there is no unconditional branch."""
        if self.branches == 2:
            return self.negative
        return None

    @property
    def self_window(self) -> Window:
        """The given `self_steps`, or their default, which is longer where words are strengthened."""
        if self.self_steps is not None:
            return self.self_steps
        if self.strengthen:
            return 0.9
        return 0.4

    def facts(self) -> dict[str, Any]:
        """The settings of the attention edits as plain values, to be stored with a result."""
        cross_steps = self.cross_steps
        if not isinstance(cross_steps, float | int):
            cross_steps = dict(by_word(cross_steps, self.published))

        return {
            "mode": self.mode,
            "cross_steps": cross_steps,
            "self_steps": self.self_window,
            "strengthen": dict(self.strengthen),
            "head_vectors": self._vectors(),
            "local": self.local,
            "reweight": dict(self.reweight),
            "published": self.published,
        }

    def _vectors(self) -> str | None:
        """The head relevance vectors by name; "given" for those that have none."""
        if isinstance(self.head_vectors, str | Path):
            return Path(self.head_vectors).name
        return given(self.head_vectors)


@dataclass(frozen=True, eq=False)
class EditPlan:
    """A checked call of `edit`.

    Attributes:
        texts: the source prompt, then the target prompts, as they were written.
        prompts: the same, parsed.
        seeds: one per row of images.
        edits: of the attention.
        places: for a local edit, the token positions of its words in each prompt; else empty.
        passes: denoiser passes of the schedule.
        inversion: of the real image to edit; None where the source is generated.
    """

    model: Model
    settings: EditSettings
    texts: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    edits: tuple[Edit, ...]
    places: tuple[tuple[int, ...], ...]
    passes: int
    inversion: Inversion | None = None

    @classmethod
    def of(cls, model: Model, texts: Sequence[str], seeds: tuple[int, ...], settings: EditSettings) -> EditPlan:
        """Parse the prompts and build the edits of their attention.

        Raises:
            PromptError: a word is in none of the prompts, or "replace" got prompts of different numbers of words.
            SettingsError: there is no target, or a setting is out of range.
        """
        if len(texts) < 2:
            raise SettingsError("An edit needs at least one target prompt.")
        prompts = aligned(list(map(model.prompt, texts)))
        model.check_negative([settings.negative])
        places = places_of(prompts, settings.local)

        passes = model.passes(settings.steps)
        cross = cross_attention(
            prompts, settings.steps, passes, settings.mode, settings.cross_steps, settings.reweight, settings.published
        )
        if settings.strengthen:
            cross = cross.strengthened(model, prompts[1:], settings.strengthen, settings.head_vectors)
        window = steps_of(settings.self_window, "self_steps", settings.steps)
        between = SelfAttention(len(prompts), model.guided_scale, window)
        if not any(map(between.edits, model.sites)):
            settings = _without_self_attention(model, settings)
        edits = (cross.to(model.device), between)
        return cls(model, settings, tuple(texts), prompts, seeds, edits, places, passes)

    def starting_from(self, image: ImageSource | Inversion) -> EditPlan:
        """The same edit of a real image, which is inverted first where that is not done yet; it has a single seed.

        Raises:
            SettingsError: the scheduler is not DDIM, the image is none, or the inversion is of another prompt, size or
                schedule.
            FileError: the image cannot be read.
        """
        settings, source = self.settings, self.texts[0]
        if not isinstance(image, Inversion):
            asked = InversionSettings(
                steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                negative=settings.negative,
                null_text=settings.null_text,
                size=settings.size,
            )
            image = invert(self.model, image, self.prompts[0], asked)

        image.check(source, settings.steps, settings.size)
        return replace(self, seeds=self.seeds[:1], inversion=image)

    def facts(self) -> dict[str, Any]:
        """All that the images depend on but for their prompt and seed, as plain values."""
        settings, inversion = self.settings, self.inversion

        return {
            "negative": settings.encoded_negative,
            "steps": settings.steps,
            **self.model.scales_in_use(settings.guidance_scale, settings.branches),
            "height": settings.height,
            "width": settings.width,
            "source": self.texts[0],
            "image": given(inversion),
            "null_text": inversion is not None and inversion.unconditional is not None,
            **settings.facts(),
            **provenance(self.model),
        }


def _without_self_attention(model: Model, settings: EditSettings) -> EditSettings:
    """The settings on a model in which image positions do not attend to each other by a softmax.

    Raises:
        SettingsError: self-attention was asked for.
    """
    if settings.self_steps not in (None, 0):
        raise SettingsError(
            f"'{model.name}' has no self-attention that can be taken over: it is linear, without a softmax. Leave out "
            f"self_steps={settings.self_steps}."
        )
    return replace(settings, self_steps=0.0)
