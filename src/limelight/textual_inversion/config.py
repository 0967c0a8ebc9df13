"""How a word is learned."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import ModelError, SettingsError
from ..models.base import Model
from ..utils.images import Fit
from ..utils.numbers import MOST_IMAGES, MOST_SIDE, check_whole
from .binding import check_token
from .dataset import check_sentences

MOST_RANK = 128
MOST_TRAINING = 10_000_000
"""Steps of a training: weeks."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a word is learned. The defaults are those of the authors' code, one device; `suited` knows better ones.

    Attributes:
        token: the word, in angle brackets and lower case: "<my-cat>".
        init: a word that the model knows, whose vectors the new one begins with; several words, or one of several
            tokens, where their number divides `vectors`. None begins with random vectors like those of the table.
        vectors: how many tokens the word is for the text encoder. More remember more and leave less to other words.
        rank: of the changes of the denoiser's layers in this word's images, see
            `limelight.textual_inversion.low_rank`; 0 learns the vectors alone. 8 shows how a thing is drawn, where a
            vector shows its colors.
        steps: of the optimiser.
        batch: images in one pass.
        accumulate: passes of one step, whose gradients are added: a larger batch in the same memory.
        lr: learning rate of AdamW.
        rank_lr: that of the changes of rank `rank`.
        prior_images: how many images of other things the model draws first, which those changes are to leave as they
            are, see `limelight.textual_inversion.prior`; 0 lets them do as they like.
        prior_weight: of the error on them.
        scale_lr: multiply `lr` by `batch * accumulate`, as the authors' code does.
        weight_decay: of AdamW.
        size: side of the images in pixels; None is the model's own size.
        templates: the sentences to learn in: "object", "style", or sentences with {} in the word's place.
        class_word: put before the word in every sentence: "toy" gives "a photo of a toy <my-cat>".
        flip: share of images that are shown mirrored, 0..1; 0 for things that have a left and a right.
        fit: "crop" cuts images to a square, "stretch" distorts them, as the authors' code does.
        grow_every: train one vector at first and one more after every so many steps, see `vectors_at`.
        anchor_weight: of the mean squared distance of the vectors to those that they began as.
        norm: "keep" gives every vector the length that it began with after each step. An inflated word takes the
            attention of all others: Kunhee Kim et al., "Directional Textual Inversion", 2025,
            https://arxiv.org/abs/2512.13672
        attention_weight: of the squared logarithm of how much more attention the word takes than its init word in the
            same place: a term of 0.48 at twice or half as much. Costs a second pass without gradient.
        checkpoint: keep only the inputs of the denoiser's blocks for the backward pass: less memory, more time.
        seed: of everything random. Each step's random numbers depend on it and the step alone.

    Raises:
        SettingsError: a setting is out of its range.
    """

    token: str = "<word>"
    init: str | None = None
    vectors: int = 1
    rank: int = 0
    steps: int = 5000
    batch: int = 4
    accumulate: int = 1
    lr: float = 5e-3
    rank_lr: float = 1e-4
    prior_images: int = 24
    prior_weight: float = 1.0
    scale_lr: bool = True
    weight_decay: float = 1e-2
    size: int | None = None
    templates: str | Sequence[str] = "object"
    class_word: str | None = None
    flip: float = 0.5
    fit: Fit = "crop"
    grow_every: int | None = None
    anchor_weight: float = 0.0
    norm: Literal["free", "keep"] = "free"
    attention_weight: float = 0.0
    checkpoint: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_token(self.token)
        self._check_numbers()
        if self.rank and self.checkpoint:
            raise SettingsError("checkpoint and rank do not work together; for less memory take a smaller batch.")
        for name, choices in (("norm", ("free", "keep")), ("fit", ("crop", "stretch"))):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name}='{getattr(self, name)}' must be {' or '.join(choices)}.")

        if not isinstance(self.templates, str):
            object.__setattr__(self, "templates", tuple(self.templates))
            check_sentences(self.templates)
        elif self.templates not in ("object", "style"):
            raise SettingsError(f"templates='{self.templates}' must be object, style or a list of sentences.")
        if self.attention_weight and self.init is None:
            raise SettingsError("attention_weight compares the word with its init word; give init, for example 'cat'.")

    def _check_numbers(self) -> None:
        check_whole(MOST_IMAGES, vectors=self.vectors, batch=self.batch, accumulate=self.accumulate)
        check_whole(MOST_TRAINING, steps=self.steps, grow_every=self.grow_every)
        check_whole(MOST_SIDE, size=self.size)
        check_whole(MOST_RANK, 0, rank=self.rank)
        check_whole(MOST_IMAGES, 0, prior_images=self.prior_images)
        for name in ("lr", "rank_lr", "prior_weight", "weight_decay", "anchor_weight", "attention_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name}={getattr(self, name)} must be a number that is not negative.")
        if not 0 <= self.flip <= 1:
            raise SettingsError(f"flip={self.flip} must be a share of the images, 0 to 1.")

    @classmethod
    def suited(cls, model: Model, **changes: Any) -> TrainingConfig:
        """The settings that suit a model, with changes of your own: the authors', or what its folder says."""
        try:
            return cls(**{**model.about.preset("textual_inversion"), **changes})
        except TypeError as error:
            raise ModelError(f"The settings of inversion of '{model.name}' do not fit: {error}.") from error

    @property
    def rate(self) -> float:
        """The learning rate that the optimiser gets."""
        return self.lr * (self.batch * self.accumulate if self.scale_lr else 1)

    def vectors_at(self, step: int) -> int:
        """How many vectors are trained in a step; the others keep what they began as."""
        return self.vectors if self.grow_every is None else min(self.vectors, 1 + step // self.grow_every)

    def text(self, template: str, word: str | None = None) -> str:
        """A sentence with the token, or another word, in its place."""
        word = self.token if word is None else word
        return template.replace("{}", word if self.class_word is None else f"{self.class_word} {word}")


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Random numbers that depend on nothing but a training's seed and what they are for."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
