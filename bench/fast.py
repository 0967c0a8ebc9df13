"""How little guidance fixes as much: work over plain sampling against neglect.

`python -m bench.fast --out FOLDER` generates prompts of three subjects with each of the settings, an ordinary run of
`limelight evaluate`, and prints a Markdown table. Run again, it generates only what the folder lacks. Every guided row
has the step that suits the model. "Work" is gradient steps in denoiser passes, over the passes of plain sampling;
"miss" is what the detector does not find; "fixed" are images that miss something plain and nothing guided, "broken" the
other way round; "share" is of the improvement (less misses) of the first guided row.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from pyarrow import parquet
from torch.nn.attention import SDPBackend, sdpa_kernel

import limelight
from bench.count import Flops
from limelight.evaluate.runs import run
from limelight.evaluate.scoring import score
from limelight.evaluate.suites import SUITES, load
from limelight.guidance.base import Steering
from limelight.prompts.subjects import Subject
from limelight.utils.progress import quiet

SETTINGS = {
    "plain": "plain",
    "as suited: every step to 0.5": "attend-and-excite",
    "to 0.2": "attend-and-excite:until=0.2",
    "to 0.1": "attend-and-excite:until=0.1",
    "every second to 0.5": "attend-and-excite:every=2",
    "every second to 0.3": "attend-and-excite:until=0.3:every=2",
    "every second to 0.2": "attend-and-excite:until=0.2:every=2",
    "every second to 0.2, twice the step": "attend-and-excite:until=0.2:every=2:scale=0.2",
    "to 0.1, twice the step": "attend-and-excite:until=0.1:scale=0.2",
    "fast: to 0.14": "attend-and-excite-fast",
}


def unit(model: limelight.Model) -> float:
    """The work of a gradient step in denoiser passes."""
    conditioning = model.encode([model.prompt("a cat and a dog")])
    latents = model.noise([torch.Generator().manual_seed(0)], *model.default_size)
    size = (latents.shape[-2], latents.shape[-1])
    timesteps = model.timesteps(50)
    guidance = limelight.AttendAndExcite()
    layers = guidance.layers(model, size)
    steering = Steering(guidance, model, conditioning, [[Subject((2,)), Subject((5,))]], 50, timesteps, layers)
    with sdpa_kernel([SDPBackend.MATH]), Flops() as one, torch.no_grad():
        model.predict(latents, timesteps[1], conditioning)
    with sdpa_kernel([SDPBackend.MATH]), Flops() as step:
        steering.update(1, timesteps[1], latents)
    return step.total / one.total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", choices=list(SUITES), default="three")
    parser.add_argument("--every", type=int, default=1, help="generate only every n-th prompt")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    quiet()
    cases, labels = load(args.suite)[:: args.every], [SETTINGS[name] for name in args.only]
    run(args.out, cases, labels, range(args.seeds), steps=args.steps, workers=args.workers)
    score(args.out, {"clip": "none", "captioner": "none"}, say=print)
    rows = parquet.read_table(args.out / "scores.parquet").to_pylist()
    print(table({(row["method"], row["prompt"], row["seed"]): row for row in rows}, args.only, unit(limelight.load())))


def table(rows: dict[tuple[str, str, str], dict[str, float]], names: list[str], cost: float) -> str:
    lines = ["| guidance | images | gradient steps | work | miss | share | fixed | broken |", "|---" * 8 + "|"]
    missed = {key: row["success"] == 0 for key, row in rows.items()}
    images = [key[1:] for key in rows if key[0] == "plain"]

    def rate(method: str) -> float:
        return sum(missed[method, *image] for image in images) / len(images)

    full = rate("plain") - rate(SETTINGS[names[1]]) if len(names) > 1 else 0.0
    plain = sum(rows["plain", *image]["calls"] for image in images)
    for name in names:
        method = SETTINGS[name]
        steps = (sum(rows[method, *image]["calls"] for image in images) - plain) / len(images)
        work = 1 + steps * cost * len(images) / plain
        share = f"{(rate('plain') - rate(method)) / full:.0%}" if full and method != "plain" else ""
        fixed = sum(missed["plain", *image] and not missed[method, *image] for image in images)
        broken = sum(missed[method, *image] and not missed["plain", *image] for image in images)
        numbers = f"{steps:.1f} | {work:.2f} | {rate(method):.1%} | {share} | {fixed} | {broken}"
        lines.append(f"| {name} | {len(images)} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
