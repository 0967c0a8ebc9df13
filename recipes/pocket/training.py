"""What the training stages share: processes, schedule, averaged weights, checkpoints and the loss log.

The schedule is warm-up, constant, then a linear cool-down to zero, so that a run can be prolonged: resume from a
checkpoint of the constant part with more `--steps`.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FULL = "float32 instead of bfloat16, which CPUs without its instructions imitate, twenty times slower"


def precision(args: argparse.Namespace) -> torch.autocast:
    """The precision of a forward pass."""
    return torch.autocast(args.device, torch.bfloat16, enabled=not args.full)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, the log and the result")
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps in all")
    parser.add_argument("--cooldown", type=int, required=True, help="how many of them cool down at the end")
    parser.add_argument("--batch", type=int, default=16, help="images a step, over all processes")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the constant part")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", action="store_true", help=FULL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from; default: the newest in --out")
    return parser


class Run:
    """One training run: `for step in run.steps(): loss = ...; run.update(loss)`.

    Under torchrun every process takes an equal share of the batch; on CPU each should have one thread.
    Checkpoints are written to `out/checkpoint.pt` every `save_every` seconds, and to `out/constant.pt` where the
    cool-down begins, and to `out/checkpoint.pt` when the process is asked to end (SIGTERM).
    """

    def __init__(
        self, model: nn.Module, args: argparse.Namespace, *, save_every: float = 180.0, average: float = 0.999
    ):
        self.args, self.save_every = args, save_every
        if "RANK" in os.environ and not dist.is_initialized():
            dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.share = args.batch // self.world
        self.plain = model.to(args.device)
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True) if self.world > 1 else model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        self.decay = average
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.seen_s, self.stopped = 0, 0.0, False
        self.losses: list[float] = []
        newest = args.out / "checkpoint.pt"
        source = args.resume or (newest if newest.exists() else None)
        if source:
            self._load(source)
        args.out.mkdir(parents=True, exist_ok=True)

    def rate(self) -> float:
        a = self.args
        return a.rate * min(1.0, (self.step + 1) / 200, max(0.0, (a.steps - self.step) / max(a.cooldown, 1)))

    def steps(self) -> Iterator[int]:
        signal.signal(signal.SIGTERM, self._stop)
        last_save = last_log = time.monotonic()
        while self.step < self.args.steps:
            if self.step == self.args.steps - self.args.cooldown:
                self._save("constant.pt")
            start = time.monotonic()
            yield self.step
            self.seen_s += time.monotonic() - start
            self.step += 1
            if self.step % 50 == 0 and self.rank == 0:
                mean = sum(self.losses) / max(len(self.losses), 1)
                self.losses.clear()
                self._log([self.step, self.step * self.args.batch, f"{self.seen_s:.0f}", f"{mean:.6f}"])
                rate = 50 * self.args.batch / (time.monotonic() - last_log)
                print(f"step {self.step}  loss {mean:.4f}  {rate:.0f} images/s  {self.seen_s / 60:.1f} min", flush=True)
                last_log = time.monotonic()
            if self.stopped or time.monotonic() - last_save > self.save_every:
                self._save("checkpoint.pt")
                last_save = time.monotonic()
            if self.stopped:
                raise SystemExit(f"stopped at step {self.step}; run the same command again to go on")
        self._save("checkpoint.pt")

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def _log(self, row: list[object]) -> None:
        path = self.args.out / "loss.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            csv.writer(file).writerows([["step", "images", "seconds", "loss"]] * new + [row])

    def update(self, loss: torch.Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        names = list(self.average)
        live = dict(self.plain.named_parameters())
        torch._foreach_lerp_([self.average[n] for n in names], [live[n].detach() for n in names], 1 - decay)
        if self.rank == 0 and self.step % 10 == 0:
            self.losses.append(loss.item())

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, for sampling and saving."""
        live = dict(self.plain.named_parameters())
        kept = {name: live[name].detach().clone() for name in self.average}
        try:
            with torch.no_grad():
                for name, value in self.average.items():
                    live[name].copy_(value)
            yield self.plain.eval()
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    live[name].copy_(value)
            self.plain.train()

    def _save(self, name: str) -> None:
        if self.rank != 0:
            return
        state = {
            "model": self.plain.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seen_s": self.seen_s,
        }
        part = self.args.out / (name + ".part")
        torch.save(state, part)
        part.replace(self.args.out / name)

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        self.plain.load_state_dict(state["model"])
        self.average = {k: v.to(self.args.device) for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seen_s = state["step"], state["seen_s"]
        if self.rank == 0:
            print(f"resumed from {path} at step {self.step}", flush=True)
