"""How little guidance cures as much: work over plain sampling against neglect.

`python -m bench.fast --out fast.jsonl` draws every `--every`-th prompt of the Attend-and-Excite benchmark with each of
the settings, appends a line per picture to the file and prints a Markdown table. Run again, it draws only what the file
lacks. Every guided row has the step that suits the model. "Work" is gradient steps in denoiser passes, over the passes
of plain sampling; "loss" is Attend-and-Excite's on the mean maps of the whole run; "miss" is what the judge does not
find; "cured" are pictures that miss something plain and nothing guided, "spoiled" the other way round.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import limelight
from bench.count import Flops
from limelight.guidance import Guidance, Steering
from limelight.judge import Judge, verdict
from limelight.objectives import excite
from limelight.suites import Case, attend_excite

SETTINGS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "every step to 0.5": {"until": 0.5},
    "to 0.2": {"until": 0.2},
    "to 0.1": {"until": 0.1},
    "every second to 0.5": {"until": 0.5, "every": 2},
    "every second to 0.2": {"until": 0.2, "every": 2},
    "to 0.5, enough 0.8": {"until": 0.5, "enough": 0.8},
    "to 0.5, enough 0.6": {"until": 0.5, "enough": 0.6},
    "every second to 0.2, twice the step": {"until": 0.2, "every": 2, "double": True},
    "first step refined, 4 tries": {"until": 0, "thresholds": {0: 0.5}, "max_refinements": 4},
    "fast": {"fast": True},
}
Row = dict[str, Any]


def guidance(model: limelight.Model, settings: dict[str, Any] | None) -> Guidance | None:
    """What a row of the table is drawn with."""
    if settings is None:
        return None
    if "fast" in settings:
        return limelight.AttendAndExcite.fast(model)
    changes = dict(settings)
    if changes.pop("double", False):
        changes["scale"] = 2 * limelight.AttendAndExcite.suited(model).scale
    return limelight.AttendAndExcite.suited(model, **{"thresholds": {}, **changes})


def unit(model: limelight.Model) -> float:
    """The work of a gradient step in denoiser passes."""
    conditioning = model.encode([model.prompt("a cat and a dog")])
    latents = model.noise([torch.Generator().manual_seed(0)], *model.default_size)
    size = (latents.shape[-2], latents.shape[-1])
    timesteps = model.timesteps(50)
    steering = Steering(limelight.AttendAndExcite(), model, conditioning, [[(2,), (5,)]], 50, timesteps, size)
    with sdpa_kernel([SDPBackend.MATH]), Flops() as one, torch.no_grad():
        model.predict(latents, timesteps[1], conditioning)
    with sdpa_kernel([SDPBackend.MATH]), Flops() as step:
        steering.update(1, timesteps[1], latents)
    return step.total / one.total


def draw(model: limelight.Model, judge: Judge, name: str, case: Case, seeds: list[int], steps: int) -> list[Row]:
    """A row per seed."""
    looks = 0

    def count(_module: Any, inputs: Any) -> None:
        nonlocal looks
        looks += len(inputs[0]) if torch.is_grad_enabled() else 0

    handle = model.denoiser.conv_in.register_forward_pre_hook(count)
    start = time.process_time()
    try:
        result = limelight.generate(
            model,
            case.prompt,
            subjects=[thing.word for thing in case.wanted],
            seeds=seeds,
            guidance=guidance(model, SETTINGS[name]),
            steps=steps,
        )
    finally:
        handle.remove()
    seconds = time.process_time() - start
    parsed = model.prompt(case.prompt)
    subjects = [tuple(parsed.find(thing.word) for thing in case.wanted)] * len(seeds)
    losses = excite(result.maps, subjects).loss.tolist()
    found = [verdict(seen, case.wanted) for seen in judge.detect(result.images)]
    common = {"name": name, "prompt": case.prompt, "steps": steps, "looks": looks / len(seeds), "model": model.name}
    return [
        {**common, "seed": seed, "seconds": seconds / len(seeds), "loss": loss, "missed": seen.neglected}
        for seed, loss, seen in zip(seeds, losses, found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--every", type=int, default=1, help="draw only every n-th prompt")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    args = parser.parse_args()
    model, judge, seeds = limelight.load(args.model), Judge.load(), list(range(args.seeds))
    cases = attend_excite()[:: args.every]
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    there = {
        (r["name"], r["prompt"], r["seed"]): r for r in rows if (r["steps"], r["model"]) == (args.steps, model.name)
    }
    with args.out.open("a") as file:
        for case in cases:  # all settings of a prompt side by side: stop at any time and the table is fair
            for name in args.only:
                left = [seed for seed in seeds if (name, case.prompt, seed) not in there]
                for row in draw(model, judge, name, case, left, args.steps) if left else []:
                    there[name, case.prompt, row["seed"]] = row
                    file.write(json.dumps(row) + "\n")
                file.flush()
    print(table(there, args.only, [(case.prompt, seed) for case in cases for seed in seeds], unit(model)))


def table(rows: dict[tuple[str, str, int], Row], names: list[str], pictures: list[tuple[str, int]], cost: float) -> str:
    lines = ["| guidance | pictures | gradient steps | work | loss | miss | cured | spoiled |", "|---" * 8 + "|"]
    for name in names:
        own = [rows[name, *picture] for picture in pictures]
        plain = [rows.get(("plain", *picture), {"missed": False})["missed"] for picture in pictures]
        looks = sum(row["looks"] for row in own) / len(own)
        miss, loss = (sum(row[key] for row in own) / len(own) for key in ("missed", "loss"))
        cured = sum(before and not row["missed"] for before, row in zip(plain, own, strict=True))
        spoiled = sum(row["missed"] and not before for before, row in zip(plain, own, strict=True))
        work = 1 + looks * cost / (2 * own[0]["steps"])
        numbers = f"{looks:.1f} | {work:.2f} | {loss:.3f} | {miss:.1%} | {cured} | {spoiled}"
        lines.append(f"| {name} | {len(own)} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
