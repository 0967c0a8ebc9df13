"""Stage "maps": do the maps of words lie where a detector sees the things?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from PIL import Image

from ..attention.maps import AttentionMaps
from ..attention.recording import RunningMean
from ..evaluate.detectors import Detection, overlap
from ..evaluate.suites import Case
from ..generation.loop import denoise
from ..models.base import Model
from ..models.sites import AttentionSite
from ..models.transformer import Transformer
from ..utils.numbers import amount
from ..utils.statistics import bootstrap_interval, compare
from ..utils.torch import seeded
from ..viz.sheets import strip
from .context import TUNING, Context
from .instruments import detector, tuning
from .outcome import LEAST, Figure, Outcome, Table, Verdict, judged, number

MOST, SHOWN = 20, 8


class Found(NamedTuple):
    """One thing that the detector found.

    Attributes:
        own, other: intersection over union of the box of the word's map with its own box, and with that of another
            thing in the image; None where there is no other.
        layers: the first, by each layer alone.
    """

    own: float
    other: float | None
    layers: Mapping[str, float]


def run(context: Context) -> Outcome:
    """Generate tuning prompts plainly, and compare the box of each word's map with the detector's."""
    model, finds = context.model, detector(context)
    found, wanted, images, figures = list[Found](), 0, 0, list[Figure]()
    for case in tuning()[:MOST]:
        if not context.room(images):
            break
        maps, image = _recorded(context, model, case)
        seen = _boxes(case, finds.find([image], case.wanted)[0])
        found += [_overlaps(model, maps, word, seen) for word in seen]
        wanted, images = wanted + len(case.wanted), images + 1
        words = [thing.word for thing in case.wanted]
        if not figures:
            sheet = strip(image, _guided(model, maps), words)
            figures.append(context.figure("maps", "words", f"“{case.prompt}”, seed {TUNING}", sheet))
        context.show(images, MOST)

    if not found:
        summary = f"The detector finds nothing: none of {wanted} things in {amount(images, 'image')}."
        return Outcome(verdict="measured", summary=summary, figures=tuple(figures), numbers={"things found": 0})
    return _outcome(model, found, wanted, images, figures)


def _outcome(model: Model, found: Sequence[Found], wanted: int, images: int, figures: list[Figure]) -> Outcome:
    """What the overlaps say."""
    own = fmean(thing.own for thing in found)
    pairs = [(thing.own, thing.other) for thing in found if thing.other is not None]
    other = fmean(b for _, b in pairs) if pairs else None
    verdict, compared = _compared(pairs)
    summary = f"Overlap (IoU) of the box of a word's map with its own thing {own:.2f}{compared}. "
    summary += f"{len(found)} of {wanted} things found in {amount(images, 'image')}."

    best = _by_layer(model, found)
    numbers = {"IoU, own thing": own, "IoU, other thing": other, "IoU, best layer": best[0][1]}
    rows = tuple((name, number(value, 3), "yes" if used else "") for name, value, used in best[:SHOWN])
    table = Table(
        "Layers",
        ("layer", "IoU", "read by guidance"),
        rows,
        "The layers whose maps alone cover the things best; IoU is 1 where both boxes are the same. Prompts and seeds "
        "are of the tuning part.",
    )
    better = _better(model, found)
    if better:
        summary += f" Better than the family's own are the maps of {', '.join(better)}."
    facts = {"layers": [name for name, _, _ in best[:SHOWN]], "better": better}
    return Outcome(
        verdict=verdict,
        summary=summary,
        tables=(table,),
        figures=tuple(figures),
        numbers={**numbers, "things found": len(found)},
        facts=facts,
    )


def _better(model: Model, found: Sequence[Found]) -> list[str]:
    """As many layers of a transformer as guidance reads, chosen on half of the things; none unless they are better on
    the others."""
    own = [layer.name for layer in model.guided_sites]
    half = len(found) // 2
    if half < LEAST or not isinstance(model, Transformer):
        return []
    best = [name for name, _, _ in _by_layer(model, found[:half])[: len(own)]]

    ours, theirs = (_mean_of(found[half:], names) for names in (best, own))
    return best if compare(ours, theirs).low > 0 else []


def _mean_of(found: Sequence[Found], names: Sequence[str]) -> list[float]:
    """The mean overlap of some layers, of each thing."""
    return [fmean(thing.layers[name] for name in names) for thing in found]


def _compared(pairs: Sequence[tuple[float, float]]) -> tuple[Verdict, str]:
    """Whether words look at their own things rather than at others, as a part of a sentence."""
    if len(pairs) < LEAST:
        return "measured", ""
    low, high = bootstrap_interval([own - other for own, other in pairs])
    other = fmean(other for _, other in pairs)
    said = f", with the other thing {other:.2f} (difference {low:+.2f} to {high:+.2f})"
    return judged([(low, high)]), said


@torch.no_grad()
def _recorded(context: Context, model: Model, case: Case) -> tuple[AttentionMaps, Image.Image]:
    """The mean maps of a plain run in every layer that reads the prompt, and its image."""
    size, scale, mean = context.size, model.guidance_scale, RunningMean()
    encoded = model.encode([model.prompt(case.prompt)], model.negative_in_use(scale, ""), size)
    generators = seeded([TUNING])
    noise = model.noise(generators, *size)
    latents = noise
    steps = denoise(
        model,
        encoded,
        noise,
        steps=context.settings.steps,
        record=True,
        layers=model.text_sites,
        generators=generators,
    )
    for step in steps:
        assert step.maps is not None  # they are recorded
        mean.add(step.maps)
        latents = step.latents
    maps = mean.result()
    assert maps is not None  # there is at least one step
    return maps, model.decode(latents)[0]


def _guided(model: Model, maps: AttentionMaps) -> AttentionMaps:
    return maps.select(lambda layer: layer in model.guided_sites)


def _boxes(case: Case, found: Sequence[Detection]) -> dict[str, Detection]:
    """The surest detection of each wanted thing."""
    words, best = {thing.word for thing in case.wanted}, dict[str, Detection]()
    for detection in found:
        if detection.word in words:
            best.setdefault(detection.word, detection)
    return best


def _overlaps(model: Model, maps: AttentionMaps, word: str, seen: Mapping[str, Detection]) -> Found:
    box = _guided(model, maps).box(word)[0].tolist()
    others = [overlap(box, detection.box) for name, detection in seen.items() if name != word]
    layers = {layer.name: _alone(maps, layer, word, seen[word]) for layer in maps.layers}
    return Found(overlap(box, seen[word].box), max(others, default=None), layers)


def _alone(maps: AttentionMaps, layer: AttentionSite, word: str, detection: Detection) -> float:
    """The overlap by one layer's map."""
    own = maps.select(lambda other: other is layer)
    return overlap(own.box(word)[0].tolist(), detection.box)


def _by_layer(model: Model, found: Sequence[Found]) -> list[tuple[str, float, bool]]:
    """Each layer with its mean overlap and whether guidance reads it, best first."""
    guided = {layer.name for layer in model.guided_sites}
    rows = []
    for name in found[0].layers:
        mean = sum(thing.layers[name] for thing in found) / len(found)
        rows.append((name, mean, name in guided))
    return sorted(rows, key=lambda row: -row[1])
