"""The door of others' files: one sentence for whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from limelight import FileError, MissingDependency, SettingsError
from limelight.utils.reading import Record, from_json, from_python, reading, record


class Row(Record):
    name: str
    score: float


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("line 3 is odd."), "'F' cannot be read as rows: line 3 is odd; correct it."),
        (
            KeyError("a"),
            "'F' cannot be read as rows: something in it is missing or of another kind (KeyError: 'a'); correct it.",
        ),
        (RecursionError("maximum"), "'F' cannot be read as rows: it is nested too deeply; correct it."),
        (MemoryError(), "'F' cannot be read as rows: it does not fit into memory; correct it."),
        (RuntimeError("two\nlines"), "'F' cannot be read as rows: two lines; correct it."),
        (RuntimeError(""), "'F' cannot be read as rows: RuntimeError; correct it."),
        (ValueError("x" * 1000), f"'F' cannot be read as rows: {'x' * 300}...; correct it."),
        (PermissionError(13, "Permission denied"), "'F' cannot be read: Permission denied."),
        (SettingsError("Give two or more."), "'F' cannot be read as rows: Give two or more."),
        (FileError("As it is."), "As it is."),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(tmp_path, error, sentence):
    path = tmp_path / "f"
    path.touch()
    with pytest.raises(FileError) as caught, reading(path, "rows", "correct it"):
        raise error
    assert str(caught.value) == sentence.replace("'F'", f"'{path}'")


def test_a_missing_package_is_named_with_the_file(tmp_path):
    with pytest.raises(MissingDependency, match=r"test_reading\.py': Install it"), reading(__file__):
        raise MissingDependency("Install it.")
    with pytest.raises(KeyboardInterrupt), reading(__file__):
        raise KeyboardInterrupt


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    kinds = {"pipe": "a pipe, a device or a socket", "none": "No such file", ".": "a folder"}
    for name, kind in kinds.items():
        with pytest.raises(FileError, match=kind), reading(tmp_path / name):
            pytest.fail("it was opened")
    with pytest.raises(FileError, match="a pipe, a device or a socket"), reading("/dev/zero"):
        pytest.fail("it was opened")


def test_schemas():
    assert from_json(Row, '{"name": "a", "score": 1, "more": [2]}') == {"name": "a", "score": 1.0, "more": [2]}
    for text, message in {
        '{"name": 1, "score": 1}': "^line 3: name: Input should be a valid string$",
        '{"name": "a", "score": NaN}': "score: Input should be a finite number",
        '{"name": "a", "score": 1e999}': "score: Input should be a finite number",
        '{"name": "a", "score": true}': "score: Input should be a valid number",
        '{"name": "a"}': "score: Field required",
        "[" * 100_000: "recursion limit exceeded",
        "9" * 5000: "number out of range",
        '{"name": "\\ud800", "score": 1}': "Invalid JSON",
    }.items():
        with pytest.raises(ValueError, match=message):
            from_json(Row, text, "line 3")
    made = record("Made", {"a": int})
    assert from_python(made, {"a": 1, "b": "kept"}) == {"a": 1, "b": "kept"}
    with pytest.raises(ValueError, match="a: Input should be a valid integer"):
        from_python(made, {"a": "1"})


def test_schemas_cost_an_import_nothing():
    program = "import sys, limelight, limelight.cli.app; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
