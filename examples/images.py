"""The images of README and docs that commands make: `python -m examples.images [NAME ...]`, by default all of them.

    python -m examples.images --check      # what the embedded detector sees in those that are there

The others come from recipes/pocket (pocket.webp, pocket-dit.webp), from `make bench` (heads-weakening.png, learn.png,
edit-colors.png), from bench.methods and bench.missed (methods.png, missed*.webp), and from a browser (web*.png,
web*.webp).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from examples.demo import main as demo
from limelight.evaluate.detectors import PocketDetector, check_scene
from limelight.evaluate.suites import wanted

FOLDER = Path(__file__).parents[1] / "docs/images"
SIDE = 128  # of an image of the embedded model

STEERED = {
    "demo.png": ("a bear and a clock and a dog", range(6)),
    "steer-colors.png": ("a purple bowl and a black bench", range(4)),
    "steer-crown.png": ("a frog and a purple crown", range(4)),
}
"""Prompts and seeds that are shown plain and guided, by what is recommended."""

LEADING = {"demo.png", "steer-colors.png", "steer-dit.png", "explain.png"}
"""Those that show what guidance is for: most of their plain images lack something."""

COMMANDS = {
    "steer-dit.png": "generate 'a cat and a monkey and a crown' --model pocket-dit --seeds 0-5 --compare",
    "words.png": "explain 'a cat and a dog'",
    "explain.png": "explain 'a cat and a monkey and a chair' --seeds 4 --compare",
    "edit.png": "edit 'a red car and a dog' 'a blue car and a dog' 'a red bench and a dog' 'a red car and a cat' "
    "--seeds 0-3",
    "adjust.png": "generate 'a mouse' --seeds 0-5 --guidance none --adjust mouse=Devices-Animals --compare",
    "heads-heatmaps.png": "heads show pocket",
    "heads-concepts.png": "heads show pocket",
}
MADE = {
    "steer-dit.png": "-grid-",
    "adjust.png": "-grid-",
    "words.png": "-words-",
    "explain.png": "-compare-",
    "edit.png": "-to-",
}
"""What is in the name of the file that a command makes; by default what is in the image's own."""


def make(name: str) -> None:
    """Write one image."""
    if name in STEERED:
        demo(FOLDER / name, *STEERED[name])
        return

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "limelight", *shlex.split(COMMANDS[name]), "--out", folder]
        subprocess.run(command, check=True)
        part = MADE.get(name, name.removeprefix("heads").removesuffix(".png"))
        (made,) = (path for path in Path(folder).glob("*.png") if part in path.name)
        shutil.copy(made, FOLDER / name)


def rows_of(name: str) -> dict[str, tuple[str, list[Image.Image]]]:
    """The images that a sheet shows: for each row its name, the prompt and the images.

    Args:
        name: of a steered example, an edit, or a sheet of `explain`.
    """
    with Image.open(FOLDER / name) as file:
        settings, sheet = json.loads(file.text["limelight"]), file.convert("RGB")

    if "rows" in settings:
        found = {}
        grid = grid_rows(sheet, len(settings["rows"]), len(settings["seeds"]))
        for row, images in zip(settings["rows"], grid, strict=True):
            found[row] = (row if " " in row else settings["prompt"], images)
        return found

    names = ["plain", "guided"] if name == "explain.png" else ["plain"]
    found = {}
    for column, row in enumerate(names):
        left = 14 + column * 238
        tile = sheet.crop((left, 53, left + 224, 277)).resize((SIDE, SIDE), Image.Resampling.BOX)
        found[row] = (settings["prompt"], [tile])
    return found


def grid_rows(sheet: Image.Image, rows: int, columns: int, gap: int = 4, line: int = 20) -> list[list[Image.Image]]:
    """The images of a sheet by `limelight.utils.images.grid`, twice as large there, with a line above every row."""
    side = 2 * SIDE
    found = []
    for row in reversed(range(rows)):
        top = sheet.height - gap - side - row * (side + gap + line)
        tiles = []
        for column in range(columns):
            left = gap + column * (side + gap)
            tiles.append(sheet.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BOX))
        found.append(tiles)
    return found


def right(prompt: str, images: Sequence[Image.Image]) -> int:
    """How many images show every subject, each in its color."""
    things = wanted(prompt)
    checks = [check_scene(found, things) for found in PocketDetector.load().find(images, things)]
    return sum(not check.missing and False not in check.colored for check in checks)


def mistakes(name: str) -> list[str]:
    """What is wrong with an image that is there, as the embedded detector sees it."""
    if name.startswith("heads"):
        return []
    counts, totals = {}, {}
    for row, (prompt, images) in rows_of(name).items():
        counts[row], totals[row] = right(prompt, images), len(images)
        print(f"{name}, {row}: {counts[row]} of {totals[row]} show everything")

    found, plain = [], counts.get("plain", 0)
    if counts.get("guided", plain) < plain:
        found.append(f"{name}: guidance makes it worse")
    if name in LEADING and counts["plain"] > totals["plain"] / 2:
        found.append(f"{name}: there is little to repair")
    for row in counts.keys() - {"plain"}:
        if counts[row] < totals[row] - (totals[row] > 1):  # one of several may be wrong
            found.append(f"{name}, {row}: {counts[row]} of {totals[row]} show everything")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STEERED, *COMMANDS, []], metavar="NAME")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    names = args.names or [*STEERED, *COMMANDS]
    if not args.check:
        for name in names:
            make(name)

    found = [line for name in names for line in mistakes(name)]
    print(*found, sep="\n")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main())
