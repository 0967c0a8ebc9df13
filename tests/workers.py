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


def kill_a_worker(name=None):
    """Kill one of this process's workers; a callback for progress.

    Args:
        name: what its command line contains; None is any process that this one has forked.
    """
    killed = []

    def workers():
        if name is None:
            return [psutil.Process(child.pid) for child in multiprocessing.active_children()]
        return [child for child in psutil.Process().children(recursive=True) if name in " ".join(child.cmdline())]

    def kill(done, total):
        if done and not killed:
            worker = workers()[0]
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
