"""What is embedded: the generators, their detector, CLIP and captioner, looking at the same images."""

from __future__ import annotations

import json

import pytest
import torch

import limelight
from limelight.evaluate.clip import Captioner, Clip, image_text
from limelight.evaluate.detectors import PocketDetector, check_scene
from limelight.evaluate.suites import COLORS, Wanted, attend_excite
from limelight.models.embedded import EMBEDDED, POCKET

PROMPTS = ["a cat", "a frog", "a red car", "a blue balloon"]
WANTED = [Wanted("cat"), Wanted("frog"), Wanted("car", "red"), Wanted("balloon", "blue")]


def generated(model):
    results = limelight.generate(model, PROMPTS, seeds=0, steps=20, record=False)
    return [result.images[0] for result in results]


@pytest.fixture(scope="module")
def images(pocket):
    return generated(pocket)


@pytest.fixture(scope="module")
def transformer():
    return limelight.load("pocket-dit", device="cpu")


@pytest.fixture(scope="module")
def images_of_the_transformer(transformer):
    return generated(transformer)


@pytest.mark.parametrize("fixture", ["images", "images_of_the_transformer"])
def test_the_detector_finds_what_was_generated(fixture, request):
    detector, images = PocketDetector.load(), request.getfixturevalue(fixture)
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


@pytest.mark.parametrize(("name", "streams"), [("pocket", 1), ("transformer", 2)])
def test_the_words_that_they_know(name, streams, request):
    model = request.getfixturevalue(name)
    words = json.loads((EMBEDDED[model.name] / "limelight.json").read_text())["words"]
    assert set(PocketDetector.load().words) < set(words)
    assert model.unknown(model.prompt("a Red car next to a panda, and a xylophone")) == ("xylophone",)
    for word in words:
        if len(word) > 1 or streams == 1:  # "a" is also the first letter of words that are spelled
            assert len(model.prompt(word).find(word)) == streams, word


def test_the_package_stays_small():
    files = [path for path in POCKET.parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert 40e6 < sum(path.stat().st_size for path in files) < 60e6
