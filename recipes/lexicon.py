"""The parts of speech in the package, from WordNet 3.0.

`python -m recipes.lexicon FOLDER` reads WordNet's files (Debian's package wordnet-base puts them into
/usr/share/wordnet) and writes `src/limelight/data/lexicon.txt.xz`. Each line is a code and the words that have it. A
code's letters are the parts of speech of a word, the most frequent first: n a noun that can be seen, t another noun
(times, acts, qualities), v a verb, d an irregular past or participle, a an adjective, r an adverb.
"""

from __future__ import annotations

import argparse
import lzma
import re
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

TARGET = Path(str(files("limelight") / "data" / "lexicon.txt.xz"))
# WordNet's files of nouns, by number: animals, artifacts, bodies, food, groups, places, objects, persons, phenomena,
# plants, shapes, substances.
SEEN = frozenset("05 06 08 13 14 15 17 18 19 20 25 27".split())
FIRST_SENSES = 3  # a noun can be seen if one of so many first senses can
# What WordNet files under acts, events, times and messages, and images show.
SEEN_BESIDES = frozenset(
    "sign fire flame smoke explosion fireworks lightning rainbow aurora graffiti tattoo logo emblem banner letter text "
    "calligraphy sunset sunrise firework campfire bonfire wildfire battle".split()
)
LETTERS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("/usr/share/wordnet"))
    folder = parser.parse_args().folder

    text = written(codes(folder))
    TARGET.write_bytes(lzma.compress(text.encode("ascii"), preset=9 | lzma.PRESET_EXTREME))
    print(f"{TARGET}: {len(text.split())} words, {TARGET.stat().st_size} bytes")


def codes(folder: Path) -> dict[str, str]:
    """The code of each word."""
    uses, seen = frequencies(folder / "cntlist.rev"), seen_senses(folder)
    kinds = defaultdict[str, Counter[str]](Counter)
    for part, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        for word, senses in senses_of(folder / f"index.{part}"):
            visible = word in SEEN_BESIDES or not seen.isdisjoint(senses[:FIRST_SENSES])
            kinds[word]["t" if letter == "n" and not visible else letter] = uses[word, letter] + 1

    for form, base in irregular(folder / "noun.exc"):
        kinds[form] += Counter(n=kinds[base]["n"], t=kinds[base]["t"])
    for form, base in irregular(folder / "verb.exc"):
        kinds[form]["d"] = kinds[base]["v"]
    return {word: "".join(dict((+own).most_common())) for word, own in kinds.items()}


def frequencies(path: Path) -> Counter[tuple[str, str]]:
    """How often each word was seen as a noun, verb, adjective or adverb in the texts that WordNet's authors read."""
    found = Counter[tuple[str, str]]()
    for line in path.read_text("ascii").splitlines():
        sense, _, count = line.split()
        word, rest = sense.split("%")
        found[word, LETTERS[rest[0]]] += int(count)
    return found


def seen_senses(folder: Path) -> set[str]:
    """The senses of nouns that name something visible."""
    lines = (line for line in (folder / "data.noun").read_text("latin-1").splitlines() if not line.startswith("  "))
    return {line.split(maxsplit=2)[0] for line in lines if line.split(maxsplit=2)[1] in SEEN}


def senses_of(path: Path) -> list[tuple[str, list[str]]]:
    """The single words of an index, each with its senses, the most frequent first."""
    found = []
    for line in path.read_text("ascii").splitlines():
        if line.startswith("  "):  # the licence
            continue
        word, _, count, pointers, *rest = line.split()
        if WORD.fullmatch(word):
            found.append((word, rest[int(pointers) + 2 :][: int(count)]))
    return found


def irregular(path: Path) -> list[tuple[str, str]]:
    """Irregular forms of single words, each with its base."""
    pairs = (line.split()[:2] for line in path.read_text("ascii").splitlines())
    whole = [(form, base) for form, base in pairs if WORD.fullmatch(form) and WORD.fullmatch(base)]
    return [(form, base) for form, base in whole if path.stem != "verb" or not form.endswith(("ing", "s"))]


def written(code_of: dict[str, str]) -> str:
    """The text of the file."""
    lines = defaultdict[str, list[str]](list)
    for word, code in sorted(code_of.items()):
        if code:
            lines[code].append(word)
    return "".join(f"{code} {' '.join(words)}\n" for code, words in sorted(lines.items()))


if __name__ == "__main__":
    main()
