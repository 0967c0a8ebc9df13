"""The detector: reading its grid, and comparing with what was wanted."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limelight import ModelError
from limelight.evaluate.detectors import Detection, OpenVocabulary, PocketDetector, check_scene, overlap
from limelight.evaluate.scoring import Backbones, Scorer
from limelight.evaluate.suites import COLORS, Wanted, attend_excite, wanted

BOX = (0.0, 0.0, 0.5, 0.5)


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(2 / 6)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    assert overlap((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_verdict():
    red, blue = Detection("car", 0.9, BOX, "red"), Detection("car", 0.8, BOX, "blue")
    dog = Detection("dog", 0.7, BOX, "brown")
    seen = check_scene([red, blue, dog], [Wanted("car", "blue"), Wanted("dog")])
    assert (seen.present, seen.colored, seen.missing) == ((True, True), (True, None), False)
    # One car cannot be two; a missing thing has no color.
    seen = check_scene([red], [Wanted("car", "red"), Wanted("car", "blue"), Wanted("cat", "red")])
    assert (seen.present, seen.colored, seen.missing) == ((True, False, False), (True, False, False), True)
    assert not check_scene([red], [Wanted("car", "blue")]).missing
    assert check_scene([red], [Wanted("car", "blue")]).colored == (False,)


class Painted(PocketDetector):
    """Says what the test writes into its grid."""

    def forward(self, pixels):
        words = torch.full((len(pixels), 2, 16, 16), -9.0)
        words[:, 0, 4, 4], words[:, 1, 4, 5], words[:, 1, 12, 12] = 3.0, 2.0, 1.0
        sides = torch.full((len(pixels), 4, 16, 16), 2.5)
        colors = torch.zeros(len(pixels), 2, 16, 16)
        colors[:, 1, 12, 12] = 1
        mixtures = torch.full((len(pixels), 1, 16, 16), -9.0)
        mixtures[:, :, 4, 4:6] = 2.0
        return words, sides, colors, mixtures


def test_one_place_holds_one_thing():
    found = Painted(["cat", "dog"], ["red", "blue"]).detect([Image.new("RGB", (64, 64))] * 2)
    assert found[0] == found[1]
    # The dog at (4, 5) covers the cat at (4, 4), which is surer.
    assert [(d.word, d.color) for d in found[0]] == [("cat", "red"), ("dog", "blue")]
    assert found[0][0].box == pytest.approx((2 / 16, 2 / 16, 7 / 16, 7 / 16))
    assert found[0][0].score == pytest.approx(torch.tensor(3.0).sigmoid().item())
    assert [d.word for d in Painted(["cat", "dog"], ["red", "blue"]).detect([Image.new("RGB", (9, 9))], 0.8)[0]] == [
        "cat"
    ]
    assert Painted(["cat"], ["red"]).detect([]) == []


def test_a_mixture_is_both_of_what_was_wanted():
    found = Painted(["cat", "dog"], ["red", "blue"], mixture=0.8).detect([Image.new("RGB", (64, 64))])[0]
    assert [(d.word, d.also) for d in found] == [("cat", ("dog",)), ("dog", ())]
    assert check_scene(found, wanted("a cat and a dog")).mixed
    assert not check_scene(found, wanted("a cat and a car")).mixed, "likeness to what was not asked for"
    assert not check_scene(found[1:], wanted("a cat and a dog")).mixed


def test_a_mixture_is_where_the_detector_says():
    # Each is but half there: 0.88 is enough of the dog in a mixture, and 0.73 is not enough of one alone.
    found = Painted(["cat", "dog"], ["red", "blue"], mixture=0.8).detect([Image.new("RGB", (64, 64))], 0.94)[0]
    assert [(d.word, d.also) for d in found] == [("cat", ("dog",))]
    found = Painted(["cat", "dog"], ["red", "blue"], mixture=0.9).detect([Image.new("RGB", (64, 64))])[0]
    assert [(d.word, d.also) for d in found] == [("cat", ()), ("dog", ())]


def test_a_word_has_senses():
    detector = Painted(["mouse", "mouse (computer)"], ["red", "blue"], threshold=0.6)
    assert (detector.words, detector.names) == (("mouse",), ("mouse", "mouse (computer)"))
    assert detector.knows("mouse")
    found = detector.detect([Image.new("RGB", (64, 64))])[0]
    assert [(d.word, d.sense, d.name) for d in found] == [
        ("mouse", "", "mouse"),
        ("mouse", "computer", "mouse (computer)"),
    ]
    assert found[0].also == (), "two senses of a word are no mixture"


@pytest.mark.parametrize(("width", "mixed"), [(64, True), (33, True), (31, False)])
def test_a_mixture_in_an_open_vocabulary_has_two_names_at_one_place(width, mixed):
    """The boxes of a dog, less sure, begin where those of a cat do; boxes of one name are one thing."""
    boxes = {"scores": [0.5, 0.9, 0.4], "boxes": [[0, 0, width, 64], [0, 0, 64, 64], [0, 0, 63, 64]]}
    answer = {name: torch.tensor(values) for name, values in boxes.items()}
    answer["text_labels"] = [f"a photo of a {word}" for word in ("dog", "cat", "cat")]
    blank = OpenVocabulary.__new__(OpenVocabulary)
    found = blank._read(Image.new("RGB", (64, 64)), answer, ["cat", "dog"], set())
    assert check_scene(found, wanted("a cat and a dog")).mixed == mixed
    assert check_scene(found, wanted("a cat and a dog")).present == (True, not mixed)
    assert not check_scene(found, wanted("a cat and a car")).mixed


def test_written_and_read(tmp_path):
    torch.manual_seed(0)
    detector = PocketDetector(["cat", "dog"], ["red"], threshold=0.2, mixture=0.7).eval()
    facts = {name: getattr(detector, name) for name in ("names", "colors", "threshold", "mixture")}
    save_file(detector.state_dict(), tmp_path / "detector.safetensors", {"detector": json.dumps(facts)})
    again = PocketDetector.load(tmp_path / "detector.safetensors")
    pixels = torch.randn(2, 3, 128, 128)
    assert all(torch.equal(a, b) for a, b in zip(detector(pixels), again(pixels), strict=True))
    assert (again.words, again.colors, again.threshold, again.mixture) == (("cat", "dog"), ("red",), 0.2, 0.7)
    assert [x.shape for x in again(pixels)] == [(2, count, 16, 16) for count in (2, 4, 1, 1)]


def test_the_benchmarks_things():
    assert wanted("a red car and a dog") == (Wanted("car", "red"), Wanted("dog"))
    assert wanted("an elephant with a glasses") == (Wanted("elephant"), Wanted("glasses"))
    cases = attend_excite()
    assert {case.subset: sum(c.subset == case.subset for c in cases) for case in cases} == {
        "animals": 66,
        "animals_objects": 144,
        "objects": 66,
    }
    assert all(len(case.wanted) == 2 for case in cases)
    # 108 prompts with one colored object and 66 with two.
    assert sum(thing.color is not None for case in cases for thing in case.wanted) == 108 + 132
    assert {thing.color for case in cases for thing in case.wanted} == {None, *COLORS}


@pytest.mark.parametrize("kind", ["mine", "owlv2"])
def test_no_program_of_a_detector_is_run(tmp_path, kind):
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\nclass Mine: pass\n")
    classes = dict.fromkeys(("AutoConfig", "AutoProcessor", "AutoModelForZeroShotObjectDetection"), "code.Mine")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": classes}))
    with pytest.raises(ModelError, match=r"^The detector '.*' cannot be opened: ") as error:
        Scorer(Backbones(clip="pocket", captioner="none", detector=str(tmp_path)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
