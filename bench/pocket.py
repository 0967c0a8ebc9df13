"""How well the embedded model generates, plainly and guided, as its detector sees it.

`python -m bench.pocket --out FOLDER` generates four suites: single subjects, objects in every color, three subjects and
the 276 prompts of the Attend-and-Excite benchmark; and prints a Markdown table. Run again, it generates only what the
folder lacks. Each part is an ordinary run of `limelight evaluate`, which has more scores and a report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from limelight.evaluate.runs import run
from limelight.evaluate.scoring import score
from limelight.evaluate.suites import load
from limelight.utils.progress import quiet

SEEDS = {"single": 8, "colors": 2, "three": 4, "attend-excite": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--seeds", type=int, help="how many, where not as many as reported")
    parser.add_argument("--methods", nargs="+", default=["plain", "attend-and-excite"])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    quiet()
    print("| prompts | method | images | miss a subject | right color |\n|---|---|---|---|---|")
    for part in args.parts:
        folder = args.out / part
        seeds = range(args.seeds or SEEDS[part])
        run(folder, load(part), args.methods, seeds, workers=args.workers)
        detected = score(folder, {"clip": "none", "captioner": "none"}, say=print)["methods"]
        for subset in detected[args.methods[0]]:
            if subset == "all" or len(detected[args.methods[0]]) > 2:  # of a suite of one subset, once
                for method in args.methods:
                    values = detected[method][subset]
                    missed, bound = 1 - values["detection_success"], values["attribute_binding"]
                    cells = f"{values['images']} | {missed:.1%} | {'' if bound is None else format(bound, '.1%')}"
                    print(f"| {part}, {subset} | {method} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
