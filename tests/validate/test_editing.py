"""Editing: edits of known words are measured, and verdicts follow the intervals."""

import pytest

from limelight.evaluate.suites import Case
from limelight.utils.statistics import Difference
from limelight.validate import editing

POCKETS = {"clip": "pocket", "captioner": "none", "detector": "none"}


def test_edits_of_the_embedded_model(check, pocket, monkeypatch):
    cases = (Case("a red car", "own", source="a blue car"), Case("a zebra", "own", source="a cat"))
    monkeypatch.setattr(editing, "load", lambda name: cases)
    outcome = check(pocket, "editing", backbones=POCKETS, height=None, width=None)["editing"]
    assert outcome.verdict == "measured"
    assert "On 1 of 1 edits" in outcome.summary
    assert [row[0] for row in outcome.tables[0].rows] == ["source", "plain", "prompt-to-prompt"]
    assert outcome.numbers["CLIP, to the image before, prompt-to-prompt"] <= 1


def change(low, high):
    return Difference((low + high) / 2, low, high, 0.5, 9)


@pytest.mark.parametrize(
    ("follows", "keeps", "count", "verdict"),
    [
        ((0.1, 0.2), (-0.2, -0.1), 9, "passed"),
        ((0.1, 0.2), (0.1, 0.2), 9, "failed"),
        ((-0.2, -0.1), (-0.2, -0.1), 9, "failed"),
        ((-0.1, 0.1), (-0.2, -0.1), 9, "measured"),
        ((0.1, 0.2), (-0.2, -0.1), 5, "measured"),
    ],
)
def test_verdicts(follows, keeps, count, verdict):
    assert editing._verdict(change(*follows), change(*keeps), count) == verdict


def test_what_cannot_be_measured_is_skipped(check, tiny):
    outcome = check(tiny, "editing", backbones={**POCKETS, "clip": "none", "detector": "pocket"})["editing"]
    assert (outcome.verdict, outcome.summary) == ("skipped", "Edits are measured by CLIP.")
