"""Ordered weakening: what an image loses when heads are weakened, the most relevant to a concept first or last.

Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

If the vectors are right, similarity to the concept's word falls early with the most relevant heads first (MoRHF) and
late with the least relevant first (LeRHF); heads in random order lie between.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import FileError, SettingsError
from ..generation.generate import generate
from ..generation.result import Result
from ..heads.gains import weaken
from ..heads.relevance import Relevance
from ..models.base import Model
from ..utils.files import DATA, lock_file, own_slug, png, write
from ..utils.images import grid, open_image
from ..utils.jsonl import Log
from ..utils.numbers import check_finite
from ..utils.reading import Record
from ..utils.statistics import Difference, compare
from .clip import Clip

ORDERS = ("MoRHF", "LeRHF", "random")


class _Row(Record):
    """A row of scores.jsonl."""

    order: str
    heads: list[int]
    prompt: str
    word: str
    seed: int
    score: float


@dataclass(frozen=True)
class Experiment:
    """Prompts that show one concept.

    Attributes:
        concept: of the vectors.
        prompts: (prompt, the concept's own word in it) pairs. The word alone is what images are compared with.
    """

    concept: str
    prompts: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str) -> Experiment:
        """One of the paper's nine ("color", "weather", "animals", "material", "style", "patterns", "nature", "fruits",
        "furniture"), of its five with words from outside the concepts ("other-color"...), or of the embedded model's
        three: "pocket-animals" ("a cat"), "pocket-colors" ("a red car") and "pocket-bare-colors" ("a red")."""
        data = json.loads((DATA / "weakening.json").read_text())
        if name not in data["experiments"]:
            raise SettingsError(f"Unknown experiment '{name}'. Choose one of: {', '.join(data['experiments'])}.")
        facts = data["experiments"][name]
        combinations = itertools.product(*(data["lists"][items] for items in facts["items"]))
        prompts = tuple((facts["template"].format(*c), c[facts["of"]]) for c in combinations)
        return cls(facts["concept"], prompts)


def counts_of_heads(heads: int) -> tuple[int, ...]:
    """How many heads are weakened along a curve: the paper's numbers for 128 and 1300 heads, else about twelve."""
    if heads == 128:
        return (0, 1, *range(11, 122, 10), 128)
    if heads == 1300:
        return (0, 11, *range(111, 1300, 100), 1300)
    return tuple(dict.fromkeys((0, *(max(round(heads * i / 11), 1) for i in range(1, 11)), heads)))


def ordered(relevance: Relevance, concept: str, order: str, seed: int = 0) -> tuple[int, ...]:
    """All heads in the order in which they are weakened: "MoRHF", "LeRHF" or "random"."""
    if order not in ORDERS:
        raise SettingsError(f"Unknown order of heads '{order}'. Choose one of: {', '.join(ORDERS)}.")
    if order == "random":
        return tuple(torch.randperm(len(relevance.heads), generator=torch.Generator().manual_seed(seed)).tolist())
    return relevance.order(concept, least=order == "LeRHF")


@dataclass(frozen=True, eq=False)
class Curves:
    """Similarity against the number of weakened heads.

    Attributes:
        experiment: its prompts.
        heads: how many the model has.
        counts: numbers of weakened heads, from 0 to all.
        scores: for each order cosine similarity [counts, prompts, seeds] of the image to the concept's word.
    """

    experiment: Experiment
    heads: int
    counts: tuple[int, ...]
    scores: dict[str, Tensor]

    def mean(self, order: str) -> Tensor:
        """The curve [counts]: mean over seeds and prompts."""
        return self.scores[order].mean(dim=(1, 2))

    def area(self, order: str) -> float:
        """The area under a curve by the trapezoid rule, as a share of all heads: the mean similarity along it."""
        return float(torch.trapezoid(self.mean(order), torch.tensor(self.counts).float())) / self.heads

    def between(self) -> Difference:
        """The area of LeRHF over that of MoRHF, positive when the vectors are right; paired by prompt."""
        counts, areas = torch.tensor(self.counts).float(), list[list[float]]()
        for order in ("LeRHF", "MoRHF"):
            each = torch.trapezoid(self.scores[order].mean(dim=2), counts, dim=0) / self.heads  # [prompts]
            areas.append(each.tolist())
        return compare(areas[0], areas[1])


def weakened(
    model: Model,
    relevance: Relevance,
    experiment: Experiment,
    folder: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (10, 20, 30),
    counts: Sequence[int] | None = None,
    orders: Sequence[str] = ORDERS,
    factor: float = -2.0,
    clip: Clip | None = None,
    images: bool = False,
    on_job: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Curves:
    """Generate an experiment with more and more heads weakened, and score it. Stopped, it goes on where it was.

    Args:
        model: see `limelight.load`.
        relevance: vectors that fit it.
        experiment: its prompts.
        folder: keeps `scores.jsonl`, a line per image, and with `images` those of the first seed that ran there.
        seeds: of every prompt.
        counts: numbers of weakened heads; 0 and all are added. By default `counts_of_heads`.
        orders: some of "MoRHF", "LeRHF", "random".
        factor: what weakened heads are multiplied by, see `limelight.heads.gains.weaken`.
        clip: scores; by default the embedded model's.
        images: keep the images of the first seed, for `strip`.
        on_job: called after every (order, number) with the done and all of them.
        options: for `limelight.generate`.

    Raises:
        SettingsError: counts or orders are out of range.
        FileError: the folder has scores of other settings, or cannot be written, or another program writes it.
    """
    check_finite(factor=factor)  # before the images without weakened heads
    relevance.of(model)
    numbers = _numbers(counts, len(relevance.heads))
    lists = {order: ordered(relevance, experiment.concept, order) for order in orders}
    lists["all"] = tuple(range(len(relevance.heads)))
    settings = {"model": model.name, "concept": experiment.concept, "factor": factor, **options}
    settings.pop("batch", None)  # images do not depend on it
    clip = clip or Clip()
    path = Path(folder) / "scores.jsonl"
    with lock_file(path), closing(Log(path, _Row, say=lambda text: None)) as log:
        known = _known(log, settings, lists)
        jobs = _jobs(numbers, orders, len(relevance.heads))
        for done, (order, number) in enumerate(jobs):
            chosen = list(lists[order][:number])
            missing = _missing(experiment, known, order, number, seeds)
            for (prompt, word), result in _generate(model, missing, seeds, chosen, factor, options):
                kept = image_path(Path(folder), prompt, order, number)
                if images and not kept.exists():
                    write(kept, png({}, result.images[0]))
                facts = {"order": order, "heads": chosen, "prompt": prompt, "word": word}
                rows = _scored(clip, result, {**facts, **settings})
                log.add(rows)  # after the image, which is not generated again when the rows are there
                known |= {(order, number, prompt, row["seed"]): row["score"] for row in rows}
            if on_job:
                on_job(done + 1, len(jobs))
    return _curves(experiment, known, numbers, orders, seeds, len(relevance.heads))


def _numbers(counts: Sequence[int] | None, heads: int) -> tuple[int, ...]:
    """The numbers of weakened heads, with none and all."""
    if counts is None:
        counts = counts_of_heads(heads)
    numbers = tuple(sorted({0, heads, *counts}))
    if numbers[0] < 0 or numbers[-1] > heads:
        raise SettingsError(f"counts={list(counts)} must be numbers of heads from 0 to {heads}.")
    return numbers


def _jobs(numbers: Sequence[int], orders: Sequence[str], heads: int) -> list[tuple[str, int]]:
    """Every number in every order, each that is kept once."""
    jobs = itertools.product(numbers, orders)
    return list(dict.fromkeys((_kept_as(order, number, heads), number) for number, order in jobs))


def _kept_as(order: str, number: int, heads: int) -> str:
    """The order under which scores and images are kept: none or all of the heads are the same in every order."""
    if number in (0, heads):
        return "all"
    return order


def _generate(
    model: Model,
    missing: Sequence[tuple[str, str]],
    seeds: Sequence[int],
    chosen: Sequence[int],
    factor: float,
    options: Mapping[str, Any],
) -> list[tuple[tuple[str, str], Result]]:
    """Generate prompts with some heads weakened: (prompt, word) pairs and their results."""
    if not missing:
        return []
    results = generate(
        model,
        [prompt for prompt, _ in missing],
        subjects=[()] * len(missing),
        seeds=seeds,
        edits=[weaken(chosen, factor)] if chosen else [],
        record=False,
        **options,
    )
    return list(zip(missing, results, strict=True))


def _missing(
    experiment: Experiment, known: Mapping[tuple[Any, ...], float], order: str, number: int, seeds: Sequence[int]
) -> list[tuple[str, str]]:
    """The prompts of an experiment that lack the score of a seed."""
    missing = []
    for prompt, word in experiment.prompts:
        if any((order, number, prompt, seed) not in known for seed in seeds):
            missing.append((prompt, word))
    return missing


def _scored(clip: Clip, result: Result, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per image: the facts, and its cosine similarity to the word."""
    similar = (clip.images(result.images) @ clip.texts([facts["word"]])[0]).tolist()
    return [{**facts, "seed": seed, "score": score} for seed, score in zip(result.seeds, similar, strict=True)]


def _curves(
    experiment: Experiment,
    known: Mapping[tuple[Any, ...], float],
    numbers: tuple[int, ...],
    orders: Sequence[str],
    seeds: Sequence[int],
    heads: int,
) -> Curves:
    scores = {}
    for order in orders:
        values = torch.zeros(len(numbers), len(experiment.prompts), len(seeds))
        for i, number in enumerate(numbers):
            name = _kept_as(order, number, heads)
            for k, (prompt, _) in enumerate(experiment.prompts):
                values[i, k] = torch.tensor([known[name, number, prompt, seed] for seed in seeds])
        scores[order] = values
    return Curves(experiment, heads, numbers, scores)


def image_path(folder: Path, prompt: str, order: str, number: int) -> Path:
    """Where `weakened` keeps an image."""
    return folder / own_slug(prompt) / f"{order}-{number:04d}.png"


def strip(folder: str | os.PathLike[str], curves: Curves, prompt: str) -> Image.Image:
    """The kept images of one prompt: a row per order, more heads weakened from left to right."""
    rows = []
    for order in curves.scores:
        images = []
        for number in curves.counts:
            name = _kept_as(order, number, curves.heads)
            images.append(open_image(image_path(Path(folder), prompt, name, number)))
        rows.append(images)
    labels = [f"{order}: {', '.join(map(str, curves.counts))} heads weakened" for order in curves.scores]
    return grid(rows, labels)


def _known(log: Log, settings: Mapping[str, Any], lists: Mapping[str, tuple[int, ...]]) -> dict[tuple[Any, ...], float]:
    """The scores of an earlier run: (order, number of heads, prompt, seed) to score."""
    found = {}
    for row in log.rows:
        order, number = row["order"], len(row["heads"])
        same_settings = settings == {name: row.get(name) for name in settings}
        same_heads = order not in lists or list(lists[order][:number]) == row["heads"]
        if not (same_settings and same_heads):
            raise FileError(f"'{log.path}' has scores of other settings or other vectors; choose another folder.")
        found[order, number, row["prompt"], row["seed"]] = row["score"]
    return found
