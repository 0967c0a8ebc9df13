"""Markup of other programs in a prompt, which a model would read as text."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import regex

_NUMBER = r"\s*+-?[\d.]+\s*+"
# Markup around words, which stay words: weights and alternatives of web UIs.
_AROUND = (
    rf"(?<!\()\({{2,}}+(?P<words>[^()]*?)(?::{_NUMBER})?\){{2,}}",  # ((cat)), ((cat:1.3))
    rf"\((?P<words>[^()]*):{_NUMBER}\)",  # (cat:1.3)
    rf"(?<!\[)\[++(?P<words>[^\[\]]*?)(?::{_NUMBER})?\]++",  # [cat], [[cat]], [cat:dog:0.5], [cat|dog]
    r"(?<!\{)\{++(?P<words>[^{}]*)\}++",  # {cat}, {cat|dog}
    rf"(?P<words>):{_NUMBER}[)\]]",  # the end of a weight around other markup
    r"(?P<words>)(?<=[\p{L}]{2}|\))\+{2,}",  # cat++
)
# Markup that stands for itself.
_ALONE = (
    r"<(?i:lora|lyco|lycoris|hypernet|embedding|ti|wildcard):[^<>]*>",
    r"<\|[^<>|\s]*\|>",  # <|startoftext|>
    r"(?<![\p{L}\p{N}_])(?:BREAK|AND|ADDCOMM|ADDCOL|ADDROW|ADDBASE)(?![\p{L}\p{N}_])",
    r"(?<!\S)(?:--|\u2014)(?:no|style|sref|cref|oref|profile)(?:\s++(?!--|\u2014)\S++)*+",  # --no cars, people
    r"(?<!\S)(?:--|\u2014)[a-zA-Z]++\s++[\d.:x]++(?!\S)",  # --ar 16:9
    r"(?<!\S)(?:--|\u2014)(?:tile|raw|hd|niji|test|testp|turbo|fast|relax|video|draft)(?!\S)",
    r"::\s*+-?[\d.]*+",  # cat::2
    r"__[\p{L}\p{N}_/\-]+__",  # a wildcard
    r"(?i:\bembedding:\S++)",
)
_MARKUP = regex.compile("|".join((*_ALONE, *_AROUND)), regex.V1)


class Markup(NamedTuple):
    """A piece of markup in a text.

    Attributes:
        span: its first character and the one after its last.
        words: the same of the words that it is around, or None if it stands for itself.
    """

    span: tuple[int, int]
    words: tuple[int, int] | None


def find_markup(text: str, learned: Collection[tuple[int, int]] = ()) -> list[Markup]:
    """The markup in a text, in order: "(cat:1.3)", "<lora:x:0.8>", "BREAK", "--ar 16:9", "<|startoftext|>".

    Single parentheses are punctuation, and so are capitals in a text that has no other letters.

    Args:
        learned: spans of learned words, whose names are not markup.
    """
    shouted = text.upper() == text
    found = []
    for match in _MARKUP.finditer(text):
        start, stop = match.span()
        inside = any(a <= start and stop <= b for a, b in learned)
        if not inside and not (shouted and match.group().isalpha()):
            around = match.span("words")
            found.append(Markup((start, stop), around if around[0] >= 0 else None))
    return found


def without_markup(text: str, markup: Collection[Markup]) -> str:
    """The text with its markup replaced, character by character: by spaces around words, by semicolons elsewhere."""
    pieces, last = [], 0
    for (start, stop), words in markup:
        pieces.append(text[last:start])
        if words is None:
            pieces.append(";" * (stop - start))
        else:
            first, end = words if words[0] < words[1] else (stop, stop)
            pieces += [" " * (first - start), text[first:end], " " * (stop - end)]
        last = stop
    return "".join([*pieces, text[last:]])
