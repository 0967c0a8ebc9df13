"""Concepts and their words: files of every format, and what is refused."""

from __future__ import annotations

import doctest
import json

import pytest

from limelight.errors import FileError, SettingsError
from limelight.heads import vocabulary
from limelight.heads.vocabulary import Concepts

BAD = {
    "1. Dog\n2. Cat\n": "begins a list, but no concept's name",
    "Animals\n1. Dog\n2. Cat\n\n1. Tree\n2. Rose\n": "line 5: '1. Tree' begins a list",
    "Animals\n1. Dog\nPlants\n1. Tree\nAnimals\n1. Cat\n": "line 5: the concept 'Animals' is there already",
    "Animals\n1. Dog\n2. Cat\nPlants\n1. Rose\n2. dog\n": "The word 'dog' is in 'Animals' and again in 'Plants'",
    "Animals\n1. Dog\n2. Cat\nPlants\n1. Rose\n": "'Plants' has 1 words and 'Animals' has 2",
    "Animals\n1. Dog\n": "1 is too few",
    "": "holds no concepts",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_concept_files(text, tmp_path):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises((FileError, SettingsError), match=BAD[text]):
        Concepts.read(tmp_path / "c.csv")


def test_concept_files_of_every_kind(tmp_path):
    paper = Concepts.read("paper")
    assert len(paper.names) == 34
    assert paper.each == 10
    assert paper.names[0] == "Animals"  # without the file's byte order mark
    assert paper.words["Plants"][6] == "Oak tree"
    (tmp_path / "c.json").write_text(json.dumps(paper.words))
    assert Concepts.read(tmp_path / "c.json") == paper
    assert Concepts.read("pocket").each == 5
    assert Concepts.suited("pocket") == Concepts.read("pocket")
    assert Concepts.suited("CompVis/stable-diffusion-v1-4") == paper
    for text, message in {
        "A: [yes, no]\nB: [a, b]": r"A\.0: Input should be a valid string; give .*in quotes",
        "A: [a]\nA: [b]": "The concept 'A' is there twice",
        "- a": "Input should be a valid dictionary; give",
        "A: [": "cannot be read",
    }.items():
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(FileError, match=message):
            Concepts.read(tmp_path / "c.yaml")
    with pytest.raises(FileError, match="cannot be read: No such file"):
        Concepts.read(tmp_path / "none.csv")


def test_examples():
    found = doctest.testmod(vocabulary)
    assert found.attempted > 0
    assert found.failed == 0
