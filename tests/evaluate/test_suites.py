"""The prompts that ship, and files of the user's."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter

import pytest

from limelight import FileError, SettingsError
from limelight.evaluate.suites import Case, Wanted, load, wanted
from limelight.heads.relevance import Relevance


def test_the_published_prompts():
    cases = load("attend-excite")
    assert Counter(case.subset for case in cases) == {"animals": 66, "animals_objects": 144, "objects": 66}
    text = "\n".join(case.prompt for case in cases)
    stated = "2ef1046044233ec934070d905726a67a36d7f8aacaf23e516841f0dbea7398ba"
    assert hashlib.sha256(text.encode()).hexdigest() == stated
    # What the file says of the subjects is what the prompts say.
    assert all(case.wanted == wanted(case.prompt) and len(case.wanted) == 2 for case in cases)


def test_the_subjects_of_the_benchmark_alone_colored_and_by_three():
    published = {thing.word for case in load("attend-excite") for thing in case.wanted}
    assert {case.wanted[0].word for case in load("single")} == published
    assert [len(load(name)) for name in ("single", "colors", "three", "similar")] == [24, 132, 68, 24]
    assert load("single")[6].prompt == "an elephant"
    assert load("colors")[-1] == Case("a white apple", "colors", (Wanted("apple", "white"),))
    for name in ("single", "colors", "three", "similar"):
        assert all(case.wanted == wanted(case.prompt) for case in load(name))
    assert all(len({thing.word for thing in case.wanted}) == 3 for case in load("three"))


def test_lists_of_head_relevance_vectors():
    sizes = {"multi-1": 66, "multi-2": 150, "edit-color": 50, "edit-material": 50, "edit-pattern": 50}
    for name, size in {**sizes, "edit-style": 50, "edit-weather": 25, "multi": 216, "edit": 225}.items():
        cases = load(f"hrv-{name}")
        assert len(cases) == size == len({case.name for case in cases})
        assert all((case.source is None) == name.startswith("multi") for case in cases)
    assert load("hrv-multi-2")[0].wanted == (Wanted("penguin", "green"), Wanted("bear", "purple"))
    assert load("hrv-edit-color")[0].name == "a blue car -> a brown car"
    concepts = {case.concept for case in load("hrv-edit")}
    assert len(concepts) == 5
    assert all(concepts <= set(Relevance.load(name).concepts) for name in ("sd-1.4", "sdxl"))
    # A detector can say whether a color came; of "a T-shirt with a leopard pattern" it can say nothing.
    assert load("hrv-edit-color")[0].wanted == (Wanted("car", "brown"),)
    assert all(not case.wanted for name in ("pattern", "style", "weather") for case in load(f"hrv-edit-{name}"))


def test_files_of_the_users(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("a cat and a red dog\n\na photo of a cat on a mat, at night\n")
    assert load(text) == (
        Case("a cat and a red dog", "mine", (Wanted("cat"), Wanted("dog", "red"))),
        Case("a photo of a cat on a mat, at night", "mine"),
    )
    edits = tmp_path / "edits.csv"
    edits.write_text("source_prompt,target_prompt,concept\na red car,a blue car,Color\n")
    assert load(edits) == (Case("a blue car", "edits", (Wanted("car", "blue"),), "a red car", "Color"),)
    table = tmp_path / "mine.csv"
    table.write_text('\ufeffprompt,subset,subjects\n"two cars, red and blue",cars,red car;blue car\na cat,cats,\n')
    cases = load(str(table))
    assert cases[0] == Case("two cars, red and blue", "cars", (Wanted("car", "red"), Wanted("car", "blue")))
    assert cases[0].subjects == ("red car", "blue car")
    assert cases[1] == Case("a cat", "cats")


def test_files_of_the_benchmarks(tmp_path):
    """The forms of DrawBench, PartiPrompts and GenEval."""
    (tmp_path / "drawbench.csv").write_text('Prompts,Category\n"A red car, and a dog",Colors\n')
    assert load(tmp_path / "drawbench.csv") == (Case("A red car, and a dog", "Colors"),)
    (tmp_path / "parti.tsv").write_text("Prompt\tCategory\tChallenge\tNote\na cat, a dog\tAnimals\tBasic\t\n")
    assert load(tmp_path / "parti.tsv") == (Case("a cat, a dog", "Animals"),)
    rows = [
        {
            "tag": "colors",
            "include": [{"class": "bench", "count": 1, "color": "red"}],
            "prompt": "a red bench",
        },
        {"tag": "counting", "include": [{"class": "clock", "count": 3}], "prompt": "a photo of three clocks"},
    ]
    (tmp_path / "geneval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load(tmp_path / "geneval.jsonl") == (
        Case("a red bench", "colors", (Wanted("bench", "red"),)),
        Case("a photo of three clocks", "counting"),
    )
    (tmp_path / "list.json").write_text('["a cat", {"prompt": "a dog", "subset": "dogs"}]')
    assert load(tmp_path / "list.json") == (
        Case("a cat", "list", (Wanted("cat"),)),
        Case("a dog", "dogs", (Wanted("dog"),)),
    )


def test_a_quoted_prompt_of_two_lines_is_one_prompt(tmp_path):
    (tmp_path / "a.csv").write_text('prompt\n"a cat\nat night"\na dog\n')
    assert [case.prompt for case in load(tmp_path / "a.csv")] == ["a cat\nat night", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text\na cat\n", "its first line has no column 'prompt'"),
        ("a.csv", "prompt,subset\n,x\n", "line 2 has no prompt"),
        (
            "a.csv",
            "prompt,subset\na cat, a dog,x\n",
            "line 2 has more cells than the first line; put text with a comma",
        ),
        ("a.csv", 'prompt,subset\n"a cat,x\na dog,x\n', "unexpected end of data after line 1; a quote may be open"),
        ("a.json", "{}", "it is not a list"),
        ("a.json", '["a cat", 7]', "entry 2 is neither a prompt nor an object"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt"\n', "line 2: Invalid JSON"),
        ("a.jsonl", '{"prompt": ["a cat"]}', "line 1: prompt: Input should be a valid string"),
        ("a.jsonl", '{"prompt": "a cat", "include": 3}', "line 1: include: Input should be a valid list"),
        ("a.jsonl", "[" * 100_000, "cannot be read"),
        ("a.yaml", "- a cat\n", "must be a file of one of these kinds: .txt, .csv, .tsv, .json, .jsonl"),
        ("a.txt", "\n\n", "has no prompts"),
        ("a.txt", "a cat\na cat\n", "has 'a cat' twice"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileError, match=message):
        load(path)


def test_unknown_suites():
    with pytest.raises(SettingsError, match=r"'nothing' is neither a suite .*attend-excite"):
        load("nothing")


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_the_work_grows_with_the_number_of_prompts_alone(tmp_path, suffix):
    """Counted in calls: ten times the lines take ten times as many, not a hundred times."""

    def calls(lines):
        path = tmp_path / f"{lines}.{suffix}"
        rows = [f"a cat and a dog {number}" for number in range(lines)]
        if suffix == "csv":
            rows.insert(0, "prompt")
        if suffix == "jsonl":
            rows = [json.dumps({"prompt": row}) for row in rows]
        path.write_text("\n".join(rows) + "\n")
        count = 0

        def counted(*_):
            nonlocal count
            count += 1

        sys.setprofile(counted)
        try:
            cases = load(path)
        finally:
            sys.setprofile(None)
        assert len(cases) == lines
        return count

    calls(10)  # what is imported and kept at the first time
    assert calls(20_000) < 11 * calls(2_000)
