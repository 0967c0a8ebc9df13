"""The whole of `limelight validate pocket`, with shares as small as they get, as its users call it."""

import json
import re

import pytest

from limelight.cli import app, terminal
from limelight.validate import calibrate, cost, faithfulness, heads
from limelight.validate.stages import STAGES


@pytest.fixture
def limelight(monkeypatch, capsys):
    """Call the command, and return what it prints."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["limelight", "validate", *arguments])
        monkeypatch.setattr(terminal.console, "width", 200)
        with pytest.raises(SystemExit) as end:
            app.main()
        found = capsys.readouterr()
        assert not end.value.code, found.out + found.err
        return found.out

    return run


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """Fewer units where a stage has some whatever the time is."""
    monkeypatch.setattr(cost, "STEPS", 1)
    monkeypatch.setattr(calibrate, "PROMPTS", 1)
    monkeypatch.setattr(calibrate, "FACTORS", (1.0, 2.0))
    monkeypatch.setattr(faithfulness, "WATCHED", 1)
    monkeypatch.setattr(heads, "SHARES", ())


def test_pocket_from_load_to_heads(tmp_path, limelight):
    said = limelight("pocket", "--budget", "1s", "--steps", "2", "--device", "cpu", "--out", str(tmp_path))
    facts = json.loads((tmp_path / "validation.json").read_text())
    verdicts = {stage["stage"]: stage["verdict"] for stage in facts["stages"]}
    assert list(verdicts) == list(STAGES)
    assert {name: verdicts[name] for name in ("load", "parity", "heads")} == dict.fromkeys(
        ("load", "parity", "heads"), "passed"
    )
    assert set(verdicts.values()) == {"passed", "measured"}
    for name, verdict in verdicts.items():
        assert f"{name}: {verdict}. " in said

    block, page = (tmp_path / "validation.md").read_text(), (tmp_path / "validation.html").read_text()
    assert block.startswith("**limelight validate pocket --device cpu --steps 2 --budget 1s**")
    assert len(re.findall(r"^\| \w+ \| (?:passed|measured) \|", block, re.MULTILINE)) == len(STAGES)
    assert page.count("data:image/png;base64,") == sum(len(stage["figures"]) for stage in facts["stages"]) >= 4

    compared = limelight("compare", str(tmp_path / "validation.json"), str(tmp_path / "validation.json"))
    assert "seconds per step" in compared
