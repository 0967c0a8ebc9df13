"""The whole of `limelight validate pocket`, with shares as small as they get, as its users call it."""

import json
import re
import subprocess
import sys

from limelight.validate.stages import STAGES


def limelight(*arguments):
    command = [sys.executable, "-m", "limelight", "validate", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_pocket_from_load_to_heads(tmp_path):
    arguments = ("pocket", "--budget", "1s", "--steps", "2", "--device", "cpu", "--out", str(tmp_path))
    said = limelight(*arguments)
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
