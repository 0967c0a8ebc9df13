"""Head relevance vectors and their file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import FileError, SettingsError, meant
from ..models.base import Model
from ..models.sites import AttentionSite, head_slices
from ..utils.files import check_free, json_text, user_path, write
from ..utils.reading import Record, from_json, reading
from ..utils.tensors import read_tensors, tensor_file

VERSION = 1
SHIPPED = ("sd-1.4", "sdxl", "pocket")
_SIZES = (1, 2, 3, 5, 8, 12, 18, 25, 50, 100, 250, 500)  # blocks in a sample, see `Relevance.agreement`
_NAME = re.compile(r"\s*(down|mid|up), layer: (\d+), head: (\d+)\s*")


class _Facts(Record):
    """The metadata of a file."""

    version: int
    concepts: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, order=True)
class Head:
    """One cross-attention head, named as the authors name it: ``up, layer: 8, head: 0``.

    Attributes:
        index: its place among all heads, in execution order.
        group: the side of the U.
        layer: which cross-attention layer of that side, from 0.
        head: which head of that layer, from 0.
    """

    index: int
    group: str
    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.group}, layer: {self.layer}, head: {self.head}"


@dataclass(frozen=True, eq=False)
class Relevance:
    """How much every cross-attention head attends to every concept.

    Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
    with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

    ``relevance["Color"]`` is a concept's vector [heads].

    Attributes:
        concepts: their names.
        layers: (group, heads) of every cross-attention layer in execution order.
        vectors: [concepts, heads], not negative; each row's mean is 1, so that row sums are the number of heads.
        counts: how often a head chose a concept in a step, int64 [steps, heads, concepts]; None where unknown. Imported
            vectors have a single "step", the sum of all.
        blocks: the same for blocks of prompts, over all steps, int64 [blocks, heads, concepts]; None where unknown.
            Prompt i of the list belongs to block i % blocks.
        counted: bool [prompts], which prompts of the list have been counted; None where unknown.
        facts: how they were made: "model", "words" of each concept, "prompts", "seed", "steps" and more.

    Examples:
        >>> relevance = Relevance.load("sd-1.4")
        >>> str(relevance.heads[relevance.order("Color")[0]]), round(float(relevance["Color"].max()), 1)
        ('up, layer: 8, head: 0', 8.3)
    """

    concepts: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]
    vectors: Tensor
    counts: Tensor | None = None
    blocks: Tensor | None = None
    counted: Tensor | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, concept: str) -> Tensor:
        return self.vectors[self.index(concept)]

    def index(self, concept: str) -> int:
        """The row of a concept; upper and lower case are the same.

        Raises:
            SettingsError: the vectors do not have it.
        """
        names = [name.casefold() for name in self.concepts]
        wanted = concept.strip().casefold()
        if wanted not in names:
            also = meant(concept, self.concepts)
            raise SettingsError(f"Unknown concept '{concept}'. Choose one of: {', '.join(self.concepts)}.{also}")
        return names.index(wanted)

    def named(self, concepts: str | None) -> tuple[str, ...]:
        """The vectors' names of concepts in a text such as "animals,color"; None takes all.

        Raises:
            SettingsError: the vectors lack one.
        """
        if concepts is None:
            return self.concepts
        return tuple(self.concepts[self.index(name)] for name in concepts.split(","))

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """Every head in execution order."""
        found: list[Head] = []
        seen: dict[str, int] = {}
        for group, heads in self.layers:
            layer = seen[group] = seen.get(group, -1) + 1
            found += [Head(len(found) + head, group, layer, head) for head in range(heads)]
        return tuple(found)

    @cached_property
    def fault(self) -> str | None:
        """What is wrong with the numbers: shapes that do not fit, or relevance that is negative or not a number."""
        names = {name.strip().casefold() for name in self.concepts}
        if len(names) < len(self.concepts) or "" in names:
            return "a concept has no name, or the name of another"
        if any(count < 1 for _, count in self.layers):
            return "a layer has no heads"

        concepts, heads = len(self.concepts), sum(count for _, count in self.layers)
        for name, shape in (
            ("vectors", (concepts, heads)),
            ("counts", (-1, heads, concepts)),
            ("blocks", (-1, heads, concepts)),
            ("counted", (-1,)),
        ):
            fault = _fault_of(name, getattr(self, name), shape)
            if fault:
                return fault
        return None

    def find(self, head: int | str) -> int:
        """The index of a head by its index or its name.

        Raises:
            SettingsError: there is no such head.
        """
        if isinstance(head, str):
            match = _NAME.fullmatch(head)
            wanted = match and (match[1], int(match[2]), int(match[3]))
            for known in self.heads:
                if (known.group, known.layer, known.head) == wanted:
                    return known.index
            raise SettingsError(f"Unknown head '{head}'; write for example '{self.heads[0]}'.")

        if not 0 <= head < len(self.heads):
            raise SettingsError(f"The head {head} does not exist; there are 0 to {len(self.heads) - 1}.")
        return int(head)

    def order(self, concept: str, *, least: bool = False) -> tuple[int, ...]:
        """All heads, the most relevant to a concept first (or last). Of equals, the earlier in the model is first.

        The authors' lists come from NumPy's unstable sort, whose order of equals depends on its build and the
        processor: where the first N heads end among equals, a few lists in a hundred name others of them.
        """
        row = self[concept]
        return tuple(torch.argsort(row, descending=not least, stable=True).tolist())

    def top(self, concept: str, count: int = 5) -> list[tuple[Head, float]]:
        """The most relevant heads of a concept, each with its relevance.

        Examples:
            >>> [(str(head), round(value, 1)) for head, value in Relevance.load("sdxl").top("Color", 1)]
            [('up, layer: 14, head: 6', 66.1)]
        """
        row = self[concept].tolist()
        return [(self.heads[index], row[index]) for index in self.order(concept)[:count]]

    def of(self, model: Model) -> dict[AttentionSite, slice]:
        """Where each cross-attention layer of a model has its heads in the vectors.

        Raises:
            SettingsError: the vectors are of another kind of model.
        """
        layers = layers_of(model)
        if layers != self.layers:
            made_for, heads = self.facts.get("model", "another model"), sum(count for _, count in layers)
            raise SettingsError(
                f"The head relevance vectors of '{made_for}' ({len(self.layers)} layers, {len(self.heads)} heads) do "
                f"not fit '{model.name}' ({len(layers)} layers, {heads} heads); compute its own "
                "with limelight heads compute."
            )
        return head_slices(model.text_sites)

    def scaled(
        self,
        norm: Literal["mean", "rms"] = "mean",
        *,
        power: float = 1.0,
        clamp: float | None = None,
    ) -> Relevance:
        """The vectors on another scale.

        With many heads the authors' scale gives single heads gains of 60 and more (Stable Diffusion XL), which damages
        images; they clamp, and leave open what would be better.

        Args:
            norm: every row's "mean" is 1 (the authors' scale), or its root mean square, "rms", is: rows that rest on
                few heads then get no larger gains than others.
            power: exponent of the elements before the scaling; 0.5 narrows the range, 1 is the authors'.
            clamp: upper limit after the scaling; the authors show 9 for Stable Diffusion XL. Rows then sum to less.
        """
        if power <= 0 or (clamp is not None and clamp <= 0):
            raise SettingsError(f"power={power} and clamp={clamp} must be positive.")

        vectors = self.vectors.double() ** power
        size = vectors.mean(dim=1, keepdim=True) if norm == "mean" else vectors.square().mean(1, keepdim=True).sqrt()
        vectors = vectors / size.clamp(min=1e-12)
        if clamp is not None:
            vectors = vectors.clamp(max=clamp)
        return replace(self, vectors=vectors.float())

    def shares(self) -> Tensor:
        """The fraction of each head's choices that every concept has, [concepts, heads]; columns sum to 1."""
        counts = self._known(self.counts, "counts").sum(dim=0).double()
        return (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).T

    def similarity(self) -> Tensor:
        """Cosine between the vectors of every two concepts, [concepts, concepts]."""
        unit = torch.nn.functional.normalize(self.vectors.double(), dim=1)
        return unit @ unit.T

    def by_step(self) -> Tensor:
        """The vectors of each step alone, [steps, concepts, heads]; rows without a choice are 0."""
        return vectors_of(self._known(self.counts, "counts"))

    def step_similarity(self) -> Tensor:
        """Cosine between the steps' vectors, averaged over concepts as the authors do, [steps, steps]."""
        unit = torch.nn.functional.normalize(self.by_step().double().mean(dim=1), dim=1)
        return unit @ unit.T

    def interval(self, confidence: float = 0.95, *, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Lower and upper limit of every element, two tensors [concepts, heads].

        A percentile bootstrap over blocks of prompts (B. Efron, "Bootstrap Methods: Another Look at the Jackknife",
        1979, https://doi.org/10.1214/aos/1176344552): what other prompts would have given.

        Raises:
            SettingsError: the confidence is not between 0 and 1, or the vectors have fewer than two blocks of counts.
        """
        if not 0 < confidence < 1:
            raise SettingsError(f"confidence={confidence} must be between 0 and 1.")

        # Not `bootstrap_interval`, which is for the mean of single numbers: an element is a ratio of sums over blocks,
        # and all elements need the same resamples, because a row is divided by its own sum.
        blocks = self._filled_blocks().double()
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(blocks), (resamples, len(blocks)), generator=generator)
        weights = torch.nn.functional.one_hot(chosen, len(blocks)).sum(dim=1).double()  # [resamples, blocks]

        tails = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
        limits = []
        for concept in blocks.unbind(dim=2):  # one at a time: a thousand resamples of everything are gigabytes
            sums = weights @ concept
            rows = sums * concept.shape[1] / sums.sum(dim=1, keepdim=True).clamp(min=1)
            limits.append(torch.quantile(rows, tails, dim=0))
        lower, upper = torch.stack(limits, dim=1).float()
        return lower, upper

    def agreement(self, *, pairs: int = 100, seed: int = 0) -> list[tuple[int, Tensor]]:
        """How many prompts are enough: how well two disjoint samples of the same number of prompts agree.

        Returns:
            (number of prompts, cosine between the vectors of two such samples [concepts], mean over so many random
            `pairs`), for growing numbers up to half of the prompts.

        Raises:
            SettingsError: the vectors have fewer than two blocks of counts.
        """
        blocks = self._filled_blocks().double()
        each = float(self._known(self.counted, "counted").sum()) / len(blocks)
        generator = torch.Generator().manual_seed(seed)
        half = len(blocks) // 2

        found = []
        for size in (*filter(lambda size: 2 * size < len(blocks), _SIZES), half):
            total = torch.zeros(blocks.shape[2], dtype=torch.float64)
            for _ in range(pairs):
                chosen = torch.randperm(len(blocks), generator=generator)
                one, other = blocks[chosen[:size]].sum(dim=0), blocks[chosen[size : 2 * size]].sum(dim=0)
                total += torch.nn.functional.cosine_similarity(one.T, other.T, dim=1)
            found.append((round(size * each), (total / pairs).float()))
        return found

    def _filled_blocks(self) -> Tensor:
        blocks = self._known(self.blocks, "counts by block of prompts")
        filled = blocks[blocks.sum(dim=(1, 2)) > 0]
        if len(filled) < 2:
            raise SettingsError("Fewer than two blocks of prompts were counted; count more prompts.")
        return filled

    def _known(self, tensor: Tensor | None, what: str) -> Tensor:
        if tensor is None:
            raise SettingsError(
                f"These vectors were imported without {what}; compute them with limelight heads compute."
            )
        return tensor

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        """Write the file: vectors and counts as safetensors, everything else in its metadata.

        Args:
            overwrite: also a file that holds something else.

        Raises:
            FileError: it cannot be written, or without `overwrite` a file is there that holds something else.
        """
        tensors = {"vectors": self.vectors.float()}
        for name in ("counts", "blocks"):
            value = getattr(self, name)
            if value is not None:
                # The largest count is that of one head over all prompts and steps; 32 bits hold four million prompts.
                tensors[name] = value.to(torch.int32)
        if self.counted is not None:
            tensors["counted"] = self.counted.to(torch.uint8)

        about = {"version": VERSION, "concepts": self.concepts, "layers": self.layers, **self.facts}
        content = tensor_file(tensors, {"limelight.heads": json_text(about)})
        if not overwrite:
            check_free(Path(path), content)
        write(Path(path), content)
        return Path(path)

    @classmethod
    def load(cls, source: str | Path) -> Relevance:
        """Read a file that `save` wrote, or one of the shipped: "sd-1.4", "sdxl", "pocket".

        Raises:
            FileError: there is no such file, or it is something else.
        """
        path: Any = user_path(source)
        if source in SHIPPED:
            path = files("limelight.heads") / "vectors" / f"{source}.safetensors"
        cure = f"give {', '.join(SHIPPED)} or a file that limelight heads compute or import has written"
        with reading(path, "head relevance vectors", cure):
            tensors, metadata = read_tensors(str(path))
            about = from_json(_Facts, metadata["limelight.heads"])
            if (version := about.pop("version")) > VERSION:
                raise FileError(f"'{source}' was written by a newer limelight (version {version}); update limelight.")

            optional = {}
            for name, dtype in {"counts": torch.int64, "blocks": torch.int64, "counted": torch.bool}.items():
                if name in tensors:
                    optional[name] = tensors[name].to(dtype)
            found = cls(about.pop("concepts"), about.pop("layers"), tensors["vectors"], facts=about, **optional)
            if found.fault:
                raise ValueError(found.fault)
            return found

    @classmethod
    def read_npy(
        cls, vectors: str | Path, heads: str | Path, concepts: Mapping[str, Sequence[str]], **facts: Any
    ) -> Relevance:
        """Import the authors' two files.

        The counts are recovered where possible: for every head they sum over the concepts to one and the same number,
        which fixes what each row was divided by.

        Args:
            vectors: ``category_vectors_....npy`` [concepts, heads].
            heads: ``head_index_....npy``, the heads' names.
            concepts: their names and words, in the order of the rows.
            facts: what else is known, for example model="CompVis/stable-diffusion-v1-4".

        Raises:
            FileError: a file cannot be read, or the three do not fit each other.
        """
        rows, names = _array(vectors), _array(heads)
        if rows.ndim != 2 or rows.shape != (len(concepts), len(names)):
            raise FileError(
                f"'{vectors}' has the shape {list(rows.shape)}; {len(concepts)} concepts and {len(names)} heads need "
                f"[{len(concepts)}, {len(names)}]."
            )

        found = cls(tuple(concepts), _layers_named(names, heads), torch.from_numpy(rows).float())
        if list(map(str, found.heads)) != list(map(str.strip, map(str, names))):
            raise FileError(f"'{heads}' does not name the heads in execution order.")

        if found.fault:
            raise FileError(f"'{vectors}' cannot be used: {found.fault}.")

        about = {"words": {name: list(words) for name, words in concepts.items()}, **facts}
        return replace(found, counts=_recovered(rows, facts.get("choices")), facts=about)


def _fault_of(name: str, value: Tensor | None, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor that must have a shape, where -1 is any length, and no negative numbers."""
    if value is None:
        return None
    fits = len(shape) == value.ndim and all(a in (-1, b) for a, b in zip(shape, value.shape, strict=True))
    if not fits:
        wanted = ["any" if side < 0 else side for side in shape]
        return f"its {name} have the shape {list(value.shape)}, not {wanted}".replace("'", "")
    if not bool(((value >= 0) & (value < torch.inf)).all()):
        return f"its {name} are negative, infinite or not a number in places"
    return None


def _array(path: str | Path) -> np.ndarray[Any, Any]:
    with reading(path, "a NumPy array", "give the authors' .npy file"):
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("it is an archive of several arrays")
        return found


def _layers_named(names: Iterable[Any], source: str | Path) -> tuple[tuple[str, int], ...]:
    """The layers of heads with the authors' names: (group, heads) of each; head 0 begins a layer."""
    layers: list[tuple[str, int]] = []
    for name in names:
        match = _NAME.fullmatch(str(name))
        if match is None:
            raise FileError(f"'{source}' names a head '{name}'; expected for example 'up, layer: 8, head: 0'.")
        if int(match[3]) == 0 or not layers:
            layers.append((match[1], 0))
        group, heads = layers[-1]
        layers[-1] = group, heads + 1
    return tuple(layers)


def layers_of(model: Model) -> tuple[tuple[str, int], ...]:
    """(group, heads) of every cross-attention layer of a model, as in `Relevance.layers`."""
    return tuple((layer.group, layer.heads) for layer in model.text_sites)


def vectors_of(counts: Tensor) -> Tensor:
    """Counts [..., heads, concepts] to vectors [..., concepts, heads] whose rows have the mean 1, or are all 0."""
    turned = counts.double().transpose(-1, -2)
    return (turned.shape[-1] * turned / turned.sum(dim=-1, keepdim=True).clamp(min=1)).float()


def _recovered(rows: np.ndarray, choices: int | None) -> Tensor | None:
    """Counts [1, heads, concepts] of vectors whose heads chose `choices` times each; None where that cannot be."""
    if not choices:
        return None
    per_row, *_ = np.linalg.lstsq(rows.T.astype(np.float64), np.full(rows.shape[1], float(choices)), rcond=None)
    counts = rows.T * per_row
    whole = np.rint(counts)
    if np.abs(counts - whole).max() > 0.1 or (whole.sum(axis=1) != choices).any():
        return None
    return torch.from_numpy(whole).long()[None]


@lru_cache(maxsize=4)
def _shipped(name: str) -> Relevance:
    return Relevance.load(name)


def relevance_for(model: Model, given: Relevance | str | Path | None = None) -> Relevance:
    """The vectors to use with a model: those given, or the shipped ones that fit its layers.

    Raises:
        FileError: the given file cannot be read.
        SettingsError: none fit, or those given are not sound.
    """
    if given is not None:
        relevance = given if isinstance(given, Relevance) else Relevance.load(given)
        if relevance.fault:
            raise SettingsError(f"The head relevance vectors cannot be used: {relevance.fault}.")
        relevance.of(model)
        return relevance

    for name in SHIPPED if model.vectors is None else model.vectors:
        relevance = _shipped(name)
        try:
            relevance.of(model)
        except SettingsError:
            continue
        return relevance

    raise SettingsError(
        f"No head relevance vectors are shipped for '{model.name}'; compute them with limelight heads compute --model "
        f"'{model.name}', or give a file."
    )
