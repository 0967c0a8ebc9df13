"""How well the embedded model draws, plainly and guided, as its judge sees it.

`python -m bench.pocket --out pocket.jsonl` draws single subjects, coloured objects, the 276 prompts of the
Attend-and-Excite benchmark and prompts of three subjects, appends a line per picture to the file and prints Markdown
tables. Run again, it draws only what the file lacks.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import limelight
from limelight.judge import Judge, verdict
from limelight.suites import COLOURS, Case, Wanted, attend_excite

ANIMALS = "cat dog bird bear lion horse elephant monkey frog turtle rabbit mouse".split()
OBJECTS = "backpack glasses crown suitcase chair balloon bow car bowl bench clock apple".split()
SEEDS = {"single": range(8), "more": range(4), "colour": range(2), "benchmark": range(4), "three": range(4)}
Row = dict[str, Any]


def cases(part: str) -> list[Case]:
    if part == "benchmark":
        return list(attend_excite())
    if part == "three":
        words = ANIMALS + OBJECTS
        trios = [(words[i % 24], words[(i * 5 + 7) % 24], words[(i * 11 + i // 24 + 14) % 24]) for i in range(72)]
        return [
            Case(" and ".join(f"a {w}" for w in trio), part, tuple(Wanted(w) for w in trio))
            for trio in trios
            if len(set(trio)) == 3
        ]
    if part == "single":
        return [Case(f"a {w}", part, (Wanted(w),)) for w in ANIMALS + OBJECTS]
    if part == "colour":
        return [Case(f"a {c} {w}", part, (Wanted(w, c),)) for w in OBJECTS for c in COLOURS]
    return [Case(f"a {w}", part, (Wanted(w),)) for w in Judge.load().words if w not in ANIMALS + OBJECTS]


@cache
def _tools(folder: str) -> tuple[limelight.Model, Judge]:
    torch.set_num_threads(1)
    return limelight.load(folder), Judge.load()


def judged(folder: str, method: str, settings: Row | None, part: Sequence[Case], seeds: Sequence[int]) -> list[Row]:
    """Draw and judge some cases. With settings, the pictures are guided by what suits the model, so changed."""
    model, judge = _tools(folder)
    results = limelight.generate(
        model,
        [case.prompt for case in part],
        subjects=[[thing.word for thing in case.wanted] for case in part],
        seeds=seeds,
        guidance=None if settings is None else limelight.AttendAndExcite.suited(model, **settings),
        batch=32,
        record=False,
    )
    rows = []
    for case, result in zip(part, results, strict=True):
        for i, (seed, found) in enumerate(zip(seeds, judge.detect(result.images), strict=True)):
            seen = verdict(found, case.wanted)
            facts = {
                "method": method,
                "settings": settings,
                "model": folder,
                "subset": case.subset,
                "prompt": case.prompt,
                "seed": seed,
                "present": seen.present,
                "coloured": seen.coloured,
                "found": [f"{d.colour} {d.word}" for d in found],
                "refinements": sum(row["refinements"][i] for row in result.trace),
            }
            rows.append(facts)
    return rows


def rows_of(
    path: Path, method: str, settings: Row | None, chosen: list[Case], seeds: Sequence[int], folder: str, workers: int
) -> Iterator[Row]:
    """A row per picture, from the file where it has them, else drawn and added to it."""
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = [row for row in known if row["method"] == method]
    mixed = [row for row in known if row["model"] != folder or row["settings"] != json.loads(json.dumps(settings))]
    if mixed:
        raise SystemExit(
            f"{path} has pictures called '{method}' of another model or other settings; choose another --name."
        )
    there = {(row["prompt"], row["seed"]): row for row in known}
    left = [case for case in chosen if any((case.prompt, seed) not in there for seed in seeds)]
    prompts = {case.prompt for case in chosen}
    yield from (row for (prompt, seed), row in there.items() if prompt in prompts and seed in seeds)
    size = max(32 // len(seeds), 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        parts = [left[i : i + size] for i in range(0, len(left), size)]
        for task in [pool.submit(judged, folder, method, settings, part, seeds) for part in parts]:
            for row in task.result():
                if (row["prompt"], row["seed"]) in there:  # its case lacked another seed
                    continue
                file.write(json.dumps(row) + "\n")
                yield row
            file.flush()


def summary(rows: Sequence[Row]) -> str:
    """Pictures; those that miss something; things in their colour; refinements a picture, as cells of a table."""
    missed = sum(not all(row["present"]) for row in rows) / len(rows)
    colours = [right for row in rows for right in row["coloured"] if right is not None]
    bound = f"{sum(colours) / len(colours):.1%}" if colours else ""
    return f"{len(rows)} | {missed:.1%} | {bound} | {sum(row['refinements'] for row in rows) / len(rows):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--parts", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--every", type=int, default=1, help="draw only every n-th prompt")
    parser.add_argument("--first", type=int, default=0, help="the prompt to begin with")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, help="how many seeds, where not as many as reported")
    parser.add_argument("--plain", action="store_true", help="leave out guidance")
    parser.add_argument("--settings", type=json.loads, default={}, help="guidance that differs, as JSON")
    parser.add_argument("--name", default="guided", help="what to call the guided pictures in the file")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    methods: dict[str, Row | None] = {"plain": None} if args.plain else {"plain": None, args.name: args.settings}
    if "thresholds" in args.settings:
        args.settings["thresholds"] = {float(at): value for at, value in args.settings["thresholds"].items()}
    print("| part | method | pictures | miss a subject | right colour | refinements |\n|---|---|---|---|---|---|")
    for part in args.parts:
        chosen = cases(part)[args.first :: args.every]
        seeds = [args.seed + i for i in range(args.seeds or len(SEEDS[part]))]
        for method, settings in methods.items():
            groups: dict[str, list[Row]] = defaultdict(list)
            for row in rows_of(args.out, method, settings, chosen, seeds, args.model, args.workers):
                groups[part].append(row)
                if row["subset"] != part:
                    groups[f"{part}: {row['subset']}"].append(row)
            for name, rows in groups.items():
                print(f"| {name} | {method} | {summary(rows)} |", flush=True)


if __name__ == "__main__":
    main()
