"""Plain and guided images of the same seeds, and grids."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import limelight
from limelight import SettingsError
from limelight.heads.gains import weaken
from tests.conftest import unhashed

PROMPT = "a cat and a dog"


def test_both_runs_have_the_same_seeds_and_options(tiny, tmp_path):
    names = []
    guidance = limelight.AttendAndExcite(resolution=8, max_refinements=2)
    options = {"seeds": [3, 8], "steps": 2}
    comparison = limelight.compare(tiny, PROMPT, guidance=guidance, on_run=names.append, **options)
    assert names == ["guided", "plain"], "what may fail runs first"
    assert list(comparison.runs) == ["plain", "guided"]
    plain, guided = comparison.runs.values()
    assert torch.equal(plain.latents, limelight.generate(tiny, PROMPT, **options).latents)
    assert torch.equal(guided.latents, limelight.generate(tiny, PROMPT, guidance=guidance, **options).latents)

    paths = comparison.save(tmp_path)
    stem = "a-cat-and-a-dog"
    assert [unhashed(path) for path in paths] == [
        *(f"{stem}-{run}-{seed}.png" for run in ("plain", "guided") for seed in (3, 8)),
        f"{stem}-grid.png",
    ]
    with Image.open(paths[-1]) as sheet:
        assert sheet.size == comparison.grid().size
        settings = json.loads(sheet.text["limelight"])
    assert (settings["seeds"], settings["rows"]) == ([3, 8], ["plain", "guided"])
    assert settings["guidance"]["name"] == "AttendAndExcite"


def test_a_comparison_needs_a_difference(tiny):
    with pytest.raises(SettingsError, match="compare needs guidance, boxes or edits"):
        limelight.compare(tiny, PROMPT)


def test_the_grid_of_a_result_breaks_into_rows(tiny):
    result = limelight.generate(tiny, PROMPT, seeds=[0, 1, 2], steps=1, record=False)
    width, height = result.images[0].size
    sheet, two = result.grid(), result.grid(2)
    assert (sheet.width, two.width) == (3 * (2 * width + 4) + 4, 2 * (2 * width + 4) + 4)
    assert (two.height - sheet.height) % 20 == (2 * height + 4) % 20, "one more row, and lines of text"
    assert two.height >= sheet.height + 2 * height + 4 + 20
    with pytest.raises(SettingsError, match="columns=0 must be at least 1"):
        result.grid(0)


def test_results_are_named_by_what_made_them(tiny, tmp_path):
    options = {"seeds": [3, 8], "steps": 1, "record": False}
    paths = limelight.generate(tiny, PROMPT, **options).save_all(tmp_path)
    stem = "a-cat-and-a-dog"
    assert [unhashed(path) for path in paths] == [f"{stem}-plain-3.png", f"{stem}-plain-8.png", f"{stem}-grid.png"]
    with Image.open(paths[-1]) as sheet:
        settings = json.loads(sheet.text["limelight"])
    assert (settings["seeds"], settings["rows"]) == ([3, 8], ["plain"])

    guidance = limelight.AttendAndExcite(resolution=8)
    assert limelight.generate(tiny, PROMPT, guidance=guidance, **options).kind == "guided"
    edits = [weaken([0])]
    assert limelight.generate(tiny, PROMPT, edits=edits, **options).kind == "edited"
    assert limelight.generate(tiny, PROMPT, guidance=guidance, edits=edits, **options).kind == "guided"


def test_comparisons_of_one_prompt_are_all_kept(tiny, tmp_path):
    paths = set()
    for scale in (10.0, 20.0):
        guidance = limelight.AttendAndExcite(resolution=8, scale=scale, max_refinements=2)
        paths |= set(limelight.compare(tiny, PROMPT, guidance=guidance, steps=2).save(tmp_path))
    # One plain image, which is the same in both, two guided ones and two grids.
    assert len(paths) == len(list(tmp_path.glob("*.png"))) == 5
