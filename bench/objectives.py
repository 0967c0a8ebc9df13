"""What a gradient step of each preset costs.

`python -m bench.objectives` prints two Markdown tables. The first is of the embedded model: F is the work of one
denoiser pass for one image, counted; seconds are the processor's, all in one process and in turns, over those of a
plain pass; MB are tensors in float32 that exist at once above the weights. The second is of real configurations on the
meta device, by the attention that an objective reads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

import limelight
from bench.count import Bare, peak, work
from limelight.attention.maps import AttentionMaps
from limelight.guidance.base import Guidance, Kind, Score, Steering, Subjects, reading, reads
from limelight.guidance.names import NAMES, RECOMMENDED
from limelight.guidance.presets import preset
from limelight.prompts.subjects import Subject, resolve

PROMPT = "a red cat and a blue car"


def gradient(model: limelight.Model, guidance: Guidance, subjects: Sequence[Subject]) -> Callable[[], Any]:
    """One gradient step of an image, ready to run."""
    conditioning = model.encode([model.prompt(PROMPT)])
    latents = model.noise([torch.Generator().manual_seed(0)], *model.default_size)
    timesteps, rows = model.timesteps(50), torch.arange(1)
    layers = guidance.layers(model, (latents.shape[-2], latents.shape[-1]))
    steering = Steering(guidance, model, conditioning, [subjects], 50, timesteps, layers)
    return lambda: steering.evaluate(latents, timesteps[0], rows)


def plain(model: limelight.Model) -> Callable[[], Any]:
    """One pass without a gradient."""
    conditioning = model.encode([model.prompt(PROMPT)])
    latents = model.noise([torch.Generator().manual_seed(0)], *model.default_size)
    timestep = model.timesteps(50)[0]

    def run() -> None:
        with torch.no_grad():
            model.predict(latents, timestep, conditioning)

    return run


def seconds(run: Callable[[], Any]) -> float:
    """Processor seconds of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def of_presets(repeat: int) -> None:
    """The table of the embedded model."""
    model = limelight.load("pocket", device="cpu")
    subjects = resolve(model.prompt(PROMPT), "auto")[1]
    runs = {"a plain pass": plain(model)}
    for name in NAMES:
        if name != RECOMMENDED:
            runs[name] = gradient(model, preset(name, model), subjects)

    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat + 1):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    times = {name: median(values[1:]) for name, values in taken.items()}  # the first of each warms up
    unit, base = work(runs["a plain pass"]), times["a plain pass"]
    print("| gradient step of | reads | F | seconds over a plain pass | MB |\n|---|---|---|---|---|")
    for name, run in runs.items():
        kinds = "" if name == "a plain pass" else " and ".join(reads(preset(name, model).objective))
        cells = f"{work(run) / unit:.2f} | {times[name] / base:.2f} | {peak(run) / 2**20:.1f}"
        print(f"| {name} | {kinds} | {cells} |", flush=True)


def _watching(*kinds: Kind) -> Guidance:
    """A guidance whose objective has no work of its own."""

    @reading(*kinds)
    def total(maps: AttentionMaps, subjects: Subjects) -> Score:
        loss = torch.stack([p.flatten(1).sum(dim=1) for p in maps.layers.values()]).sum(dim=0)
        return Score(loss, loss[:, None], {"neglect": loss})

    return Guidance(objective=total)


def of_configurations() -> None:
    """The table of real configurations."""
    print("\n| | reads | F | GiB |\n|---|---|---|---|")
    for name in ("Stable Diffusion 1.4, 512 px", "Stable Diffusion XL, 1024 px"):
        model = Bare(name)
        unit = work(model.forward)
        for kinds in (("cross",), ("cross", "self")):
            guidance = _watching(*kinds)  # type: ignore[arg-type]
            layers = guidance.layers(model, model.size)
            steering = Steering(guidance, model, model.conditioning, [[Subject((2,))]], 50, torch.arange(50), layers)
            inputs = model.latents, torch.tensor(500, device="meta"), torch.arange(1)
            run = lambda steering=steering, inputs=inputs: steering.evaluate(*inputs)  # noqa: E731
            print(f"| {name} | {' and '.join(kinds)} | {work(run) / unit:.2f} | {peak(run) / 2**30:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    of_presets(args.repeat)
    of_configurations()


if __name__ == "__main__":
    main()
