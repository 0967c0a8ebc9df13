"""Lists of prompts that methods are compared on."""

from __future__ import annotations

import csv
import importlib.resources
import re
from dataclasses import dataclass

DATA = importlib.resources.files("limelight") / "data"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "black", "white")


@dataclass(frozen=True)
class Wanted:
    """One thing that a picture should show.

    Attributes:
        word: the subject.
        colour: its colour word, or None if any will do.
    """

    word: str
    colour: str | None = None


@dataclass(frozen=True)
class Case:
    """One prompt of a suite.

    Attributes:
        prompt: as published.
        subset: the part of the suite that it belongs to.
        wanted: the things that it names, in its order.
    """

    prompt: str
    subset: str
    wanted: tuple[Wanted, ...]


def attend_excite() -> tuple[Case, ...]:
    """The 276 prompts of the Attend-and-Excite benchmark: 66 of two animals, 144 with an object, 66 of two objects.

    Hila Chefer, Yuval Alaluf, Yael Vinker, Lior Wolf, Daniel Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
    Guidance for Text-to-Image Diffusion Models", 2023, https://arxiv.org/abs/2301.13826
    """
    rows = csv.DictReader((DATA / "attend_excite_prompts.csv").read_text().splitlines())
    return tuple(Case(row["prompt"], row["subset"], wanted(row["prompt"])) for row in rows)


def wanted(prompt: str) -> tuple[Wanted, ...]:
    """The things that a prompt of the form "a red car and a dog" names: phrases joined by "and" or "with".

    The last word of a phrase is its subject; the word before it counts if it is one of the benchmark's 11 colours.
    """
    things = []
    for phrase in re.split(r" and | with ", prompt):
        words = phrase.split()
        colour = words[-2] if len(words) > 1 and words[-2] in COLOURS else None
        things.append(Wanted(words[-1], colour))
    return tuple(things)
