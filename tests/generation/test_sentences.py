"""What guidance did, in words: the numbers are those of the trace, and the words are true."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import limelight
from limelight.generation.sentences import sentences

GUIDANCE = {"look": 0.08, "enough": 1.0, "targets": {"mixing": 0.1, "binding": 0.1, "neglect": 0.8}}
SETTINGS = {"guidance": GUIDANCE, "steps": 50}
FIRST = {
    "step": 0,
    "plain_presence": [[0.55, 0.62], [0.5, 0.0], [0.5, 0.1], [0.6, 0.6]],
    "plain_neglect": [0.45, 1.0, 0.9, 0.4],
    "plain_mixing": [0.0, 0.05, 0.3, 0.48],
}
AT = {
    "step": 4,
    "presence": [[0.55, 0.62], [0.5, 0.58], [0.5, 0.15], [0.6, 0.6]],
    "neglect": [0.45, 0.5, 0.85, 0.4],
    "mixing": [0.0, 0.02, 0.05, 0.02],
}


def test_sentences():
    assert sentences([FIRST, AT], SETTINGS, [0, 1, 7, 8], ["cat", "monkey"]) == (
        "seed 0: nothing to fix at step 5 (cat 0.55, monkey 0.62)",
        "seed 1: monkey 0.00 -> 0.58 at step 5, fixed",
        "seed 7: monkey 0.10 -> 0.15, mixing 0.30 -> 0.05 at step 5, not yet fixed",
        "seed 8: mixing 0.48 -> 0.02 at step 5, fixed",
    )


def test_a_subject_that_was_there_early_and_is_lost_is_named():
    peaks = [[0.26, 0.02], [0.28, 0.25], [0.2, 0.06], [0.2, 0.06]]
    told = sentences([FIRST, AT], SETTINGS, [0, 1, 7, 8], ["cat", "monkey"], peaks)
    assert told[0] == (
        "seed 0: nothing to fix at step 5 (cat 0.55, monkey 0.62); "
        "perhaps missing: monkey 0.02 in the mean over the run, of up to 0.26"
    )
    assert ["perhaps missing" in line for line in told] == [True, False, False, False]
    assert told[2].endswith("not yet fixed; in the end none seems to be missing")
    assert told[1].endswith("fixed")
    assert told[3].endswith("fixed")


def test_a_low_presence_of_a_method_that_looks_at_no_plain_run_is_not_left_alone():
    """The noun of a colored thing may lose against its color, however plain the thing is."""
    trace = [{"step": 8, "presence": [[0.0, 0.31], [0.3, 0.31], [0.0, 0.31]]}]
    peaks = [[0.2, 0.25], [0.2, 0.25], [0.04, 0.25]]
    assert sentences(trace, SETTINGS, [0, 1, 2], ["red car", "blue bench"], peaks) == (
        "seed 0: red car 0.00, blue bench 0.31 at step 9; in the end none seems to be missing",
        "seed 1: red car 0.30, blue bench 0.31 at step 9",
        "seed 2: red car 0.00, blue bench 0.31 at step 9; "
        "perhaps missing: red car 0.04 in the mean over the run, of up to 0.25",
    )


def test_the_sentences_of_a_result_read_its_maps(tiny):
    """A word of which the maps are taken away is named; without maps there is nothing to say of the end."""
    options = {"steps": 1, "subjects": ["cat", "dog"], "guidance": limelight.AttendAndExcite(scale=0.0, thresholds={})}
    result = limelight.generate(tiny, "a cat and a dog", **options)
    (dog,) = result.maps.prompts[0].find("dog")
    without = result.maps.each(lambda p: p.index_fill(-1, torch.tensor([dog]), 0.0))
    (sentence,) = replace(result, maps=without).sentences()
    assert sentence.endswith(
        f"perhaps missing: dog 0.00 in the mean over the run, of up to {result.maps['cat'].max():.2f}"
    )
    assert "missing" not in limelight.generate(tiny, "a cat and a dog", record=False, **options).sentences()[0]


def test_nothing_is_said_of_a_step_that_was_not_guided():
    """Guidance that ends before the step that was looked at: no number of it can stand beside the plain one."""
    told = sentences([{**FIRST, "presence": AT["presence"]}], SETTINGS, [0, 1, 7, 8], ["cat", "monkey"])
    assert told[1] == "seed 1: monkey 0.00 without guidance at step 5"


@pytest.mark.parametrize("batch", [1, 2])
def test_the_plain_run_is_the_one_that_was_looked_at(tiny, batch):
    """Its presence is that of a run that guidance of scale 0 watches."""
    settings = {"look": 1, "targets": {"neglect": 0.0}, "resolution": None}
    looking = limelight.AttendAndExcite(**settings, thresholds={}, scale=0.0)
    options = {"steps": 2, "seeds": [0, 1], "subjects": ["cat", "dog"], "batch": batch}
    result = limelight.generate(tiny, "a cat and a dog", guidance=looking, **options)
    watching = limelight.AttendAndExcite(thresholds={}, scale=0.0, until=1.0)
    watched = limelight.generate(tiny, "a cat and a dog", guidance=watching, **options)
    for own, other in zip(result.trace[0]["plain_presence"], watched.trace[1]["presence"], strict=True):
        assert own == pytest.approx(other, abs=1e-9)

    cat, _ = result.trace[0]["plain_presence"][1]
    assert result.sentences()[1].startswith(f"seed 1: cat {cat:.2f}")
    last = watched.trace[-1]["presence"][0]
    assert watched.sentences()[0].startswith(f"seed 0: cat {last[0]:.2f}, dog {last[1]:.2f} at step 2")
    assert limelight.generate(tiny, "a cat", steps=1).sentences() == ()
