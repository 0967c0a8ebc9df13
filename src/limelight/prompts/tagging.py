"""The part that each word of a prompt plays in it, by spaCy or by the lexicon."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from .lexicon import code
from .prompt import Prompt

_log = logging.getLogger(__name__)

DETERMINERS = frozenset(
    "a an the one two three four five six seven eight nine ten some many several my your his her its our their this "
    "that these those another".split()
)
# Words that end a noun phrase: "a cat on a mat".
_BREAKS = frozenset(
    "and or with without in on at by of for from to into under over near beside behind before above below between "
    "against wearing holding riding eating sitting standing lying playing running looking is are was were has have "
    "who that which while as like next through during up down off out away".split()
)
FUNCTION_WORDS = DETERMINERS | _BREAKS
# The same, which the terms of guidance count as content.
_MORE_BREAKS = frozenset(
    "be been being am do does did had can will would may must not no nor but if than then so because when where what "
    "there here it he she they we i you him them us me himself herself itself themselves onto upon across along around "
    "among amid atop inside outside within beyond past toward towards about after until till per via versus vs "
    "underneath beneath alongside throughout too also very all both each every any few other".split()
)
# After them stands a verb: "a sign that says", "about to jump".
_BEFORE_VERBS = frozenset("that who which to will can must may not".split())
_COPULAS = frozenset("is are was were be been being am".split())

# How an image is made, shown or praised, in prompts for text-to-image models.
_STYLE = frozenset(
    "masterpiece artstation cgsociety deviantart pixiv behance dslr bokeh hdr uhd fhd hd hq octane unreal vray "
    "redshift raytracing blender zbrush c4d cinema4d nikon canon kodak hasselblad leica polaroid fujifilm "
    "lomography quality resolution definition viewer wallpaper foreground background midground midjourney "
    "photoreal photorealism realism hyperrealism surrealism impressionism minimalism ghibli pixar bauhaus "
    "vaporwave synthwave anime manga lofi closeup close-up".split()
)
# Verbs with "ing" that also behind a noun are things: "a brick building".
_THINGS = frozenset("building painting drawing carving lighting ceiling railing stocking ring wing".split())
_STYLE_NUMBER = re.compile(r"\d+(?:k|d|mm|px|p|bit|-bit|fps)|f\d.*")
_COUNTED = re.compile(r"\d+(?=[a-z]{3})")  # "1girl"


class Part(Enum):
    """What a word does in its prompt."""

    NOUN = "a thing that can be seen"
    OTHER = "another noun: a time, an act, a quality"
    MODIFIER = "describes the noun after it"
    DETERMINER = "begins a phrase"
    STYLE = "says how the image is made"
    BREAK = "ends a phrase: a verb, an adverb, a preposition"


@dataclass(frozen=True)
class _Context:
    """A word that the lexicon reads, and what stands around it.

    Attributes:
        key: the word in lower case.
        letters: what it can be, see `limelight.prompts.lexicon.code`.
        before: the part of the word before it, adverbs left out; None after punctuation and at the begin.
        key_before: that word, lower case.
        phrase: whether its phrase began with an article or a number, or begins the prompt or its part.
        nominal_next: whether the next word can belong to the same phrase.
        next_key: that word, lower case, empty before punctuation and at the end.
    """

    key: str
    letters: str
    before: Part | None
    key_before: str
    phrase: bool
    nominal_next: bool
    next_key: str


def parts(prompt: Prompt, parted: Callable[[int], bool]) -> list[Part]:
    """The part of each word.

    Args:
        prompt: without markup.
        parted: whether punctuation stands before a word.
    """
    read = spacy_model()
    found = _by_lexicon(prompt, parted)
    if read is not None:
        found = _by_spacy(prompt, read, found)

    for i, word in enumerate(prompt.words):
        if word.learned:
            found[i] = Part.NOUN
        elif _is_style(word.key):
            found[i] = Part.STYLE
    return found


def _is_style(key: str) -> bool:
    return key in _STYLE or _STYLE_NUMBER.fullmatch(key) is not None


# The lexicon.


def _by_lexicon(prompt: Prompt, parted: Callable[[int], bool]) -> list[Part]:
    """What each word is by the lexicon, where it can be several things by the words around it."""
    found = list[Part]()
    for keys in _clauses(prompt, parted):
        before: Part | None = None
        key_before, phrase = "", True
        for key, next_key in zip(keys, [*keys[1:], ""], strict=True):
            around = _Context(key, _letters(key), before, key_before, phrase, _nominal(next_key), next_key)
            part = _function(key) or _content(around)

            found.append(part)
            if not _is_adverb(around, part):
                phrase = part is Part.DETERMINER or (phrase and part is not Part.BREAK)
                before, key_before = part, key
    return found


def _clauses(prompt: Prompt, parted: Callable[[int], bool]) -> list[list[str]]:
    """The words between punctuation, in lower case."""
    found = list[list[str]]()
    for i, key in enumerate(prompt.keys):
        if i == 0 or parted(i):
            found.append([])
        found[-1].append(key)
    return found


def _is_adverb(word: _Context, part: Part) -> bool:
    """Whether a word can stand between words that belong together: "a very tall giraffe"."""
    return part is Part.BREAK and word.letters.startswith("r") and word.key not in FUNCTION_WORDS


def _letters(key: str) -> str:
    """What a word can be; of "1girl", what "girl" can be."""
    return code(_COUNTED.sub("", key))


def _function(key: str) -> Part | None:
    """The part of a word that is a function word."""
    if key in DETERMINERS or key.isdecimal():
        return Part.DETERMINER
    if key in _BREAKS or key in _MORE_BREAKS:
        return Part.BREAK
    return Part.MODIFIER if key.endswith(("'s", "s'")) else None


def _nominal(key: str) -> bool:
    """Whether a word can belong to a noun phrase that has begun."""
    if not key or _function(key) not in (None, Part.MODIFIER):
        return False
    letters = _letters(key)
    return not letters or letters[0] in "nta" or "n" in letters


def _content(word: _Context) -> Part:
    """The part of a word that is not a function word."""
    letters, after_noun = word.letters, word.before in (Part.NOUN, Part.OTHER, Part.STYLE)
    if not letters:
        return Part.NOUN
    if letters.startswith("r") or _says_what_happens(word):
        return Part.BREAK

    thing = letters.startswith("n") and (not after_noun or word.key in _THINGS)
    if set(letters) & set("gd") and not thing:
        return _participle(word, after_noun)
    if after_noun and _is_verb(word):
        return Part.BREAK
    return _noun_or_adjective(word)


def _says_what_happens(word: _Context) -> bool:
    """Whether a word is a verb by the word before it: "a sign that says"."""
    return word.key_before in _BEFORE_VERBS and not set("vzgd").isdisjoint(word.letters)


def _participle(word: _Context, after_noun: bool) -> Part:
    """The part of "running" or "broken": it describes what follows, or it says what goes on."""
    if after_noun or word.key_before in _COPULAS:
        return Part.BREAK
    if word.nominal_next:
        return Part.MODIFIER
    return Part.OTHER if "t" in word.letters and word.before is Part.DETERMINER else Part.BREAK


def _is_verb(word: _Context) -> bool:
    """Whether a word after a noun is what the noun does: "the lion sleeps", "dogs run"."""
    letters = word.letters
    if "z" in letters:
        return word.phrase and "n" not in letters.partition("z")[0]
    plural = word.key_before.endswith("s") or word.key_before in ("children", "people", "men", "women")
    return plural and "v" in letters and "n" not in letters.partition("v")[0]


def _noun_or_adjective(word: _Context) -> Part:
    letters = word.letters
    nouns = [letter for letter in letters if letter in "nt"]
    if not nouns:
        return Part.MODIFIER if "a" in letters else Part.BREAK
    if letters.startswith("a"):
        alone = word.before is Part.DETERMINER and not word.nominal_next and word.next_key not in ("and", "or")
        if not alone:
            return Part.MODIFIER
    return Part.NOUN if nouns[0] == "n" else Part.OTHER


# spaCy.

_MODELS = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg", "en_core_web_trf")


@lru_cache(maxsize=1)
def spacy_model() -> Any:
    """spaCy with the first of its English models that is installed, or None."""
    installed = [name for name in _MODELS if importlib.util.find_spec(name) is not None]
    if installed:
        try:
            import spacy

            return spacy.load(installed[0])
        except (ImportError, OSError, ValueError) as error:
            _log.info("spaCy's model %s cannot be opened (%s); the lexicon finds the subjects.", installed[0], error)
            return None
    _log.info("spaCy's model en_core_web_sm is not installed; the lexicon finds the subjects.")
    return None


def _by_spacy(prompt: Prompt, read: Any, found: list[Part]) -> list[Part]:
    """The same with what spaCy says of the words that can be a noun and a verb, and of those that the lexicon lacks.

    On ordinary prompts, which are no sentences, its small model errs more often than the lexicon for other words.
    """
    tokens = {}
    for token in read(prompt.text):
        tokens[token.idx + len(token.text)] = token

    decided = list[Part]()
    for word, part in zip(prompt.words, found, strict=True):
        token, letters = tokens.get(word.span[1]), _letters(word.key)
        open_ = _function(word.key) is None and (not letters or _noun_and_verb(letters))
        decided.append(_of_token(letters, token) if open_ and token is not None else part)
    return decided


def _noun_and_verb(letters: str) -> bool:
    """Whether a word can be a noun and a verb and nothing else."""
    return set(letters) <= set("ntvz") and bool(set(letters) & set("vz")) and bool(set(letters) & set("nt"))


def _of_token(letters: str, token: Any) -> Part:
    """The part of a word by spaCy's part of speech."""
    if token.pos_ in ("VERB", "AUX", "ADV"):
        return Part.BREAK
    if token.pos_ == "ADJ" and not letters:
        return Part.MODIFIER
    nouns = [letter for letter in letters if letter in "nt"]
    return Part.OTHER if nouns and nouns[0] == "t" else Part.NOUN
