"""What is embedded: the generator, its judge, its CLIP and its captioner, looking at the same pictures."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import POCKET

import limelight
from limelight.judge import Judge, verdict
from limelight.scores import Captioner, Clip, image_text
from limelight.suites import COLOURS, Wanted, attend_excite

PROMPTS = ["a cat", "a frog", "a red car", "a blue balloon"]
WANTED = [Wanted("cat"), Wanted("frog"), Wanted("car", "red"), Wanted("balloon", "blue")]


@pytest.fixture(scope="module")
def pictures(pocket):
    results = limelight.generate(pocket, PROMPTS, seeds=0, steps=20, record=False)
    return [result.images[0] for result in results]


def test_the_judge_finds_what_was_drawn(pictures):
    judge = Judge.load()
    for found, thing in zip(judge.detect(pictures), WANTED, strict=True):
        seen = verdict(found, [thing])
        assert not seen.neglected, (thing, found)
        assert seen.coloured != (False,), (thing, found)
    assert set(COLOURS) == set(judge.colours)
    assert {thing.word for case in attend_excite() for thing in case.wanted} <= set(judge.words)


def test_clip_tells_the_pictures_apart(pictures):
    clip = Clip()
    images = clip.images(pictures)
    assert torch.allclose(images.norm(dim=-1), torch.ones(4), atol=1e-5)
    similar = torch.stack([image_text(clip, images, prompt) for prompt in PROMPTS])
    assert similar.argmax(dim=0).tolist() == [0, 1, 2, 3]


def test_captions(pictures):
    assert Captioner().captions(pictures[:2]) == PROMPTS[:2]


def test_the_words_that_it_knows(pocket):
    words = json.loads((POCKET / "limelight.json").read_text())["words"]
    assert set(Judge.load().words) < set(words)
    assert pocket.unknown(pocket.prompt("a Red car next to a panda, and a xylophone")) == ("xylophone",)
    for word in words:
        assert len(pocket.prompt(word).find(word)) == 1, word


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) < 40e6
