"""What a call of `generate` will do: everything that is checked, parsed or chosen once, before the first image."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from operator import itemgetter
from typing import Any

import psutil
import torch
from torch import Tensor

from ..attention.edits import BindableEdit, Edit, describe_edit
from ..attention.passengers import Passengers
from ..attention.recording import size_of
from ..errors import (
    LostWords,
    NoSubjects,
    PromptError,
    PromptWarning,
    SettingsError,
    SizeWarning,
    UnknownWords,
    UnsupportedMarkup,
)
from ..guidance.base import Guidance
from ..guidance.layout import into_boxes
from ..models.base import Conditioning, Model
from ..models.sites import AttentionSite
from ..prompts.prompt import Prompt, aligned
from ..prompts.subjects import Place, Subject, SubjectChoice, SubjectName, resolve
from ..utils.numbers import MOST_IMAGES, MOST_SIDE, MOST_STEPS, check_finite, check_whole, parse_seeds, shown
from ..utils.torch import seeded
from .loop import Record, layers_to_guide, layers_to_record
from .provenance import given


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationSettings:
    """The options that all images of a call share. Each is described in `limelight.generate`.

    Attributes:
        branches: how many the guidance scale asks for, see `Model.branches`.
        negative: of each prompt.
        place: of each prompt the boxes of its subjects.
        height, width: in pixels.
    """

    guidance: Guidance | None
    steps: int
    guidance_scale: float
    branches: int
    negative: tuple[str, ...]
    height: int
    width: int
    latents: Tensor | None
    conditioning: Conditioning | None
    clip_skip: int
    eta: float
    record: Record
    also: tuple[str, ...]
    edits: tuple[Edit | BindableEdit, ...]
    place: tuple[Place, ...]
    audition: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        check_finite(guidance_scale=self.guidance_scale, latents=self.latents, eta=self.eta)
        check_whole(MOST_STEPS, steps=self.steps)
        check_whole(MOST_SIDE, height=self.height, width=self.width)
        check_whole(MOST_STEPS, 0, clip_skip=self.clip_skip)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def two_branches(self) -> bool:
        """Whether there is an unconditional branch, and with it classifier-free guidance."""
        encoded = self.conditioning
        return self.branches == 2 and (encoded is None or encoded.unconditional is not None)

    @property
    def encoded_negative(self) -> tuple[str, ...] | None:
        """The negative prompt of each prompt; None where none is encoded."""
        if self.conditioning is None and self.branches == 2:
            return self.negative
        return None

    def facts(self, which: int) -> dict[str, Any]:
        """The settings of one prompt as plain values, to be stored with its result."""
        facts: dict[str, Any] = {
            "negative": None,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": self.height,
            "width": self.width,
            "latents": given(self.latents),
            "conditioning": given(self.conditioning),
            "clip_skip": None,
            "eta": self.eta,
            "guidance": None,
            "edits": list(map(describe_edit, self.edits)),
        }
        if self.encoded_negative is not None:
            facts["negative"] = self.encoded_negative[which]
        if self.conditioning is None:
            facts["clip_skip"] = self.clip_skip
        if self.guidance is not None:
            facts["guidance"] = self.guidance.settings()

        # These stand in a result only where they were asked for.
        if self.place[which]:
            facts["place"] = {str(name): list(map(float, box)) for name, box in self.place[which].items()}
        if self.also:
            facts["also"] = list(self.also)
        if self.audition is not None:
            facts["audition"] = self.audition
        return facts


@dataclass(frozen=True, eq=False)
class GenerationPlan:
    """A checked call of `generate`.

    Attributes:
        texts: the prompts as they were written.
        prompts: the same, parsed.
        names: for each prompt the subjects as they were given or guessed.
        subjects: the same with their token positions.
        guessed: for each prompt whether they are guessed.
        seeds: of each prompt.
        images: (index of the prompt, seed) of every image, the first prompt's seeds first.
        guided: the layers whose maps guidance reads; none without guidance.
        recorded: the layers whose maps every step gives.
        averaged: those of them whose mean over the run is kept.
    """

    model: Model
    settings: GenerationSettings
    texts: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    names: tuple[tuple[SubjectName, ...], ...]
    subjects: tuple[tuple[Subject, ...], ...]
    guessed: tuple[bool, ...]
    seeds: tuple[int, ...]
    images: tuple[tuple[int, int], ...]
    guided: tuple[AttentionSite, ...]
    recorded: tuple[AttentionSite, ...]
    averaged: tuple[AttentionSite, ...]

    def seeds_of(self, prompt: int) -> tuple[int, ...]:
        """The seeds of the images of a prompt, by its index."""
        return tuple(seed for which, seed in self.images if which == prompt)

    @property
    def passengers(self) -> Passengers | None:
        """The words beside the prompts."""
        also = self.settings.also
        return Passengers.of(self.model, also, self.recorded) if also else None

    def facts(self, which: int) -> dict[str, Any]:
        """The settings of one prompt as plain values, to be stored with its result."""
        scales = self.model.scales_in_use(self.settings.guidance_scale, 1 + self.settings.two_branches)
        return {**self.settings.facts(which), **scales}

    def generators(self, rows: range) -> list[torch.Generator]:
        """Those of the seeds of some images."""
        return seeded(seed for _, seed in self.images[rows.start : rows.stop])

    def subjects_of(self, rows: range) -> list[tuple[Subject, ...]]:
        """The subjects of some images."""
        return [self.subjects[self.images[i][0]] for i in rows]

    def encoded(self, rows: range) -> Conditioning:
        """The conditioning of some images: the given one, or their encoded prompts."""
        model, settings, negative = self.model, self.settings, None
        if settings.conditioning is not None:
            encoded = settings.conditioning.rows(rows).to(model.device, model.dtype)
            if settings.two_branches:
                return encoded
            return encoded.only_conditional()

        which = [self.images[i][0] for i in rows]
        if settings.encoded_negative is not None:
            negative = list(map(settings.encoded_negative.__getitem__, which))
        prompts = list(map(self.prompts.__getitem__, which))
        return model.encode(prompts, negative, settings.size, clip_skip=settings.clip_skip)

    @property
    def without_subjects(self) -> tuple[int, ...]:
        """The indices of the prompts in which no subject is found."""
        return tuple(which for which, names in enumerate(self.names) if self.guessed[which] and not names)

    def parts(self, chosen: bool) -> list[tuple[tuple[int, ...], GenerationPlan]]:
        """The prompts that name subjects, and those that name none, with guidance left out.

        Args:
            chosen: whether seeds are chosen by subjects. Without that and guidance, all prompts stay together.

        Returns:
            The indices of some of the prompts and their plan.
        """
        plain = self.without_subjects
        if not plain or not (chosen or self.settings.guidance):
            return [(tuple(range(len(self.texts))), self)]

        others = tuple(which for which in range(len(self.texts)) if which not in plain)
        found = [(plain, self._part(plain, None))]
        return [(others, self._part(others, self.settings.guidance)), *found] if others else found

    def _part(self, which: tuple[int, ...], guidance: Guidance | None) -> GenerationPlan:
        """The plan of some prompts."""
        settings, count = self.settings, len(self.seeds)
        rows = [which_one * count + i for which_one in which for i in range(count)]
        given, latents = settings.conditioning, settings.latents
        settings = replace(
            settings,
            guidance=guidance,
            negative=tuple(settings.negative[i] for i in which),
            place=tuple(settings.place[i] for i in which),
            latents=None if latents is None else latents[rows],
            conditioning=None if given is None else given.rows(rows),
        )
        subjects: list[SubjectChoice] = [self.names[i] or "auto" for i in which]
        return GenerationPlan.of(self.model, [self.texts[i] for i in which], subjects, self.seeds, settings)

    @classmethod
    def of(
        cls,
        model: Model,
        texts: Sequence[str],
        subjects: Sequence[SubjectChoice],
        seeds: tuple[int, ...],
        settings: GenerationSettings,
    ) -> GenerationPlan:
        """Check the settings, parse the prompts, resolve the subjects and choose the layers.

        Args:
            subjects: for each prompt.

        Raises:
            PromptError: there is no prompt, or a subject is not in its prompt.
            SettingsError: a setting or a box is out of range, or the recorded steps do not fit into memory.
        """
        if not texts:
            raise PromptError("The list of prompts is empty.")
        prompts = aligned(list(map(model.prompt, texts)))
        _check_also(model, prompts, settings)
        if settings.conditioning is None:
            model.check_negative(settings.negative)
        resolved = _resolved(prompts, subjects, settings)
        images = tuple(product(range(len(texts)), seeds))

        _check_memory(model, settings.size)
        shape = tuple(model.noise([torch.Generator()], *settings.size).shape[1:])
        _check_inputs(settings, len(images), shape)
        size = (shape[-2], shape[-1])
        guided = layers_to_guide(model, size, settings.guidance)
        recorded = layers_to_record(model, size, settings.guidance, settings.record)
        averaged = layers_to_record(model, size, settings.guidance, bool(settings.record))
        if settings.record in ("steps", "all"):
            _check_room(recorded, size, len(prompts[0].ids), len(images), settings)
        return cls(
            model,
            settings,
            tuple(texts),
            prompts,
            tuple(map(itemgetter(0), resolved)),
            tuple(map(itemgetter(1), resolved)),
            tuple(own == "auto" for own in subjects),
            seeds,
            images,
            guided,
            recorded,
            averaged,
        )


def beside(also: str | Sequence[str]) -> tuple[str, ...]:
    """One or several words beside a prompt, without repetitions."""
    return tuple(dict.fromkeys([also] if isinstance(also, str) else also))


def _check_also(model: Model, prompts: Sequence[Prompt], settings: GenerationSettings) -> None:
    """Check words beside the prompts of a run, see `check_also`.

    Raises:
        SettingsError: no maps are recorded, or attention is edited in layers in which the image changes their keys.
    """
    check_also(model, prompts, settings.also)
    if settings.also and not settings.record:
        raise SettingsError(f"also={list(settings.also)} asks for maps; leave out record=False.")
    if settings.also and settings.edits and any(site.joint for site in model.sites):
        raise SettingsError(f"also cannot be combined with edits on '{model.name}', which has joint attention.")


def check_also(model: Model, prompts: Sequence[Prompt], also: Sequence[str]) -> None:
    """Check words beside prompts.

    Raises:
        ModelError: they do not work on the model's family.
        PromptError: a word is in a prompt.
    """
    if also:
        model.require("also")
    for word in also:
        for prompt in prompts:
            if prompt.has(word):
                raise PromptError(f"'{word}' is in the prompt '{prompt.text}' and has a map; leave it out of also.")


def _resolved(
    prompts: Sequence[Prompt], subjects: Sequence[SubjectChoice], settings: GenerationSettings
) -> list[tuple[tuple[SubjectName, ...], tuple[Subject, ...]]]:
    """The subjects of each prompt; a guess may find none, see `GenerationPlan.parts`."""
    found = []
    for prompt, own, place in zip(prompts, subjects, settings.place, strict=True):
        needed = settings.guidance is not None and own != "auto"
        found.append(resolve(prompt, own, needed=needed, place=place))
    return found


def checked(seeds: int | str | Sequence[int]) -> tuple[int, ...]:
    """One or several seeds, also as text ("0-3,7").

    Raises:
        SettingsError: there is none, or one is out of range.
    """
    if isinstance(seeds, str):
        return tuple(parse_seeds(seeds))
    if not isinstance(seeds, Iterable):
        seeds = (seeds,)
    found = tuple(islice(seeds, MOST_IMAGES + 1))
    if not found:
        raise SettingsError("seeds is empty; give at least one, for example seeds=[0].")
    if len(found) > MOST_IMAGES:
        raise SettingsError(f"seeds has more than {MOST_IMAGES} entries; generate them in several calls.")
    for seed in found:
        if isinstance(seed, bool) or not (hasattr(seed, "__index__") and 0 <= seed < 2**63):
            raise SettingsError(f"seeds has the entry {shown(seed)}; each must be a whole number from 0 to 2**63 - 1.")
    return tuple(map(int, found))


def negatives(negative: str | Sequence[str] | None, prompts: int) -> tuple[str, ...]:
    """The negative prompt of each prompt; None is the empty one.

    Raises:
        PromptError: there are more or fewer than prompts, or one is something else than text.
    """
    if negative is None or isinstance(negative, str):
        return (negative or "",) * prompts

    if not isinstance(negative, Sequence):
        raise PromptError(f"negative={negative!r} must be text, for example 'blurry', or a list with one per prompt.")
    if len(negative) != prompts:
        raise PromptError(
            f"negative has {len(negative)} entries for {prompts} prompts; give one text for all, or one for each."
        )
    found = []
    for text in negative:
        if not isinstance(text, str | None):
            raise PromptError(f"negative has the entry {text!r}; each must be text, for example 'blurry'.")
        found.append(text or "")
    return tuple(found)


def places(place: Place | Sequence[Place | None] | None, prompts: int) -> tuple[Place, ...]:
    """The boxes of each prompt's subjects; one set of boxes serves all.

    Raises:
        SettingsError: there are more or fewer sets of boxes than prompts, or one is something else.
    """
    if place is None or isinstance(place, Mapping):
        place = [place] * prompts
    listed = list(place)
    if len(listed) != prompts:
        raise SettingsError(
            f"place has {len(listed)} entries for {prompts} prompts; give one for all, or one for each."
        )
    found: list[Place] = []
    for own in listed:
        if own is not None and not isinstance(own, Mapping):
            raise SettingsError(
                f"place={own!r} must name words and their boxes, for example {{'cat': (0, 0.4, 0.5, 1)}}."
            )
        found.append(own or {})
    return tuple(found)


def placing(guidance: Guidance | None, model: Model, place: Sequence[Place]) -> Guidance | None:
    """The guidance, into boxes where any prompt has some, see `into_boxes`."""
    if any(place):
        return into_boxes(guidance, model)
    return guidance


def warn_of_prompts(
    model: Model, prompts: Sequence[Prompt], negatives: Iterable[str | None] = (), frames: int = 0
) -> None:
    """Warn the caller's caller of what the model does not read as it is written, see `prompt_warnings`.

    Args:
        frames: decorators between the two.
    """
    for warning in prompt_warnings(model, prompts, negatives):
        warnings.warn(warning, stacklevel=3 + frames)


def prompt_warnings(
    model: Model, prompts: Sequence[Prompt], negatives: Iterable[str | None] = ()
) -> list[PromptWarning]:
    """What the model does not read as it is written, at most one warning of each kind.

    Returns:
        `UnknownWords` of the prompts; `LostWords` and `UnsupportedMarkup` of the prompts and negative prompts.
    """
    found: list[PromptWarning] = []
    unknown = dict.fromkeys(chain.from_iterable(map(model.unknown, prompts)))
    if unknown:
        cure = ""
        if model.about.words is not None:
            cure = "try words of `limelight info`"
        found.append(UnknownWords(model.name, unknown, cure=cure))

    every = [*prompts, *map(model.prompt, filter(None, dict.fromkeys(negatives)))]
    return found + lost_words(model, every) + _markup(every)


def warn_without_subjects(plan: GenerationPlan, chosen: bool) -> None:
    """Warn the caller's caller of prompts that are generated plainly because they name no subject.

    Args:
        chosen: whether seeds are chosen by subjects.
    """
    lacking = [plan.prompts[which] for which in plan.without_subjects]
    if lacking and (chosen or plan.settings.guidance is not None):
        warnings.warn(NoSubjects.of([prompt.text for prompt in lacking], lacking[0].read), stacklevel=3)


def warn_of_size(plan: GenerationPlan) -> None:
    """Warn the caller's caller of images with more than four times the pixels that the model was trained on."""
    (height, width), (high, wide) = plan.settings.size, plan.model.default_size
    if height * width > 4 * high * wide:
        warnings.warn(
            SizeWarning(
                f"{height}x{width} is far beyond the {high}x{wide} pixels that the model '{plan.model.name}' was "
                "trained on; images then often repeat their subjects. Generate smaller ones and enlarge them."
            ),
            stacklevel=3,
        )


def lost_words(model: Model, prompts: Sequence[Prompt]) -> list[PromptWarning]:
    """A warning of the words that the model does not reach."""
    long = {prompt.text: prompt for prompt in prompts if prompt.lost}
    if not long:
        return []
    first = next(iter(long.values()))
    return [LostWords.of(model.name, first.length, first.text, first.size, first.lost, len(long) - 1)]


def _markup(prompts: Sequence[Prompt]) -> list[PromptWarning]:
    """A warning of the markup of other programs."""
    found = dict[str, None]()
    for prompt in prompts:
        found |= dict.fromkeys(prompt.text[slice(*piece.span)] for piece in prompt.markup)
    if not found:
        return []
    return [UnsupportedMarkup.of(list(found))]


def _check_inputs(settings: GenerationSettings, images: int, shape: tuple[int, ...]) -> None:
    """Refuse latents and conditioning that do not fit the images, and unknown values of `record`."""
    latents, conditioning = settings.latents, settings.conditioning
    wanted = (images, *shape)
    if latents is not None and latents.shape != wanted:
        raise SettingsError(
            f"latents of shape {list(latents.shape)} do not fit {images} images at {settings.height}x{settings.width}: "
            f"the shape must be {list(wanted)}."
        )
    if settings.record not in (False, True, "mean", "steps", "all"):
        raise SettingsError(f"record={settings.record!r} must be True, False, 'steps' or 'all'.")
    if conditioning is not None and len(conditioning.prompts) != images:
        raise SettingsError(f"conditioning has {len(conditioning.prompts)} rows for {images} images.")


def _check_memory(model: Model, size: tuple[int, int]) -> None:
    """Refuse at once an image that cannot fit into memory, whatever else is done."""
    needed = model.least_memory(size)
    on_gpu = model.device.type == "cuda"
    there = torch.cuda.mem_get_info(model.device)[1] if on_gpu else psutil.virtual_memory().total
    if needed > there:
        raise SettingsError(
            f"An image of {size[0]}x{size[1]} pixels takes at least {needed / 1e9:.0f} GB of memory, and this machine "
            f"has {there / 1e9:.0f} GB; generate a smaller one, for example {model.default_size[0]}x"
            f"{model.default_size[1]}."
        )


def _check_room(
    layers: Sequence[AttentionSite], size: tuple[int, int], tokens: int, images: int, settings: GenerationSettings
) -> None:
    """Find out before the first image that the maps of the single steps will not fit into memory."""
    record = str(settings.record)
    needed = images * settings.steps * size_of(layers, size, tokens, record == "all")
    free = psutil.virtual_memory().available
    if needed > free:
        less = {"steps": "True", "all": "'steps'"}[record]
        raise SettingsError(
            f"record='{record}' would keep {needed / 1e9:.1f} GB of maps, and {free / 1e9:.1f} GB of memory are free; "
            f"generate fewer images or steps, or use record={less}."
        )
