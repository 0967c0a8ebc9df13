"""What is embedded: the generator, its detector, its CLIP and its captioner, looking at the same images."""

from __future__ import annotations

import json

import pytest
import torch

import limelight
from limelight.evaluate.clip import Captioner, Clip, image_text
from limelight.evaluate.detectors import PocketDetector, check_scene
from limelight.evaluate.suites import COLORS, Wanted, attend_excite
from tests.conftest import POCKET

PROMPTS = ["a cat", "a frog", "a red car", "a blue balloon"]
WANTED = [Wanted("cat"), Wanted("frog"), Wanted("car", "red"), Wanted("balloon", "blue")]


@pytest.fixture(scope="module")
def images(pocket):
    results = limelight.generate(pocket, PROMPTS, seeds=0, steps=20, record=False)
    return [result.images[0] for result in results]


def test_the_detector_finds_what_was_generated(images):
    detector = PocketDetector.load()
    for found, thing in zip(detector.detect(images), WANTED, strict=True):
        seen = check_scene(found, [thing])
        assert not seen.missing, (thing, found)
        assert seen.colored != (False,), (thing, found)
    assert set(COLORS) == set(detector.colors)
    assert {thing.word for case in attend_excite() for thing in case.wanted} <= set(detector.words)


def test_clip_tells_the_images_apart(images):
    clip = Clip()
    images = clip.images(images)
    assert torch.allclose(images.norm(dim=-1), torch.ones(4), atol=1e-5)
    similar = torch.stack([image_text(clip, images, prompt) for prompt in PROMPTS])
    assert similar.argmax(dim=0).tolist() == [0, 1, 2, 3]


def test_captions(images):
    assert Captioner().captions(images[:2]) == PROMPTS[:2]


def test_the_words_that_it_knows(pocket):
    words = json.loads((POCKET / "limelight.json").read_text())["words"]
    assert set(PocketDetector.load().words) < set(words)
    assert pocket.unknown(pocket.prompt("a Red car next to a panda, and a xylophone")) == ("xylophone",)
    for word in words:
        assert len(pocket.prompt(word).find(word)) == 1, word


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in POCKET.rglob("*") if path.is_file()) < 40e6
