from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from limelight.cli import app as cli
from limelight.cli import generate, terminal
from limelight.guidance.base import Move, Score
from limelight.heads.relevance import Relevance
from tests.conftest import saved, unhashed

SHIPPED_VECTORS = Path(sys.modules[Relevance.__module__].__file__).with_name("vectors")


@pytest.fixture
def limelight(monkeypatch, capsys, models):
    """Run a command line in this process: returns (exit code, what it printed, what it complained of)."""

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["limelight", *arguments])
        monkeypatch.setattr(terminal.console, "width", 200)
        monkeypatch.setattr(terminal.log, "width", 200)
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_compare(limelight, tmp_path):
    code, out, err = limelight(
        *("generate", "a cat and a dog", "--compare", "--seeds", "0-1,5", "--steps", "2", "--out", str(tmp_path / "o"))
    )
    assert code == 0
    assert "6 images and a-cat-and-a-dog-grid-" in out
    assert "subjects: cat, dog" in err
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == ["seed 0", "seed 1", "seed 5"]
    names = sorted(map(unhashed, (tmp_path / "o").glob("*.png")))
    rows = [f"a-cat-and-a-dog-{kind}-{seed}.png" for kind in ("guided", "plain") for seed in (0, 1, 5)]
    assert names == sorted([*rows, "a-cat-and-a-dog-grid.png"])
    with Image.open(saved(tmp_path / "o", "a-cat-and-a-dog-grid.png")) as sheet:
        assert sheet.size == (3 * 260 + 4, 2 * 260 + 4 + 4 * 20)  # twice as large; a title, seeds, and two labels
    with Image.open(saved(tmp_path / "o", "a-cat-and-a-dog-plain-5.png")) as image:
        settings = json.loads(image.text["limelight"])
    assert (settings["seed"], settings["guidance"], settings["model"]) == (5, None, "pocket")


def test_plain_needs_no_subjects(limelight, tmp_path):
    code, _, _ = limelight(
        "generate", "sunset at dawn over there", "--guidance", "none", "--steps", "1", "--out", str(tmp_path)
    )
    assert code == 0
    assert saved(tmp_path, "sunset-at-dawn-over-there-plain-0.png")


def test_a_second_call_with_other_settings_keeps_the_first(limelight, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for scale in ("7.5", "3", "7.5"):
        code, _, _ = limelight(
            *(
                "generate",
                "\U0001f431",
                "--subjects",
                "",
                "--guidance",
                "none",
                "--steps",
                "1",
                "--guidance-scale",
                scale,
            ),
            "--out=~/kept",
        )
        assert code == 0
    assert len(list((tmp_path / "kept").glob("*.png"))) == 2 + 2


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a cat and a dog", "--compare"),
        ("edit", "a red car", "a blue car"),
        ("explain", "a cat", "--guidance", "none", "--html"),
    ],
    ids=lambda command: command[0],
)
def test_other_settings_replace_no_file(limelight, tmp_path, command):
    assert limelight(*command, "--steps", "1", "--out", str(tmp_path))[0] == 0
    first = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert limelight(*command, "--steps", "1", "--guidance-scale", "3", "--out", str(tmp_path))[0] == 0
    assert {path: path.read_bytes() for path in first} == first
    assert len(list(tmp_path.iterdir())) == 2 * len(first)


def test_redraw(limelight, tmp_path):
    out = tmp_path / "first"
    command = ("generate", "a cat", "--guidance", "none", "--steps", "1", "--scheduler", "euler", "--device", "cpu")
    assert limelight(*command, "--out", str(out))[0] == 0
    first = saved(out, "a-cat-plain-0.png")
    code, said, _ = limelight("redraw", str(first), "--device", "cpu", "--out", str(tmp_path / "again"))
    assert (code, said.splitlines()[0]) == (0, f"The same image as '{first}', pixel by pixel.")
    assert saved(tmp_path / "again", "a-cat-0.png")

    code, _, error = limelight("redraw", str(saved(out, "a-cat-grid.png")), "--out", str(tmp_path / "no"))
    assert (code, "it is a sheet of several images; name one of them" in error) == (2, True)
    assert not (tmp_path / "no").exists()


def test_redraw_with_a_model_that_lies_elsewhere_now(limelight, tiny_folder, tmp_path):
    """Opened with the number type and the scheduler of the image."""
    shutil.copytree(tiny_folder, tmp_path / "here")
    command = ["generate", "a cat", "--model", str(tmp_path / "here"), "--guidance", "none", "--steps", "2"]
    command += ["--dtype", "float64", "--scheduler", "euler", "--height", "32", "--width", "32", "--device", "cpu"]
    assert limelight(*command, "--out", str(tmp_path / "first"))[0] == 0
    (tmp_path / "here").rename(tmp_path / "there")
    first = saved(tmp_path / "first", "a-cat-plain-0.png")
    again = ["redraw", str(first), "--device", "cpu", "--out", str(tmp_path / "again")]
    assert limelight(*again)[0] == 2
    code, said, _ = limelight(*again, "--model", str(tmp_path / "there"))
    assert (code, said.splitlines()[0]) == (0, f"The same image as '{first}', pixel by pixel.")


def test_merged_head_vectors_replace_no_others(limelight, tmp_path):
    out = tmp_path / "vectors.safetensors"
    Relevance.load("sd-1.4").save(out)
    before = out.read_bytes()
    part = SHIPPED_VECTORS / "pocket.safetensors"
    code, _, error = limelight("heads", "merge", str(part), "--out", str(out))
    assert (code, f"'{out}' exists already and holds something else" in error) == (2, True)
    assert out.read_bytes() == before
    other = str(tmp_path / "other.safetensors")
    assert limelight("heads", "merge", str(part), "--out", other)[0] == 0
    assert limelight("heads", "merge", str(part), "--out", other)[0] == 0


def interrupt(*_, **__):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("limelight.generation.generate.decoded", "Stopped: nothing is saved, as images are saved when all are"),
        ("limelight.generation.result.Result.save_grid", "are whole; the same command adds those that are missing."),
    ],
)
def test_ctrl_c_while_generating(limelight, tmp_path, monkeypatch, name, message):
    """A real signal, before the images are saved and between them."""
    monkeypatch.setattr(name, interrupt)
    command = ("generate", "a cat", "--guidance", "none", "--steps", "1", "--out", str(tmp_path))
    code, out, error = limelight(*command)
    assert (code, out, error.count("\n"), message in error) == (130, "", 2, True)  # the first: what is loaded
    assert bool(list(tmp_path.iterdir())) == ("whole" in message)

    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["limelight", *command])
    with pytest.raises(SystemExit):
        cli.main()
    assert saved(tmp_path, "a-cat-grid.png")


def test_many_seeds_fill_rows_of_eight(limelight, tmp_path):
    code, _, _ = limelight(
        "generate", "a cat", "--seeds", "0-9", "--guidance", "none", "--steps", "1", "--out", str(tmp_path)
    )
    assert code == 0
    with Image.open(saved(tmp_path, "a-cat-grid.png")) as sheet:
        assert sheet.size == (8 * 260 + 4, 2 * 260 + 4 + 3 * 20)  # a title, and the seeds of each row


def test_an_audition(limelight, tmp_path):
    """The winner's seed is in the name and in the file."""
    arguments = ["generate", "a cat and a dog", "--guidance", "none", "--audition", "2", "--steps", "2"]
    code, _, _ = limelight(*arguments, "--out", str(tmp_path))
    assert code == 0
    (image,) = (path for path in tmp_path.glob("*.png") if "grid" not in path.name)
    with Image.open(image) as file:
        settings = json.loads(file.text["limelight"])
    assert settings["seed"] in (0, 1_000_000)
    assert settings["audition"]["candidates"] == 2


def test_boxes(limelight, tmp_path):
    arguments = ["generate", "a cat and a dog", "--steps", "1", "--guidance", "none", "--out", str(tmp_path)]
    code, _, _ = limelight(*arguments, "--place", "cat=0,.4,.5,1", "--place", "dog = .5, 0, 1, 1")
    assert code == 0
    with Image.open(saved(tmp_path, "a-cat-and-a-dog-guided-0.png")) as image:
        settings = json.loads(image.text["limelight"])
    assert settings["place"] == {"cat": [0, 0.4, 0.5, 1], "dog": [0.5, 0, 1, 1]}


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (["cat=0,0,1"], "--place 'cat=0,0,1' must be WORD=LEFT,TOP,RIGHT,BOTTOM, for example cat=0,.4,.5,1."),
        (["0,0,1,1"], "--place '0,0,1,1' must be WORD="),
        (["cat=0,0,1,x"], "--place 'cat=0,0,1,x' must be WORD="),
        (["cat=0,0,1,2"], "The box of 'cat', (0.0, 0.0, 1.0, 2.0), lies outside the image"),
        (["cat=.5,0,.5,1"], "The box of 'cat', (0.5, 0.0, 0.5, 1.0), is empty"),
        (["horse=0,0,1,1"], "'horse' is not in the prompt; its words are: a, cat, and, a, dog."),
        (["cat=0,0,1,1", "cat=0,0,1,1"], "--place gives 'cat' two boxes"),
    ],
)
def test_boxes_that_cannot_be(limelight, tmp_path, place, message):
    asked = [part for box in place for part in ("--place", box)]
    code, _, err = limelight("generate", "a cat and a dog", *asked, "--out", str(tmp_path))
    assert code == 2
    assert message in " ".join(err.split())
    assert not list(tmp_path.glob("*"))


def test_verbose(limelight, tmp_path):
    arguments = ["generate", "a cat and a dog", "--seeds", "[0,1]", "--steps", "4", "--verbose", "--out", str(tmp_path)]
    arguments += ["--guidance", "attend-and-excite"]
    code, _, err = limelight(*arguments, "--scheduler", "euler", "--batch", "2")
    assert code == 0
    for heading in ("step", "seconds", "image", "loss", "cat", "dog", "refinements"):
        assert heading in err
    rows = [line.split("│")[1:-1] for line in err.splitlines() if line.count("│") == 8]
    # Two of four steps are guided, each with a line for both images.
    assert [row[0].strip() for row in rows] == ["1/4", "", "2/4", "", "3/4", "4/4"]
    assert all(0 <= float(row[3]) <= 1 for row in rows[:4])
    with Image.open(saved(tmp_path, "a-cat-and-a-dog-guided-1.png")) as image:
        assert json.loads(image.text["limelight"])["scheduler"] == "EulerDiscreteScheduler"


def test_subjects_are_asked_for(limelight, tmp_path, monkeypatch):
    arguments = ["generate", "a cat and a dog", "--subjects", "ask", "--steps", "1", "--out", str(tmp_path)]
    code, _, err = limelight(*arguments)
    assert (code, "--subjects ask needs a terminal" in err) == (2, True)
    monkeypatch.setattr(generate.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(generate.typer, "prompt", lambda _: "[2, dog]")
    code, out, _ = limelight(*arguments)
    assert (code, "dog</w>" in out) == (0, True)
    with Image.open(saved(tmp_path, "a-cat-and-a-dog-guided-0.png")) as image:
        assert json.loads(image.text["limelight"])["subjects"] == [2, "dog"]


def test_words_that_the_model_has_never_seen(limelight, tmp_path):
    options = ["--steps", "1", "--out", str(tmp_path)]
    code, _, err = limelight("generate", "a cat and a xylophone", "--compare", *options)
    assert code == 0
    said = (
        "warning: The model 'pocket' has never seen '{}'; what it generates for that means nothing; "
        "try words of `limelight info`."
    )
    assert err.count(said.format("xylophone")) == 1
    assert said.format("zebra") in limelight("edit", "a cat", "a zebra", *options)[2]
    assert " elephant " in limelight("info")[1]


def test_words_beyond_the_length(limelight, tmp_path):
    """One warning, also where guided and plain images are generated; the lost words are quoted."""
    prompt = "a cat and a dog, " + "red " * 40 + "car"
    options = ["--subjects", "cat,dog", "--steps", "1", "--out", str(tmp_path)]
    code, _, err = limelight("generate", prompt, "--compare", *options)
    assert code == 0
    assert err.count("warning: ") == 1
    assert "warning: The model 'pocket' reads 32 tokens of a prompt and leaves out 'red', 'car' of 'a cat and" in err


def test_explain(limelight, tmp_path):
    arguments = [
        "explain",
        "a cat and a dog",
        "--compare",
        "--over-time",
        "--html",
        "--words",
        "cat,dog",
        "--also",
        "tree, ball",
        "--steps",
        "2",
    ]
    code, out, _ = limelight(*arguments, "--out", str(tmp_path / "o"))
    assert code == 0
    names = [f"a-cat-and-a-dog-{name}" for name in ("words-0.png", "compare-0.png", "trace-0.png", "steps-0.png")]
    names += ["a-cat-and-a-dog-animation-0.webp", "a-cat-and-a-dog-explain.html"]
    assert sorted(map(unhashed, (tmp_path / "o").iterdir())) == sorted(names)
    assert all(path.name in out for path in (tmp_path / "o").iterdir())
    page = next((tmp_path / "o").glob("*.html")).read_text(encoding="utf-8")
    assert "the attention maps of \u201ccat\u201d, \u201cdog\u201d, \u201ctree\u201d, \u201cball\u201d" in page


def test_explain_for_other_programs(limelight, tmp_path):
    explain = ("explain", "a cat and a dog", "--steps", "1", "--out", str(tmp_path / "o"), "--words", "cat,dog")
    code, out, _ = limelight(*explain, "--json", "--export", "tif,npz")
    assert code == 0
    found = json.loads(out)
    assert found["images"][0]["pairs"][0]["words"] == ["cat", "dog"]
    assert sorted(found["files"]) == sorted(map(str, (tmp_path / "o").iterdir()))
    assert {Path(name).suffix for name in found["files"]} == {".png", ".tif", ".npz"}
    code, _, err = limelight(*explain, "--export", "pdf")
    assert code == 2
    assert "Unknown --export 'pdf'. Choose of: npz, tif, json." in err


def test_explain_an_image_that_exists(limelight, tmp_path):
    photo = tmp_path / "photo.png"
    Image.effect_noise((150, 100), 60).save(photo)
    explain = ("explain", "a cat and a dog", "--image", str(photo), "--out", str(tmp_path / "o"))
    code, out, _ = limelight(*explain, "--steps", "2", "--exact", "--html", "--words", "cat", "--also", "tree")
    assert code == 0
    names = [f"a-cat-and-a-dog-{name}" for name in ("words-0.png", "places-0.png", "explain.html")]
    assert [unhashed(Path(line)) for line in out.split()] == names
    page = next((tmp_path / "o").glob("*.html")).read_text(encoding="utf-8")
    assert "For each of \u201ccat\u201d, \u201ctree\u201d: its mask in color" in page
    assert "Seed" not in page
    for option in (("--negative", "x"), ("--guidance", "none"), ("--compare",), ("--seeds", "1")):
        code, _, err = limelight(*explain, *option)
        assert code == 2
        assert f"{option[0]} is for images that are generated. Leave out --image." in err
    code, _, err = limelight("explain", "a cat", "--exact")
    assert code == 2
    assert "exact is for an image that exists" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--also", "cat"], "error: 'cat' is in the prompt"),
        (["--words", "dig"], "error: 'dig' is not in the prompt; its words are: a, cat, and, a, dog."),
        (["--guidance", "none", "--compare"], "error: There is nothing to compare without guidance"),
        (["--subjects", "cow"], "error: 'cow' is not in the prompt"),
        (["--steps", "0"], "error: steps=0 must be a whole number"),
        (["--out", "/dev/null/x"], "cannot be written"),
    ],
)
def test_a_bad_explanation_is_one_sentence_and_exit_code_2(limelight, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = limelight("explain", "a cat and a dog", *arguments)
    assert (code, message in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_tokens(limelight):
    code, out, _ = limelight("tokens", "a zebra and a dog")
    assert code == 0
    assert out.count("zebra") > 1
    assert "dog</w>" in out
    _, out, _ = limelight("tokens", "a cat " * 40)
    assert "Beyond the 32 tokens" in out


def test_info(limelight):
    code, out, _ = limelight("info", "--device", "cpu")
    assert code == 0
    for expected in ("pocket", "StableDiffusionPipeline", "float32", "cpu", "torch"):
        assert expected in out


LOADING = {
    "generate": ["generate", "a cat"],
    "edit": ["edit", "a cat", "a dog"],
    "explain": ["explain", "a cat"],
    "info": ["info"],
    "calibrate": ["calibrate"],
    "web": ["web"],
    "heads compute": ["heads", "compute", "--out", "x"],
    "heads weaken": ["heads", "weaken"],
    "evaluate run": ["evaluate", "run", "--out", "x"],
    "validate": ["validate"],
    "tokens": ["tokens", "a cat"],
}


@pytest.mark.parametrize("command", LOADING)
def test_how_weights_are_kept_is_an_option_of_every_command(limelight, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for options, message in (
        (["--quantize", "3bit"], "Unknown quantize='3bit'. Choose one of: 8bit, 4bit"),
        (["--offload", "model", "--dtype", "float8"], "Unknown dtype 'float8'"),
        (["--offload", "group"], "Unknown offload='group'. Choose one of: model, sequential"),
    ):
        code, _, err = limelight(*LOADING[command], *options)
        assert code == 2
        assert message in err


def test_an_image_says_itself_how_its_weights_were_kept(limelight, tmp_path):
    for name, value in (("dtype", "float16"), ("quantize", "8bit")):
        code, _, err = limelight("redraw", "a.png", f"--{name}", value, "--out", str(tmp_path / "out"))
        assert (code, f"Leave out --{name} {value}." in err) == (2, True)
    code, _, err = limelight("redraw", "a.png", "--offload", "group", "--out", str(tmp_path / "out"))
    assert (code, "Unknown offload='group'. Choose one of: model, sequential" in err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--quantize", "8bit"], ["--offload", "model"]])
def test_words_are_learned_of_whole_weights(limelight, options, tmp_path):
    code, _, err = limelight("learn", str(tmp_path), "--token", "<cat>", *options)
    assert code == 2
    assert f"A word is not learned with {' '.join(options)}: " in err
    assert "Use --checkpoint or --dtype bfloat16" in err


def test_a_plan(limelight):
    code, out, err = limelight("info", "--plan", "--steps", "20")
    assert code == 0
    assert "counting pocket" in err
    for expected in ("128x128 pixels, float16", "text_encoder", "guided, checkpointed", "a plain run of 20 steps"):
        assert expected in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "20"], "--steps is for a plan. Add --plan, or leave it out."),
        (["--plan", "--device", "cpu"], "Leave out --device and --offload."),
        (["--plan", "--guidance", "none"], "A plan is of a guided run. Leave out --guidance none."),
        (
            ["--plan", "--dtype", "float8"],
            "Unknown dtype 'float8'. Choose one of: float32, float16, bfloat16, float64.",
        ),
        (["--plan", "--quantize", "3bit"], "Unknown quantize='3bit'. Choose one of: 8bit, 4bit"),
        (["--plan", "--model", "nowhere"], "'nowhere' is neither a folder in diffusers' layout nor a hub id"),
    ],
)
def test_plans_that_cannot_be_made(limelight, options, message):
    code, out, err = limelight("info", *options)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subjects", "cat,dig"], "error: 'dig' is not in the prompt; its words are: a, cat, and, a, dog."),
        (["--subjects", "99"], "error: Token index 99 is not in the prompt"),
        (["--seeds", "3-1"], "error: Cannot read '3-1' as seeds. Write for example 0-3,7."),
        (["--seeds", "x"], "error: Cannot read 'x' as seeds"),
        (["--model", "nowhere"], "error: 'nowhere' is neither a folder, a checkpoint"),
        (["--height", "100"], "error: The size 100x128 does not fit this model"),
        (["--resolution", "7"], "error: No layer has maps of 7x7 for this image; there are: 8x8."),
        (["--steps", "0"], "error: steps=0 must be a whole number from 1 to 10000."),
        (["--steps", "2000"], "error: steps=2000 does not fit the schedule"),
        (["--seeds", "0-99999999999"], "error: '0-99999999999' is too many seeds"),
        (["--height", "0"], "error: height=0 must be a whole number from 1 to 8192."),
        (["--height", "8", "--width", "8"], "error: The image is too small"),
        (["--scale", "nan"], "error: scale=nan must be a number"),
        (["--compare", "--guidance", "none"], "error: --compare needs guidance, boxes or head edits"),
        (["--scale", "3", "--guidance", "none"], "error: --scale is a setting of guidance. Leave out --guidance none."),
        (["--guidance", "magic"], "error: Unknown guidance 'magic'. Choose one of: recommended, attend-and-excite,"),
        (["--subjects", "cat,\u00b2"], "error: '\u00b2' is not in the prompt"),
        (["--model", "~nosuchuser/m"], "error: '~nosuchuser/m' is neither a folder, a checkpoint"),
        (["--model", "m" * 300], "is neither a folder, a checkpoint"),
        (["--out", "/dev/null/x"], "cannot be written"),
        (["--device", "toaster"], "error: Unknown device 'toaster'"),
        (["--quantize", "3bit"], "error: Unknown quantize='3bit'. Choose one of: 8bit, 4bit."),
        (["--device", "cpu", "--offload", "model"], "error: offload='model' keeps parts of a model in the main memory"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(limelight, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = limelight("generate", "a cat and a dog", "--steps", "1", *arguments)
    assert code == 2
    assert message in err.replace("\u2502", "")
    assert list(tmp_path.iterdir()) == []


def test_edit(limelight, tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    code, out, _ = limelight(
        *("edit", "a red car", "a blue car", "a car", "--seeds", "0-1", "--steps", "2"),
        *("--cross", "0.5", "--cross", "car=1", "--reweight", "car=2", "--local", "car", "--out", str(first)),
        *("--strengthen", "blue=Color"),
    )
    assert code == 0
    assert "6 images and a-red-car-to-a-blue-car-" in out
    assert len(list(first.glob("*.png"))) == 7
    with Image.open(saved(first, "a-blue-car-1.png")) as image:
        settings = json.loads(image.text["limelight"])
    assert (settings["source"], settings["cross_steps"]) == ("a red car", {"*": 0.5, "car": 1.0})
    given = str(saved(first, "a-red-car-0.png"))
    code, _, _ = limelight(
        "edit", "a red car", "a blue car", "--image", given, "--steps", "1", "--out", str(second), "--null-text"
    )
    assert code == 0
    assert len(list(second.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reweight", "car"], "'car' is not of the form WORD=NUMBER"),
        (["--image", "nowhere.png"], "'nowhere.png' cannot be read: No such file"),
        (["--image", __file__], "cannot be read: it is not an image"),
        (["--mode", "replace"], "has 3 words and 'a big blue car' has 4"),
    ],
)
def test_bad_edits(limelight, tmp_path, arguments, words):
    code, _, error = limelight("edit", "a red car", "a big blue car", *arguments, "--out", str(tmp_path / "o"))
    assert code == 2
    assert words in error
    assert not (tmp_path / "o").exists()


LIGHT = """
import json, os, sys
from limelight.cli.app import main

def child(arguments):
    sys.argv = ["limelight", *arguments]
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    heavy = {"torch", "diffusers", "transformers", "matplotlib"} & sys.modules.keys()
    print(code, sorted(heavy), file=sys.stderr)

said = []
for arguments in json.load(sys.stdin):
    reading, writing = os.pipe()
    if not os.fork():
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        child(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said.append([pipe.read(), os.listdir()])
    os.wait()
json.dump(said, sys.stdout)
"""
LIGHT_COMMANDS = [
    (["--help"], 0, "evaluate"),
    (["generate", "--help"], 0, "euler-a"),
    (["evaluate", "run", "--help"], 0, "attend-excite"),
    (["heads", "compute", "--help"], 0, "paper"),
    (["generate"], 2, "Missing argument"),
    (["generate", "a cat", "--seeds", "x"], 2, "error: Cannot read 'x' as seeds"),
    (["generate", "a cat", "--nonsense"], 2, "No such option: --nonsense"),
    (["generate", "a cat", "--out", "/dev/null/x"], 2, "error: '/dev/null/x' cannot be written"),
    (["edit", "a cat", "a dog", "--reweight", "dog"], 2, "not of the form WORD=NUMBER"),
    (["evaluate", "run", "--out", "x", "--suite", "none"], 2, "error: 'none'"),
    (["heads", "compute", "--out", "x", "--part", "half"], 2, "error: Cannot read --part half"),
    (["learn", "images"], 2, "error: Name the word"),
]


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """What each command prints, and the files that it leaves: forks of one process that has imported the commands."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        input=json.dumps([arguments for arguments, _, _ in LIGHT_COMMANDS]),
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("light"),
        env={**os.environ, "COLUMNS": "200"},
        check=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("index", range(len(LIGHT_COMMANDS)), ids=lambda i: " ".join(LIGHT_COMMANDS[i][0]))
def test_help_and_wrong_arguments_import_nothing_heavy(light, index):
    _, code, expected = LIGHT_COMMANDS[index]
    said, left = light[index]
    assert expected in said
    assert said.endswith(f"{code} []\n")
    assert left == []


def process(*arguments, **options):
    environment = {**os.environ, **options.pop("environment", {})}
    return subprocess.run(
        [sys.executable, *arguments], capture_output="stdout" not in options, env=environment, timeout=300, **options
    )


# A model is loaded, then two command lines print their exit codes, all in one process: imports cost more than commands.
TWICE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import limelight
from limelight.evaluate.clip import Captioner, Clip
limelight.load("pocket", device="cpu"), Clip(), Captioner()
print("loaded", file=sys.stderr)
from limelight.__main__ import main
own = sys.argv
for arguments in (own[1:], ["tokens", "a cat", "--model", "nowhere"]):
    sys.argv = [own[0], *arguments]
    try:
        main()
    except SystemExit as end:
        print("code", end.code or 0, file=sys.stderr)
        sys.stderr.flush()
"""


def test_a_terminal_without_letters(tmp_path):
    """In a process of its own: nothing but what each command says, no notices of other libraries, no traceback.

    Loading models prints nothing at all.
    """
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = os.fsencode(tmp_path) + "/caf\u00e9".encode()
    options = ("--guidance", "none", "--steps", "1", "--device", "cpu", "--out", out)
    done = process("-c", TWICE, "generate", "a cat \u732b".encode(), *options, environment=plain, cwd=tmp_path)
    loading, said = done.stderr.decode().split("loaded\n")
    assert loading == ""
    said, failed = said.split("code 0\n")
    assert said.startswith("loading pocket ...\nwarning: The model 'pocket' has never seen '\\u732b'")
    assert said.count("\n") == 2
    assert done.stdout.startswith(b"1 image and a-cat-grid-")
    assert failed.startswith("loading nowhere ...\nerror: 'nowhere' is neither a folder, a checkpoint")
    assert (failed.count("\n"), failed.endswith("\ncode 2\n")) == (3, True)
    assert os.listdir(tmp_path) == ["caf\u00e9"]
    (path,) = (tmp_path / "caf\u00e9").glob("a-cat-plain-0-*.png")
    with Image.open(path) as image:
        assert json.loads(image.text["limelight"])["prompt"] == "a cat \u732b"


def test_progress_without_a_terminal(monkeypatch, capsys):
    """A line a minute, with what is done."""
    now = [0.0]
    monkeypatch.setattr("limelight.cli.terminal.time", SimpleNamespace(monotonic=lambda: now[0]))
    with terminal.bar("generating") as show:
        for step in range(1, 7):
            now[0] += 25
            show(step, 9)
    assert capsys.readouterr().err == "generating: 3 of 9\ngenerating: 6 of 9\n"


def test_the_table_of_steps_says_which_image_stays_plain(capsys):
    plain = Score(torch.tensor([0.1, 0.9]), torch.tensor([[0.61], [0.02]]), {})
    loss, presence = torch.tensor([0.1, 0.7]), torch.tensor([[0.61], [0.33]])
    move = Move(torch.zeros(2, 4, 2, 2), loss, presence, {}, torch.tensor([0, 3]), None, plain)
    with terminal.step_table("generating", ["cat"]) as show:
        show(SimpleNamespace(index=0, count=2, seconds=0.5, move=move))
        show(SimpleNamespace(index=1, count=2, seconds=0.5, move=None))
    rows = [line.split("\u2502")[1:-1] for line in capsys.readouterr().err.splitlines() if line.count("\u2502") > 2]
    assert [list(map(str.strip, row)) for row in rows] == [
        ["1/2", "0.50", "1", "stays plain", "", ""],
        ["", "", "2", "0.700", "0.330", "3"],
        ["2/2", "0.50", "", "", "", ""],
    ]


@pytest.mark.parametrize("text", [b"a \xff cat"])
def test_arguments_that_are_not_text(text):
    done = process("-m", "limelight", "tokens", text)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        "error: The argument 'a \\udcff cat' is not UTF-8. Write it, or name the file, in UTF-8.\n"
    )


def test_the_module_of_the_commands_is_a_program():
    done = process("-m", "limelight.cli.app", "tokens", "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"tokens" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_below_the_output():
    with open("/dev/full", "wb") as full:
        done = process("-m", "limelight", "--help", stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr.decode()) == (
            2,
            "error: The output cannot be written: No space left on device.\n",
        )
        done = process("-m", "limelight", "generate", "a cat", "--seeds", "x", stdout=full, stderr=full)
        assert done.returncode == 2


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started without
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "MODULE":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from limelight.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["limelight.cli.app", "torch"])
def test_an_interrupt_at_the_start(module, tmp_path):
    done = process(
        "-c", INTERRUPTED.replace("MODULE", module), "generate", "a cat", "--steps", "1", "--out", str(tmp_path / "o")
    )
    assert done.returncode in (1, 130, -2)
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_names_of_others_command_the_terminal_nothing(limelight, tmp_path, capsys):
    from limelight import LearnedWord

    name = "\x1b[31mred\x9b\x07\u202egnp"
    path = tmp_path / "word\x1b]0;title\x07.safetensors"
    LearnedWord("<cat>", (torch.ones(1, 32),), {name: name}).save(path)
    code, out, err = limelight("word", "show", str(path))
    assert code == 0
    assert r"\x1b[31mred\x9b\x07\u202egnp: \x1b[31mred" in out
    code, out, err = limelight("word", "show", f"{tmp_path}/gone\x1b[31m\nerror: no")
    assert (code, err.count("\n")) == (2, 2)  # what is loaded, and the error
    assert r"gone\x1b[31m\nerror: no' cannot be read" in err
    terminal.log.print("a [bold]b[/bold] [red]\x1b[0m[/red]\tc")
    assert capsys.readouterr().err.strip().replace("\t", " ").split() == ["a", "b", r"\x1b[0m", "c"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--steps", "100000"), ("--height", "100000"), ("--batch", "100000"), ("--audition", "100000")],
)
def test_numbers_have_upper_limits(limelight, tmp_path, option, value):
    code, _, err = limelight("generate", "a cat", "--steps", "1", "--out", str(tmp_path / "o"), option, value)
    assert code == 2
    assert f"{value} must be a whole number from 1 to " in err
    assert not (tmp_path / "o").exists()


def test_the_version(limelight):
    from limelight import __version__

    assert limelight("--version") == (0, f"limelight {__version__}\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance", "confrom"], "Did you mean 'conform'?"),
        (["--subjects", "cst"], "its words are: a, cat. Did you mean 'cat'?"),
        (["--scheduler", "dim"], "Did you mean 'ddim'?"),
    ],
)
def test_what_was_meant(limelight, options, message):
    code, _, err = limelight("generate", "a cat", "--steps", "1", *options)
    assert code == 2
    assert message in err


# Torch, whose import takes seconds, cannot be imported: each command ends there, and has said something before.
AT_ONCE = """
import shlex
import shutil, sys
sys.modules["torch"] = None
from typer.testing import CliRunner
from limelight.cli.app import app
for line in sys.argv[1:]:
    print(line, repr(CliRunner().invoke(app, shlex.split(line)).stderr), sep="|")
"""

OPENING = {
    "generate 'a cat'": "pocket",
    "redraw image.png": "image.png",
    "edit 'a cat' 'a dog'": "pocket",
    "explain 'a cat'": "pocket",
    "calibrate": "pocket",
    "validate --out v": "pocket",
    "tokens 'a cat'": "pocket",
    "info": "pocket",
    "learn photos --token '<a>'": "pocket",
    "web": "pocket",
    "heads compute --out a.safetensors": "pocket",
    "heads weaken pocket-animals": "pocket",
    "word show a.safetensors": "a.safetensors",
    "evaluate run --out e": "pocket",
    "evaluate score e": "what measures",
}


def test_every_command_says_at_once_what_it_loads(tmp_path):
    done = process("-c", AT_ONCE, *OPENING, environment={"PYTHONUTF8": "1"}, cwd=tmp_path)
    said = dict(line.split("|") for line in done.stdout.decode().splitlines())
    assert said == {line: repr(f"loading {what} ...\n") for line, what in OPENING.items()}, done.stderr.decode()
