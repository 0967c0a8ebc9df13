"""Whether methods without a gradient help the embedded model, as its detector sees it.

`python -m bench.without_gradient` prints a Markdown table: prompts of three subjects, and pairs of objects that both
have a color; with and without TACA's temperature, Magnet and TEBOpt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import limelight
from limelight.evaluate.detectors import PocketDetector, check_scene
from limelight.evaluate.suites import Case, load
from limelight.guidance.magnet import magnet
from limelight.guidance.tebopt import tebopt
from limelight.guidance.temperature import Temperature
from limelight.models.base import Conditioning

Maker = Callable[[limelight.Model, str], Conditioning]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"edits": [Temperature()]},
    "magnet": {"encode": magnet},
    "tebopt": {"encode": tebopt},
}


def suites() -> Iterator[tuple[str, list[Case]]]:
    """Names and prompts."""
    yield "three subjects", list(load("three"))
    yield "colored pairs", [case for case in load("attend-excite") if all(thing.color for thing in case.wanted)]


def measure(
    model: limelight.Model,
    detector: PocketDetector,
    cases: Sequence[Case],
    seeds: Sequence[int],
    *,
    steps: int,
    edits: Sequence[Any] = (),
    encode: Maker | None = None,
) -> tuple[int, int, float | None]:
    """How many images, how many of them miss a subject, and which share of the found things have their color."""
    missed = images = 0
    colors = list[bool]()
    for case in cases:
        encoded = None if encode is None else encode(model, case.prompt).rows([0] * len(seeds))
        result = limelight.generate(
            model, case.prompt, seeds=seeds, steps=steps, edits=edits, conditioning=encoded, record=False
        )
        for found in detector.find(result.images, case.wanted):
            scene = check_scene(found, case.wanted)
            missed += scene.missing
            images += 1
            for present, colored in zip(scene.present, scene.colored, strict=True):
                if present and colored is not None:
                    colors.append(colored)
    return images, missed, sum(colors) / len(colors) if colors else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    model, detector = limelight.load("pocket"), PocketDetector.load()
    print("| prompts | method | images | miss a subject | right color |\n|---|---|---|---|---|")
    for prompts, cases in suites():
        for name, options in OPTIONS.items():
            images, missed, right = measure(model, detector, cases, args.seeds, steps=args.steps, **options)
            color = "" if right is None else f"{right:.1%}"
            print(f"| {prompts} | {name} | {images} | {missed / images:.1%} | {color} |", flush=True)


if __name__ == "__main__":
    main()
