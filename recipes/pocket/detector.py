"""The detector: `python -m recipes.pocket.detector --sprites A.npz ... --unseen U.npz ... --out DIR --steps N ...`

A detector of subjects and colors (`limelight.evaluate.detectors`) from other icon sets than the generator's, on other
grounds, in any place, size and turn, strangers in between. The generator's own drawing is among them only of the newer
nouns whose view no other set has (`LONE_VIEWS`). Its report is made on icon sets that it never saw.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from safetensors.torch import save_file
from torch import Tensor

from limelight.evaluate.detectors import SIDE, STRIDE, Detection, PocketDetector, overlap

from .scenes import tint, worn
from .training import Run, arguments, precision
from .vocabulary import ANIMALS, COLORED, COLORS, DRAWN, OBJECTS, word_of

NAMES, TINTS, CELLS = list(DRAWN), list(COLORS), SIDE // STRIDE
FAINT, MIXED = 0.15, 0.2  # shares of grounds in the tone of a thing, and of things that are two at once
LARGEST = (0, 118, 90, 64, 57)  # pixels of the longer side, by how many things there are
OFTENER = {"octopus": 4, "chicken": 2, "coffee": 2, "penguin": 2, "sheep": 2}  # what it missed most in generated images
PAINTED = 0.6  # share of scenes with the unsteady outlines of a generator
Truth = list[tuple[int, int, tuple[float, float, float, float]]]
"""Things of a scene: subject, color or -1 where nobody chose it, box in pixels. A mixture is two in one box."""


class Gallery:
    """Composes the detector's scenes from several icon sets.

    Args:
        sets: files of sprites.
        oftener: how many times as often as the others something is drawn.
    """

    def __init__(self, sets: list[Path], oftener: Mapping[str, int] = MappingProxyType({})) -> None:
        self.drawings: dict[str, list[np.ndarray]] = {}
        for path in sets:
            for name, sprite in np.load(path).items():
                self.drawings.setdefault(name.split("~")[0], []).append(sprite)  # "chair~2": another chair
        self.names = [name for name in NAMES if name in self.drawings]
        self.first = [name for name in self.names if name in ANIMALS or name in OBJECTS]  # what the benchmark names
        self.strangers = [name for name in self.drawings if name not in DRAWN]
        self.drawn = [name for name in self.names for _ in range(oftener.get(name, 1))]

    def ground(self, rng: np.random.Generator, tone: np.ndarray | None = None) -> Image.Image:
        """Plain, graded, clouded or patterned, in any tone; near `tone` where one is given."""
        kind = rng.random()
        tones = rng.integers(20, 256, (2, 3)) if rng.random() < 0.6 else rng.integers(150, 256, (2, 3))
        if tone is not None:
            tones = (tone + rng.normal(0, 12, (2, 3))).clip(0, 255)
        if kind < 0.25:
            small = tones[:1, None]
        elif kind < 0.55:
            small = tones.reshape(2, 1, 3) if rng.random() < 0.5 else tones.reshape(1, 2, 3)
        elif kind < 0.85:
            size = int(rng.integers(2, 7))
            mix = rng.random((size, size, 1))
            small = tones[0] * mix + tones[1] * (1 - mix)
        else:
            size = int(rng.integers(2, 9))
            board = (np.indices((size, size)).sum(0) % 2 if rng.random() < 0.5 else np.indices((size, size))[0] % 2)[
                ..., None
            ]
            tones[1] = tones[0] + (tones[1] - tones[0]) // 4
            blocks = Image.fromarray((tones[0] * board + tones[1] * (1 - board)).astype(np.uint8))
            return blocks.resize((SIDE, SIDE), Image.Resampling.NEAREST)
        return Image.fromarray(small.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    def drawing(self, name: str, color: str | None, size: int, rng: np.random.Generator) -> Image.Image:
        """One turned, stretched, perhaps mirrored sprite, cropped to its ink."""
        sprite = self.drawings[name][int(rng.integers(len(self.drawings[name])))]
        image = Image.fromarray(tint(sprite, color) if color else sprite)
        image = _restyled(image, rng)
        if rng.random() < 0.4:
            image = _bent(image, rng)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.3:
            image = image.rotate(float(rng.normal(0, 12)), Image.Resampling.BILINEAR, expand=True)
        elif rng.random() < 0.6:
            lean, turn = rng.normal(0, 0.1, 2).tolist()
            middle = image.width / 2
            shear = (1, lean, -lean * middle, turn, 1, -turn * middle)
            image = image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)
        image = image.crop(image.getbbox())
        stretch = float(np.exp(rng.normal(0, 0.1)))
        scale = size / max(image.size)
        sides = [max(round(side * scale * s), 8) for side, s in zip(image.size, (stretch, 1 / stretch), strict=True)]
        return image.resize((sides[0], sides[1]), Image.Resampling.BOX)

    def scene(self, rng: np.random.Generator, mixed: float = MIXED) -> tuple[np.ndarray, Truth]:
        """One scene, uint8 [128, 128, 3], and its truth; `mixed` is the share of things that are two at once."""
        count = int(rng.choice(4, p=[0.05, 0.4, 0.4, 0.15]))
        names = [self._name(rng) for _ in range(count)]
        if self.strangers:
            names += [str(rng.choice(self.strangers)) for _ in range(int(rng.integers(0, 3)) // (1 + (count > 1)))]

        truth: Truth = []
        placed: list[tuple[Image.Image, int, int]] = []
        taken: list[tuple[float, ...]] = []
        for name in names:
            color = None
            if rng.random() < (0.6 if name in COLORED or name in OBJECTS else 0.25):
                color = str(rng.choice(TINTS))
            size = int(rng.integers(36, LARGEST[len(names)]))
            image, shown = self.drawing(name, color, size, rng), [name]
            if name not in DRAWN and rng.random() < 0.3:
                image = _shuffled(self.drawing(self._name(rng), color, size, rng), rng)
            elif name in DRAWN and rng.random() < mixed and word_of(other := self._name(rng)) != word_of(name):
                image, shown = mixture(image, self.drawing(other, color, size, rng), rng), [name, other]
            for _ in range(20):
                left = int(rng.integers(-4, max(SIDE - image.width + 5, -3)))
                top = int(rng.integers(-4, max(SIDE - image.height + 5, -3)))
                box = (float(left), float(top), float(left + image.width), float(top + image.height))
                if all(overlap(box, other) < 0.08 for other in taken):
                    break
            else:
                continue
            placed.append((image, left, top))
            taken.append(box)
            truth += [(NAMES.index(n), TINTS.index(color) if color else -1, box) for n in shown if n in DRAWN]

        faint = placed and rng.random() < FAINT
        canvas = self.ground(rng, _tone(placed[0][0]) if faint else None)
        for image, left, top in placed:
            canvas.paste(image, (left, top), image)
        pixels = np.asarray(canvas)
        return worn(painted(pixels, rng) if rng.random() < PAINTED else pixels, rng), truth

    def _name(self, rng: np.random.Generator) -> str:
        return str(rng.choice(self.first if rng.random() < 0.3 else self.drawn))


def _tone(image: Image.Image) -> np.ndarray:
    """The mean color of a drawing, 0 to 255."""
    pixels = np.asarray(image, dtype=np.float64)
    return (pixels[..., :3] * pixels[..., 3:]).sum((0, 1)) / pixels[..., 3].sum()


def mixture(one: Image.Image, other: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two drawings in one place, as a generator mixes them: faded into each other, or a part of one on the other."""
    size = (max(one.width, other.width), max(one.height, other.height))
    a, b = (np.asarray(image.resize(size), dtype=np.float64) for image in (one, other))
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    if rng.random() < 0.4:
        share = np.full_like(x, rng.uniform(0.4, 0.6))
    else:
        turn, softness = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.4)
        share = 1 / (1 + np.exp(-(x * np.cos(turn) + y * np.sin(turn) + rng.normal(0, 0.1)) / softness))
    weights = np.stack([(1 - share) * a[..., 3], share * b[..., 3]])
    alpha = weights.sum(0)
    color = (weights[0][..., None] * a[..., :3] + weights[1][..., None] * b[..., :3]) / alpha.clip(1e-6)[..., None]
    return Image.fromarray(np.dstack([color, alpha]).round().astype(np.uint8))


def _restyled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same drawing by another hand: other hues and contrasts, fewer tones, a dark or light outline."""
    alpha = image.getchannel("A")
    if rng.random() < 0.5:
        hue, saturation, value = image.convert("RGB").convert("HSV").split()
        turn, wash = int(rng.normal(0, 8 if rng.random() < 0.8 else 25)), float(rng.uniform(0.5, 1.3))
        hue = hue.point([(v + turn) % 256 for v in range(256)])
        saturation = saturation.point([min(int(v * wash), 255) for v in range(256)])
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if rng.random() < 0.2:
        image = ImageOps.posterize(image.convert("RGB"), int(rng.integers(2, 5)))
    image = image.convert("RGBA")
    image.putalpha(alpha)
    if rng.random() < 0.2:
        wide = alpha.filter(ImageFilter.MaxFilter(int(rng.choice([3, 5, 7]))))
        tone = 30 if rng.random() < 0.7 else 245
        outlined = Image.merge("RGBA", (*[Image.new("L", image.size, tone)] * 3, wide))
        outlined.alpha_composite(image)
        image = outlined
    return image


def _bent(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same drawing with other proportions: four quarters whose corners were moved."""
    side = image.width
    corners = np.stack(np.meshgrid([0, side / 2, side], [0, side / 2, side]), -1) + rng.normal(0, side / 25, (3, 3, 2))
    halves = [0, side // 2, side]
    mesh = [
        (
            (halves[x], halves[y], halves[x + 1], halves[y + 1]),
            tuple(np.concatenate([corners[y, x], corners[y + 1, x], corners[y + 1, x + 1], corners[y, x + 1]])),
        )
        for y in range(2)
        for x in range(2)
    ]
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def painted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same scene by an unsteady hand, as a generator draws: wavering outlines, and details run together. uint8
    [side, side, 3]."""
    side, cells = len(pixels), int(rng.integers(8, 33))
    waves = rng.normal(0, rng.uniform(0.3, 2.5), (2, cells, cells)).astype(np.float32)
    moves = [np.asarray(Image.fromarray(wave).resize((side, side), Image.Resampling.BICUBIC)) for wave in waves]
    y, x = (np.indices((side, side)) + moves).round().astype(int).clip(0, side - 1)
    image = Image.fromarray(pixels[y, x])
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.MedianFilter(int(rng.choice([3, 5]))))
    return np.asarray(image)


def _shuffled(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A subject's pieces in the wrong order are no subject."""
    pixels = np.asarray(image.resize((48, 48)))
    pieces = pixels.reshape(3, 16, 3, 16, 4).swapaxes(1, 2).reshape(9, 16, 16, 4)[rng.permutation(9)]
    return Image.fromarray(pieces.reshape(3, 3, 16, 16, 4).swapaxes(1, 2).reshape(48, 48, 4)).resize(image.size)


def targets(truths: list[Truth]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the grid should say: heat [B, names, 16, 16]; sides [B, 4, 16, 16]; colors (-1: any); mixtures (0 or 1);
    where the last three count."""
    heat = torch.zeros(len(truths), len(NAMES), CELLS, CELLS)
    sides = torch.zeros(len(truths), 4, CELLS, CELLS)
    colors = torch.full((len(truths), CELLS, CELLS), -1)
    mixtures = torch.zeros(len(truths), CELLS, CELLS)
    middles = (torch.arange(CELLS) + 0.5)[None]
    for i, truth in enumerate(truths):
        boxes = [box for _, _, box in truth]
        for word, color, box in truth:
            left, top, right, bottom = (v / STRIDE for v in box)
            x, y = ((left + right) / 2, (top + bottom) / 2)
            spread = max(0.12 * min(right - left, bottom - top), 0.4)
            away = ((middles - x) ** 2 + (middles.T - y) ** 2) / (2 * spread**2)
            bump = torch.exp(-(away - away.min()))
            heat[i, word] = torch.maximum(heat[i, word], bump)
            near = bump > 0.3
            borders = [middles - left, middles.T - top, right - middles, bottom - middles.T]
            for k, border in enumerate(borders):
                sides[i, k] = torch.where(near, border.expand(CELLS, CELLS).clamp(min=0.1), sides[i, k])
            colors[i][near] = color
            mixtures[i][near] = float(boxes.count(box) > 1)
    return heat, sides, colors, mixtures, sides.amax(dim=1) > 0


def detector_loss(outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    words, sides, colors, mixtures = (x.float() for x in outputs)
    heat, borders, hues, mixed, counted = wanted
    # The focal loss of "Objects as Points": middles should be 1, cells close by are forgiven.
    p = words.sigmoid().clamp(1e-5, 1 - 1e-5)
    middle = heat == 1
    found = torch.where(middle, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
    number = middle.sum().clamp(min=1)
    box = (F.smooth_l1_loss(sides, borders, reduction="none").sum(1) * counted).sum() / counted.sum().clamp(min=1)
    hue = F.cross_entropy(colors, hues, ignore_index=-1, reduction="sum") / (hues >= 0).sum().clamp(min=1)
    mixture = F.binary_cross_entropy_with_logits(mixtures[:, 0], mixed, counted.float(), reduction="sum")
    return -found.sum() / number + 0.3 * box + 0.5 * hue + 0.5 * mixture / counted.sum().clamp(min=1)


def report(detector: PocketDetector, gallery: Gallery, count: int, seed: int) -> dict[str, float]:
    """How a detector does on fresh scenes of a gallery.

    Returns:
        Recall, precision, share of right colors and mean overlap of boxes; the share of scenes without a mixture in
        which it sees one, and of mixtures those that it sees as such.
    """
    rng, tally = np.random.default_rng((seed, 7)), Counter[str]()
    for truth, found in _detected(detector, gallery, count, 0.0, rng):
        left = list(found)
        tally["found"] += len(found)
        tally["false mixtures"] += any(d.also for d in found)
        for word, color, box in truth:
            tally["things"] += 1
            tally[f"things {NAMES[word]}"] += 1
            fraction = [v / SIDE for v in box]
            same = [d for d in left if d.name == NAMES[word] and overlap(d.box, fraction) > 0.3]
            if not same:
                continue
            left.remove(same[0])
            tally["right"] += 1
            tally[f"right {NAMES[word]}"] += 1
            tally["overlap"] += overlap(same[0].box, fraction)
            if color >= 0:
                tally["colored"] += 1
                tally["right color"] += same[0].color == TINTS[color]
    for truth, found in _detected(detector, gallery, count // 4, 1.0, rng):
        for (one, _, box), (other, _, same_box) in pairwise(truth):
            if box == same_box:
                wanted = {word_of(NAMES[one]), word_of(NAMES[other])}
                tally["mixtures"] += 1
                tally["seen mixtures"] += any(wanted <= {d.word, *d.also} for d in found)
    weak = {w: tally[f"right {w}"] / tally[f"things {w}"] for w in NAMES if tally[f"things {w}"]}
    print("  weakest:", ", ".join(f"{w} {r:.2f}" for w, r in sorted(weak.items(), key=lambda item: item[1])[:12]))
    return {
        "recall": tally["right"] / tally["things"],
        "precision": tally["right"] / max(tally["found"], 1),
        "color": tally["right color"] / max(tally["colored"], 1),
        "overlap": tally["overlap"] / max(tally["right"], 1),
        "false mixtures": tally["false mixtures"] / count,
        "seen mixtures": tally["seen mixtures"] / max(tally["mixtures"], 1),
    }


def _detected(
    detector: PocketDetector, gallery: Gallery, count: int, mixed: float, rng: np.random.Generator
) -> Iterator[tuple[Truth, list[Detection]]]:
    """The truth of fresh scenes and what a detector finds in them."""
    for _ in range(0, count, 64):
        scenes = [gallery.scene(rng, mixed) for _ in range(64)]
        found = detector.detect([Image.fromarray(pixels) for pixels, _ in scenes])
        yield from zip([truth for _, truth in scenes], found, strict=True)


def begin_with(path: Path, detector: PocketDetector) -> None:
    """Copy the weights of an earlier detector, which may have known fewer subjects."""
    earlier = PocketDetector.load(path)
    state, others = earlier.state_dict(), len(earlier.out.weight) - len(earlier.names)
    rows = [*map(NAMES.index, earlier.names), *range(len(NAMES), len(NAMES) + others)]
    for name, fresh in (("out.weight", detector.out.weight), ("out.bias", detector.out.bias)):
        grown = fresh.detach().clone()
        grown[rows] = state[name]
        state[name] = grown
    detector.load_state_dict(state)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sprites", type=Path, nargs="+", required=True, help="icon sets to learn from")
    parser.add_argument("--begin", type=Path, help="a detector's file whose weights to begin with")
    parser.add_argument("--unseen", type=Path, nargs="+", required=True, help="icon sets for the report")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    gallery = Gallery(args.sprites, OFTENER)
    detector = PocketDetector(NAMES, TINTS)
    if args.begin:
        begin_with(args.begin, detector)
    run = Run(detector.to(memory_format=torch.channels_last), args, average=0.9995)
    for step in run.steps():
        rng = np.random.default_rng((args.seed, step, run.rank))
        scenes = [gallery.scene(rng) for _ in range(run.share)]
        pixels = torch.from_numpy(np.stack([p for p, _ in scenes])).permute(0, 3, 1, 2).to(args.device)
        wanted = tuple(x.to(args.device) for x in targets([t for _, t in scenes]))
        with precision(args):
            outputs = run.model(pixels.float().contiguous(memory_format=torch.channels_last) / 127.5 - 1)
        run.update(detector_loss(outputs, wanted))
    if run.rank:
        return
    with run.averaged():
        detector.cpu()
        for path in [None, *args.unseen]:
            numbers = report(detector, Gallery([path]) if path else gallery, 2048, args.seed)
            print(path.stem if path else "fresh scenes of its own sets", {k: round(v, 3) for k, v in numbers.items()})
        facts = {
            "names": detector.names,
            "colors": detector.colors,
            "threshold": detector.threshold,
            "mixture": detector.mixture,
        }
        state = {k: v.half() if v.is_floating_point() else v for k, v in detector.state_dict().items()}
        save_file(
            {k: v.contiguous() for k, v in state.items()},
            args.out / "detector.safetensors",
            {"detector": json.dumps(facts)},
        )


if __name__ == "__main__":
    main()
