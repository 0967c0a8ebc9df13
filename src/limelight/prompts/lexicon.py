"""What each English word can be: a noun, a verb, an adjective, an adverb.

The words are those of WordNet 3.0 (George A. Miller, "WordNet: A Lexical Database for English", 1995,
https://doi.org/10.1145/219717.219748), as `recipes/lexicon.py` writes them into the package.
"""

from __future__ import annotations

import importlib.resources
import lzma
import re
from functools import lru_cache

_ADJECTIVE_ENDINGS = ("ous", "ful", "less", "ish", "esque", "ic", "ive", "able", "ible", "ical", "ed", "punk")
_DOUBLED = re.compile(r"([b-df-hj-np-tv-z])\1")
# What a base form's letters become in a form with "s": "stones" are stones, "sleeps" is somebody who sleeps.
_WITH_S = str.maketrans({"v": "z", "d": None, "a": None, "r": None})


@lru_cache(maxsize=1)
def _lexicon() -> dict[str, str]:
    """The code of each word."""
    data = (importlib.resources.files("limelight") / "data" / "lexicon.txt.xz").read_bytes()
    found = {}
    for line in lzma.decompress(data).decode("ascii").splitlines():
        code, *words = line.split()
        found.update(dict.fromkeys(words, code))
    return found


@lru_cache(maxsize=4096)
def code(word: str) -> str:
    """What a word can be, the most frequent first, as letters; empty where nothing is known of it.

    n is a noun that can be seen, t another noun (a time, an act, a quality), v a verb, z the same with "s", g with
    "ing", d a past or participle, a an adjective, r an adverb.

    Args:
        word: in lower case. Of a word with hyphens, the last part counts where the whole is unknown.
    """
    own, with_s = _lexicon().get(word, ""), _with_s(word)
    letters = with_s + own if "n" in with_s else own + with_s  # "eyes" are eyes before they are an opinion
    letters += _participle(word) + _compared(word)
    if letters:
        return "".join(dict.fromkeys(letters))
    if "-" in word:
        return code(word.rpartition("-")[2])

    if word.endswith("ly"):
        return "r"
    return "a" if word.endswith(_ADJECTIVE_ENDINGS) else ""


def _with_s(word: str) -> str:
    """What a word is as a plural or as a verb with "s"."""
    if not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return ""

    bases = [word[:-1]]
    if word.endswith("es"):
        bases.append(word[:-2])
    if word.endswith("ies"):
        bases.append(f"{word[:-3]}y")
    return _first(bases).translate(_WITH_S)


def _participle(word: str) -> str:
    """What a word is as a regular participle."""
    for ending, letter in (("ing", "g"), ("ed", "d")):
        stem = word.removesuffix(ending)
        if stem in ("", word):
            continue
        bases = [stem, f"{stem}e"]
        if stem.endswith("i"):
            bases.append(f"{stem[:-1]}y")
        if _DOUBLED.fullmatch(stem[-2:]):
            bases.append(stem[:-1])
        if any("v" in _lexicon().get(base, "") for base in bases):
            return letter
    return ""


def _compared(word: str) -> str:
    """What a word is as a comparative or superlative."""
    stem = word.removesuffix("est") if word.endswith("est") else word.removesuffix("er")
    if stem in ("", word):
        return ""

    bases = [stem, f"{stem}e", f"{stem[:-1]}y" if stem.endswith("i") else stem]
    return "a" if _first(bases).startswith("a") else ""


def _first(bases: list[str]) -> str:
    """The code of the first of several base forms that is a word."""
    return next((found for base in bases if (found := _lexicon().get(base))), "")
