"""Stage "heads": head relevance vectors counted anew, beside the shipped ones, and what weakening the heads does."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingsError
from ..evaluate.clip import Clip
from ..evaluate.weakening import Curves, Experiment, weakened
from ..heads.counting import Counting, compute
from ..heads.relevance import Relevance, relevance_for
from ..heads.vocabulary import Concepts
from ..models.embedded import EMBEDDED
from ..utils.numbers import amount
from ..utils.statistics import Difference, bootstrap_interval
from .context import TUNING, Context, Skip
from .instruments import clip, reported
from .outcome import LEAST, Outcome, Table, judged, number

PROMPTS, BATCH = 20, 4
SHARES = (0.1, 0.3, 0.6)
"""Shares of the heads that are weakened, besides none and all."""
ORDERS = ("MoRHF", "LeRHF")


class _Enough(Exception):  # noqa: N818 - not an error
    """The time of the counting is over."""


def run(context: Context) -> Outcome:
    """Count 20 prompts, compare with the shipped vectors that fit, and weaken the heads of one concept."""
    if "heads" not in context.model.can:
        raise Skip(f"Heads cannot be counted on {type(context.model).__name__} yet.")
    counted, prompts = _counted(context)
    known = _known(context)

    summary, tables = f"{amount(prompts, 'prompt')} counted.", list[Table]()
    gains = list[tuple[float, float]]()
    numbers: dict[str, float | None] = {}
    if known is None:
        summary += " No vectors are shipped for this model, so there is nothing to compare with."
        tables.append(_strongest(counted))
    else:
        text, gain, table, numbers = _compared(counted, known)
        summary, gains, tables = f"{summary} {text}", [gain], [table]

    curves, reason = _weakened(context, known or counted)
    if curves is None:
        summary += f" No weakening: {reason}"
    else:
        between = curves.between()
        numbers |= {"area between the orders": between.mean, "prompts weakened": between.prompts}
        summary += f" {_said(curves, between)}"
        tables.append(_curves(curves))
        if between.prompts >= LEAST:
            gains.append((between.low, between.high))
    return Outcome(verdict=judged(gains), summary=summary, tables=tuple(tables), numbers=numbers)


def _counted(context: Context) -> tuple[Relevance, int]:
    """The vectors of as many of the prompts as half of the time allows, at least of one pass."""
    model, (height, width) = context.model, context.size
    prompts = tuple(case.prompt for case in reported()[:PROMPTS])
    options = {"steps": context.settings.steps, "batch": BATCH, "blocks": PROMPTS, "height": height, "width": width}
    counting = Counting(Concepts.suited(model.name), prompts, **options)
    file, until = context.out / "heads" / "counted.safetensors", context.left / 2

    def show(done: int, total: int) -> None:
        context.show(done, total)
        if context.left < until:
            raise _Enough

    with suppress(_Enough):
        compute(model, counting, file, every=0, on_job=show)
    found = Relevance.load(file)
    assert found.counted is not None  # it was counted here
    return found, int(found.counted.sum())


def _known(context: Context) -> Relevance | None:
    """The shipped vectors that fit the model, where they are of the same concepts."""
    try:
        found = relevance_for(context.model)
    except SettingsError:
        return None
    return found if found.concepts == Concepts.suited(context.model.name).names else None


def _compared(counted: Relevance, known: Relevance) -> tuple[str, tuple[float, float], Table, dict[str, float | None]]:
    """The cosines between counted and shipped vectors: of a concept with itself, and with the others.

    Returns:
        A sentence, the interval of the difference, a table, and numbers.
    """
    cosines = _unit(counted) @ _unit(known).T
    own, count = cosines.diagonal(), len(cosines)
    others = (cosines.sum(dim=1) - own) / (count - 1)
    low, high = bootstrap_interval((own - others).tolist())
    right = int((cosines.argmax(dim=1) == torch.arange(count)).sum())

    rows = []
    for i in own.argsort(descending=True).tolist():
        nearest = known.concepts[int(cosines[i].argmax())]
        rows.append((counted.concepts[i], number(float(own[i])), number(float(others[i])), nearest))
    name = known.facts.get("model", "another model")
    table = Table(
        f"Cosine with the vectors of {name}",
        ("concept", "with its own", "mean with the others", "nearest"),
        tuple(rows),
        "Vectors counted here, on few prompts, and shipped ones. They are right where a concept is nearest to itself.",
    )
    text = (
        f"Cosine with the vectors of {name} {float(own.mean()):.2f}, with other concepts' {float(others.mean()):.2f} "
        f"(difference {low:+.2f} to {high:+.2f}); {right} of {count} concepts are nearest to themselves."
    )
    if low <= 0 <= high:
        text += " That is too little to tell them apart."
    numbers = {"cosine, own concept": float(own.mean()), "cosine, other concepts": float(others.mean())}
    return text, (low, high), table, {**numbers, "concepts nearest to themselves": right}


def _unit(relevance: Relevance) -> Tensor:
    return F.normalize(relevance.vectors.double(), dim=1)


def _strongest(relevance: Relevance) -> Table:
    """The heads that stand out most, where there is no reference."""
    rows = []
    for concept in relevance.concepts:
        head, value = relevance.top(concept, 1)[0]
        rows.append((concept, str(head), number(value, 1)))
    return Table("Strongest heads", ("concept", "head", "relevance"), tuple(rows), "The mean of all heads is 1.")


def _weakened(context: Context, relevance: Relevance) -> tuple[Curves | None, str]:
    """Curves of as many prompts as there is time for, at least one; or why there are none."""
    try:
        scores: Clip = clip(context)
    except Skip as reason:
        return None, str(reason)
    model = context.model
    whole = Experiment.of("pocket-animals" if model.name in EMBEDDED else "animals")
    counts = [round(share * len(relevance.heads)) for share in SHARES]

    found: Curves | None = None
    for some in range(1, len(whole.prompts) + 1):
        if found is not None and context.left <= 0:
            break
        found = weakened(
            model,
            relevance,
            replace(whole, prompts=whole.prompts[:some]),
            Path(context.out, "weakened"),
            seeds=(TUNING,),
            counts=counts,
            orders=ORDERS,
            clip=scores,
            **context.common,
        )
        context.show(some, len(whole.prompts))
    return found, ""


def _said(curves: Curves, between: Difference) -> str:
    """A positive area says that the relevant heads matter more."""
    area = between.shown() if between.prompts >= LEAST else f"{between.mean:+.3f}"
    concept, prompts = curves.experiment.concept, amount(between.prompts, "prompt")
    return f"Area between the two orders of weakening, {concept}: {area} on {prompts}."


def _curves(curves: Curves) -> Table:
    rows = []
    for i, count in enumerate(curves.counts):
        cells = (number(float(curves.mean(order)[i])) for order in ORDERS)
        rows.append((str(count), *cells))
    return Table(
        f"Similarity to the word with heads weakened, {curves.experiment.concept}",
        ("heads weakened", "most relevant first", "least relevant first"),
        tuple(rows),
        "Cosine in CLIP's space, a mean over prompts. Right vectors make the first column fall before the second.",
    )
