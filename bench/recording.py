"""What recording attention costs: seconds and memory of a run of 50 steps, against the same run unrecorded.

`python -m bench.recording --sizes pocket mid` prints a Markdown table. Every run is a process of its own; "kept" is
what the result holds of maps, "above" the most memory that the run took above what was there before it. Shapes other
than "pocket" have random weights, so what is measured is cost. `--sizes sd14` has the real configuration.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time

import torch

import limelight
from bench.attend_excite import SHAPES, build, memory

RECORDS = {"nothing": False, "mean": True, "steps": "steps", "all": "all"}


def measure(size: str, record: str, dtype: torch.dtype, device: str, steps: int) -> dict[str, float]:
    """Seconds of one run, gibibytes above what was there before it, megabytes of maps that it keeps."""
    torch.set_num_threads(1)
    model = limelight.load(build(size, "diffusers, plain pipeline", dtype, device))
    options = {"steps": steps, "seeds": 0, "record": RECORDS[record]}
    limelight.generate(model, "a cat and a dog", **{**options, "steps": 1})  # warm
    gc.collect()
    before = torch.cuda.memory_allocated() / 2**30 if device == "cuda" else memory(device)
    # On a CPU the one thread's own time: other work on the machine does not count.
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    result = limelight.generate(model, "a cat and a dog", **options)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - start
    above = memory(device) - before
    held = [result.maps, *(result.steps[i] for i in range(len(result.steps)))]
    return {"seconds": seconds, "above": above, "kept": sum(p.nbytes for m in held for p in m.sites.values()) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["pocket"], choices=["pocket", *SHAPES])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many counts")
    parser.add_argument("--record", choices=list(RECORDS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.record:
        found = measure(args.sizes[0], args.record, getattr(torch, args.dtype), args.device, args.steps)
        print(json.dumps(found))
        return
    print(f"{args.device}, {args.dtype}, one image, {args.steps} steps.\n")
    print("| size | recorded | seconds | ratio | GiB above | MB of maps kept |\n|---|---|---|---|---|---|")
    for size in args.sizes:
        best: dict[str, dict[str, float]] = {}
        for _ in range(args.repeat):
            for record in RECORDS:
                command = [sys.executable, "-W", "ignore", "-m", "bench.recording", "--sizes", size, "--record", record]
                command += ["--device", args.device, "--dtype", args.dtype, "--steps", str(args.steps)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                if record not in best or found["seconds"] < best[record]["seconds"]:
                    best[record] = found
        for record, found in best.items():
            ratio = found["seconds"] / best["nothing"]["seconds"]
            print(
                f"| {size} | {record} | {found['seconds']:.2f} | {ratio:.2f} | {found['above']:.2f} "
                f"| {found['kept']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
