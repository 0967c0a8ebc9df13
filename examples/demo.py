"""Three subjects, plain and guided, from the embedded model: `python examples/demo.py out/demo.png`

This is also the first image of README; `make images` makes all of them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import limelight
from limelight.evaluate.detectors import PocketDetector, check_scene
from limelight.evaluate.suites import wanted
from limelight.utils.files import png, write

PROMPT, SEEDS = "a bear and a clock and a dog", range(6)


def main(target: Path, prompt: str = PROMPT, seeds: Sequence[int] = SEEDS) -> None:
    """Generate, say what guidance did and what the embedded detector sees, and write the grid."""
    model = limelight.load("pocket")
    comparison = limelight.compare(model, prompt, guidance="recommended", seeds=seeds)
    print(*comparison.sentences(), sep="\n")

    detector, things = PocketDetector.load(), wanted(prompt)
    for name, result in comparison.runs.items():
        complete = 0
        for found in detector.find(result.images, things):
            complete += not check_scene(found, things).missing
        print(f"{name}: {complete} of {len(seeds)} images have every subject")

    settings = {**comparison.runs["guided"].settings, "seeds": list(seeds), "rows": list(comparison.runs)}
    write(target, png(settings, comparison.grid()))
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
