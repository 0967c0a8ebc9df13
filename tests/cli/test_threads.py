"""Threads of small models: as many as cores are idle, and never where a user or a program has chosen."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from limelight.cli import threads
from limelight.cli.threads import choose_threads, idle_threads


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many cores, so many of them busy, and a quota; torch is not imported yet."""

    def of(cores, busy, quota=None, allowed=64):
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: cores)
        monkeypatch.setattr(psutil, "getloadavg", lambda: (busy, 0, 0))
        monkeypatch.setattr(threads, "_quota", lambda: quota)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(allowed), raising=False)

    monkeypatch.delitem(sys.modules, "torch")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "0")  # so that it is put back at the end
        monkeypatch.delenv(name)
    return of


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"cores": 16, "busy": 0.1}, 4),
        ({"cores": 2, "busy": 0.0}, 2),
        ({"cores": 8, "busy": 6.2}, 2),
        ({"cores": 2, "busy": 9.0}, 1),
        ({"cores": 64, "busy": 0.0, "quota": 2}, 2),
        ({"cores": 64, "busy": 0.0, "allowed": 3}, 3),
    ],
)
def test_idle_threads(machine, facts, expected):
    machine(**facts)
    assert idle_threads() == expected


def test_a_small_model_gets_them(machine, tmp_path):
    machine(cores=16, busy=0)
    (tmp_path / "weights").write_bytes(b"0" * 10)
    for model in ("pocket", str(tmp_path)):
        os.environ.pop("OMP_NUM_THREADS", None)
        choose_threads(model)
        assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("model", ["CompVis/stable-diffusion-v1-4", "large"])
def test_large_models_keep_all_threads(machine, model, tmp_path, monkeypatch):
    machine(cores=16, busy=0)
    monkeypatch.chdir(tmp_path)
    os.mkdir("large")
    with open("large/weights", "wb") as file:
        file.truncate(threads.SMALL)
    choose_threads(model)
    assert "OMP_NUM_THREADS" not in os.environ


def test_what_a_user_or_a_program_has_chosen_stays(machine, monkeypatch):
    machine(cores=16, busy=0)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    choose_threads("pocket")
    monkeypatch.delenv("MKL_NUM_THREADS")
    monkeypatch.setitem(sys.modules, "torch", object())
    choose_threads("pocket")
    assert "OMP_NUM_THREADS" not in os.environ
