"""What a model does not read as it is written is named."""

from __future__ import annotations

import inspect
import pickle
import warnings

import pytest
import torch
from PIL import Image

import limelight
from limelight.integrations.diffusers import StableDiffusionAttendAndExcitePipeline

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


@pytest.mark.parametrize("options", [{"prompt": LONG}, {"prompt": "a cat", "negative": LONG}])
def test_an_inverted_image(tiny, options):
    image = Image.new("RGB", (32, 32))
    with pytest.warns(limelight.LostWords, match="'sharp', 'focus' of 'a cat and a dog") as found:
        limelight.invert_image(tiny, image, steps=1, **options)
    assert [warning.filename for warning in found] == [__file__]


def test_an_edit_of_an_image_warns_once(tiny):
    with pytest.warns(limelight.LostWords) as found:
        limelight.edit(tiny, LONG, "a dog", image=Image.new("RGB", (32, 32)), steps=1)
    # An untrained model reconstructs no image, of which another warning speaks.
    assert [warning.category for warning in found].count(limelight.LostWords) == 1


@pytest.mark.parametrize("options", [{"prompt": LONG}, {"prompt": "a cat", "negative_prompt": LONG}])
def test_an_attached_pipeline(tiny_pipeline, options):
    pipeline = tiny_pipeline()
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={})
    with (
        pytest.warns(limelight.LostWords, match="'sharp', 'focus' of 'a cat and a dog") as found,
        limelight.attach(pipeline, subjects=["cat"], guidance=guidance),
    ):
        pipeline(**options, num_inference_steps=1, output_type="latent")
    assert [warning.filename for warning in found] == [__file__]


def test_an_attached_pipeline_that_reads_more(tiny_pipeline):
    """As some do, which join the embeddings of several pieces of 77 tokens."""
    pipeline = tiny_pipeline()
    whole = pipeline.encode_prompt

    def encode_prompt(*args, **kwargs):
        return tuple(torch.cat([part, part], dim=1) for part in whole(*args, **kwargs))

    encode_prompt.__signature__ = inspect.signature(whole)
    pipeline.encode_prompt = encode_prompt
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={}, until=0)
    with warnings.catch_warnings(), limelight.attach(pipeline, subjects=["cat"], guidance=guidance):
        warnings.simplefilter("error", limelight.PromptWarning)
        pipeline(LONG, num_inference_steps=1, output_type="latent")


@pytest.mark.parametrize("options", [{"prompt": LONG}, {"prompt": "a cat", "negative_prompt": LONG}])
def test_the_drop_in_pipeline(tiny_pipeline, options):
    pipeline = tiny_pipeline(cls=StableDiffusionAttendAndExcitePipeline)
    with pytest.warns(limelight.LostWords, match="'sharp', 'focus' of 'a cat and a dog") as found:
        pipeline(**options, token_indices=[2], num_inference_steps=1, attn_res=8, thresholds={}, output_type="latent")
    assert [warning.filename for warning in found] == [__file__]


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


def test_a_prompt_without_subjects_is_generated_plainly(tiny):
    """Alone or beside others, which are guided as they are alone."""
    plain = limelight.generate(tiny, "best quality, 4k", seeds=[1, 2], steps=2)
    guidance = limelight.AttendAndExcite(scale=20.0, thresholds={})
    guided = limelight.generate(tiny, "a cat and a dog", seeds=[1, 2], steps=2, guidance=guidance)
    prompts = ["best quality, 4k", "a cat and a dog"]
    with pytest.warns(limelight.NoSubjects, match="'best quality, 4k', so that its images are .* 'best', ") as found:
        both = limelight.generate(tiny, prompts, seeds=[1, 2], steps=2, guidance=guidance)

    assert [result.settings["prompt"] for result in both] == prompts
    assert [bool(result.settings["guidance"]) for result in both] == [False, True]
    assert found[0].filename == __file__
    for result, alone in zip(both, [plain, guided], strict=True):
        assert torch.allclose(result.latents, alone.latents, atol=1e-4)
    assert not torch.allclose(guided.latents, limelight.generate(tiny, prompts[1], seeds=[1, 2], steps=2).latents)


def test_a_choice_of_seeds_needs_subjects_too(tiny):
    with pytest.warns(limelight.NoSubjects, match="'4k'"):
        result = limelight.generate(tiny, "4k", seeds=[1], steps=2, audition=2)
    assert result.seeds == (1,)
    with warnings.catch_warnings():
        warnings.simplefilter("error", limelight.NoSubjects)
        limelight.generate(tiny, "4k", steps=1)
