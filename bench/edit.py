"""What editing changes and what it keeps, as the embedded model's judge sees it.

`python -m bench.edit --out edit.jsonl` draws "a red car" and edits it to every other colour, for every colour and five
objects; appends a line per edited picture to the file and prints a Markdown table. Run again, it draws only what the
file lacks.

`python -m bench.edit --time` compares the time of an edited pair with that of the two prompts drawn as a batch.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

import limelight
from limelight.judge import Detection, Judge, overlap
from limelight.suites import COLOURS

OBJECTS = ("car", "crown", "bow", "apple", "backpack")
METHODS: dict[str, dict[str, Any]] = {
    "drawn again": {"cross_steps": 0.0, "self_steps": 0.0},
    "prompt-to-prompt": {},
    "prompt-to-prompt, local": {"local": True},
    "strengthened by heads": {"strengthen": "Colours"},
}
Row = dict[str, Any]


@cache
def _tools(folder: str) -> tuple[limelight.Model, Judge]:
    torch.set_num_threads(1)
    return limelight.load(folder), Judge.load()


def outside(before: Image.Image, after: Image.Image, boxes: list[Detection]) -> float:
    """Root mean square difference of two pictures outside some boxes, in levels of 0..255."""
    keep = np.ones(before.size[::-1], dtype=bool)
    height, width = keep.shape
    for found in boxes:
        left, top, right, bottom = found.box
        keep[int(top * height) : int(bottom * height) + 1, int(left * width) : int(right * width) + 1] = False
    change = (np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64))[keep]
    return float(np.sqrt((change**2).mean())) if change.size else 0.0


def edited(folder: str, method: str, colour: str, thing: str, seeds: list[int], steps: int) -> list[Row]:
    """One source in every other colour."""
    model, judge = _tools(folder)
    options = dict(METHODS[method])
    if options.pop("local", False):
        options["local"] = thing
    others = [c for c in COLOURS if c != colour]
    concept = options.pop("strengthen", None)
    result = limelight.edit(
        model, f"a {colour} {thing}", [f"a {c} {thing}" for c in others], seeds=seeds, steps=steps, batch=33,
        record=False, strengthen=concept and dict.fromkeys(others, concept), **options,
    )  # fmt: skip
    rows = []
    sources = judge.detect(result.source.images)
    for other, target in zip(others, result.targets, strict=True):
        for i, found in enumerate(judge.detect(target.images)):
            old = next((d for d in sources[i] if d.word == thing), None)
            new = next((d for d in found if d.word == thing), None)
            row = {
                "method": method, "thing": thing, "from": colour, "to": other, "seed": seeds[i], "steps": steps,
                "source": old is not None and old.colour == colour,
                "success": new is not None and new.colour == other,
                "place": overlap(old.box, new.box) if old and new else None,
                "outside": outside(result.source.images[i], target.images[i], [d for d in (old, new) if d]),
            }  # fmt: skip
            rows.append(row)
    return rows


def timing(folder: str, steps: int, repeat: int) -> None:
    model, _ = _tools(folder)
    pair = ["a red car", "a blue car"]
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeat + 1):
        start = perf_counter()
        limelight.generate(model, pair, steps=steps, record=False)
        middle = perf_counter()
        limelight.edit(model, *pair, steps=steps, record=False)
        seconds["batch"].append(middle - start)
        seconds["edit"].append(perf_counter() - middle)
    ratios = sorted(e / b for e, b in list(zip(seconds["edit"], seconds["batch"], strict=True))[1:])
    print(f"an edited pair takes {ratios[len(ratios) // 2]:.2f} times a batch of two (of {repeat} runs the middle one)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--objects", nargs="+", choices=OBJECTS, default=OBJECTS)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.time:
        timing(args.model, args.steps, 7)
        return
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    there = {(r["method"], r["from"], r["thing"], r["seed"], r["steps"]) for r in known}
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool, args.out.open("a") as file:
        tasks = []
        for method in args.methods:
            for thing in args.objects:
                for colour in COLOURS:
                    left = [s for s in range(args.seeds) if (method, colour, thing, s, args.steps) not in there]
                    if left:
                        tasks.append(pool.submit(edited, args.model, method, colour, thing, left, args.steps))
        for task in tasks:
            rows = task.result()
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            known += rows
    print("| method | edits | new colour | same place (overlap) | change outside (of 255) |\n|---|---|---|---|---|")
    for method in args.methods:
        # Of a source that failed nothing can be said.
        rows = [r for r in known if (r["method"], r["steps"]) == (method, args.steps) and r["thing"] in args.objects]
        rows = [r for r in rows if r["source"]]
        success = np.mean([r["success"] for r in rows])
        place = np.mean([r["place"] for r in rows if r["place"] is not None])
        change = np.mean([r["outside"] for r in rows])
        print(f"| {method} | {len(rows)} | {success:.1%} | {place:.3f} | {change:.1f} |")


if __name__ == "__main__":
    main()
