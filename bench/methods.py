"""What each method of steering costs and what it mends, as the embedded model's detector sees it.

`limelight evaluate run` and `score` come first, with as many suites and methods as wanted. Then
`python -m bench.methods FOLDER [FOLDER ...] [--plot FILE]` prints one Markdown table, and plots the work, in denoiser
passes of an image, against the share of images that miss a subject.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from limelight.evaluate.report import Line, scored_rows, table
from limelight.viz.theme import COLORS, new_figure, rendered

METRICS = ("success", "mixed", "binding")
HEAD = ("prompts", "method", "images", "miss a subject", "mixed", "right color", "fixed", "broken", "denoiser passes")


def lines_of(folder: Path) -> list[Line]:
    """All methods on the whole suite and on its parts; and plain images, chosen by CLIP, for the same work."""
    rows, _ = scored_rows([folder])
    lines = table(rows, "plain", METRICS)
    return [line for line in lines if "(seconds of" not in line.method]


def misses(line: Line) -> float:
    """The share of images that miss a subject."""
    found = line.means["success"]
    assert found is not None, "the detector looked at every image"
    return 1 - found


def cells(suite: str, line: Line) -> list[str]:
    """A row of the table."""
    mixed, color, passes = (line.means[name] for name in ("mixed", "binding", "calls"))
    counts = ["" if count is None else str(count) for count in (line.fixed, line.broken)]
    shares = ["" if share is None else f"{share:.1%}" for share in (misses(line), mixed, color)]
    return [
        suite if line.subset == "all" else f"{suite}, {line.subset}",
        line.method,
        str(line.images),
        *shares,
        *counts,
        "" if passes is None else f"{passes:.0f}",
    ]


def plot(suites: Iterable[tuple[str, Sequence[Line]]], file: Path) -> None:
    """Draw one point for each method; what is left of and below another is better."""
    suites = list(suites)
    figure = new_figure(5.5 * len(suites), 4.6)
    for axis, (name, lines) in zip(figure.subplots(1, len(suites), squeeze=False)[0], suites, strict=True):
        whole = [line for line in lines if line.subset == "all" and not line.method.startswith("plain, best")]
        for line in whole:
            strong = line.method in ("plain", "recommended")
            x, y = line.means["calls"] or 0, 100 * misses(line)
            axis.scatter(x, y, s=46, color=COLORS[1] if strong else COLORS[0])
            axis.annotate(line.method, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=9)
        axis.set_title(name)
        axis.set_xlabel("denoiser passes of an image")
        axis.set_ylabel("images that miss a subject, %")
        axis.margins(x=0.25, y=0.15)
        axis.set_ylim(bottom=0)
    rendered(figure).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()

    suites = [(re.sub(r"[-_]", " ", folder.name), lines_of(folder)) for folder in args.folders]
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for suite, lines in suites:
        for line in lines:
            print(f"| {' | '.join(cells(suite, line))} |")
    if args.plot is not None:
        plot(suites, args.plot)


if __name__ == "__main__":
    main()
