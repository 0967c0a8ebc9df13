"""Head relevance on the embedded model: what counting costs, how many prompts are enough, and what the edits do.

    python -m bench.heads cost                      # time and memory of counting against plain sampling, as ratios
    python -m bench.heads prompts                   # agreement of two samples of so many prompts
    python -m bench.heads routes                    # which words the image depends on
    python -m bench.heads weakening --out FOLDER    # area between LeRHF and MoRHF of Animals and Color, three ways
    python -m bench.heads edits --out FOLDER        # what strengthening and adjusting change, as the detector sees it
    python -m bench.heads senses                    # what a word of two meanings means, plain and adjusted

Each prints a Markdown table. `weakening` and `edits` keep what they generated and go on where they were.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import limelight
from limelight.evaluate.clip import Clip
from limelight.evaluate.detectors import PocketDetector
from limelight.evaluate.suites import ANIMALS, COLORS, attend_excite
from limelight.evaluate.weakening import Experiment, strip, weakened
from limelight.heads.counting import Counter, Counting
from limelight.heads.gains import HeadGain, adjust, strengthen, weaken
from limelight.heads.relevance import Relevance
from limelight.heads.vocabulary import Concepts
from limelight.utils.files import png, slug, write
from limelight.utils.statistics import compare
from limelight.viz import heads as plots
from recipes.pocket.vocabulary import word_of

from .attend_excite import SHAPES
from .attend_excite import build as build_pipeline


def build(size: str) -> limelight.Model:
    """The embedded model, or one with random weights: what is measured is cost."""
    return limelight.load(build_pipeline(size, "diffusers, plain pipeline", torch.float32, "cpu"))


def pass_of(model: limelight.Model, counting: Counting, counted: bool) -> float:
    """Processor seconds of one pass of prompts, counted or only generated (neither is decoded)."""
    job = range(counting.batch)
    if counted:
        counter = Counter(model, counting)  # keys are computed once a run
        start = time.process_time()
        counter.count(job)
        return time.process_time() - start
    start = time.process_time()
    prompts = [model.prompt(counting.prompts[i]) for i in job]
    conditioning = model.encode(prompts, "")
    noise = model.noise([counting.generator(i, "noise") for i in job], *model.default_size)
    for _ in limelight.denoise(model, conditioning, noise, steps=counting.steps):
        pass
    return time.process_time() - start


def cost(size: str, repeat: int, steps: int, batch: int) -> None:
    """Both sides in processes of their own, in turns: memory is a process's peak."""
    best: dict[str, tuple[float, float]] = {}
    for _ in range(repeat):
        for side in ("plain", "counted"):
            command = [sys.executable, "-m", "bench.heads", "cost", "--size", size, "--side", side]
            command += ["--steps", str(steps), "--batch", str(batch)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, memory = json.loads(out.splitlines()[-1])
            known = best.get(side, (float("inf"), float("inf")))
            best[side] = min(seconds, known[0]), min(memory, known[1])
    (plain, below), (counted, above) = best["plain"], best["counted"]
    print(
        f"| {size} | {batch} | {steps} | {plain / batch:.2f} | {counted / batch:.2f} | {counted / plain:.2f} "
        f"| {below:.2f} | {above:.2f} | {above / below:.2f} |",
        flush=True,
    )


def one_side(size: str, side: str, steps: int, batch: int) -> None:
    torch.set_num_threads(1)
    model = build(size)
    concepts = Concepts.read("pocket")
    if size != "pocket":  # as many concepts as the paper's, in words that this tokenizer knows
        words = PocketDetector.load().words
        concepts = Concepts({f"concept {i}": words[3 * i : 3 * i + 3] for i in range(34)})
    prompts = tuple(case.prompt for case in attend_excite()[:batch])
    counting = Counting(concepts, prompts, steps=steps, batch=batch)
    if size == "pocket":
        pass_of(model, replace(counting, steps=2), side == "counted")  # warm
    seconds = min(pass_of(model, counting, side == "counted") for _ in range(2 if size == "pocket" else 1))
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))


def prompts(vectors: str) -> None:
    relevance = Relevance.load(vectors)
    print(
        "| prompts a sample | " + " | ".join(relevance.concepts) + " |\n|---" + "|---" * len(relevance.concepts) + "|"
    )
    for count, cosines in relevance.agreement():
        print(f"| {count} | " + " | ".join(f"{value:.3f}" for value in cosines.tolist()) + " |")
    low, high = relevance.interval()
    width = (high - low) / relevance.vectors.clamp(min=1e-9)
    cells = []
    for i, name in enumerate(relevance.concepts):
        top = list(relevance.order(name)[:5])
        cells.append(f"{float(width[i, top].mean()):.0%}")
    print("| 95 % interval of the five largest elements, width | " + " | ".join(cells) + " |")


THINGS = ("car", "bow", "bowl", "balloon", "crown")


def routes(seeds: int, steps: int) -> None:
    """What comes to the image by which word: things in every color, with one word turned away."""
    model, detector, clip = limelight.load("pocket", device="cpu"), PocketDetector.load(), Clip()
    pairs = list(itertools.product(COLORS, THINGS))
    heads = range(sum(layer.heads for layer in model.sites if layer.kind == "cross"))
    sides: dict[str, Callable[[str, str], list[HeadGain]]] = {
        "nothing": lambda color, thing: [],
        "the color word": lambda color, thing: [weaken(heads, word=color)],
        "the noun": lambda color, thing: [weaken(heads, word=thing)],
    }
    print("| turned away | images | change, 0 to 255 | similarity to the color | thing found | color found |")
    print("|---|---|---|---|---|---|")
    plain: list[np.ndarray] = []
    for name, made in sides.items():
        options: dict[str, Any] = {"subjects": [], "seeds": range(seeds), "steps": steps, "record": False}
        generated = [
            (pair, image)
            for pair in pairs
            for image in limelight.generate(model, "a {} {}".format(*pair), edits=made(*pair), **options).images
        ]
        images = [image for _, image in generated]
        arrays = [np.asarray(image, dtype=float) for image in images]
        plain = plain or arrays
        change = np.mean([np.abs(a - b).mean() for a, b in zip(arrays, plain, strict=True)])
        similar = (clip.images(images) * clip.texts([color for (color, _), _ in generated])).sum(dim=1).mean()
        seen = list(zip(generated, detector.detect(images), strict=True))
        things = sum(any(d.word == thing for d in found) for ((_, thing), _), found in seen) / len(seen)
        colors = sum(any(d.color == color for d in found) for ((color, _), _), found in seen) / len(seen)
        cells = f"{len(seen)} | {change:.1f} | {float(similar):.3f} | {things:.0%} | {colors:.0%}"
        print(f"| {name} | {cells} |", flush=True)


EXPERIMENTS = ("pocket-animals", "pocket-colors", "pocket-bare-colors")


def weakening(
    out: Path,
    vectors: str,
    seeds: int,
    steps: int,
    every: int,
    counts: list[int] | None,
    names: Sequence[str] = EXPERIMENTS,
) -> None:
    model, relevance = limelight.load("pocket", device="cpu"), Relevance.load(vectors)
    print("| experiment | prompts | images | area MoRHF | random | LeRHF | area between | 95 % interval |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        experiment = Experiment.of(name)
        experiment = replace(experiment, prompts=experiment.prompts[::every])
        found = weakened(
            model,
            relevance,
            experiment,
            out / name,
            seeds=[10 * (i + 1) for i in range(seeds)],
            counts=counts,
            images=True,
            steps=steps,
        )
        plots.curves(found).save(out / name / "curves.png")
        strip(out / name, found, experiment.prompts[0][0]).save(out / name / "strip.png")
        between = found.between()
        areas = " | ".join(f"{found.area(order):.4f}" for order in ("MoRHF", "random", "LeRHF"))
        # None and all of the heads once for all orders.
        generated = len(experiment.prompts) * seeds * (2 + 3 * (len(found.counts) - 2))
        print(
            f"| {name}, '{experiment.prompts[0][0]}' | {len(experiment.prompts)} | {generated} | {areas} "
            f"| {between.mean:.4f} | {between.low:.4f} to {between.high:.4f} |",
            flush=True,
        )


# Name -> (the words' concept, the words, prompts of a word).
JUDGED: dict[str, tuple[str, Sequence[str], tuple[str, ...]]] = {
    "animals": ("Animals", ANIMALS, ("a {}", "a {} and a car")),
    "colors": ("Color", COLORS, ("a {} car", "a {} cat")),
    "bare colors": ("Color", COLORS, ("a {}", "a photo of a {}")),
}


def edits(out: Path, vectors: str, seeds: int, steps: int) -> None:
    """A word that is strengthened as its own concept and as each other, in the eyes of the detector and of the CLIP.

    Images that are in the folder are not generated again; all are detected anew.
    """
    model, relevance = limelight.load("pocket", device="cpu"), Relevance.load(vectors)
    detector, clip = PocketDetector.load(), Clip()

    def made(word: str, own: str) -> dict[str, dict[str, list[HeadGain]]]:
        others = [concept for concept in relevance.concepts if concept != own]
        return {
            "none": {"": []},
            "strengthen own": {"": [strengthen(word, own, head_vectors=relevance)]},
            "strengthen other": {other: [strengthen(word, other, head_vectors=relevance)] for other in others},
            "adjust own - other": {other: [adjust(word, own, other, head_vectors=relevance)] for other in others},
            "adjust other - own": {other: [adjust(word, other, own, head_vectors=relevance)] for other in others},
        }

    print("| words | edit | images | found by the detector | similarity to the word | its change | 95 % interval |")
    print("|---|---|---|---|---|---|---|")
    for name, (own, words, templates) in JUDGED.items():
        plain: list[float] = []
        for method, variants in made(words[0], own).items():
            found, similar = list[bool](), list[list[float]]()  # of every image; of every variant and prompt
            for variant, word in itertools.product(variants, words):
                prompts = [template.format(word) for template in templates]
                folder = out / slug(name) / slug(f"{method} {variant}")
                paths = [folder / f"{slug(p)}-{seed}.png" for p in prompts for seed in range(seeds)]
                if not all(path.exists() for path in paths):
                    results = limelight.generate(
                        model,
                        prompts,
                        subjects=[()] * len(prompts),
                        seeds=range(seeds),
                        edits=made(word, own)[method][variant],
                        steps=steps,
                        record=False,
                    )
                    for path, image in zip(paths, [i for r in results for i in r.images], strict=True):
                        write(path, png({"steps": steps}, image))
                images = [Image.open(path).convert("RGB") for path in paths]
                found += [any(word in (d.word, d.color) for d in seen) for seen in detector.detect(images)]
                scores = clip.images(images) @ clip.texts([word])[0]
                similar.append(scores.unflatten(0, (len(prompts), seeds)).mean(dim=1).tolist())
            means = torch.tensor(similar).view(len(variants), -1).mean(dim=0).tolist()  # of every prompt
            plain = plain or means
            change = compare(means, plain)
            cells = f"{sum(found) / len(found):.0%} | {sum(means) / len(means):.3f} | {change.mean:+.3f}"
            ends = f"{change.low:+.3f} to {change.high:+.3f}"
            print(f"| {name} | {method} | {len(found)} | {cells} | {ends} |", flush=True)


# What is wanted, and the concepts of that meaning and of the other.
SENSES = {
    "mouse": ("Animals", "Devices"),
    "mouse (computer)": ("Devices", "Animals"),
    "star": ("Objects", "Sky"),
    "star (sky)": ("Sky", "Objects"),
    "bow": ("Clothing", "Objects"),
    "bow (weapon)": ("Objects", "Clothing"),
}


def senses(source: str, vectors: str, seeds: int, steps: int) -> None:
    """How often a word that stands alone has the wanted one of its two meanings, as the detector tells them."""
    model, relevance = limelight.load(source, device="cpu"), Relevance.load(vectors)
    detector = PocketDetector.load()
    print("| wanted | images each | plain | adjusted | change |\n|---|---|---|---|---|")
    for name, concepts in SENSES.items():
        word = word_of(name)
        prompts = [f"a {word}", f"a photo of a {word}"]
        shares = []
        for made in ([], [adjust(word, *concepts, head_vectors=relevance)]):
            options: dict[str, Any] = {"seeds": range(seeds), "edits": made, "steps": steps, "record": False}
            results = limelight.generate(model, prompts, subjects=[()] * len(prompts), **options)
            found = detector.detect([image for result in results for image in result.images])
            shares.append(sum(any(d.name == name for d in seen) for seen in found) / len(found))
        plain, adjusted = shares
        print(f"| {name} | {len(found)} | {plain:.0%} | {adjusted:.0%} | {100 * (adjusted - plain):+.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "prompts", "routes", "weakening", "edits", "senses"])
    parser.add_argument("--size", choices=["pocket", *SHAPES], default="pocket")
    parser.add_argument("--side", choices=["plain", "counted"], help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--model", default="pocket", help="of senses")
    parser.add_argument("--vectors", default="pocket")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS)
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of weakened heads")
    args = parser.parse_args()
    if args.side:
        one_side(args.size, args.side, args.steps, args.batch)
    elif args.what == "cost":
        print("| model | batch | steps | CPU seconds each: plain | counted | ratio | GiB: plain | counted | ratio |")
        print("|---|---|---|---|---|---|---|---|---|")
        cost(args.size, args.repeat, args.steps, args.batch)
    elif args.what == "prompts":
        prompts(args.vectors)
    elif args.what == "routes":
        routes(args.seeds, args.steps)
    elif args.what == "senses":
        senses(args.model, args.vectors, args.seeds, args.steps)
    elif args.out is None:
        parser.error("--out is needed")
    elif args.what == "weakening":
        weakening(args.out, args.vectors, args.seeds, args.steps, args.every, args.counts, args.experiments)
    else:
        edits(args.out, args.vectors, args.seeds, args.steps)


if __name__ == "__main__":
    main()
