"""Jobs that fail, and settings that cannot be. Workers that die: tests/evaluate/test_runs.py."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from limelight import PromptError, SettingsError
from limelight.errors import WorkerWarning
from limelight.utils import parallel
from limelight.utils.parallel import ExecutorError, in_this_process, open_executor
from tests.workers import alive, forked_workers, once  # noqa: F401 - a fixture


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
        ({"workers": 0}, "workers=0 must be a whole number from 1"),
        ({"address": "auto"}, "The address 'auto' is Ray's"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(SettingsError, match=message), open_executor(start, **options):
        pass


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(parallel, "LIMIT", 2.0)
    monkeypatch.setattr(parallel, "TICK", 0.1)
    monkeypatch.setattr(parallel, "GRACE", 0.5)


def gets_stuck(state, job):
    """The first time, a worker is stopped from outside, or waits for what does not come."""
    number, folder = job
    if number == 0 and once(folder / "stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if number == 1 and once(folder / "hanging"):
        time.sleep(3600)
    return os.getpid()


def needs_room(monkeypatch):
    """A cluster without room is not waited for."""
    monkeypatch.setattr(parallel, "ROOM", 2.0)
    why = r"no room for a worker \(num_cpus=64\) for 2 seconds. Start more nodes"
    with (
        open_executor(start, engine="ray", workers=1, gpus_per_worker=64) as executor,
        pytest.raises(ExecutorError, match=why),
    ):
        list(executor.map(work, [1]))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_stopped_and_hanging_workers_are_replaced(engine, impatient, monkeypatch, tmp_path, forked_workers):  # noqa: F811
    if engine == "ray":
        pytest.importorskip("ray")
    jobs = [(number, tmp_path) for number in range(3)]
    with open_executor(start, engine=engine, workers=2) as executor:
        with pytest.warns(WorkerWarning, match="did nothing for 2 seconds: it was stopped, or waited for something"):
            done = dict(executor.map(gets_stuck, jobs))
        if engine == "ray":
            needs_room(monkeypatch)  # on the same cluster, as it takes long to start
        # A worker that has nothing to do is not waited for, either. Any may have been replaced since it did its job.
        os.kill(next(number for number in done.values() if alive(number)), signal.SIGSTOP)
    assert done.keys() == set(jobs)
    assert (tmp_path / "stopped").exists()
    assert (tmp_path / "hanging").exists()
    assert not [number for number in done.values() if alive(number)]


def test_a_local_ray_is_not_within_reach_of_the_network(monkeypatch):
    ray, seen = pytest.importorskip("ray"), {}

    def refuse(**options):
        seen.update(options)
        raise ConnectionError("no")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(SettingsError, match="Ray cluster 'local' cannot be reached: no"):
        open_executor(start, engine="ray", workers=1).__enter__()
    assert (seen["address"], seen["_node_ip_address"]) == ("local", "127.0.0.1")
    assert seen["include_dashboard"] is False


def hangs(state, job):
    time.sleep(3600)


def test_a_job_that_always_hangs_is_given_up(impatient, monkeypatch, forked_workers):  # noqa: F811
    monkeypatch.setattr(parallel, "RETRIES", 0)
    why = "The job 7 failed 1 times: its worker did nothing for 2 seconds"
    with (
        open_executor(start, workers=2) as executor,
        pytest.warns(WorkerWarning),
        pytest.raises(ExecutorError, match=why),
    ):
        list(executor.map(hangs, [7]))


def test_doing_nothing_is_measured_in_processor_time(monkeypatch):
    """A worker that computes a little all the time is not stopped, nor is one while this process itself slept."""
    now = [0.0]
    monkeypatch.setattr(parallel.time, "monotonic", lambda: now[0])
    watch, found = parallel._Watch(10.0), {}
    for second in range(40):
        now[0] += 1.0 if second != 5 else 1000.0
        found[second] = watch.still({"slow": 0.05 * second, "idle": 0.02 * second, "stopped": 7.0})
    assert found[8] == []
    assert found[9] == ["idle", "stopped"]
    assert not any("slow" in still for still in found.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "ray", "workers": 1},
            "The open model 'x' cannot go to other workers; give its name, or workers=1.",
        ),
        ({"engine": "local", "workers": 2}, "The open model 'x' cannot go to other workers"),
        (
            {"engine": "local", "workers": 1, "device": "cpu", "loading": {"dtype": "float16"}},
            "The model 'x' is open already; set device and loading where you open it.",
        ),
    ],
)
def test_an_open_model_stays_in_this_process(options, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        in_this_process("model 'x'", **options)
    assert in_this_process("model 'x'", "local", None, device=None, loading={}) == 1
