"""What editing changes and what it keeps, as the embedded model's detector sees it.

`python -m bench.edit --out FOLDER --steps 20` generates "a red car" and edits it to every other color, for every color
and five objects, and keeps the images, a strip of the eleven colors for each source. Then the detector looks at them
all, and a Markdown table is printed; edits.jsonl has a line per edited image. Run again, it generates only what the
folder lacks; `--detector` looks again at what is there.

`python -m bench.edit --inversion` inverts images that the model generated, and with `--sprites` (see recipes/pocket)
new scenes, generates them again and prints how much they differ.

`python -m bench.edit --time` compares the time of an edited pair with that of the two prompts generated as a batch.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

import limelight
from limelight.evaluate.detectors import Detection, PocketDetector, overlap
from limelight.evaluate.preservation import pixel_change
from limelight.evaluate.suites import COLORS
from limelight.utils.files import write
from limelight.utils.images import grid
from recipes.pocket.scenes import Composer

OBJECTS = ("car", "crown", "bow", "apple", "backpack")
# The first one is no edit: the target's prompt generated from the same noise, which gives one strip for all sources.
AGAIN = "generated-again"
METHODS: dict[str, dict[str, Any]] = {
    AGAIN: {},
    "prompt-to-prompt": {},
    "prompt-to-prompt-local": {"local": True},
    "prompt-to-prompt-heads": {"strengthen": "Color"},
}
Row = dict[str, Any]
Task = tuple[str, str, str | None]
"""Method, object, and the source's color; none for images that were generated again."""


@cache
def _model(folder: str, device: str | None) -> limelight.Model:
    torch.set_num_threads(1)
    return limelight.load(folder, device=device)


@cache
def _detector() -> PocketDetector:
    torch.set_num_threads(1)
    return PocketDetector.load()


def strip(out: Path, task: Task, seed: int) -> Path:
    """The file of a task's images of one seed: the object in each of the colors, from left to right."""
    method, thing, color = task
    return out / method / f"{color + '-' if color else ''}{thing}-{seed}.webp"


def generate(
    out: Path, task: Task, seeds: Sequence[int], steps: int, batch: int, folder: str, device: str | None
) -> None:
    """One source in every other color."""
    model, (method, thing, color) = _model(folder, device), task
    options: Row = {"seeds": seeds, "steps": steps, "batch": batch, "record": False}
    if color is None:
        results = limelight.generate(model, [f"a {c} {thing}" for c in COLORS], **options)
    else:
        others = [c for c in COLORS if c != color]
        settings = METHODS[method]
        options["local"] = thing if settings.get("local") else None
        options["strengthen"] = dict.fromkeys(others, settings["strengthen"]) if "strengthen" in settings else None
        edited = limelight.edit(model, f"a {color} {thing}", [f"a {c} {thing}" for c in others], **options)
        results = list(edited.targets)
        results.insert(COLORS.index(color), edited.source)
    for i, seed in enumerate(seeds):
        content = io.BytesIO()
        grid([[result.images[i] for result in results]], gap=0).save(content, "WebP", lossless=True)
        write(strip(out, task, seed), content.getvalue())


def detected(out: Path, task: Task, seed: int) -> list[Row]:
    """What became of the sources of a strip, a row an edit."""
    with Image.open(strip(out, task, seed)) as sheet:
        side = sheet.height
        images = [sheet.convert("RGB").crop((i * side, 0, (i + 1) * side, side)) for i in range(len(COLORS))]
    method, thing, own = task
    found = [next((d for d in seen if d.word == thing), None) for seen in _detector().detect(images)]
    right = [box is not None and box.color == color for box, color in zip(found, COLORS, strict=True)]
    rows = []
    for i, before in enumerate(COLORS):
        for j, after in enumerate(COLORS):
            if i == j or own not in (None, before):
                continue
            old, new = found[i], found[j]
            row = {
                "method": method, "thing": thing, "from": before, "to": after, "seed": seed,
                "source": right[i],
                "success": right[j],
                "place": overlap(old.box, new.box) if old and new else None,
                "outside": outside(images[i], images[j], [d for d in (old, new) if d]),
            }  # fmt: skip
            rows.append(row)
    return rows


def outside(before: Image.Image, after: Image.Image, boxes: list[Detection]) -> float:
    """Root mean square difference of two images outside some boxes, in levels of 0..255."""
    mask = torch.zeros(before.height, before.width, dtype=torch.bool)
    for found in boxes:
        left, top, right, bottom = found.box
        rows = slice(int(top * before.height), int(bottom * before.height) + 1)
        mask[rows, int(left * before.width) : int(right * before.width) + 1] = True
    return 255 * (pixel_change(before, after, mask) or 0.0)


def timing(folder: str, steps: int, repeat: int) -> None:
    model = _model(folder, None)
    pair = ["a red car", "a blue car"]
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeat + 1):
        start = perf_counter()
        limelight.generate(model, pair, steps=steps, record=False)
        middle = perf_counter()
        limelight.edit(model, *pair, steps=steps, record=False)
        seconds["batch"].append(middle - start)
        seconds["edit"].append(perf_counter() - middle)
    ratios = sorted(e / b for e, b in list(zip(seconds["edit"], seconds["batch"], strict=True))[1:])
    print(f"an edited pair takes {ratios[len(ratios) // 2]:.2f} times a batch of two (of {repeat} runs the middle one)")


def inversion(folder: str, sprites: Path | None, count: int, steps: int) -> None:
    model = _model(folder, None)
    prompts = ["a cat and a dog", "a red car", "a frog and a purple crown", "a lion next to a clock"][:count]
    generated = [(limelight.generate(model, p, steps=steps, record=False).images[0], p) for p in prompts]
    kinds = {"generated by the model": generated}
    if sprites:
        composer, random = Composer(sprites), np.random.default_rng(2026)
        scenes = [composer.scene(random) for _ in range(count)]
        kinds["new scenes"] = [(Image.fromarray(scene.pixels), scene.caption) for scene in scenes]
    ways = {
        "DDIM, guidance 1": (1.0, False),
        "DDIM, guidance 7.5": (7.5, False),
        "null-text, guidance 7.5": (7.5, True),
    }
    print("| images | given back by | error (of 255) | PSNR (dB) | seconds |\n|---|---|---|---|---|", flush=True)
    for kind, images in kinds.items():
        floors = [outside(image, model.decode(model.latents([image]))[0], []) for image, _ in images]
        print(_line(kind, "the autoencoder alone", floors, ""), flush=True)
        for way, (scale, null_text) in ways.items():
            errors, start = [], perf_counter()
            for image, prompt in images:
                options: Row = {"steps": steps, "guidance_scale": scale}
                inverted = limelight.invert_image(model, image, prompt, null_text=null_text, **options)
                again = limelight.edit(model, prompt, prompt, image=inverted, record=False, **options)
                errors.append(outside(image, again.source.images[0], []))
            print(_line(kind, way, errors, f"{(perf_counter() - start) / len(errors):.0f}"), flush=True)


def _line(kind: str, way: str, errors: list[float], seconds: str) -> str:
    psnr = np.mean([20 * np.log10(255 / error) for error in errors])
    return f"| {kind} | {way} | {np.mean(errors):.1f} | {psnr:.1f} | {seconds} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder; one per model and number of steps")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--inversion", action="store_true")
    parser.add_argument("--sprites", type=Path, help="for new scenes to be inverted")
    parser.add_argument("--images", type=int, default=4, help="of each kind to be inverted")
    parser.add_argument("--detect", action="store_true", help="generate nothing")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=33)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--objects", nargs="+", choices=OBJECTS, default=OBJECTS)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.time:
        timing(args.model, args.steps, 7)
        return
    if args.inversion:
        inversion(args.model, args.sprites, args.images, args.steps)
        return
    tasks: list[Task] = [
        (method, thing, color)
        for thing in args.objects
        for method in args.methods
        for color in ((None,) if method == AGAIN else COLORS)
    ]
    seeds = range(args.seeds)
    settings = {"model": args.model, "steps": args.steps}
    about = args.out / "settings.json"
    if about.exists() and (there := json.loads(about.read_text())) != settings:
        raise SystemExit(f"'{args.out}' has images with {there}, not {settings}; choose another folder.")
    write(about, json.dumps(settings).encode())
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        if not args.detect:
            start, jobs = perf_counter(), []
            for task in tasks:
                if left := [seed for seed in seeds if not strip(args.out, task, seed).exists()]:
                    jobs.append(
                        pool.submit(generate, args.out, task, left, args.steps, args.batch, args.model, args.device)
                    )
            for n, job in enumerate(as_completed(jobs), 1):
                job.result()
                print(f"{n} of {len(jobs)} sources generated, {(perf_counter() - start) / 60:.1f} min", file=sys.stderr)
        there = [(task, seed) for task in tasks for seed in seeds if strip(args.out, task, seed).exists()]
        parts = pool.map(detected, [args.out] * len(there), *zip(*there, strict=True), chunksize=8)
        rows = [row for part in parts for row in part]
    write(args.out / "edits.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    print("| method | edits | new color | same place (overlap) | change outside (of 255) |\n|---|---|---|---|---|")
    for method in args.methods:
        # Of a source that failed nothing can be said.
        own = [row for row in rows if row["method"] == method and row["source"]]
        success = np.mean([r["success"] for r in own])
        place = np.mean([r["place"] for r in own if r["place"] is not None])
        change = np.mean([r["outside"] for r in own])
        print(f"| {method} | {len(own)} | {success:.1%} | {place:.3f} | {change:.1f} |")


if __name__ == "__main__":
    main()
