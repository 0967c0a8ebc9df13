"""Sheets of attention, compared with images that a person has looked at.

`LIMELIGHT_GOLDEN=1 pytest tests/viz/test_sheets.py` makes the golden images again; look at them before you commit.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image, ImageDraw

from limelight import AttentionMaps, MissingDependency, ProbeError, PromptError, Result, SettingsError, StepMaps
from limelight.models.sites import AttentionSite
from limelight.prompts.prompt import parse
from limelight.viz import sheets as show
from limelight.viz import theme
from limelight.viz.trace import trace

GOLDEN = Path(__file__).parent / "golden"
LONG = "zebra-elephant-umbrella-hippopotamus-rhinoceros"
SIX = ("cat", "dog", "frog", "bench", "clock", LONG)
PROMPT = f"a cat and a dog, a frog, a bench, a clock and a {LONG}"
# Three pieces of attention: where, how far around, how much.
PLACES = {"cat": (0.3, 0.25, 0.6), "dog": (0.6, 0.7, 0.3), LONG: (0.7, 0.3, 0.45)}


def spot(size, middle, width, peak):
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side) for side in size), indexing="ij")
    return peak * torch.exp(-((y - middle[0]) ** 2 + (x - middle[1]) ** 2) / width**2)


def maps(prompt, size, share):
    """Every word of `PLACES` at its place, `share` of its full attention."""
    p = torch.zeros(1, 1, size[0] * size[1], len(prompt.ids))
    for word, (y, x, peak) in PLACES.items():
        if word in prompt.text:
            p[0, 0, :, prompt.find(word)[0]] = spot(size, (y, x), 0.2, peak * share).flatten()
    p[..., 0] = 1 - p.sum(-1)
    return AttentionMaps({AttentionSite("one", "cross", "up", 1, 1): p}, size, (prompt,))


def scene(size, color="#88aacc"):
    image = Image.new("RGB", (size[1] * 8, size[0] * 8), color)
    draw = ImageDraw.Draw(image)
    draw.ellipse([size[1], size[0], size[1] * 3, size[0] * 4], fill="#f0b030")
    draw.rectangle([size[1] * 5, size[0] * 4, size[1] * 7, size[0] * 6], fill="#905020")
    return image


def example(tokenizer, subjects=("cat", "dog"), prompt=PROMPT, size=(8, 12), share=1.0, color="#88aacc"):
    """A result without a model."""
    parsed = parse(prompt, tokenizer, 77)
    steps = [maps(parsed, size, share * (i + 1) / 8) for i in range(8)]
    trace = tuple(
        {
            "step": i,
            "timestep": 900.0 - 100 * i,
            "loss": [0.9 - 0.15 * i * share],
            "presence": [[min(0.1 + 0.15 * i * share + 0.05 * k, 1.0) for k in range(len(subjects))]],
            "refinements": [{1: 12, 3: 1}.get(i, 0)],
        }
        for i in range(5)
    )
    guidance = {"thresholds": {"0": 0.05, "0.2": 0.5, "0.4": 0.8, "7": 0.9}}
    settings = {"prompt": prompt, "steps": 8, "guidance": guidance}
    image, whole = scene(size, color), maps(parsed, size, share)
    return Result([image], torch.zeros(1, 4, *size), whole, trace, settings, (3,), subjects, StepMaps([steps]))


def check(image: Image.Image, name: str) -> None:
    """Compare with a golden image; letters may be rendered a little differently elsewhere."""
    path = GOLDEN / f"{name}.png"
    if os.environ.get("LIMELIGHT_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        image.save(path, optimize=True)
    with Image.open(path) as golden:
        assert image.size == golden.size
        off = np.abs(np.asarray(image, dtype=float) - np.asarray(golden.convert("RGB"), dtype=float))
    assert off.mean() < 1.5, "the image changed"
    assert (off.max(axis=2) > 60).mean() < 0.01, "a part of the image changed"


def test_overlay(tokenizer):
    result = example(tokenizer)
    check(show.overlay(result.images[0], result.maps["cat"][0], side=192), "overlay")


def test_strip_of_six_with_a_long_word(tokenizer):
    result = example(tokenizer)
    check(show.strip(result.images[0], result.maps, SIX, columns=4, side=120), "strip")


def test_strip_of_one_in_a_tall_image(tokenizer):
    result = example(tokenizer, prompt="a cat", size=(12, 7))
    image = show.strip(result.images[0], result.maps, ["cat"], side=120)
    assert image.height > 120 + theme.HEAD
    check(image, "strip-tall")


def test_compare(tokenizer):
    plain, guided = example(tokenizer, share=0.4), example(tokenizer, color="#aaccaa")
    check(show.compare(plain, guided, ["cat", "dog", LONG], side=120), "compare")


def test_progress_and_animation(tokenizer):
    result = example(tokenizer)
    check(show.progress(result, ["cat", "dog"], moments=4, side=96), "progress")
    for kind in ("webp", "gif"):
        with Image.open(io.BytesIO(show.animation(result, ["cat", "dog"], kind=kind, side=96))) as moving:
            assert (moving.format, moving.n_frames, moving.info["loop"]) == (kind.upper(), 8, 0)
            frames = []
            for i in (0, 7):
                moving.seek(i)
                frames.append(moving.convert("RGB"))
        brightest = [np.asarray(frame)[theme.HEAD + theme.GAP :, :90].max(axis=2).mean() for frame in frames]
        assert brightest[1] > brightest[0] + 5, "attention grows over the steps"
        still = theme.Sheet(
            [show._word_tiles(*_last_step(result), note="step 8 of 8")], [_last_step(result)[2]]
        ).image()
        off = np.abs(np.asarray(frames[1], dtype=float) - np.asarray(still, dtype=float))
        assert off.mean() < 6, kind


def test_the_trace_of_an_image_that_stays_plain_has_no_flat_lines(tokenizer, monkeypatch):
    """Its rows repeat the numbers of the step that was looked at: one of them was measured."""
    result = example(tokenizer)
    same = [{**row, "presence": [[0.6, 0.7]], "refinements": [0]} for row in result.trace]
    same[0]["plain_presence"] = [[0.6, 0.7]]
    settings = {**result.settings, "guidance": {"look": 2, "thresholds": {}}}
    plain = replace(result, trace=tuple(same), settings=settings)
    assert plain.measured(0) == (same[2],)
    moved = replace(plain, trace=(*same[:4], {**same[4], "presence": [[0.6, 0.8]]}))
    assert moved.measured(0) == moved.trace

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **look: drawn.append(args[1:]) or plot(*args, **look))
    trace(plain)
    assert drawn == [([3], [same[2]["loss"][0]]), ([3], [0.6]), ([3], [0.7])]


def _last_step(result):
    image, frames, scale = show._over_steps(result, ["cat", "dog"], 0)
    return image, frames[-1], scale, 96


@pytest.mark.parametrize("subjects", [("cat",), SIX])
def test_trace(tokenizer, subjects):
    plain = replace(example(tokenizer, subjects, share=0.3), settings={"prompt": PROMPT, "steps": 8, "guidance": None})
    check(trace(example(tokenizer, subjects), plain=plain), f"trace-{len(subjects)}")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("sheets", "theme"):
        monkeypatch.delitem(sys.modules, f"limelight.viz.{name}")
    with pytest.raises(MissingDependency, match=r"need matplotlib. Install it: pip install 'limelight\[plots\]'"):
        importlib.import_module("limelight.viz.sheets")


def test_words_shown_by_default(tokenizer):
    assert show.every_word(parse("A cat and a dog", tokenizer, 77)) == ("A", "cat", "and", "a#2", "dog")


def test_bad_input_says_what_to_do(tokenizer):
    result = example(tokenizer)
    image = result.images[0]
    nothing = replace(result, maps=result.maps.select(lambda _: False), trace=(), steps=StepMaps())
    for call, error, message in [
        (lambda: show.strip(image, result.maps, ["dig"]), PromptError, "'dig' is not in the prompt; its words are"),
        (lambda: show.strip(image, result.maps, []), SettingsError, "at least one word"),
        (lambda: show.strip(image, result.maps, "cat"), SettingsError, "must be a list"),
        (lambda: show.strip(image, result.maps, index=1), SettingsError, "There is no image 1; there are 1"),
        (lambda: show.strip(image, nothing.maps), ProbeError, "record=True"),
        (lambda: show.strip(scene((8, 8)), result.maps), SettingsError, "64x64 does not belong to maps of 8x12"),
        (lambda: show.progress(nothing), ProbeError, "record='steps'"),
        (lambda: show.animation(nothing), ProbeError, "record='steps'"),
        (lambda: show.animation(result, kind="mp4"), SettingsError, "kind='mp4' must be 'webp' or 'gif'"),
        (lambda: trace(nothing), SettingsError, "nothing was guided"),
        (lambda: show.compare(result, replace(result, seeds=(4,))), SettingsError, "the same seeds"),
        (
            lambda: show.compare(result, example(tokenizer, size=(16, 24))),
            SettingsError,
            "The maps of the two results differ in size",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()
