"""`limelight validate`."""

import pytest

from limelight.cli import app as cli
from limelight.cli import terminal
from limelight.cli.validate import parse_budget
from limelight.errors import SettingsError
from limelight.validate import context as module
from limelight.validate import parity


@pytest.fixture
def limelight(monkeypatch, capsys, tiny):
    monkeypatch.setattr(module, "load", lambda *args, **options: tiny)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["limelight", "validate", *map(str, arguments)])
        monkeypatch.setattr(terminal.console, "width", 200)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_the_command_line(limelight, tmp_path, monkeypatch):
    arguments = ["tiny", "--stages", "load", "--steps", "2", "--height", "32", "--width", "32", "--out", tmp_path / "a"]
    code, out, _ = limelight(*arguments)
    assert (code, "load: passed. StableDiffusion in float64" in out) == (0, True)
    code, out, _ = limelight("compare", tmp_path / "a/validation.json", tmp_path / "a/validation.json")
    assert (code, "seconds per step" in out) == (0, True)

    generate = parity.generate
    monkeypatch.setattr(parity, "generate", lambda *given, **options: generate(*given, **{**options, "seeds": 7}))
    arguments[2] = "parity"
    for _ in range(2):  # also where the stage was done before
        code, out, _ = limelight(*arguments)
        assert (code, "parity: failed. Not diffusers' images" in out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--budget", "1y"], "Cannot read --budget '1y'"),
        (["tiny", "--budget", "0"], "budget=0.0 must be"),
        (["tiny", "--stages", "x"], "Unknown stage 'x'"),
        (["compare", "one.json"], "'compare' needs two files, not 1"),
        (["compare", "no.json", "no.json"], "'no.json' cannot be read"),
        (["tiny", "other"], "'other' is one argument too many"),
    ],
)
def test_mistakes_are_explained(limelight, arguments, message, tmp_path):
    code, _, error = limelight(*arguments, "--out", tmp_path / "out")
    assert (code, message in error.replace("\n", " ")) == (2, True)
    assert not (tmp_path / "out").exists()


def test_times():
    assert [parse_budget(text) for text in ("90", "90s", "1.5m", "2h")] == [90, 90, 90, 7200]
    with pytest.raises(SettingsError):
        parse_budget("-1m")
