"""How well a word's attention map covers its own object: boxes and masks from maps against the boxes of the detector.

`python -m bench.segmentation --out FILE` generates prompts of the Attend-and-Excite benchmark on the embedded model,
plainly and guided, appends a line per image to the file and prints a Markdown table. Run again, it generates only what
the file lacks. Every line has the overlaps at several thresholds, so that one can be chosen on other prompts than are
reported.

`--sprites FILE` (of `recipes.pocket.sprites`) instead reads images that exist: scenes of the recipe, of known layout;
also by words that are not in the prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import limelight
from limelight.evaluate.detectors import Detection, PocketDetector, overlap
from limelight.evaluate.suites import Case, attend_excite
from recipes.pocket.scenes import Composer, Scene, Thing, caption

THRESHOLDS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
SIDE = 128  # masks are compared at the images' own size
Row = dict[str, Any]


def covered(mask: torch.Tensor, box: Sequence[float]) -> float:
    """Intersection over union of a mask [height, width] and a box (left, top, right, bottom in 0..1)."""
    left, top, right, bottom = (round(SIDE * side) for side in box)
    inside = torch.zeros_like(mask)
    inside[top:bottom, left:right] = True
    return float((mask & inside).sum() / (mask | inside).sum().clamp(min=1))


def overlaps(maps: limelight.AttentionMaps, index: int, case: Case, found: list[Detection]) -> list[Row | None]:
    """For each wanted thing, what its map has in common with its box and with the other things'; None if not found."""
    best: dict[str, Detection] = {}
    for detection in found:
        best.setdefault(detection.word, detection)
    rows: list[Row | None] = []
    for thing in case.wanted:
        if thing.word not in best:
            rows.append(None)
            continue
        own, row = best[thing.word].box, {"box": [], "mask": [], "other": []}
        others = [best[other.word].box for other in case.wanted if other.word != thing.word and other.word in best]
        for threshold in THRESHOLDS:
            box = maps.box(thing.word, threshold)[index].tolist()
            row["box"].append(overlap(box, own))
            row["mask"].append(covered(maps.mask(thing.word, threshold, (SIDE, SIDE))[index], own))
            row["other"].append(max((overlap(box, other) for other in others), default=None))
        rows.append(row)
    return rows


def mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else ""


def table(rows: list[Row], thresholds: Sequence[float]) -> str:
    lines = [
        "| threshold | method | subjects | found by the detector | IoU of boxes | what is not found as 0 "
        "| IoU of mask and box | IoU with the other's box |\n|---|---|---|---|---|---|---|---|"
    ]
    for threshold in thresholds:
        i = THRESHOLDS.index(threshold)
        for method in ("plain", "guided"):
            things = [thing for row in rows if row["method"] == method for thing in row["things"]]
            found = [thing for thing in things if thing]
            cells = [
                f"{len(found) / len(things):.1%}",
                mean([thing["box"][i] for thing in found]),
                mean([thing["box"][i] if thing else 0.0 for thing in things]),
                mean([thing["mask"][i] for thing in found]),
                mean([thing["other"][i] for thing in found if thing["other"][i] is not None]),
            ]
            lines.append(f"| {threshold} | {method} | {len(things)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def scenes(sprites: Path, count: int, steps: int, model: limelight.Model) -> str:
    """What maps of composed scenes have in common with the true boxes, as a Markdown table.

    In scenes of several things each is also read by a prompt that names only the others, its word beside the prompt.
    """
    composer, random = Composer(sprites), np.random.default_rng(1000)  # other scenes than the model learned from
    captions = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {
        "added": [],
        "inverted": [],
        "added, of several": [],
        "added, not in the prompt": [],
    }
    for _ in range(count):
        scene = composer.scene(random)
        image = Image.fromarray(scene.pixels)
        for noise in ("added", "inverted"):
            maps = limelight.read_image(model, image, scene.caption, steps=steps, exact=noise == "inverted").maps
            found[noise] += [shared(maps, thing) for thing in scene.things]

        if len(scene.things) > 1:
            found["added, of several"] += found["added"][-len(scene.things) :]
            found["added, not in the prompt"] += unnamed(model, scene, steps, captions)

    lines = ["| noise | things | IoU of boxes | IoU of mask and box |\n|---|---|---|---|"]
    for noise, pairs in found.items():
        boxes, masks = zip(*pairs, strict=True)
        lines.append(f"| {noise} | {len(pairs)} | {mean(boxes)} | {mean(masks)} |")
    return "\n".join(lines)


def unnamed(model: limelight.Model, scene: Scene, steps: int, random: np.random.Generator) -> list[tuple[float, float]]:
    """Of each thing of a scene, what `shared` gives where the prompt names only the others."""
    image, found = Image.fromarray(scene.pixels), []
    for thing in scene.things:
        others = caption(tuple(other for other in scene.things if other is not thing), random)
        maps = limelight.read_image(model, image, others, steps=steps, also=[thing.word]).maps
        found.append(shared(maps, thing))
    return found


def shared(maps: limelight.AttentionMaps, thing: Thing) -> tuple[float, float]:
    """IoU of the box, and of the mask, that a thing's word has in the first image with the thing's own box."""
    own = [side / SIDE for side in thing.box]
    box, mask = maps.box(thing.word)[0].tolist(), maps.mask(thing.word, size=(SIDE, SIDE))[0]
    return overlap(box, own), covered(mask, own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sprites", type=Path, help="read composed scenes instead of generating")
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--every", type=int, default=6, help="generate only every n-th prompt")
    parser.add_argument("--first", type=int, default=0, help="the prompt to begin with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sweep", action="store_true", help="a row for every threshold, and not the default's alone")
    args = parser.parse_args()
    if args.sprites:
        print(scenes(args.sprites, args.scenes, args.steps, limelight.load(args.model, scheduler="ddim")))
        return
    if args.out is None:
        parser.error("give --out or --sprites")
    model, detector = limelight.load(args.model), PocketDetector.load()
    cases = attend_excite()[args.first :: args.every]
    rows: list[Row] = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    there = {(row["method"], row["prompt"], row["seed"]) for row in rows}
    for case in cases:
        for method, guidance in {"plain": None, "guided": limelight.AttendAndExcite.suited(model)}.items():
            seeds = [seed for seed in args.seeds if (method, case.prompt, seed) not in there]
            if not seeds:
                continue
            subjects = [thing.word for thing in case.wanted]
            result = limelight.generate(
                model, case.prompt, subjects=subjects, seeds=seeds, guidance=guidance, steps=args.steps
            )
            with args.out.open("a") as file:
                for i, (seed, found) in enumerate(zip(seeds, detector.detect(result.images), strict=True)):
                    things = overlaps(result.maps, i, case, found)
                    rows.append({"method": method, "prompt": case.prompt, "seed": seed, "things": things})
                    file.write(json.dumps(rows[-1]) + "\n")
    asked = {(case.prompt, seed) for case in cases for seed in args.seeds}
    print(
        table([row for row in rows if (row["prompt"], row["seed"]) in asked], THRESHOLDS if args.sweep else (0.2,)),
    )


if __name__ == "__main__":
    main()
