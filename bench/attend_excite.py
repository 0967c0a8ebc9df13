"""Attend-and-Excite against diffusers' deprecated pipeline: seconds, denoiser work and memory at equal output.

`python -m bench.attend_excite --sizes pocket mid` prints a Markdown table. Every run is a process of its own, the two
sides in turns; weights are random, so what is measured is cost. "F" is the work of one denoiser pass for one image.
`--sizes sd14` has the real configuration (on a CPU, minutes a run and 14 GiB for diffusers' side).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bench.count import Flops
from limelight.integrations.diffusers import StableDiffusionAttendAndExcitePipeline
from limelight.models.embedded import POCKET

# What is measured: steps, how many of them are guided, and tries of refinement (20 at a threshold that is never met).
RUNS = {"plain": (4, 0, 0), "guided": (4, 4, 0), "20 tries": (4, 4, 20)}
SHAPES: dict[str, dict[str, Any]] = {
    "mid": {"block_out_channels": (96, 192, 384, 384), "cross_attention_dim": 768},
    "sd14": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
}
SIDES = ("ours", "diffusers", "diffusers, plain pipeline")


def build(size: str, side: str, dtype: torch.dtype, device: str) -> Any:
    """A pipeline with random weights; the embedded model's are its own."""
    if side == "ours":
        cls = StableDiffusionAttendAndExcitePipeline
    elif side == "diffusers":
        from diffusers import StableDiffusionAttendAndExcitePipeline as cls  # noqa: N813
    else:
        cls = StableDiffusionPipeline
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if size == "pocket":
        pipeline = cls.from_pretrained(POCKET, dtype=dtype, **options)
    else:
        torch.manual_seed(0)
        tokenizer = CLIPTokenizer.from_pretrained(POCKET / "tokenizer", model_max_length=77)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=1536,
            num_hidden_layers=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        pipeline = cls(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 8, 8),
                norm_num_groups=4,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(sample_size=64, attention_head_dim=8, **SHAPES[size]),
            scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
            **options,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)


def memory(device: str) -> float:
    """Most gibibytes taken so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(size: str, side: str, run: str, dtype: torch.dtype, device: str, batch: int) -> dict[str, float]:
    """Seconds of one run, its work in F and the memory that it took above what was there before it."""
    pipeline = build(size, side, dtype, device)
    steps, guided, tries = RUNS[run]
    call: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent"}
    if "plain" not in side:
        # A presence of 1 is never met: always 20 tries.
        call |= {"token_indices": [2, 5], "max_iter_to_alter": guided, "thresholds": {0: 1.0} if tries else {}}
        call["attn_res"] = (8, 8) if size == "pocket" else (16, 16)
    if batch > 1:
        call["prompt"] = ["a cat and a dog"] * batch
        if "token_indices" in call:
            call["token_indices"] = [[2, 5]] * batch
    else:
        call["prompt"] = "a cat and a dog"

    def once() -> None:
        pipeline(**call, generator=torch.Generator().manual_seed(0))
        if device == "cuda":
            torch.cuda.synchronize()

    before = torch.cuda.memory_allocated() / 2**30 if device == "cuda" else memory(device)
    if device == "cuda" or size == "pocket":
        once()  # warm
    start = time.perf_counter()
    once()
    seconds = time.perf_counter() - start
    taken = memory(device) - before
    work = float("nan")
    if size in ("pocket", "mid"):
        channels, side_length = pipeline.unet.config.in_channels, pipeline.unet.config.sample_size
        states = torch.zeros(
            1, pipeline.tokenizer.model_max_length, pipeline.unet.config.cross_attention_dim, device=device, dtype=dtype
        )
        latents = torch.zeros(1, channels, side_length, side_length, device=device, dtype=dtype)
        # Fused attention on a CPU is not in torch's table of costs; as matrix products it is.
        with sdpa_kernel([SDPBackend.MATH]), Flops() as one, torch.no_grad():
            pipeline.unet(latents, torch.tensor(1, device=device), states)
        with sdpa_kernel([SDPBackend.MATH]), Flops() as whole:
            once()
        work = whole.total / one.total
    return {"seconds": seconds, "work": work, "memory": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["pocket", "mid"], choices=["pocket", *SHAPES])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many counts")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(
            json.dumps(
                measure(args.sizes[0], args.side, args.runs[0], getattr(torch, args.dtype), args.device, args.batch)
            )
        )
        return
    print(f"{args.device}, {args.dtype}, batch {args.batch}; a run has 4 steps.\n")
    print(
        "| size | run | seconds: ours | diffusers | ratio | work in F: ours | diffusers | GiB above: ours | diffusers |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size in args.sizes:
        for run in args.runs:
            sides = ("ours", "diffusers, plain pipeline") if run == "plain" else ("ours", "diffusers")
            best: dict[str, dict[str, float]] = {}
            for _ in range(args.repeat):
                for side in sides:
                    command = [sys.executable, "-m", "bench.attend_excite", "--sizes", size, "--runs", run]
                    command += [
                        "--device",
                        args.device,
                        "--dtype",
                        args.dtype,
                        "--batch",
                        str(args.batch),
                        "--side",
                        side,
                    ]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    if side not in best or found["seconds"] < best[side]["seconds"]:
                        best[side] = found
            ours, theirs = best[sides[0]], best[sides[1]]
            ratio = ours["seconds"] / theirs["seconds"]
            print(
                f"| {size} | {run} | {ours['seconds']:.2f} | {theirs['seconds']:.2f} | {ratio:.2f} "
                f"| {ours['work']:.1f} | {theirs['work']:.1f} | {ours['memory']:.2f} | {theirs['memory']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
