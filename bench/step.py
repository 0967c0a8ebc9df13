"""One denoiser pass and one gradient step: seconds and memory, here and in diffusers' deprecated pipeline.

`python -m bench.step --size mid` prints a Markdown table. All ways take turns in one process on the same weights,
and of each the fastest of `--repeat` turns counts: on a CPU the processor's time, which other work on the machine
disturbs least. `--list` names the ways; memory is the peak above what was there before.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.deprecated.stable_diffusion_attend_and_excite import (
    pipeline_stable_diffusion_attend_and_excite as deprecated,
)
from torch import Tensor

import limelight
from bench.attend_excite import SHAPES, build
from limelight.guidance.base import Steering, layers_to_read
from limelight.models.base import Model
from limelight.utils.measure import Cost, measured
from limelight.utils.torch import seeded

PROMPT, TOKENS = "a cat and a dog", [2, 5]


@dataclass(frozen=True)
class Way:
    """What is measured, and what is done before and after it that is not."""

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None
    after: Callable[[], Any] = lambda: None


def ways(model: Model, theirs: Any, batch: int) -> dict[str, Way]:
    """What is measured, by name. The first is what all are compared with."""
    conditioning = model.encode([model.prompt(PROMPT)] * batch)
    states = conditioning.conditional["encoder_hidden_states"]
    height, width = model.default_size
    latents = model.noise(seeded(range(batch)), height, width)
    timestep, size = model.timesteps(50)[1], (latents.shape[-2], latents.shape[-1])
    layers = layers_to_read(model, size)
    subjects = [[(token,) for token in TOKENS]] * batch

    def gradient(**changes: Any) -> Tensor:
        guidance = limelight.AttendAndExcite(thresholds={}, **changes)
        moved = Steering(
            guidance, model, conditioning, subjects, 50, model.scheduler.timesteps, guidance.layers(model, size)
        )
        return moved.update(1, timestep, latents).latents  # type: ignore[union-attr]

    @torch.no_grad()
    def forward(recorded: Any = ()) -> None:
        with limelight.Probe(model, recorded) as probe:
            model.predict(latents, timestep, conditioning)
            probe.take(latents, conditioning.prompts)

    def excited() -> None:
        theirs.attention_store = deprecated.AttentionStore(layers[0].size(size))
        theirs.register_attention_control()

    def calm() -> None:
        theirs.attention_store = None
        theirs.unet.set_attn_processor(dict(processors))
        theirs.unet.requires_grad_(False)

    def their_gradient() -> Tensor:
        theirs.unet.requires_grad_(True)
        moved = []
        for latent, state in zip(latents, states, strict=True):  # as there, one image at a time
            variable = latent[None].clone().requires_grad_()
            theirs.unet(variable, timestep, encoder_hidden_states=state[None])
            maxima = theirs._aggregate_and_get_max_attention_per_token(indices=TOKENS)
            loss = theirs._compute_loss(max_attention_per_index=maxima)
            moved.append(theirs._update_latent(variable, loss, model.scheduler.init_noise_sigma * 20).detach())
        return torch.cat(moved)

    @torch.no_grad()
    def their_forward() -> None:
        theirs.unet(latents, timestep, encoder_hidden_states=states)

    processors, unet = theirs.unet.attn_processors, model.denoiser

    def layout(memory_format: torch.memory_format) -> Callable[[], None]:
        return lambda: unet.to(memory_format=memory_format)

    last, first = layout(torch.channels_last), layout(torch.contiguous_format)
    theirs.unet.requires_grad_(False)
    return {
        "pass, untouched": Way(their_forward),
        "pass, ours": Way(forward),
        "pass, ours, maps recorded": Way(lambda: forward(layers)),
        "pass, ours, channels last": Way(forward, last, first),
        "pass, diffusers' guidance installed": Way(their_forward, excited, calm),
        "gradient step, ours": Way(gradient),
        "gradient step, ours, checkpointed": Way(lambda: gradient(checkpoint=True)),
        "gradient step, ours, channels last": Way(gradient, last, first),
        "gradient step, diffusers": Way(their_gradient, excited, calm),
    }


def compiled(model: Model) -> None:
    """Compile the denoiser's blocks, each on its own."""
    for name, module in model.denoiser.named_modules():
        if re.fullmatch(r"(down_blocks|up_blocks|mid_block)(\.\d+)?\.(resnets|attentions)\.\d+", name):
            module.compile()


def turn(way: Way, device: torch.device) -> Cost:
    """One turn of a way."""
    way.before()
    try:
        return measured(way.run, device)
    finally:
        way.after()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="pocket", choices=["pocket", *SHAPES])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="parts of the names of the ways to measure, besides the first")
    parser.add_argument("--compile", action="store_true", help="compile the denoiser's blocks for an additional way")
    parser.add_argument("--list", action="store_true", help="name the ways")
    args = parser.parse_args()
    theirs = build(args.size, "diffusers", getattr(torch, args.dtype), args.device)
    plain = {name: part for name, part in theirs.components.items() if name != "image_encoder"}
    model = limelight.load(StableDiffusionPipeline(**plain, requires_safety_checker=False))
    found = ways(model, theirs, args.batch)
    if args.list:
        print("\n".join(found))
        return
    first = next(iter(found))
    device = torch.device(args.device)
    chosen = {n: w for n, w in found.items() if n == first or not args.only or any(part in n for part in args.only)}
    taken: dict[str, list[Cost]] = {name: [] for name in chosen}
    for number in range(args.repeat + 1):
        for name, way in chosen.items():
            found_here = turn(way, device)
            if number:  # the first only warms up
                taken[name].append(found_here)
    if args.compile:
        compiled(model)
        for name in ("pass, ours", "gradient step, ours"):
            start = time.perf_counter()
            turn(found[name], device)
            print(f"{name}: the first turn, with compiling, took {time.perf_counter() - start:.0f} s.")
            taken[f"{name}, blocks compiled"] = [turn(found[name], device) for _ in range(args.repeat)]
        print()
    least = {name: min(seconds for seconds, _ in turns) for name, turns in taken.items()}
    print(f"{args.size}, {args.device}, {args.dtype}, batch {args.batch}, {torch.get_num_threads()} threads\n")
    print("| | seconds | of a pass | GiB |\n|---|---|---|---|")
    for name, turns in taken.items():
        memory = min(gibibytes for _, gibibytes in turns)
        print(f"| {name} | {least[name]:.3g} | {least[name] / least[first]:.2f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main()
