"""Inputs that nobody should give: right results or one sentence, never a traceback, never an endless wait.

A sample runs by default. `LIMELIGHT_FUZZ=all` runs all inputs.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator

import pytest
from PIL import Image

from limelight.cli import app
from limelight.errors import LimelightError
from limelight.models import loading
from tests.fuzz.calls import CALLS
from tests.fuzz.commands import LINES
from tests.fuzz.doors import DOORS, PLACES, knock, place

LIMIT = 10
SHOWN = (("word", "show"), ("evaluate", "score"))
"""Commands that write nothing, or into the folder that they read."""


class Endless(BaseException):
    """An input took too long; no reader may take that for a fault of the file."""


def sample(inputs: list, count: int) -> list:
    """Some of the inputs, always the same; all with LIMELIGHT_FUZZ=all."""
    if os.environ.get("LIMELIGHT_FUZZ") == "all":
        return inputs
    return random.Random(0).sample(inputs, count)


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    """No input takes longer than `LIMIT` seconds."""

    def stop(*_: object) -> None:
        raise Endless(f"more than {LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT * float(os.environ.get("LIMELIGHT_FUZZ_SLOWER", 1)))
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _short(value: object) -> str:
    """An argument as a part of a test's name."""
    if isinstance(value, tuple) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    return ascii(value)[-50:] if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


FILES = [(name, kind) for name, door in DOORS.items() for kind in door.kinds(name)]


@pytest.mark.parametrize("name", sample(list(DOORS), 10))
def test_sound_files(name, tmp_path, models):
    assert knock(DOORS[name], DOORS[name].make(tmp_path)) == "accepted" or name == "word.png"


@pytest.mark.parametrize(("name", "kind"), sample(FILES, 45))
def test_files(name, kind, tmp_path, models):
    door = DOORS[name]
    path = door.make(tmp_path)
    if kind in PLACES:
        place(path, kind)
    else:
        path.write_bytes(door.spoil(name, kind, path.read_bytes()))
    knock(door, path)


@pytest.mark.parametrize(("refused", "line"), sample(LINES, 25), ids=_short)
def test_command_lines(refused, line, tmp_path, models, monkeypatch, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "image.png")
    line = tuple("image.png" if word == "IMAGE" else word for word in line)
    if line and line[0] not in ("calibrate", "tokens", "info") and line[:2] not in SHOWN and "--out" not in line:
        line = (*line, "--out", "out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["limelight", *line])

    with pytest.raises(SystemExit) as end:
        app.main()

    printed = capsys.readouterr()
    code = end.value.code or 0
    errors = [text for text in printed.err.splitlines() if text.startswith("error: ")]
    assert code in (0, 2)
    assert code == 2 or not refused, f"accepted: {line}"
    assert len(errors) == (code == 2) or "Usage:" in printed.err
    assert "Traceback" not in printed.err
    assert "\x1b" not in printed.out + printed.err
    assert "\u202e" not in printed.out + printed.err


@pytest.mark.parametrize(("call", "name", "value"), sample(CALLS, 20), ids=_short)
def test_calls(call, name, value, models):
    model = loading.load("pocket", device="cpu", scheduler="ddim")
    with pytest.raises(LimelightError) as error:
        call(model, **{name: value})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1500
