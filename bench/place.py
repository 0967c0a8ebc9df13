"""Whether subjects come to the boxes that they are given, as the embedded model's detector sees it.

`python -m bench.place` prints a Markdown table: 16 prompts of two subjects, each with both subjects' boxes left and
right and the other way round, without boxes, with boxes alone, and with boxes beside the recommended guidance. "in its
box" is the share of subjects that the detector finds with the middle in the asked half of the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import limelight
from limelight.evaluate.detectors import Detection, PocketDetector
from limelight.evaluate.suites import Case, attend_excite
from limelight.prompts.subjects import Box

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def pairs(first: int, count: int) -> list[Case]:
    """Prompts of two subjects, spread evenly over the published list, beginning with one of the first."""
    cases = [case for case in attend_excite() if len({thing.word for thing in case.wanted}) == 2]
    return cases[first :: len(cases) // count][:count]


def is_in(box: Box, found: Sequence[Detection], word: str) -> bool:
    """Whether a detector found a word with the middle in a box."""
    for detection in found:
        x, y = (detection.box[0] + detection.box[2]) / 2, (detection.box[1] + detection.box[3]) / 2
        if detection.word == word and box[0] <= x <= box[2] and box[1] <= y <= box[3]:
            return True
    return False


def measure(
    model: limelight.Model,
    detector: PocketDetector,
    cases: Sequence[Case],
    seeds: Sequence[int],
    placed: bool,
    **options: Any,
) -> tuple[float, float]:
    """The share of subjects that are in their box, and the share that are anywhere."""
    inside = there = total = 0
    for case in cases:
        words = [thing.word for thing in case.wanted]
        images = None if placed else limelight.generate(model, case.prompt, seeds=seeds, record=False, **options).images
        for boxes in ((LEFT, RIGHT), (RIGHT, LEFT)):
            if placed:
                place = dict(zip(words, boxes, strict=True))
                images = limelight.generate(
                    model, case.prompt, seeds=seeds, place=place, record=False, **options
                ).images
            for found in detector.detect(images or ()):
                for word, box in zip(words, boxes, strict=True):
                    inside += is_in(box, found, word)
                    there += any(detection.word == word for detection in found)
                    total += 1
    return inside / total, there / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="the first prompt, to tune on others than those reported")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    model, detector, cases = limelight.load("pocket"), PocketDetector.load(), pairs(args.first, args.prompts)
    recommended = limelight.preset("recommended", model)
    print("| run | subjects in their box | subjects found |\n|---|---|---|")
    for name, placed, guidance in (
        ("plain", False, None),
        ("boxes", True, None),
        ("recommended and boxes", True, recommended),
    ):
        shares = measure(model, detector, cases, args.seeds, placed, steps=args.steps, guidance=guidance)
        print(f"| {name} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)


if __name__ == "__main__":
    main()
