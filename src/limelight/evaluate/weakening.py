"""Ordered weakening: what a picture loses when heads are weakened, the most relevant to a concept first or last.

Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, "Cross-Attention Head Position Patterns Can Align
with Human Visual Concepts in Text-to-Image Generative Models", 2024, https://arxiv.org/abs/2412.02237

If the vectors are right, similarity to the concept's word falls early with the most relevant heads first (MoRHF) and
late with the least relevant first (LeRHF); heads in random order lie between.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingsError
from ..generation.generate import generate
from ..heads.gains import weaken
from ..heads.relevance import Relevance
from ..models.base import Model
from ..utils.files import DATA
from ..utils.statistics import bootstrap_interval
from .clip import Clip

ORDERS = ("MoRHF", "LeRHF", "random")


@dataclass(frozen=True)
class Experiment:
    """Prompts that show one concept.

    Attributes:
        concept: of the vectors.
        prompts: (prompt, the concept's own word in it) pairs. The word alone is what pictures are compared with.
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
            raise SettingsError(f"'{name}' is no experiment; there are: {', '.join(data['experiments'])}.")
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
        raise SettingsError(f"'{order}' is no order of heads; there are: {', '.join(ORDERS)}.")
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
        scores: for each order cosine similarity [counts, prompts, seeds] of the picture to the concept's word.
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

    def between(self, confidence: float = 0.95, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
        """The area between LeRHF and MoRHF, positive when the vectors are right, and its confidence interval.

        A percentile bootstrap over prompts, see `bootstrap_interval`.
        """
        gap = (self.scores["LeRHF"] - self.scores["MoRHF"]).mean(dim=2)
        each = torch.trapezoid(gap, torch.tensor(self.counts).float(), dim=0) / self.heads  # [prompts]
        low, high = bootstrap_interval(each.tolist(), confidence=confidence, resamples=draws, seed=seed)
        return float(each.mean()), low, high


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
    pictures: bool = False,
    on_job: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Curves:
    """Draw an experiment with more and more heads weakened, and score it. Stopped, it goes on where it was.

    Args:
        model: see `limelight.load`.
        relevance: vectors that fit it.
        experiment: what to draw.
        folder: keeps `scores.jsonl`, a line per picture, and with `pictures` the pictures of the first seed.
        seeds: of every prompt.
        counts: numbers of weakened heads; 0 and all are added. By default `counts_of_heads`.
        orders: some of "MoRHF", "LeRHF", "random".
        factor: what weakened heads are multiplied by, see `limelight.heads.gains.weaken`.
        clip: scores; by default the embedded model's.
        pictures: keep the pictures of the first seed, for `strip`.
        on_job: called after every (order, number) with the done and all of them.
        options: for `limelight.generate`.
    """
    relevance.of(model)
    heads = len(relevance.heads)
    numbers = tuple(sorted({0, heads, *(counts if counts is not None else counts_of_heads(heads))}))
    if numbers[0] < 0 or numbers[-1] > heads:
        raise SettingsError(f"counts={list(counts or ())} must be numbers of heads from 0 to {heads}.")
    lists = {order: ordered(relevance, experiment.concept, order) for order in orders}
    folder = Path(folder)
    settings = {
        "model": model.name,
        "concept": experiment.concept,
        "factor": factor,
        **{name: value for name, value in options.items() if name != "batch"},
    }
    known = _known(folder / "scores.jsonl", settings, lists)
    clip = clip or Clip()
    # No heads and all heads are the same pictures in every order, which are drawn once.
    jobs = [(o, n) for n in numbers for o in (orders if 0 < n < heads else ("all",))]
    for done, (order, number) in enumerate(jobs):
        missing = [
            (p, word) for p, word in experiment.prompts if any((order, number, p, seed) not in known for seed in seeds)
        ]
        if missing:
            chosen = list((range(heads) if order == "all" else lists[order])[:number])
            results = generate(
                model,
                [p for p, _ in missing],
                subjects=[()] * len(missing),
                seeds=seeds,
                edits=[weaken(chosen, factor)] if chosen else [],
                record=False,
                **options,
            )
            rows = []
            for (p, word), result in zip(missing, results, strict=True):
                similar = (clip.images(result.images) @ clip.texts([word])[0]).tolist()
                for seed, score in zip(seeds, similar, strict=True):
                    known[order, number, p, seed] = score
                    row = {"order": order, "heads": chosen, "prompt": p, "word": word, "seed": seed, "score": score}
                    rows.append({**row, **settings})
                if pictures:
                    path = picture_path(folder, p, order, number)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    result.images[0].save(path)
            _append(folder / "scores.jsonl", rows)
        if on_job:
            on_job(done + 1, len(jobs))
    scores = {}
    for order in orders:
        names = [order if 0 < n < heads else "all" for n in numbers]
        values = [
            [[known[name, n, p, seed] for seed in seeds] for p, _ in experiment.prompts]
            for name, n in zip(names, numbers, strict=True)
        ]
        scores[order] = torch.tensor(values)
    return Curves(experiment, heads, numbers, scores)


def picture_path(folder: Path, prompt: str, order: str, number: int) -> Path:
    """Where `weakened` keeps a picture."""
    from ..utils.files import slug

    return folder / slug(prompt) / f"{order}-{number:04d}.png"


def strip(folder: str | os.PathLike[str], curves: Curves, prompt: str) -> Image.Image:
    """The kept pictures of one prompt: a row per order, more heads weakened from left to right."""
    from ..utils.images import grid

    rows = []
    for order in curves.scores:
        names = [order if 0 < n < curves.heads else "all" for n in curves.counts]
        paths = [picture_path(Path(folder), prompt, o, n) for o, n in zip(names, curves.counts, strict=True)]
        rows.append([Image.open(path).convert("RGB") for path in paths])
    labels = [f"{order}: {', '.join(map(str, curves.counts))} heads weakened" for order in curves.scores]
    return grid(rows, labels)


def _known(path: Path, settings: dict[str, Any], lists: dict[str, tuple[int, ...]]) -> dict[tuple[Any, ...], float]:
    """The scores of an earlier run: (order, number of heads, prompt, seed) to score."""
    found = {}
    for row in _rows(path):
        order, number = row["order"], len(row["heads"])
        wanted = settings == {name: row.get(name) for name in settings}
        if not wanted or (order in lists and list(lists[order][:number]) != row["heads"]):
            raise SettingsError(f"'{path}' has scores of other settings or other vectors; choose another folder.")
        found[order, number, row["prompt"], row["seed"]] = row["score"]
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # the last line of a run that was killed while writing it
                continue


def _append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        with path.open("a") as file:
            file.write(("\n" if torn else "") + "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise SettingsError(f"'{path}' cannot be written: {error.strerror or error}.") from error
