"""What a model does not read as it is written is named."""

from __future__ import annotations

import pickle
import warnings

import pytest

import limelight

LONG = "a cat and a dog, " + "red " * 75 + "sharp focus"


def test_words_beyond_the_length_are_named(tiny):
    with pytest.warns(limelight.LostWords) as found:
        limelight.generate(tiny, LONG, steps=1)
    (warning,) = found
    size = len(tiny.pipeline.tokenizer(LONG)["input_ids"])
    assert str(warning.message) == (
        f"The model '{tiny.name}' reads 77 tokens of a prompt and leaves out 'red', 'sharp', 'focus' of "
        f"'{LONG[:77]}...', which has {size}; shorten it."
    )
    assert warning.filename == __file__


@pytest.mark.parametrize(
    "call",
    [
        lambda model: limelight.generate(model, "a cat", negative=LONG, steps=1),
        lambda model: limelight.generate(model, ["a cat", LONG], steps=1),
        lambda model: limelight.edit(model, "a cat", LONG, steps=1, mode="refine"),
        lambda model: limelight.edit(model, "a cat", "a dog", negative=LONG, steps=1),
    ],
)
def test_wherever_the_prompt_is(tiny, call):
    with pytest.warns(limelight.LostWords, match="'sharp', 'focus' of 'a cat and a dog"):
        call(tiny)


def test_what_is_not_read_at_all_needs_no_warning(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error", limelight.PromptWarning)
        limelight.generate(tiny, "a cat", negative=LONG, guidance_scale=1, steps=1)
        limelight.generate(tiny, "a cat, (sitting) on a mat", negative="blurry", steps=1)


def test_a_lost_subject_is_an_error(tiny):
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={})
    with pytest.raises(limelight.PromptError, match="'focus' lies beyond the 77 tokens"):
        limelight.generate(tiny, LONG, subjects=["cat", "focus"], guidance=guidance, steps=1)


def test_several_long_prompts_and_many_words(tiny):
    with pytest.warns(
        limelight.LostWords, match=r"'w11' and 120 more of 'a cat red red .*\.\.\.', which has .*and 1 other"
    ):
        limelight.generate(tiny, ["a cat " + "red " * 73 + " ".join(f"w{i}" for i in range(132)), LONG], steps=1)


def test_markup_is_quoted(tiny):
    with pytest.warns(
        limelight.UnsupportedMarkup, match=r"^'\(cat:1.3\)', '<lora:x:1>', 'BREAK' in the prompt is markup"
    ):
        limelight.generate(tiny, "a (cat:1.3) <lora:x:1>", negative="bad BREAK ugly", steps=1)


def test_warnings_can_be_pickled():
    for warning in (
        limelight.LostWords.of("m", 77, "a b", "99", ["b"]),
        limelight.UnsupportedMarkup.of(["BREAK"]),
    ):
        assert str(pickle.loads(pickle.dumps(warning))) == str(warning)
