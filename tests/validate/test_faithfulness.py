"""Faithfulness: guidance that works passes or says nothing, steps of a wrong sign are caught."""

import pytest

from limelight.evaluate.detectors import Detection, PocketDetector
from limelight.evaluate.metrics import METRICS
from limelight.guidance import base
from limelight.validate import faithfulness, instruments

POCKETS = {"clip": "pocket", "captioner": "none", "detector": "pocket"}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(faithfulness, "METHODS", ("plain", "attend-and-excite"))
    monkeypatch.setattr(faithfulness, "WATCHED", 2)


def test_no_prompt_is_both_tuned_and_reported():
    tuned, reported = set(instruments.tuning()), set(instruments.reported())
    assert (len(tuned), len(reported), tuned & reported) == (40, 236, set())
    assert {case.subset for case in instruments.reported()[:12]} == {case.subset for case in reported}


def test_a_model_of_random_weights_shows_nothing(check, tiny):
    outcome = check(tiny, "faithfulness", backbones=POCKETS)["faithfulness"]
    assert outcome.verdict == "measured"
    assert outcome.summary == "The detector finds nothing in images of 1 prompt. Guidance lowers its own objective."
    assert outcome.numbers["things there, plain"] == 0
    assert [table.title for table in outcome.tables][-1].startswith("Published, Stable Diffusion 1.4")


def test_mixed_subjects_are_counted(check, tiny, monkeypatch):
    """In every image one thing could be both of what the prompt names; then only one."""

    def finds(both):
        def find(self, images, things):
            first, second = (thing.word for thing in things)
            also = (second,) if both else ()
            return [[Detection(first, 0.9, (0.0, 0.0, 1.0, 1.0), "red", also)]] * len(images)

        return find

    monkeypatch.setattr(faithfulness, "WATCHED", 1)
    monkeypatch.setattr(PocketDetector, "find", finds(both=True))
    outcome = check(tiny, "faithfulness", backbones=POCKETS)["faithfulness"]
    mixed = {"subjects mixed, plain": 1, "subjects mixed, attend-and-excite": 1}
    assert mixed.items() <= outcome.numbers.items()
    assert outcome.numbers["things there, plain"] == 0.5
    assert "subjects mixed" in outcome.tables[1].columns

    monkeypatch.setattr(PocketDetector, "find", finds(both=False))
    monkeypatch.setattr(faithfulness, "METHODS", ("plain",))
    outcome = check(tiny, "faithfulness", folder="single", backbones=POCKETS)["faithfulness"]
    assert outcome.numbers["subjects mixed, plain"] == 0


def test_steps_of_a_wrong_sign_are_caught(check, tiny, monkeypatch):
    own = base.Steering._descent
    monkeypatch.setattr(base.Steering, "_descent", lambda self, at: -own(self, at))
    outcome = check(tiny, "faithfulness", backbones=POCKETS)["faithfulness"]
    assert outcome.verdict == "failed"
    assert "its steps go the wrong way" in outcome.summary


def test_backbones_that_cannot_be_had_skip_the_stage(check, tiny):
    none = {"clip": "/nowhere/clip", "captioner": "none", "detector": "/nowhere/owl"}
    outcome = check(tiny, "faithfulness", backbones=none)["faithfulness"]
    assert outcome.verdict == "skipped"
    assert "The clip '/nowhere/clip' cannot be opened" in outcome.summary


def test_guidance_that_loses_things_fails():
    def line(change):
        change = None if change is None else {"present": change}
        return faithfulness.Line("focus", "all", 9, {"present": 0.5}, change or {})

    def judged(low, high, rises=0, prompts=9):
        return faithfulness._judged(
            [line(faithfulness.Difference((low + high) / 2, low, high, 0.5, 9))], rises, prompts
        )[1]

    assert judged(-0.3, -0.1) == "failed"
    assert judged(-0.3, 0.1) == "measured"
    assert judged(0.1, 0.3) == "passed"
    assert judged(0.1, 0.3, rises=1) == "failed"
    assert judged(0.1, 0.3, prompts=5) == "measured"


def test_published_rows_name_their_source():
    for paper in faithfulness.published():
        assert "https://" in paper["source"]
        for row in paper["rows"]:
            assert set(row) - {"method"} <= {*METRICS, *faithfulness.PEOPLE}


def test_attention_that_is_not_a_number_is_named(check, tiny, monkeypatch):
    monkeypatch.setattr(faithfulness, "_losses", lambda *args: (float("nan"), float("nan")))
    outcome = check(tiny, "faithfulness", backbones=POCKETS)["faithfulness"]
    assert outcome.verdict == "broken"
    assert "not a number (NaN) in float64" in outcome.summary
