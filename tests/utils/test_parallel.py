"""Jobs that fail, and settings that cannot be. Workers that die: tests/test_evaluate.py."""

from __future__ import annotations

import pytest

from limelight import PromptError, SettingsError
from limelight.utils.parallel import ExecutorError, open_executor


def start(slot):
    return {"slot": slot, "done": 0}


def work(state, job):
    state["done"] += 1
    if isinstance(job, str):
        raise PromptError(job)
    if job < 0:
        raise ValueError("negative")
    return job * job


def test_one_worker():
    made = []
    with open_executor(lambda slot: made.append(start(slot)) or made[0], workers=1) as executor:
        assert made == []  # only when there is something to do
        assert dict(executor.map(work, range(4))) == {0: 0, 1: 1, 2: 4, 3: 9}
        assert dict(executor.map(work, [5])) == {5: 25}
        assert made == [{"slot": 0, "done": 5}]
        with pytest.raises(ExecutorError, match="The job -1 failed 3 times: negative"):
            list(executor.map(work, [-1]))
        with pytest.raises(PromptError, match="no such word"):
            list(executor.map(work, ["no such word"]))
        assert made[0]["done"] == 5 + 3 + 1


def test_a_job_that_fails_once_is_done_again():
    seen = []

    def fails_first(state, job):
        seen.append(job)
        if seen.count(job) == 1:
            raise RuntimeError("a hiccup")
        return -job

    with open_executor(start, workers=1) as executor:
        assert dict(executor.map(fails_first, [1, 2])) == {1: -1, 2: -2}
    assert sorted(seen) == [1, 1, 2, 2]


def test_jobs_are_taken_as_they_are_needed():
    taken = []
    with open_executor(start, workers=1) as executor:
        results = executor.map(work, (taken.append(job) or job for job in range(1000)))
        assert next(results) == (0, 0)
        assert taken == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "Unknown engine 'spark'. Choose one of: local, ray"),
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"address": "auto"}, "The address 'auto' is Ray's"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(SettingsError, match=message), open_executor(start, **options):
        pass
