"""Head relevance on the embedded model: what counting costs, how many prompts are enough, and what the edits do.

    python -m bench.heads cost                      # time and memory of counting against plain sampling, as ratios
    python -m bench.heads prompts                   # agreement of two samples of so many prompts
    python -m bench.heads weakening --out FOLDER    # area between LeRHF and MoRHF of Animals and Colours
    python -m bench.heads edits --out FILE          # what strengthening and adjusting change, as the judge sees it

Each prints a Markdown table. The last two keep what they drew and go on where they were.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import limelight
from limelight.edits import HeadGain, adjust, strengthen
from limelight.heads import pictures
from limelight.heads.concepts import Concepts
from limelight.heads.counting import Counter, Counting
from limelight.heads.relevance import Relevance
from limelight.heads.weakening import Experiment, strip, weakened
from limelight.judge import Judge
from limelight.suites import attend_excite

from .attend_excite import SHAPES
from .attend_excite import build as build_pipeline


def build(size: str) -> limelight.Model:
    """The embedded model, or one with random weights: what is measured is cost."""
    return limelight.load(build_pipeline(size, "diffusers, plain pipeline", torch.float32, "cpu"))


def pass_of(model: limelight.Model, counting: Counting, counted: bool) -> float:
    """Processor seconds of one pass of prompts, counted or only drawn (neither is decoded)."""
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
        words = Judge.load().words
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


def weakening(out: Path, vectors: str, seeds: int, steps: int, every: int, counts: list[int] | None) -> None:
    model, relevance = limelight.load("pocket", device="cpu"), Relevance.load(vectors)
    print("| concept | prompts | area MoRHF | random | LeRHF | area between | 95 % interval |")
    print("|---|---|---|---|---|---|---|")
    for name in ("pocket-animals", "pocket-colours"):
        experiment = Experiment.of(name)
        experiment = replace(experiment, prompts=experiment.prompts[::every])
        found = weakened(
            model,
            relevance,
            experiment,
            out / name,
            seeds=[10 * (i + 1) for i in range(seeds)],
            counts=counts,
            pictures=True,
            steps=steps,
        )
        pictures.curves(found).save(out / name / "curves.png")
        strip(out / name, found, experiment.prompts[0][0]).save(out / name / "strip.png")
        area, low, high = found.between()
        areas = " | ".join(f"{found.area(order):.4f}" for order in ("MoRHF", "random", "LeRHF"))
        print(
            f"| {experiment.concept} | {len(experiment.prompts)} | {areas} | {area:.4f} | {low:.4f} to {high:.4f} |",
            flush=True,
        )


# Concept -> (its opposite, its words, prompts of a word): what is judged is whether the picture shows the word.
JUDGED: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "Animals": ("Colours", ("cat", "bird", "lion", "frog", "owl"), ("a {}", "a {} and a car")),
    "Colours": ("Animals", ("red", "yellow", "green", "blue", "purple"), ("a {} car", "a {} bow")),
}


def edits(out: Path, vectors: str, seeds: int, steps: int) -> None:
    """The judge's view of a word that is strengthened as its own concept and as another."""
    model, judge, relevance = limelight.load("pocket", device="cpu"), Judge.load(), Relevance.load(vectors)

    def made(method: str, word: str, own: str, other: str) -> list[HeadGain]:
        return {
            "plain": [],
            "strengthen own": [strengthen(word, own, relevance=relevance)],
            "strengthen other": [strengthen(word, other, relevance=relevance)],
            "adjust own-other": [adjust(word, own, other, relevance=relevance)],
            "adjust other-own": [adjust(word, other, own, relevance=relevance)],
        }[method]

    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    there = {(row["method"], row["word"]) for row in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    methods = ("plain", "strengthen own", "strengthen other", "adjust own-other", "adjust other-own")
    print("| concept | method | pictures | the word is shown |\n|---|---|---|---|")
    for (own, (other, words, templates)), method in itertools.product(JUDGED.items(), methods):
        for word in words:
            if (method, word) in there:
                continue
            prompts, acting = [t.format(word) for t in templates], made(method, word, own, other)
            options: dict[str, Any] = {"seeds": range(seeds), "steps": steps, "edits": acting, "record": False}
            results = limelight.generate(model, prompts, subjects=[()] * len(prompts), **options)
            new = [
                {"concept": own, "method": method, "word": word, "prompt": prompt, "seed": seed}
                | {"shown": any(word in (d.word, d.colour) for d in found)}
                for prompt, result in zip(prompts, results, strict=True)
                for seed, found in enumerate(judge.detect(result.images))
            ]
            with out.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in new))
            rows += new
        mine = [row["shown"] for row in rows if (row["concept"], row["method"]) == (own, method)]
        print(f"| {own} | {method} | {len(mine)} | {sum(mine) / len(mine):.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "prompts", "weakening", "edits"])
    parser.add_argument("--size", choices=["pocket", *SHAPES], default="pocket")
    parser.add_argument("--side", choices=["plain", "counted"], help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vectors", default="pocket")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--every", type=int, default=1)
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
    elif args.out is None:
        parser.error("--out is needed")
    elif args.what == "weakening":
        weakening(args.out, args.vectors, args.seeds, args.steps, args.every, args.counts)
    else:
        edits(args.out, args.vectors, args.seeds, args.steps)


if __name__ == "__main__":
    main()
