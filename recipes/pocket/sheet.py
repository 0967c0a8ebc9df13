"""Stage 6: look at it. `python -m recipes.pocket.sheet [--model src/limelight/pocket] --out docs/pictures/pocket.png`

Every subject once, some colours, and pairs of the benchmark, one seed each and none chosen.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import limelight
from limelight.result import grid

from .vocabulary import COLOURS, SUBJECTS

PAIRS = [
    "a cat and a dog",
    "a lion and an elephant",
    "a bird and a frog",
    "a monkey and a red car",
    "a turtle and a yellow bowl",
    "a bear with a crown",
    "a green backpack and a purple bench",
    "a black apple and a white clock",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = limelight.load(args.model)

    def row(prompts: list[str]) -> list:
        drawn = [limelight.generate(model, prompt, seeds=args.seed, record=False) for prompt in prompts]
        return [result.images[0] for result in drawn]

    names = list(SUBJECTS)
    rows = {", ".join(names[i : i + 8]): row([f"a {name}" for name in names[i : i + 8]]) for i in range(0, 24, 8)}
    chosen = list(COLOURS)[:8]
    for thing in ("car", "chair"):
        rows[f"a COLOUR {thing}: {', '.join(chosen)}"] = row([f"a {colour} {thing}" for colour in chosen])
    rows["; ".join(re.sub(r"\ban? ", "", pair) for pair in PAIRS)] = row(PAIRS)
    sheet = grid(list(rows.values()), list(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
