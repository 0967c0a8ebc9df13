"""Look at what was made: `python -m recipes.pocket.sheet [--model src/limelight/pocket] --out docs/images/pocket.webp`

Every subject once, some colors, and pairs of the benchmark, one seed each and none chosen.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import limelight
from limelight.utils.images import grid

from .vocabulary import COLORS, SUBJECTS

PAIRS = [
    "a cat and a dog",
    "a lion and an elephant",
    "a bird and a frog",
    "a monkey and a red car",
    "a turtle and a yellow bowl",
    "a bear with a crown",
    "a green backpack and a purple bench",
    "a black apple and a white clock",
    "a robot and a pizza",
    "a panda and a blue umbrella",
    "a rocket next to a moon",
    "a photo of a tiger and a tree",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, wide = limelight.load(args.model), 12
    names, rows = list(SUBJECTS), {}
    for i in range(0, len(names), wide):
        rows[", ".join(names[i : i + wide])] = [f"a {name}" for name in names[i : i + wide]]
    for thing in ("car", "chair"):
        rows[f"a COLOR {thing}: {', '.join(COLORS)}"] = [f"a {color} {thing}" for color in COLORS]
    rows["; ".join(re.sub(r"\ban? ", "", pair) for pair in PAIRS)] = PAIRS
    images = []
    for prompts in rows.values():
        results = limelight.generate(model, prompts, seeds=args.seed, record=False, batch=wide)
        images.append([result.images[0] for result in results])
    sheet = grid(images, list(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
