"""Subjects in boxes."""

from __future__ import annotations

import pytest
import torch

import limelight
from limelight import AttendAndExcite, Guidance, HeadWeightedAttendAndExcite, SettingsError
from limelight.guidance.layout import into_boxes

PROMPT = "a red cat and a blue car"
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(("first", "second"), [(LEFT, RIGHT), (RIGHT, LEFT)], ids=["left", "right"])
def test_attention_comes_to_its_box(pocket, first, second):
    """Of one seed, both ways round: the share outside the boxes falls, and the second subject goes with the first."""
    prompt, boxes = "a cat and a car", {"cat": first, "car": second}
    result = limelight.generate(pocket, prompt, place=boxes, steps=25)
    outside = [row["outside"][0] for row in result.trace]
    assert outside[-1] < 0.8 * outside[0]
    width = result.maps["cat"].shape[-1] // 2
    left, right = (result.maps["cat"][0][..., part].sum() for part in (slice(width), slice(width, None)))
    assert (left > right) == (first == LEFT)


def test_boxes_are_part_of_the_result(tiny):
    guidance = AttendAndExcite(resolution=8, thresholds={})
    options = {"guidance": guidance, "steps": 2}
    placed = limelight.generate(tiny, PROMPT, place={"cat": LEFT, "blue car": (0.5, 0, 1, 1)}, **options)
    assert placed.settings["place"] == {"cat": [0, 0, 0.5, 1], "blue car": [0.5, 0, 1, 1]}
    described = placed.settings["guidance"]
    assert [term["name"] for _, term in described["objective"]["terms"]] == ["excite", "inside"]
    assert (described["scale"], described["resolution"]) == (guidance.scale, 8)
    other = limelight.generate(tiny, PROMPT, place={"cat": RIGHT}, **options)
    bare = limelight.generate(tiny, PROMPT, **options)
    assert "place" not in bare.settings
    assert not torch.equal(placed.latents, other.latents)
    assert not torch.equal(placed.latents, bare.latents)


def test_prompts_without_boxes_stay_plain(tiny):
    prompts = [PROMPT, "a frog and a bear"]
    plain = limelight.generate(tiny, prompts[1], steps=2)
    for batch in (1, 2):
        both = limelight.generate(tiny, prompts, place=[{"cat": LEFT}, None], steps=2, batch=batch)
        torch.testing.assert_close(both[1].latents, plain.latents)
        assert "place" not in both[1].settings
    assert not torch.equal(both[0].latents, limelight.generate(tiny, PROMPT, steps=2).latents)


def test_one_set_of_boxes_serves_all_prompts(tiny):
    both = limelight.generate(tiny, [PROMPT, "a cat and a dog"], place={"cat": LEFT}, steps=1)
    assert [result.settings["place"] for result in both] == [{"cat": list(LEFT)}] * 2


def test_the_plain_run_of_a_comparison_has_no_boxes(tiny):
    runs = limelight.compare(tiny, PROMPT, place={"cat": LEFT}, steps=1).runs
    assert list(runs) == ["plain", "guided"]
    torch.testing.assert_close(runs["plain"].latents, limelight.generate(tiny, PROMPT, steps=1).latents)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ([{"cat": LEFT}] * 2, "place has 2 entries for 1 prompts"),
        (
            [("cat", LEFT)],
            r"place=\('cat', .* must name words and their boxes, for example {'cat': \(0, 0.4, 0.5, 1\)}",
        ),
        ({"cat": (0, 0, 512, 512)}, "lies outside the image"),
    ],
)
def test_bad_places(tiny, place, message):
    with pytest.raises(SettingsError, match=message):
        limelight.generate(tiny, PROMPT, place=place, steps=1)


def test_guidance_that_reads_several_sizes_takes_no_boxes(tiny):
    heads = HeadWeightedAttendAndExcite(concepts="Animals")
    with pytest.raises(SettingsError, match="HeadWeightedAttendAndExcite reads several"):
        limelight.generate(tiny, PROMPT, guidance=heads, place={"cat": LEFT}, steps=1)


def test_settings_of_the_guidance_are_kept(tiny):
    given = Guidance(objective=AttendAndExcite().objective, until=3, targets={"mixing": 0.1}, step_rule="sign")
    placed = into_boxes(given, tiny)
    assert (placed.until, placed.targets, placed.step_rule) == (3, {"mixing": 0.1}, "sign")
