"""What a training is: its settings, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from .low_rank import first_changes, rank_of
from .word import LearnedWord

_FACTS = "limelight.training"  # the key of a state's metadata
_CHANGE, _MOMENTS = "change.", ("moment1", "moment2")


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
        changes: of the denoiser's layers, by name, see `limelight.textual_inversion.low_rank`.
        moments: AdamW's two running means for each of `vectors` and then of `changes`; empty before the first step.
        about: the model and the images that it is of.
    """

    config: TrainingConfig
    step: int
    vectors: tuple[Tensor, ...]
    begun: tuple[Tensor, ...]
    moments: tuple[tuple[Tensor, Tensor], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, model: Model, images: TrainingImages, config: TrainingConfig, start: LearnedWord | None = None
    ) -> TrainState:
        """A training before its first step.

        Args:
            start: another word to begin as, instead of `config.init`; changes of the denoiser that it lacks begin anew.

        Raises:
            SettingsError: it does not fit the model or the settings.
        """
        begun = tuple(map(_plain, first_vectors(model, config) if start is None else start.vectors))
        for table, rows in zip(tables(model), begun, strict=True):
            if rows.shape != (config.vectors, table.shape[1]):
                raise SettingsError(
                    f"Vectors of shape {list(rows.shape)} do not fit '{model.name}': "
                    f"they must be {[config.vectors, table.shape[1]]}."
                )
        facts = provenance(model)
        # In the order in which `load` gives them, so that a resumed training writes the same bytes.
        about = {"model": facts["model"], "weights": fingerprint(model), "pictures": images.digest} | facts
        changes = first_changes(model, config.rank, generator(config.seed, "changes"))
        if start is not None and start.changes:
            if rank_of(start.changes) != config.rank:
                raise SettingsError(
                    f"'{start.token}' changes the denoiser with rank {rank_of(start.changes)}, not {config.rank}; "
                    f"begin with rank={rank_of(start.changes)}, or with the file of its vectors."
                )
            changes = dict(start.changes)
        return cls(config, 0, begun, begun, (), about, changes)

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
        return LearnedWord(self.config.token, self.vectors, about, self.changes)

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
            kinds |= zip(_MOMENTS, zip(*self.moments, strict=True), strict=True)
        tensors = {f"{_CHANGE}{name}": value for name, value in self.changes.items()}
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
            _check_tensors(tensors, config.vectors)
            _check_finite(tensors)
            vectors, begun = _numbered(tensors, "vectors"), _numbered(tensors, "begun")
            moments = tuple(zip(*(_numbered(tensors, kind) for kind in _MOMENTS), strict=True))
            return cls(config, facts["step"], vectors, begun, moments, facts["about"], _changes(tensors))


def _earlier_facts(path: Path) -> Any:
    """The settings of a state of an earlier version, which kept them in a file of their own."""
    with reading(path, "a training", _CURE):
        return from_json(_Facts, path.read_bytes())


def _check_tensors(tensors: Mapping[str, Tensor], rows: int) -> None:
    """Check the tensors of a state's file.

    Raises:
        ValueError: one is of another shape than what it belongs to.
    """
    vectors = _shapes(_numbered(tensors, "vectors"))
    trained = vectors + _shapes(_changes(tensors).values())
    if not vectors or any(len(shape) != 2 or shape[0] != rows for shape in vectors):
        raise ValueError(f"its vectors are not {rows} vectors")
    if _shapes(_numbered(tensors, "begun")) != vectors:
        raise ValueError("its vectors began with another shape")
    if any(_shapes(_numbered(tensors, kind)) not in ([], trained) for kind in _MOMENTS):
        raise ValueError("its moments are of another shape than what they belong to")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check the numbers of a state's file.

    Raises:
        ValueError: one is of another kind, or not finite.
    """
    for name, value in tensors.items():
        if value.dtype != torch.float32 or not value.isfinite().all():
            raise ValueError(f"its {name} is not of finite numbers")


def _shapes(tensors: Iterable[Tensor]) -> list[torch.Size]:
    return [value.shape for value in tensors]


def _numbered(tensors: Mapping[str, Tensor], kind: str) -> tuple[Tensor, ...]:
    """The tensors of a kind, in their order."""
    count = sum(name.startswith(f"{kind}.") for name in tensors)
    return tuple(tensors[f"{kind}.{i}"] for i in range(count))


def _changes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A word's changes of the denoiser, by name."""
    return {name.removeprefix(_CHANGE): tensors[name] for name in sorted(tensors) if name.startswith(_CHANGE)}


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
