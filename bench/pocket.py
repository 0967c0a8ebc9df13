"""How well the embedded model generates, plainly and guided, as its detector sees it.

`python -m bench.pocket --out FOLDER` generates five suites: every noun that the model knows, the benchmark's alone,
objects in every color, three subjects and the 276 prompts of the Attend-and-Excite benchmark; and prints a Markdown
table, white things in a row of their own, and the weakest nouns. Run again, it generates only what the folder lacks.
Each part is an ordinary run of `limelight evaluate`, which has more scores and a report.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from limelight.evaluate.detectors import PocketDetector
from limelight.evaluate.report import scored_rows
from limelight.evaluate.runs import run
from limelight.evaluate.scoring import score
from limelight.evaluate.suites import Case, Wanted, case, load
from limelight.utils.progress import quiet

SEEDS = {"nouns": 8, "single": 8, "colors": 4, "three": 4, "attend-excite": 4}
WEAK = 0.9


def nouns() -> tuple[Case, ...]:
    """Every noun that the detector knows, alone."""
    return tuple(case("nouns", Wanted(word)) for word in PocketDetector.load().words)


def line(part: str, method: str, values: dict[str, Any]) -> str:
    missed, bound = 1 - values["detection_success"], values["attribute_binding"]
    cells = f"{values['images']} | {missed:.1%} | {'' if bound is None else format(bound, '.1%')}"
    return f"| {part} | {method} | {cells} |"


def successes(folder: Path, method: str) -> dict[str, list[float]]:
    """For each prompt, whether its images show everything, 0 or 1."""
    found: dict[str, list[float]] = {}
    for row in scored_rows([folder])[0]:
        if row["method"] == method:
            found.setdefault(row["prompt"], []).append(row["success"])
    return found


def print_details(part: str, folder: Path, methods: Sequence[str]) -> None:
    """White things among the colors, and the weakest nouns."""
    for method in methods if part in ("colors", "nouns") else ():
        found = successes(folder, method)
        if part == "colors":
            white = [there for prompt, own in found.items() if "white" in prompt for there in own]
            print(f"| {part}, white | {method} | {len(white)} | {1 - mean(white):.1%} | |", flush=True)
        if part == "nouns":
            weak = sorted((mean(own), prompt) for prompt, own in found.items() if mean(own) < WEAK)
            listed = ", ".join(f"{prompt} {share:.0%}" for share, prompt in weak)
            print(f"\n{method}, below {WEAK:.0%}: {listed or 'none'}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--seeds", type=int, help="how many, where not as many as reported")
    parser.add_argument("--methods", nargs="+", default=["plain", "attend-and-excite"])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    quiet()
    print("| prompts | method | images | miss a subject | right color |\n|---|---|---|---|---|")
    for part in args.parts:
        folder = args.out / part
        seeds = range(args.seeds or SEEDS[part])
        cases = nouns() if part == "nouns" else load(part)
        run(folder, cases, args.methods, seeds, model=args.model, workers=args.workers)
        detected = score(folder, {"clip": "none", "captioner": "none"}, say=print)["methods"]
        for subset in detected[args.methods[0]]:
            if subset == "all" or len(detected[args.methods[0]]) > 2:  # of a suite of one subset, once
                for method in args.methods:
                    print(line(f"{part}, {subset}", method, detected[method][subset]), flush=True)
        print_details(part, folder, args.methods)


if __name__ == "__main__":
    main()
