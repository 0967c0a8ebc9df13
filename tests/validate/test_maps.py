"""Maps: overlaps against numbers that are known."""

import pytest
import torch

import limelight
from limelight.evaluate.detectors import Detection
from limelight.evaluate.suites import Case, Wanted
from limelight.validate import maps
from limelight.validate.maps import Found
from tests import transformers as families

CASE = Case("a cat and a dog", "animals", (Wanted("cat"), Wanted("dog")))
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


class Finds:
    """A detector that sees a cat at the left and a dog at the right."""

    def find(self, images, things):
        boxes = zip(things, (LEFT, RIGHT), strict=False)
        return [[Detection(thing.word, 0.9, box, "red") for thing, box in boxes]]


@pytest.mark.parametrize(("swapped", "verdict"), [(False, "passed"), (True, "failed")])
def test_maps_lie_on_their_own_things(check, tiny, monkeypatch, swapped, verdict):
    """Maps that are put in the place of the model's: each word looks at its own half, or at the other's."""

    def recorded(context, model, case):
        prompt = model.prompt(CASE.prompt)
        layer = model.guided_sites[0]
        size = layer.size((16, 16))
        values = torch.zeros(1, 1, *size, len(prompt.ids))
        words = ("dog", "cat") if swapped else ("cat", "dog")
        values[..., : size[1] // 2, prompt.find(words[0])[0]] = 1
        values[..., size[1] // 2 :, prompt.find(words[1])[0]] = 1
        found = {layer: values.flatten(2, 3)}
        return maps.AttentionMaps(found, (16, 16), (prompt,)), maps.Image.new("RGB", (32, 32))

    monkeypatch.setattr(maps, "tuning", lambda: (CASE,) * 4)
    monkeypatch.setattr(maps, "detector", lambda context: Finds())
    monkeypatch.setattr(maps, "_recorded", recorded)
    outcome = check(tiny, "maps", budget=1000)["maps"]
    assert outcome.verdict == verdict
    # A mask ends where the map has fallen to a fifth: half a pixel of 8 beyond the half.
    own, other = (1 / 16, 8 / 9) if swapped else (8 / 9, 1 / 16)
    assert outcome.numbers["IoU, own thing"] == pytest.approx(own)
    assert outcome.numbers["IoU, other thing"] == pytest.approx(other)
    assert outcome.facts["layers"] == [tiny.guided_sites[0].name]


def test_words_that_look_as_much_at_other_things_prove_nothing():
    assert maps._compared([(0.5, 0.5)] * 9)[0] == "measured"
    assert maps._compared([(0.5, 0.4), (0.4, 0.5)] * 9)[0] == "measured"


def test_of_few_things_nothing_is_said(tiny):
    found = [Found(0.9, 0.1, {"a": 0.5, "b": 0.7})] * (maps.LEAST - 1)
    outcome = maps._outcome(tiny, found, 10, 5, [])
    assert outcome.verdict == "measured"
    assert outcome.facts["layers"] == ["b", "a"]


def test_better_blocks_are_proven_on_things_that_did_not_choose_them(tiny):
    model = limelight.load(families.sd3())
    own, (*_, last) = {layer.name for layer in model.guided_sites}, model.text_sites
    assert last.name not in own

    def found(count, good, bad):
        layers = {layer.name: good if layer is last else bad for layer in model.text_sites}
        return [Found(0.5, None, layers)] * count

    assert maps._better(model, found(2 * maps.LEAST, 0.9, 0.2))[0] == last.name
    assert maps._better(model, found(maps.LEAST, 0.9, 0.2) + found(maps.LEAST, 0.1, 0.2)) == []
    assert maps._better(model, found(maps.LEAST, 0.9, 0.2)) == []
    assert maps._better(tiny, found(2 * maps.LEAST, 0.9, 0.2)) == []
