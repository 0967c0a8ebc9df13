"""Which objective tells early, from the maps of a plain run, that an image will come out wrong.

`python -m bench.audition` prints a Markdown table for prompts of three subjects and for colored pairs: four seeds of
each prompt, which no other prompt has, 25 steps. "Wrong" is an image in which the embedded model's detector misses a
subject, or finds a color on another object. "Area" is the area under the receiver operating characteristic: the chance
that of a wrong and a right image the wrong one has the higher loss. "Best of 4" is the share of prompts whose image of
the least loss is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from itertools import chain, product

import torch
from torch import Tensor

import limelight
from limelight.evaluate.detectors import PocketDetector, check_scene
from limelight.evaluate.suites import Case, load
from limelight.generation.loop import denoise
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.base import Objective
from limelight.guidance.bind import bind
from limelight.guidance.contrast import contrast
from limelight.guidance.divergence import divergence
from limelight.guidance.overlap import overlap
from limelight.prompts.subjects import resolve
from limelight.utils.torch import seeded

OBJECTIVES: tuple[Objective, ...] = (excite, overlap, contrast, bind, divergence)
"""Those that read cross-attention alone, so that one run serves them all."""


def watch(
    model: limelight.Model, detector: PocketDetector, images: Sequence[tuple[Case, int]], steps: int, looks: int
) -> tuple[Tensor, list[bool]]:
    """Generate images plainly.

    Returns:
        The losses of the first steps [steps, objectives, images], and which images are wrong.
    """
    prompts = [model.prompt(case.prompt) for case, _ in images]
    subjects = [resolve(prompt, list(case.subjects))[1] for prompt, (case, _) in zip(prompts, images, strict=True)]
    generators = seeded(seed for _, seed in images)
    noise = model.noise(generators, *model.default_size)
    encoded = model.encode(prompts, [""] * len(images))

    losses = []
    with closing(denoise(model, encoded, noise, steps=steps, record=True, generators=generators)) as run:
        for step in run:
            if step.index < looks:
                losses.append(torch.stack([objective(step.maps, subjects).loss for objective in OBJECTIVES]))
    wrong = []
    for image, (case, _) in zip(model.decode(step.latents), images, strict=True):
        (found,) = detector.find([image], case.wanted)
        scene = check_scene(found, case.wanted)
        wrong.append(not all(scene.present) or False in scene.colored)
    return torch.stack(losses), wrong


def area(losses: Tensor, wrong: Tensor) -> float:
    """The chance that a wrong image has a higher loss than a right one."""
    return float((losses[wrong][:, None] > losses[~wrong]).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="seeds of each prompt")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--looks", type=int, nargs="+", default=[0, 2, 4, 6], help="steps at which maps are read")
    parser.add_argument("--every", type=int, default=1, help="take every how many-th prompt")
    args = parser.parse_args()
    model, detector = limelight.load("pocket"), PocketDetector.load()
    suites = {"three": load("three"), "objects": [case for case in load("attend-excite") if case.subset == "objects"]}

    print(f"| prompts | objective | {' | '.join(f'area, best of {args.seeds}, step {k}' for k in args.looks)} |")
    print(f"|---|---|{'---|' * len(args.looks)}")
    for name, cases in suites.items():
        images = [
            (case, 1000 * number + seed)
            for (number, case), seed in product(enumerate(cases[:: args.every], 1), range(args.seeds))
        ]
        parts = [images[i : i + 16] for i in range(0, len(images), 16)]
        found = [watch(model, detector, part, args.steps, max(args.looks) + 1) for part in parts]
        losses = torch.cat([part for part, _ in found], dim=2)
        wrong = torch.tensor(list(chain.from_iterable(of_part for _, of_part in found)))
        print(f"| {name} | none, {len(wrong)} images: {wrong.double().mean():.1%} wrong |{' |' * len(args.looks)}")
        for row, objective in enumerate(OBJECTIVES):
            cells = []
            for step in args.looks:
                of_prompt = losses[step, row].view(-1, args.seeds)
                best = wrong.view(-1, args.seeds).gather(1, of_prompt.argmin(dim=1, keepdim=True))
                cells.append(f"{area(losses[step, row], wrong):.2f}, {best.double().mean():.1%}")
            print(f"| {name} | `{objective.__name__}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
