"""Where the words of a text are, in any script."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

# Characters without a shape: soft hyphen, zero-width space and joiners, direction marks, variation selectors.
_INVISIBLE = r"\u00AD\u034F\u061C\u180B-\u180F\u200B-\u200F\u2060-\u2064\uFE00-\uFE0F\uFEFF"
# Chinese, Japanese and the scripts of South-East Asia write no spaces between words.
_SPACELESS = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30FC\uFF70\uFF9E\uFF9F]&&[\p{L}\p{N}]]"
)
_SPACED = rf"(?:[[\p{{L}}\p{{N}}]--{_SPACELESS}](?:\p{{M}}|[{_INVISIBLE}]++(?=[\p{{L}}\p{{N}}\p{{M}}]))*+)"
_NO_LETTER = r"(?![\p{L}\p{N}\p{M}])"

# Between letters: apostrophes, hyphens, Hebrew's and Catalan's marks; between digits: point and comma.
_JOINER = (
    r"(?:['\u2018\u2019\u201B\uFF07\u05F3\u05F4\u05BE\u058A\u00B7\u2027\u2010\u2011\uFF0D\-]"
    r'|(?<=\p{Hebrew}\p{M}*)"(?=\p{Hebrew})|(?<=\p{Nd})[.,](?=\p{Nd}))'
)
_ALTERNATIVES = (
    r"<[^<>\s]++>",  # a placeholder such as <my-cat>
    r"\p{L}(?:\+\+|\#)(?![\p{L}\p{N}+\#])",  # C++, C#
    rf"{_SPACED}{{1,2}}&{_SPACED}{{1,2}}{_NO_LETTER}(?:{_JOINER}{_SPACED}++)*+",  # AT&T, R&B's; not cat&dog
    rf"{_SPACED}++(?:{_JOINER}{_SPACED}++)*+",
    rf"(?:{_SPACELESS}(?:\p{{M}}|[\u00AD\u200C\u200D\u2060\uFEFF]++(?={_SPACELESS}))*+)++",
    r"(?=[[\p{Emoji}&&\p{So}]--[\u00A9\u00AE\u2122]]|\p{RI})\X",  # an emoji, with all that modifies it
)
_WORD = regex.compile("|".join(_ALTERNATIVES), regex.V1)
_RUN = regex.compile(rf"{_SPACELESS}[\p{{M}}\p{{L}}\p{{N}}{_INVISIBLE}]*", regex.V1)
_UNSEEN = regex.compile(rf"[{_INVISIBLE}]", regex.V1)
_SAME = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bc\uff07\u05f3", "'")
    | dict.fromkeys("\u2010\u2011\u058a\u05be\uff0d", "-")
    | {"\u05f4": '"'}
)


def word_spans(text: str, names: Iterable[str] = ()) -> list[tuple[int, int]]:
    """The first character of each word and the one after its last, in order.

    A word is a placeholder (<my-cat>), letters and digits with their marks and with inner apostrophes and hyphens, a
    name such as "C++" or "AT&T", an emoji, or a run of letters of a script without spaces.

    Args:
        names: words of another form, for example "my style"; each is one word.
    """
    return [match.span() for match in _pattern(tuple(sorted(names, key=len, reverse=True))).finditer(text)]


@lru_cache(maxsize=32)
def _pattern(names: tuple[str, ...]) -> Any:
    if not names:
        return _WORD
    listed = "|".join(regex.escape(name, special_only=True) for name in names)
    return regex.compile(rf"(?i:{listed})|{_WORD.pattern}", regex.V1)


def key(word: str) -> str:
    """What makes two spellings the same word: case, composition, the kind of apostrophe and hyphen do not count."""
    return unicodedata.normalize("NFC", _UNSEEN.sub("", word)).translate(_SAME).lower()


def spaceless(word: str) -> bool:
    """Whether a word is a run of a script that writes no spaces, in which several words may lie."""
    return _RUN.fullmatch(word) is not None


def graphemes(word: str) -> list[tuple[int, int]]:
    """The spans of what readers take for single characters."""
    return [match.span() for match in regex.finditer(r"\X", word)]
