"""What guidance does to the loss: plain against guided on prompts of the Attend-and-Excite benchmark.

`python -m bench.guidance [--model pocket] [--scale 20]` prints a Markdown table with the Attend-and-Excite loss at the
last guided step, mean over the seeds. The plain loss is read with a guidance that does not move the latents.
"""

from __future__ import annotations

import argparse

import limelight
from limelight.evaluate.suites import attend_excite


def sample(count: int) -> list[str]:
    """Prompts spread evenly over the published list."""
    prompts = [case.prompt for case in attend_excite()]
    return prompts[:: max(len(prompts) // count, 1)][:count]


def last_loss(model: limelight.Model, prompt: str, seeds: range, scale: float, steps: int) -> float:
    """Loss at the last guided step, mean over seeds. A scale of 0 watches without moving."""
    guidance = limelight.AttendAndExcite(scale=scale, **({} if scale else {"thresholds": {}}))
    result = limelight.generate(model, prompt, seeds=seeds, guidance=guidance, steps=steps, record=False)
    losses = result.trace[-1]["loss"]
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scale", type=float, default=20.0)
    args = parser.parse_args()
    model, seeds, wins = limelight.load(args.model), range(args.seeds), 0
    print("| prompt | plain | guided |\n|---|---|---|")
    for prompt in sample(args.prompts):
        plain, guided = (last_loss(model, prompt, seeds, scale, args.steps) for scale in (0.0, args.scale))
        wins += guided < plain
        print(f"| {prompt} | {plain:.3f} | {guided:.3f} |", flush=True)
    print(f"\nLower with guidance on {wins} of {args.prompts} prompts, mean over {args.seeds} seeds.")


if __name__ == "__main__":
    main()
