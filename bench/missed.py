"""The images in which the embedded detector does not find every subject, for a look with one's own eyes.

After `limelight evaluate run` and `score`, `python -m bench.missed FOLDER METHOD --out FILE` writes them as one sheet,
sorted by the pale things that their prompts name, and prints how many of each kind are missed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from limelight.evaluate.report import scored_rows
from limelight.utils.images import grid

WIDE = 9  # images in a row
KINDS = ("white", "elephant", "anything else")


def kind_of(prompt: str) -> str:
    """The first of the pale things that a prompt names."""
    return next((kind for kind in KINDS[:-1] if kind in prompt), KINDS[-1])


def sheet(missed: Mapping[str, Sequence[tuple[str, Path]]]) -> Image.Image:
    """All images of each kind in rows, each under its prompt without articles.

    Args:
        missed: kind -> prompt and file of each image.
    """
    rows, labels, captions = [], [], []
    for kind, images in missed.items():
        for i in range(0, len(images), WIDE):
            prompts, files = zip(*images[i : i + WIDE], strict=True)
            rows.append([Image.open(file).convert("RGB") for file in files])
            labels.append("" if i else kind)
            captions.append([re.sub(r"\ban? ", "", prompt) for prompt in prompts])
    return grid(rows, labels, captions=captions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("method")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows, _ = scored_rows([args.folder])
    rows = [row for row in rows if row["method"] == args.method]
    missed = {}
    for kind in KINDS:
        own = [row for row in rows if kind_of(row["prompt"]) == kind]
        if own:
            missed[kind] = [(row["prompt"], Path(row["file"])) for row in own if row["success"] < 1]
            share = len(missed[kind]) / len(own)
            print(f"{kind}: {len(missed[kind])} of {len(own)} images miss a subject, {share:.1%}")
    sheet(missed).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
