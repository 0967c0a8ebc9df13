"""What a training is: its settings, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import FileError, SettingsError
from ..generation.provenance import fingerprint, provenance
from ..models.base import Model
from ..models.learned import readers_of
from ..utils.files import json_text, write
from ..utils.reading import Record, from_json, reading
from ..utils.tensors import read_tensors, tensor_file
from .config import TrainingConfig, generator
from .dataset import TrainingImages
from .word import LearnedWord

_FACTS = "limelight.training"  # the key of a state's metadata


class _About(Record):
    """The model and the images that a training is of."""

    model: str
    weights: str
    pictures: str


class _Facts(Record):
    """The settings of a training."""

    config: dict[str, Any]
    about: _About


_CURE = "begin another training in another folder"


@dataclass(frozen=True, eq=False)
class TrainState:
    """A training between two steps: all that the next step depends on, besides model and images.

    Attributes:
        config: its settings.
        step: how many steps are done.
        vectors: the word, [n, width] float32 for each text encoder.
        begun: the same before the first step.
        moments: AdamW's two running means for each of `vectors`; empty before the first step.
        about: the model and the images that it is of.
    """

    config: TrainingConfig
    step: int
    vectors: tuple[Tensor, ...]
    begun: tuple[Tensor, ...]
    moments: tuple[tuple[Tensor, Tensor], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, model: Model, images: TrainingImages, config: TrainingConfig, vectors: Sequence[Tensor] | None = None
    ) -> TrainState:
        """A training before its first step.

        Args:
            vectors: to begin with instead of `config.init`'s, [config.vectors, width] for each text encoder: for
                example those of another word.
        """
        begun = tuple(map(_plain, vectors or first_vectors(model, config)))
        for table, rows in zip(tables(model), begun, strict=True):
            if rows.shape != (config.vectors, table.shape[1]):
                raise SettingsError(
                    f"Vectors of shape {list(rows.shape)} do not fit '{model.name}': "
                    f"they must be {[config.vectors, table.shape[1]]}."
                )
        facts = provenance(model)
        # In the order in which `load` gives them, so that a resumed training writes the same bytes.
        about = {"model": facts["model"], "weights": fingerprint(model), "pictures": images.digest} | facts
        return cls(config, 0, begun, begun, (), about)

    @property
    def norm(self) -> float:
        """How long the vectors are, in lengths of those that they began as; the mean."""
        return self._since_begin(lambda now, begun: now.norm(dim=1) / begun.norm(dim=1))

    @property
    def cosine(self) -> float:
        """The cosine of the vectors with those that they began as, -1..1; the mean."""
        return self._since_begin(F.cosine_similarity)

    def _since_begin(self, compare: Callable[[Tensor, Tensor], Tensor]) -> float:
        """The mean of a comparison of the vectors of each text encoder with those that they began as."""
        return float(torch.stack(list(map(compare, self.vectors, self.begun))).mean())

    @property
    def word(self) -> LearnedWord:
        """The word as it is now."""
        about = {**self.about, "init": self.config.init, "step": self.step, "config": asdict(self.config)}
        return LearnedWord(self.config.token, self.vectors, about)

    def check(self, model: Model, images: TrainingImages, config: TrainingConfig) -> None:
        """Check that this training can continue with a model, images and settings.

        Raises:
            SettingsError: model, images or settings are others than those of this training; only the number of steps
                may change.
        """
        for name, value in asdict(self.config).items():
            if name != "steps" and value != getattr(config, name):
                raise SettingsError(
                    f"This training has {name}={value!r}, not {getattr(config, name)!r}; resume with {name}={value!r}, "
                    "or begin another."
                )
        if self.about["weights"] != fingerprint(model):
            raise SettingsError(
                f"This training is of '{self.about['model']}', and '{model.name}' has other weights; or an earlier "
                "version began it, which did not look at all of them. Begin another."
            )
        if self.about["pictures"] != images.digest:
            raise SettingsError("This training is of other images; resume with the same ones, or begin another.")

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all: the tensors as safetensors, everything else in its metadata.

        Raises:
            FileError: it cannot be written.
        """
        kinds = {"vectors": self.vectors, "begun": self.begun}
        if self.moments:
            kinds["moment1"], kinds["moment2"] = zip(*self.moments, strict=True)
        tensors = {}
        for kind, of_encoders in kinds.items():
            for i, rows in enumerate(of_encoders):
                tensors[f"{kind}.{i}"] = rows
        facts = {"step": self.step, "config": asdict(self.config), "about": dict(self.about)}
        write(path, tensor_file(tensors, {_FACTS: json_text(facts)}))

    @classmethod
    def load(cls, path: Path) -> TrainState:
        """Read what `save` wrote, also that of earlier versions, which kept settings in a file beside it.

        Raises:
            FileError: there is no training there, or it cannot be read.
        """
        if not path.exists():
            raise FileError(f"'{path.parent}' holds no training to resume.")
        with reading(path, "a training", _CURE):
            tensors, metadata = read_tensors(path)
            if _FACTS in metadata:
                facts = from_json(_Facts, metadata[_FACTS])
            else:
                facts = {**_earlier_facts(path.with_suffix(".json")), "step": int(metadata["step"])}
            config = TrainingConfig(**facts["config"])
            _check_vectors(tensors, config.vectors)
            return cls(config, facts["step"], *_parts(tensors), facts["about"])


def _earlier_facts(path: Path) -> Any:
    """The settings of a state of an earlier version, which kept them in a file of their own."""
    with reading(path, "a training", _CURE):
        return from_json(_Facts, path.read_bytes())


def _check_vectors(tensors: Mapping[str, Tensor], rows: int) -> None:
    """Check the tensors of a state's file.

    Raises:
        ValueError: one is of another shape or kind, or not finite.
    """
    for name, value in tensors.items():
        wanted = tensors[f"vectors.{name.rpartition('.')[2]}"]
        fits = value.dtype == torch.float32 and value.ndim == 2 and len(value) == rows and value.shape == wanted.shape
        if not fits or not value.isfinite().all():
            raise ValueError(f"its {name} are not {rows} vectors of finite numbers")


def _parts(
    tensors: Mapping[str, Tensor],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[tuple[Tensor, Tensor], ...]]:
    """The vectors, those that they began as, and the optimizer's moments, from the tensors of a state's file."""
    vectors, begun, moments = [], [], []
    for i in range(sum(name.startswith("vectors.") for name in tensors)):
        vectors.append(tensors[f"vectors.{i}"])
        begun.append(tensors[f"begun.{i}"])
        if "moment1.0" in tensors:
            moments.append((tensors[f"moment1.{i}"], tensors[f"moment2.{i}"]))
    return tuple(vectors), tuple(begun), tuple(moments)


def tables(model: Model) -> list[Tensor]:
    """The vectors of all tokens, [tokens, width] for each text encoder."""
    return [_plain(encoder.get_input_embeddings().weight) for _, encoder in readers_of(model)]


def _plain(vectors: Tensor) -> Tensor:
    """Vectors without a gradient, in float32 on the CPU."""
    return vectors.detach().float().cpu()


def first_vectors(model: Model, config: TrainingConfig) -> tuple[Tensor, ...]:
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
        if config.vectors > len(ids):
            rows = rows + 1e-3 * table.std() * noise
        found.append(rows)
    return tuple(found)
