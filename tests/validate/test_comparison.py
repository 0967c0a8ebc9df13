"""Two validations side by side."""

import json

import pytest

from limelight.errors import FileError
from limelight.validate.comparison import compare


def test_what_differs_is_named(check, tiny, tmp_path):
    check(tiny, "load", folder="a")
    check(tiny, "load", folder="b", steps=3)
    found = compare(tmp_path / "a/validation.json", tmp_path / "b/validation.json")
    assert found.differ == {"steps": ("2", "3")}
    assert found.verdicts == {"load": ("passed", "passed")}
    numbers = [json.loads((tmp_path / name / "stages/load.json").read_text())["numbers"] for name in "ab"]
    key = "seconds per step"
    assert found.numbers["load", key] == (numbers[0][key], numbers[1][key])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(FileError, match=r"other\.json' cannot be read as a validation"):
        compare(tmp_path / "other.json", tmp_path / "other.json")
