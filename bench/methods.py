"""What each method of steering costs and what it mends, as the embedded model's detector sees it.

`limelight evaluate run` and `score` come first, with as many suites and methods as wanted. Then
`python -m bench.methods FOLDER [FOLDER ...] [--plot FILE]` prints one Markdown table, and plots the work, in denoiser
passes of an image, against the share of images that miss a subject.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from limelight.evaluate.report import Line, scored_rows, table
from limelight.viz.theme import COLORS, new_figure, rendered

METRICS = ("success", "mixed", "binding")
HEAD = ("prompts", "method", "images", "miss a subject", "mixed", "right color", "fixed", "broken", "denoiser passes")


def lines_of(folder: Path) -> list[Line]:
    """All methods on the whole suite and on its parts; and plain images, chosen by CLIP, for the same work, where there
    are several to choose from.
    """
    rows, _ = scored_rows([folder])
    lines = table(rows, "plain", METRICS)
    wanted = [line for line in lines if "(seconds of" not in line.method and "but only" not in line.method]
    return [replace(line, method=re.sub(r':guidance="?(\w+)"?', r" + \1", line.method)) for line in wanted]


def misses(line: Line) -> float:
    """The share of images that miss a subject."""
    found = line.means["success"]
    assert found is not None, "the detector looked at every image"
    return 1 - found


def passes(line: Line) -> float:
    """The denoiser passes of an image, where a point of the plot is; 0 where they are not known."""
    return line.means["calls"] or 0.0


def cells(suite: str, line: Line) -> list[str]:
    """A row of the table."""
    mixed, color, calls = (line.means[name] for name in ("mixed", "binding", "calls"))
    counts = ["" if count is None else str(count) for count in (line.fixed, line.broken)]
    shares = ["" if share is None else f"{share:.1%}" for share in (misses(line), mixed, color)]
    return [
        suite if line.subset == "all" else f"{suite}, {line.subset}",
        line.method,
        str(line.images),
        *shares,
        *counts,
        "" if calls is None else f"{calls:.0f}",
    ]


def near(lines: Sequence[Line]) -> list[list[Line]]:
    """Methods whose points would be written over each other, from left to right."""
    height = max(map(misses, lines))
    groups: list[list[Line]] = []
    for line in sorted(lines, key=passes):
        for group in groups:
            if passes(line) - passes(group[-1]) < 15 and abs(misses(line) - misses(group[-1])) < 0.03 * height:
                group.append(line)
                break
        else:
            groups.append([line])
    return groups


def plot(suites: Iterable[tuple[str, Sequence[Line]]], file: Path) -> None:
    """Draw one point for each method; what is left of and below another is better."""
    suites = list(suites)
    figure = new_figure(6 * len(suites), 5)
    for axis, (name, lines) in zip(figure.subplots(1, len(suites), squeeze=False)[0], suites, strict=True):
        whole = [line for line in lines if line.subset == "all" and not line.method.startswith("plain, best")]
        for line in whole:
            strong = line.method in ("plain", "recommended")
            axis.scatter(passes(line), 100 * misses(line), s=40, color=COLORS[1] if strong else COLORS[0])
        for group in near(whole):
            label = ", ".join(line.method for line in group)
            at = passes(group[-1]), 100 * misses(group[-1])
            axis.annotate(label, at, xytext=(7, -3), textcoords="offset points", fontsize=9)

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
