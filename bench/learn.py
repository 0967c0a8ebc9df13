# ruff: noqa: E501 - long lines of drawing
"""Measure a word that was learned from four images: likeness alone, and beside other things.

`python -m bench.learn --out out/learn` renders four images of a thing that the embedded model has no word for, learns
one, generates it alone and beside things that the model knows, plain and guided, prints a Markdown table and writes
`learn.png`. Run again, it resumes.

With `--rank 8` the word also changes the denoiser.

`python -m bench.learn --rates 0.005,0.02 --out out/learn` compares learning rates by the error on fixed noise, one
training per worker (`--engine`, `--workers`, `--ray-address` as in `limelight evaluate`), and keeps the word of each.
Run again, it trains those that are missing.

`python -m bench.learn --time` compares a step of training with one forward and backward pass of the same model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

import limelight
from limelight.evaluate.clip import Clip, image_similarity, text_similarity
from limelight.evaluate.detectors import PocketDetector
from limelight.textual_inversion.config import TrainingConfig
from limelight.textual_inversion.folder import learn, taken
from limelight.textual_inversion.state import TrainState
from limelight.textual_inversion.training import encode, held_loss, train_word
from limelight.textual_inversion.word import LearnedWord
from limelight.utils.files import lock_folder, png, write
from limelight.utils.images import grid
from limelight.utils.jsonl import Log
from limelight.utils.mappings import without_none
from limelight.utils.parallel import ENGINES, one_thread, open_executor
from limelight.utils.reading import Record
from limelight.utils.torch import frozen
from recipes.pocket.sprites import render

# The project's own drawings, on a square of 128, of things that have no word in the embedded model; and the word that
# each begins as.
SUBJECTS = {
    "lighthouse": (
        "rocket",
        """
<path d="M14 122q20-18 50-18t50 18z" fill="#6b705c"/><path d="M46 46h36l10 64H36z" fill="#f8f4ec"/>
<g fill="#c9302c"><path d="M43.600 62h40.800l2 14H41.600zM39.500 88h49l2 14h-53z"/></g>
<rect x="38" y="40" width="52" height="8" rx="2" fill="#37474f"/><rect x="50" y="20" width="28" height="20" fill="#ffd54f"/>
<g stroke="#37474f" stroke-width="3"><path d="M50 20v20M64 20v20M78 20v20"/></g>
<path d="M44 21L64 4l20 17z" fill="#c9302c"/><rect x="58" y="92" width="12" height="18" rx="6" fill="#37474f"/>
""",
    ),
    "snail": (
        "turtle",
        """
<path d="M8 108q-2-10 10-12h66q14 0 14-20V56q0-10 10-10t12 12q2 52-34 54H20q-10 0-12-4z" fill="#9ccc65"/>
<g stroke="#7cb342" stroke-width="4" stroke-linecap="round"><path d="M104 48l-6-20M114 48l8-20"/></g>
<g fill="#263238"><circle cx="98" cy="26" r="5"/><circle cx="122" cy="26" r="5"/></g>
<circle cx="52" cy="64" r="40" fill="#8d5bb8"/><circle cx="52" cy="64" r="40" fill="none" stroke="#5e3a87" stroke-width="5"/>
<path d="M52 64q6-8 12 0t-6 16-24-6 4-34 40 6-2 42" fill="none" stroke="#f3d250" stroke-width="7" stroke-linecap="round"/>
""",
    ),
}
# Ground colors above and below, size and place (left, top) of the drawing: as a person's images differ.
PLACES = (
    ((232, 238, 245), (232, 238, 245), 96, (16, 20)),
    ((250, 226, 190), (226, 196, 160), 80, (34, 36)),
    ((196, 226, 200), (176, 206, 184), 104, (12, 12)),
    ((160, 176, 214), (200, 206, 226), 88, (28, 24)),
)


def photographs(subject: str) -> list[Image.Image]:
    """Four images of a subject, 128 x 128."""
    sprite = Image.fromarray(render(SUBJECTS[subject][1], 128))
    found = []
    for top, bottom, side, place in PLACES:
        ramp = np.linspace(0, 1, 128)[:, None, None]
        ground = np.broadcast_to((1 - ramp) * top + ramp * bottom, (128, 128, 3)).round().astype(np.uint8)
        image = Image.fromarray(ground.copy())
        small = sprite.resize((side, side), Image.Resampling.LANCZOS)
        image.paste(small, place, small)
        found.append(image)
    return found


def together(subject: str) -> list[Image.Image]:
    """Four drawings of a subject beside the other one: how alike the best image of two things could be."""
    (other,) = {*SUBJECTS} - {subject}
    found = []
    for i, (_, ground, _, _) in enumerate(PLACES):
        image = Image.new("RGB", (128, 128), ground)
        for name, left in ((subject, i % 2), (other, 1 - i % 2)):
            small = Image.fromarray(render(SUBJECTS[name][1], 128)).resize((60, 60), Image.Resampling.LANCZOS)
            image.paste(small, (66 * left + 2, 30 + 4 * i), small)
        found.append(image)
    return found


# Words beside which the learned one is generated.
COMPANY = ("cat", "car", "crown", "frog")


@dataclass(frozen=True)
class Trial:
    """A training with one learning rate."""

    subject: str
    rate: float
    steps: int

    @property
    def measured(self) -> tuple[int, ...]:
        """After how many steps the error is measured."""
        return (0, self.steps // 4, self.steps // 2, self.steps)


def opened(slot: int) -> limelight.Model:
    """The model of a worker."""
    return limelight.load("pocket", device="cpu")


def tried(model: limelight.Model, trial: Trial) -> tuple[dict[str, Any], LearnedWord]:
    """Train, and return the measurements and the word."""
    with one_thread(model.device):
        init = SUBJECTS[trial.subject][0]
        config = TrainingConfig.suited(model, token="<thing>", init=init, steps=trial.steps, lr=trial.rate)
        images = encode(model, photographs(trial.subject), config)
        with TrainState.begin(model, images, config).word.bind(model):
            held = [held_loss(model, images, config)]
        for step in train_word(model, images, config):
            if step.state.step in trial.measured:
                held.append(held_loss(model, images, config))
    return {**asdict(trial), "held": held, "norm": step.state.norm, "cosine": step.state.cosine}, step.word


class _Row(Record):
    """What is kept of a trial."""

    subject: str
    rate: float
    steps: int
    held: list[float]


def rates(folder: Path, trials: Sequence[Trial], **workers: Any) -> list[dict[str, Any]]:
    """The errors on fixed noise of some trainings, whose words are kept in the folder.

    Args:
        folder: trainings that it has already are not repeated.
        workers: see `open_executor`.
    """
    with lock_folder(folder):
        log = Log(folder / "rates.jsonl", _Row, print)
        known = {Trial(row["subject"], row["rate"], row["steps"]): row for row in log.rows}
        with open_executor(opened, **workers) as executor:
            for trial, (row, word) in executor.map(tried, [trial for trial in trials if trial not in known]):
                word.save(folder / f"{trial.subject}-{trial.rate:g}-{trial.steps}.safetensors")
                log.add([row])
                known[trial] = row
        log.close()
    return [known[trial] for trial in trials]


def print_rates(trials: Sequence[Trial], rows: Sequence[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print("| learning rate | " + " | ".join(f"error after {n}" for n in trials[0].measured) + " | length | cosine |")
    print("|---" * 7 + "|")
    for row in rows:
        numbers = " | ".join(f"{value:.4f}" for value in row["held"])
        print(f"| {row['rate']:g} | {numbers} | {row['norm']:.2f} | {row['cosine']:.2f} |")


@torch.no_grad()
def correlation(images: Sequence[Image.Image], sprite: Image.Image) -> list[float]:
    """How well a drawing is found in each image, -1..1: its greatest correlation with what is there, over places,
    sizes of 40 to 104 pixels, and left and right. What surrounds the drawing does not count. No model has a part in it.
    """
    x = torch.stack([_pixels(image.resize((64, 64), Image.Resampling.BOX))[:3] for image in images])
    best = torch.full((len(x),), -1.0)
    for view in (sprite, ImageOps.mirror(sprite)):
        for side in range(20, 53, 4):
            drawing = _pixels(view.resize((side, side), Image.Resampling.LANCZOS))
            weight = drawing[3:].expand(3, -1, -1)[None]
            count = weight.sum()
            centred = (drawing[:3] - (drawing[:3] * weight).sum() / count) * weight
            sums, squares = F.conv2d(x, weight), F.conv2d(x * x, weight)
            spread = (squares - sums.square() / count).clamp(min=1e-4) * (
                centred.square() / weight.clamp(min=1e-6)
            ).sum()
            best = best.maximum((F.conv2d(x, centred) / spread.sqrt()).amax(dim=(1, 2, 3)))
    return best.tolist()


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGBA")).copy()).permute(2, 0, 1).float() / 255


def generated(
    model: limelight.Model, folder: Path, prompts: Sequence[str], seeds: int, steps: int, guided: Sequence[str] = ()
) -> list[Image.Image]:
    """Images of prompts, those of the first prompt first; what is in the folder is not generated again.

    Args:
        guided: the two subjects of each prompt, joined by a blank; none generates without guidance.
    """
    found = []
    for i, prompt in enumerate(prompts):
        paths = [folder / f"{i}-{seed}-{steps}.png" for seed in range(seeds)]
        left = [seed for seed, path in enumerate(paths) if not path.exists()]
        if left:
            guidance = limelight.AttendAndExcite.suited(model) if guided else None
            options: dict[str, Any] = {"subjects": guided[i].split() if guided else [], "guidance": guidance}
            result = limelight.generate(model, prompt, seeds=left, steps=steps, record=False, **options)
            for seed, image in zip(left, result.images, strict=True):
                write(paths[seed], png({**result.settings, "seed": seed}, image))
        found += [Image.open(path).convert("RGB") for path in paths]
    return found


def measure(model: limelight.Model, folder: Path, subject: str, seeds: int, steps: int, /, **changes: Any) -> None:
    """Learn a word, generate with it, and print the measurements."""
    token, init = f"<{subject}>", SUBJECTS[subject][0]
    images = photographs(subject)
    config = TrainingConfig.suited(model, token=token, init=init, **changes)
    own = folder / subject
    report = learn(
        model, images, config, own, resume=taken(own), save_every=config.steps // 2, seeds=[0], preview_steps=10
    )
    named = [f"a {token} and a {other}" for other in COMPANY]
    instead = [f"a {init} and a {other}" for other in COMPANY]
    with LearnedWord.load(own).bind(model):
        parts = {
            "the four images themselves": ([""], images),
            "the drawing beside another": ([""], together(subject)),
            f'"a photo of a {init}"': (
                [""],
                generated(model, folder / f"{init}-alone", [f"a photo of a {init}"], 2 * seeds, steps),
            ),
            f'"a photo of a {token}"': (
                [""],
                generated(model, folder / "alone", [f"a photo of a {token}"], 2 * seeds, steps),
            ),
            f'"a {init} and a ...", plain': (
                instead,
                generated(model, folder / f"{init}-plain", instead, seeds, steps),
            ),
            f'"a {token} and a ...", plain': (named, generated(model, folder / "plain", named, seeds, steps)),
            f'"a {token} and a ...", guided': (
                named,
                generated(model, folder / "guided", named, seeds, steps, [f"{token} {other}" for other in COMPANY]),
            ),
        }
    clip, detector, sprite = Clip(), PocketDetector.load(), Image.fromarray(render(SUBJECTS[subject][1], 128))
    trained = clip.images(images)
    print(
        f"{config.steps} steps; error on fixed noise {report.held[0].held:.4f} -> {report.held[-1].held:.4f}, ", end=""
    )
    print(f"cosine to '{init}' {report.rows[-1].cosine:.2f}, length {report.rows[-1].norm:.2f}\n")
    print(
        "| prompt | images | CLIP likeness | the drawing found | the other is there | CLIP, prompt without the word |"
    )
    print("|---|---|---|---|---|---|")
    for name, (prompts, shown) in parts.items():
        features = clip.images(shown)
        likeness = float(image_similarity(features, trained))
        if shown is images:  # of pairs of different ones
            likeness = (likeness * 16 - 4) / 12
        numbers = [f"{likeness:.3f}", f"{mean(correlation(shown, sprite)):.3f}", "", ""]
        if len(prompts) > 1:
            others = [other for other in COMPANY for _ in range(seeds)]
            there = [any(d.word == o for d in found) for o, found in zip(others, detector.detect(shown), strict=True)]
            words = [p for p in prompts for _ in range(seeds)]
            said = [text_similarity(clip, f[None], p, token).item() for p, f in zip(words, features, strict=True)]
            numbers[2:] = [f"{sum(there)} of {len(there)}", f"{mean(said):.3f}"]
        print(f"| {name} | {len(shown)} | {' | '.join(numbers)} |")
    rows = {name: images[: 2 * seeds] if len(p) == 1 else images for name, (p, images) in parts.items()}
    wide = max(len(images) for images in rows.values())
    write(folder / "learn.png", png({}, grid([images[:wide] for images in rows.values()], list(rows))))


def timing(model: limelight.Model, repeat: int) -> None:
    """A step against a forward and backward pass of the denoiser, given its text states; processor seconds."""
    config = TrainingConfig.suited(model, token="<thing>", init="rocket", steps=repeat + 2)
    images = encode(model, photographs("lighthouse"), config)
    steps = train_word(model, images, config)
    latents, states = images.mean[:, 0], model.encode([model.prompt("a photo of a rocket")] * 4)
    leaf = states.conditional["encoder_hidden_states"].clone().requires_grad_()
    own = limelight.models.base.Conditioning(states.prompts, {"encoder_hidden_states": leaf})
    timesteps = torch.tensor([100, 400, 600, 900])
    taken_by: dict[str, list[float]] = {"pass": [], "step": []}
    for turn in range(repeat + 1):
        begin = process_time()
        with frozen(model.denoiser):
            F.mse_loss(model.predict(latents, timesteps, own), latents).backward()  # type: ignore[arg-type]
        middle = process_time()
        next(steps)
        if turn:  # the first only warms up
            taken_by["pass"].append(middle - begin)
            taken_by["step"].append(process_time() - middle)
    least = {name: min(seconds) for name, seconds in taken_by.items()}
    print(
        f"a step of four images takes {least['step']:.3f} s, a forward and backward pass of the denoiser alone "
        f"{least['pass']:.3f} s: {least['step'] / least['pass']:.2f} times (least of {repeat} turns each)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/learn"))
    parser.add_argument("--subject", default="lighthouse", choices=list(SUBJECTS))
    parser.add_argument("--train-steps", type=int, help="by default what suits the model")
    parser.add_argument("--vectors", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--attention-weight", type=float)
    parser.add_argument("--seeds", type=int, default=4, help="of each prompt")
    parser.add_argument("--steps", type=int, default=50, help="of each image")
    parser.add_argument("--rates", help="learning rates to compare, e.g. 0.005,0.02")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--engine", default="local", choices=ENGINES, help="where --rates trains")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--ray-address")
    args = parser.parse_args()
    if args.rates:
        trials = [Trial(args.subject, float(rate), args.train_steps or 60) for rate in args.rates.split(",")]
        workers = {"engine": args.engine, "workers": args.workers, "address": args.ray_address}
        print_rates(trials, rates(args.out, trials, **workers))
        return

    torch.set_num_threads(1)
    model = limelight.load("pocket", device="cpu")
    if args.time:
        timing(model, 7)
    else:
        changes = {
            "vectors": args.vectors,
            "rank": args.rank,
            "steps": args.train_steps,
            "lr": args.lr,
            "attention_weight": args.attention_weight,
        }
        measure(model, args.out, args.subject, args.seeds, args.steps, **without_none(changes))


if __name__ == "__main__":
    main()
