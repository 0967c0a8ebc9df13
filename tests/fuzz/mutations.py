"""Files of every kind made worse, always in the same ways."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

RAW = "<raw>"
"""Where a text stands for JSON that `json.dumps` would not write."""
ODD = {
    "null": None,
    "true": True,
    "minus": -1,
    "zero": 0,
    "fraction": 1.5,
    "large": 10**30,
    "text": "x",
    "nothing": "",
    "control": "\x1b[31mred\x07\u202e",
    "list": [],
    "object": {},
    "nested": [[{"a": [1]}]],
    "5000 digits": f"{RAW}{'9' * 5000}",
    "nan": f"{RAW}NaN",
    "infinite": f"{RAW}1e999",
    "surrogate": f'{RAW}"\\ud800"',
    "deep": f"{RAW}{'[' * 50_000}{']' * 50_000}",
}


def _npz() -> bytes:
    held = io.BytesIO()
    np.savez(held, a=np.ones(3))
    return held.getvalue()


def _zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 1_000_000)
    return held.getvalue()


OTHERS = {
    "empty": b"",
    "a zero": b"\0",
    "text": b"hello\n",
    "a number": b"7",
    "brackets": b"[" * 100_000,
    "npz": _npz(),
    "zip": _zip(),
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
    "utf-16": "a cat\n".encode("utf-16"),
    "noise": bytes(random.Random(0).randbytes(300)),
    "line ends": b"\r\n\r\n\n",
}


def spoiled(content: bytes, seed: str) -> Iterator[tuple[str, bytes]]:
    """Content of any kind: something else, cut off, with flipped bits, twice."""
    yield from OTHERS.items()
    for name, length in (("8 bytes", 8), ("half", len(content) // 2), ("all but one", len(content) - 1)):
        yield name, content[:length]
    yield "twice", content + content
    yield "and more", content + b"\0\xff more"
    for number in range(6):
        yield f"flipped {number}", flipped(content, random.Random(f"{seed} {number}"))


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(min(chance.choice((1, 3, 20)), len(content))):
        changed[chance.randrange(min(len(content), 2000))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def retyped(value: Any, seed: str) -> Iterator[tuple[str, str]]:
    """JSON texts of a value in which one place, every time another, has something odd, or lacks a key."""
    chance = random.Random(seed)
    places = list(_places(value))
    for number, (name, odd) in enumerate(ODD.items()):
        place = chance.choice(places)
        yield f"{name} at {'.'.join(map(str, place))} {number}", _json(_replaced(value, place, odd))
    keys = [place for place in places if place and isinstance(place[-1], str)]
    for place in chance.sample(keys, k=min(len(keys), 3)):
        yield f"without {'.'.join(map(str, place))}", _json(_without(value, place))


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _places(part, (*at, key))


def _replaced(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    if not place:
        return odd
    changed = value.copy()
    changed[place[0]] = _replaced(value[place[0]], place[1:], odd)
    return changed


def _without(value: Any, place: tuple[Any, ...]) -> Any:
    changed = value.copy()
    if len(place) == 1:
        del changed[place[0]]
    else:
        changed[place[0]] = _without(value[place[0]], place[1:])
    return changed


def _json(value: Any) -> str:
    text = json.dumps(value)
    for odd in ODD.values():
        if isinstance(odd, str) and odd.startswith(RAW):
            text = text.replace(json.dumps(odd), odd.removeprefix(RAW))
    return text
