"""Processes of tests: forks, which need no imports, and workers that die."""

from __future__ import annotations

import multiprocessing
import pickle

import psutil
import pytest

from limelight.utils import parallel

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def forked_workers(monkeypatch):
    """Local workers are forks of this process. What they are given is pickled all the same."""
    begin = parallel._begin

    def pickled(start, slots):
        begin(pickle.loads(pickle.dumps(start)), slots)

    monkeypatch.setattr(parallel, "_begin", pickled)
    monkeypatch.setattr(parallel.multiprocessing, "get_context", lambda method: FORK)


def opened(monkeypatch, module, model):
    """The arguments with which a module calls `load`, which then gives this model."""
    seen = {}

    def load(source, **options):
        seen.update(source=source, **options)
        return model

    monkeypatch.setattr(module, "load", load)
    return seen


def kill_a_worker():
    """Kill one of the processes that this one has forked; a callback for progress."""
    killed = []

    def kill(done, total):
        if done and not killed:
            worker = multiprocessing.active_children()[0]
            worker.kill()
            killed.append(worker.pid)

    return kill, killed


def once(path):
    """Whether this is the first call with the path of a file that is not there yet, of all processes."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def alive(number):
    """Whether a process is there, and not only its number."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
