"""Scenes with a known truth: which subjects, which colors, where. Composed on the fly, about a thousand a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .vocabulary import ANIMALS, COLORED, COLORS, DECIDES, MORE, OBJECTS, SENSES, word_of

SIDE = 128
# Pairs of animals that never meet in training, so that composition can be measured on them: a fifth of the 66.
_ORDER = list(ANIMALS)
HELD_OUT = frozenset(
    frozenset((_ORDER[i], _ORDER[j])) for i in range(12) for j in range(i + 1, 12) if (3 * i + 7 * j) % 5 == 0
)

# Second senses twice: many of their scenes are not decided and drawn anew.
_GROUPS = tuple(np.array([*group]) for group in (ANIMALS, OBJECTS, (*MORE, *SENSES, *SENSES)))
_SECOND = {word_of(sense): sense for sense in DECIDES}
# White on pale is the hardest of all: it is drawn twice as often.
_TINTS = np.array([*COLORS, "white"])
# What captions say besides subjects and colors.
_PREFIXES = ("a photo of", "a picture of", "a drawing of")
_JOINERS = ("with", "next to", "beside", "near")
OTHER_WORDS = tuple(dict.fromkeys(" ".join(("a an and", *_PREFIXES, *_JOINERS)).split()))


@dataclass(frozen=True)
class Thing:
    """One drawn subject: its name, its color word or None, and its box (left, top, right, bottom) in pixels.

    The name tells the senses of a word apart, "mouse (computer)"; the word does not.
    """

    subject: str
    color: str | None
    box: tuple[int, int, int, int]

    @property
    def word(self) -> str:
        return word_of(self.subject)

    @property
    def phrase(self) -> str:
        return f"{self.color} {self.word}" if self.color else self.word


@dataclass(frozen=True)
class Scene:
    pixels: np.ndarray  # uint8 [SIDE, SIDE, 3]
    caption: str
    things: tuple[Thing, ...]
    masks: np.ndarray  # float32 [things, 8, 8], the share of each cell that a thing covers


def tint(sprite: np.ndarray, color: str) -> np.ndarray:
    """Recolor a sprite along black - color - white by its own luminance, keeping its drawing."""
    rgb, alpha = sprite[..., :3].astype(np.float32) / 255, sprite[..., 3:]
    light = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    ink = alpha[..., 0] > 128
    middle = float(np.clip(np.median(light[ink]), 0.25, 0.8))
    target = np.array(COLORS[color], dtype=np.float32) / 255
    low, high = 0.15 * target, np.minimum(1.0, target + 0.75 * (1 - target))
    if color == "black":
        high = np.full(3, 0.55, dtype=np.float32)
    if color == "white":
        low = np.full(3, 0.45, dtype=np.float32)
    below = (light / middle)[..., None].clip(0, 1)
    above = ((light - middle) / (1 - middle))[..., None].clip(0, 1)
    out = np.where(light[..., None] < middle, low + (target - low) * below, target + (high - target) * above)
    return np.concatenate([(out * 255).round().astype(np.uint8), alpha], axis=-1)


def decided(names: Sequence[str]) -> bool:
    """Whether every word of several senses means the one that the others decide; alone it may mean any."""
    if len(names) == 1:
        return True
    second = [(name, _SECOND[word_of(name)]) for name in names if word_of(name) in _SECOND]
    return all((name == sense) != {*DECIDES[sense]}.isdisjoint(names) for name, sense in second)


class Composer:
    """Draws random scenes from a file of sprites made by `sprites.py`.

    Args:
        sprites: the file.
        zoom: how many times as wide and high as `SIDE` the scenes are; the same scenes otherwise.
    """

    def __init__(self, sprites: Path, zoom: int = 1) -> None:
        self.sprites, self.zoom, self.side = dict(np.load(sprites)), zoom, zoom * SIDE
        self._sized = lru_cache(maxsize=20_000)(self._sized)  # type: ignore[method-assign]

    def add(self, sets: Sequence[Path]) -> list[str]:
        """Take up the things of other icon sets that have no word, and return their names."""
        others = {
            f"{path.stem} {name}": sprite for path in sets for name, sprite in np.load(path).items() if name[0] == "("
        }
        self.sprites.update(others)
        return list(others)

    def _sized(self, subject: str, color: str | None, size: int) -> np.ndarray:
        sprite = self.sprites[subject]
        if color:
            sprite = tint(sprite, color)
        small = np.asarray(Image.fromarray(sprite).resize((size, size), Image.Resampling.BOX, reducing_gap=3.0))
        small = small.astype(np.float32)
        small[..., :3] *= small[..., 3:] / 255  # premultiplied: pasting is then one multiply and one add
        return small.round().astype(np.uint8)

    def paste(
        self, canvas: np.ndarray, subject: str, color: str | None, size: int, left: int, top: int
    ) -> tuple[Thing, np.ndarray]:
        """Draw on canvas (float32 [side, side, 3]) in place; parts beyond the border are cut off. In pixels of
        `SIDE`."""
        size, left, top = (self.zoom * v for v in (size, left, top))
        sprite = self._sized(subject, color, size)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, self.side), min(top + size, self.side)
        part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
        alpha = part[..., 3:] / np.float32(255)
        canvas[y0:y1, x0:x1] = (canvas[y0:y1, x0:x1] * (1 - alpha) + part[..., :3]).clip(0, 255)
        cover = np.zeros((self.side, self.side), dtype=np.float32)
        cover[y0:y1, x0:x1] = alpha[..., 0]
        ys, xs = np.nonzero(cover > 0.5)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1) if len(xs) else (x0, y0, x1, y1)
        return Thing(subject, color, box), cover.reshape(8, self.side // 8, 8, self.side // 8).mean(axis=(1, 3))

    def _tone(self, subject: str, color: str | None) -> np.ndarray:
        """The mean color of a sprite, 0 to 255."""
        small = self._sized(subject, color, 16).astype(np.float32)
        return 255 * small[..., :3].sum((0, 1)) / small[..., 3].sum()

    def background(self, rng: np.random.Generator, tone: np.ndarray | None = None) -> np.ndarray:
        """A soft vertical gradient around a tone; where none is given, around a pale one in two scenes of three."""
        if tone is None:
            pale = rng.random() < 2 / 3
            tone = np.array(185 + 50 * rng.random() if pale else 100 + 85 * rng.random())
        base = tone + rng.normal(0, 12, 3)
        ramp = np.linspace(-1, 1, self.side, dtype=np.float32)[:, None, None] * rng.normal(0, 5, 3)
        return np.broadcast_to(base + ramp, (self.side, self.side, 3)).clip(0, 255).astype(np.float32).copy()

    def choose(self, rng: np.random.Generator, count: int) -> list[tuple[str, str | None]]:
        """Draw `count` different subjects with or without a color word; never a held-out pair of animals."""
        while True:
            groups = rng.choice(3, size=count, p=[0.15, 0.15, 0.7])
            names = [str(rng.choice(_GROUPS[group])) for group in groups]
            if count > 1 and names[0] in DECIDES:
                names[1] = str(rng.choice(DECIDES[names[0]]))
            pairs = {frozenset(pair) for pair in combinations(names, 2)}
            if len({word_of(name) for name in names}) == count and decided(names) and not pairs & HELD_OUT:
                break
        chance = [0.7 if name in OBJECTS else 0.4 if name in COLORED else 0.1 for name in names]
        colors = [str(rng.choice(_TINTS)) if rng.random() < p else None for p in chance]
        # An orange that is orange needs no word for it.
        return [(n, None if n == c else c) for n, c in zip(names, colors, strict=True)]

    def scene(self, rng: np.random.Generator, wanted: Sequence[tuple[str, str | None]] = ()) -> Scene:
        """One captioned scene of those that are wanted, or of any: one (30 %), two side by side, or three (20 %)."""
        canvas = self.background(rng)
        wanted = wanted or self.choose(rng, int(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2])))
        placed = []
        if len(wanted) == 1:
            size = 2 * int(rng.integers(32, 51))
            left, top = (int(rng.integers(0, SIDE - size + 1)) for _ in range(2))
            placed.append(self.paste(canvas, *wanted[0], size, left, top))
        elif len(wanted) == 3:
            # One in three of the four quarters each.
            for (subject, color), quarter in zip(wanted, rng.permutation(4).tolist(), strict=False):
                size = 2 * int(rng.integers(21, 31))
                left, top = (h * (SIDE // 2) + int(rng.integers(0, SIDE // 2 - size + 1)) for h in divmod(quarter, 2))
                placed.append(self.paste(canvas, subject, color, size, left, top))
        else:
            slots = [0, 1] if rng.random() < 0.5 else [1, 0]
            for (subject, color), slot in zip(wanted, slots, strict=True):
                size = 2 * int(rng.integers(25, 33))
                left = slot * (SIDE // 2) + int(rng.integers(0, SIDE // 2 - size + 1))
                top = int(rng.integers(8, SIDE - size - 8 + 1))
                placed.append(self.paste(canvas, subject, color, size, left, top))
        things = tuple(thing for thing, _ in placed)
        return Scene(canvas.round().astype(np.uint8), caption(things, rng), things, np.stack([m for _, m in placed]))

    def collage(self, rng: np.random.Generator, faint: float = 0.0) -> np.ndarray:
        """A crowded image for the autoencoder, which wants many drawings per pixel. uint8 [SIDE, SIDE, 3].

        Args:
            faint: how often the ground has the tone of one of the things.
        """
        things = self.choose(rng, int(rng.integers(2, 5)))
        canvas = self.background(rng, self._tone(*things[0]) if rng.random() < faint else None)
        for subject, color in things:
            size = 2 * int(rng.integers(20, 51))
            left, top = (int(rng.integers(-size // 4, SIDE - 3 * size // 4)) for _ in range(2))
            self.paste(canvas, subject, color, size, left, top)
        return canvas.round().astype(np.uint8)


def caption(things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """'a red car and a dog'; before a vowel 'an' or, as the benchmark writes in places, 'a'."""

    def article(phrase: str) -> str:
        return f"an {phrase}" if phrase[0] in "aeiou" and rng.random() < 0.5 else f"a {phrase}"

    start = f"{rng.choice(_PREFIXES)} " if rng.random() < 0.15 else ""
    phrases = [thing.phrase if rng.random() < 0.05 else article(thing.phrase) for thing in things]
    if len(phrases) > 2 and rng.random() < 0.3:
        return start + ", ".join(phrases[:-1]) + f" and {phrases[-1]}"
    joiner = str(rng.choice(_JOINERS)) if rng.random() < 0.2 and len(phrases) < 3 else "and"
    return start + f" {joiner} ".join(phrases)


def worn(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurred, paler or darker, grainy, as a generator's images are. uint8 [height, width, 3]."""
    if rng.random() < 0.5:
        blur = ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.6)))
        pixels = np.asarray(Image.fromarray(pixels).filter(blur))
    out = (pixels.astype(np.float32) - 128) * rng.uniform(0.75, 1.2) + 128 + rng.normal(0, 10) + rng.normal(0, 5, 3)
    if rng.random() < 0.3:
        out += rng.normal(0, rng.uniform(2, 10), out.shape)
    return out.clip(0, 255).astype(np.uint8)
