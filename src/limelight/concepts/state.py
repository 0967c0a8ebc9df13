"""What a training is: its settings, and where it stands."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import LimelightError, ModelError, SettingsError
from ..generate import fingerprint, provenance
from ..models.base import Model
from ..result import write
from .binding import check_token, readers_of
from .concept import Concept
from .pictures import Fit, Pictures, check_sentences


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How a word is learned. The defaults are those of the authors' code, one device; `suited` knows better ones.

    Attributes:
        token: the word, in angle brackets and lower case: "<my-cat>".
        init: a word that the model knows, whose vectors the new one begins with; several words, or one of several
            tokens, where their number divides `vectors`. None begins with random vectors like those of the table.
        vectors: how many tokens the word is for the text encoder. More remember more and leave less to other words.
        steps: of the optimiser.
        batch: pictures in one pass.
        accumulate: passes of one step, whose gradients are added: a larger batch in the same memory.
        lr: learning rate of AdamW.
        scale_lr: multiply it by `batch * accumulate`, as the authors' code does.
        weight_decay: of AdamW.
        size: side of the pictures in pixels; None is the model's own size.
        templates: the sentences to learn in: "object", "style", or sentences with {} in the word's place.
        class_word: put before the word in every sentence: "toy" gives "a photo of a toy <my-cat>".
        flip: share of pictures that are shown mirrored, 0..1; 0 for things that have a left and a right.
        fit: "crop" cuts pictures to a square, "stretch" distorts them, as the authors' code does.
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

    token: str = "<concept>"
    init: str | None = None
    vectors: int = 1
    steps: int = 5000
    batch: int = 4
    accumulate: int = 1
    lr: float = 5e-3
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
        for name in ("vectors", "steps", "batch", "accumulate", "grow_every", "size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise SettingsError(f"{name}={value} must be a whole number of at least 1.")
        for name in ("lr", "weight_decay", "anchor_weight", "attention_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingsError(f"{name}={getattr(self, name)} must be a number that is not negative.")
        if not 0 <= self.flip <= 1:
            raise SettingsError(f"flip={self.flip} must be a share of the pictures, 0 to 1.")
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

    @classmethod
    def suited(cls, model: Model, **changes: Any) -> InversionConfig:
        """The settings that suit a model, with changes of your own: the authors', or what its folder says."""
        try:
            return cls(**{**model.about.inversion, **changes})
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


@dataclass(frozen=True, eq=False)
class TrainState:
    """A training between two steps: all that the next step depends on, besides model and pictures.

    Attributes:
        config: its settings.
        step: how many steps are done.
        vectors: the word, [n, width] float32 for each text encoder.
        begun: the same before the first step.
        moments: AdamW's two running means for each of `vectors`; empty before the first step.
        about: the model and the pictures that it is of.
    """

    config: InversionConfig
    step: int
    vectors: tuple[Tensor, ...]
    begun: tuple[Tensor, ...]
    moments: tuple[tuple[Tensor, Tensor], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, model: Model, pictures: Pictures, config: InversionConfig, vectors: Sequence[Tensor] | None = None
    ) -> TrainState:
        """A training before its first step.

        Args:
            vectors: to begin with instead of `config.init`'s, [config.vectors, width] for each text encoder: for
                example those of another concept.
        """
        begun = tuple(v.detach().float().cpu() for v in vectors) if vectors else first_vectors(model, config)
        for table, rows in zip(tables(model), begun, strict=True):
            if rows.shape != (config.vectors, table.shape[1]):
                raise SettingsError(
                    f"Vectors of shape {list(rows.shape)} do not fit '{model.name}': "
                    f"they must be {[config.vectors, table.shape[1]]}."
                )
        about = {**provenance(model), "weights": fingerprint(model), "pictures": pictures.digest}
        return cls(config, 0, begun, begun, (), about)

    @property
    def norm(self) -> float:
        """How long the vectors are, in lengths of those that they began as; the mean."""
        ratios = [v.norm(dim=1) / b.norm(dim=1) for v, b in zip(self.vectors, self.begun, strict=True)]
        return float(torch.stack(ratios).mean())

    @property
    def cosine(self) -> float:
        """The cosine of the vectors with those that they began as, -1..1; the mean."""
        cosines = [F.cosine_similarity(v, b, dim=1) for v, b in zip(self.vectors, self.begun, strict=True)]
        return float(torch.stack(cosines).mean())

    @property
    def concept(self) -> Concept:
        """The word as it is now."""
        about = {**self.about, "init": self.config.init, "step": self.step, "config": asdict(self.config)}
        return Concept(self.config.token, self.vectors, about)

    def check(self, model: Model, pictures: Pictures, config: InversionConfig) -> None:
        """
        Raises:
            SettingsError: model, pictures or settings are others than those of this training; only the number of steps
                may change.
        """
        for name, value in asdict(self.config).items():
            if name != "steps" and value != getattr(config, name):
                raise SettingsError(
                    f"This training has {name}={value!r}, not {getattr(config, name)!r}; go on with {name}={value!r}, "
                    "or begin another."
                )
        if self.about["weights"] != fingerprint(model):
            raise SettingsError(f"This training is of '{self.about['model']}', and '{model.name}' has other weights.")
        if self.about["pictures"] != pictures.digest:
            raise SettingsError("This training is of other pictures; go on with the same ones, or begin another.")

    def save(self, path: Path) -> None:
        """Write `path`.safetensors and `path`.json, each whole or not at all, and each time such that what is there
        fits together: all that changes from step to step is in the first.
        """
        tensors = {f"vectors.{i}": v for i, v in enumerate(self.vectors)}
        tensors |= {f"begun.{i}": v for i, v in enumerate(self.begun)}
        tensors |= {f"moment{k}.{i}": m[k - 1] for i, m in enumerate(self.moments) for k in (1, 2)}
        facts = {"config": asdict(self.config), "about": dict(self.about)}
        write(path.with_suffix(".json"), json.dumps(facts, indent=1, ensure_ascii=False).encode())
        content = save({name: t.clone() for name, t in tensors.items()}, {"step": str(self.step)})
        write(path.with_suffix(".safetensors"), content)

    @classmethod
    def load(cls, path: Path) -> TrainState:
        """
        Raises:
            SettingsError: there is no training there, or it cannot be read.
        """
        try:
            facts = json.loads(path.with_suffix(".json").read_text())
            with safe_open(path.with_suffix(".safetensors"), "pt") as file:
                step, tensors = int(file.metadata()["step"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
            encoders = range(sum(name.startswith("vectors.") for name in tensors))
            vectors, begun = (tuple(tensors[f"{name}.{i}"] for i in encoders) for name in ("vectors", "begun"))
            moments = tuple(
                (tensors[f"moment1.{i}"], tensors[f"moment2.{i}"]) for i in encoders if "moment1.0" in tensors
            )
            return cls(InversionConfig(**facts["config"]), step, vectors, begun, moments, facts["about"])
        except FileNotFoundError:
            raise SettingsError(f"'{path.parent}' holds no training to go on with.") from None
        except LimelightError:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise SettingsError(f"The training in '{path.parent}' cannot be read: {error}.") from error


def tables(model: Model) -> list[Tensor]:
    """The vectors of all tokens, [tokens, width] for each text encoder."""
    return [encoder.get_input_embeddings().weight.detach().float().cpu() for _, encoder in readers_of(model)]


def first_vectors(model: Model, config: InversionConfig) -> tuple[Tensor, ...]:
    """What a word begins with: [config.vectors, width] float32 for each text encoder.

    The tokens of `config.init`, each several times in a row where there are fewer than vectors; or normal random
    vectors with the mean and the standard deviation of each dimension of the table. Equal rows get a little noise, a
    thousandth of the table's: apart, they learn apart.

    Raises:
        SettingsError: the number of vectors is no multiple of the number of tokens.
    """
    random, found = generator(config.seed, "begin"), []
    for (tokenizer, _), table in zip(readers_of(model), tables(model), strict=True):
        noise = torch.randn(config.vectors, table.shape[1], generator=random)
        if config.init is None:
            found.append(table.mean(dim=0) + table.std(dim=0) * noise)
            continue
        ids = tokenizer(config.init, add_special_tokens=False)["input_ids"]
        if not ids or config.vectors % len(ids):
            pieces = ", ".join(tokenizer.convert_ids_to_tokens(ids)).replace("</w>", "") or "none"
            raise SettingsError(
                f"init='{config.init}' is {len(ids)} tokens of '{model.name}' ({pieces}), which do not divide "
                f"{config.vectors} vector{'s' * (config.vectors != 1)}; take vectors={max(len(ids), 1)}, or a word "
                "that is one token."
            )
        rows = table[ids].repeat_interleave(config.vectors // len(ids), dim=0)
        found.append(rows if config.vectors == len(ids) else rows + 1e-3 * table.std() * noise)
    return tuple(found)


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Random numbers that depend on nothing but a training's seed and what they are for."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
