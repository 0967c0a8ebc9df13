"""Ordered weakening: the experiments, the curves, resuming, and the commands."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from PIL import Image

from limelight.errors import FileError
from limelight.evaluate.weakening import Curves, Experiment, counts_of_heads, ordered, weakened
from limelight.heads.relevance import Relevance
from tests.cli.test_cli import limelight  # noqa: F401 - a fixture
from tests.conftest import saved, unhashed

# Number of prompts and a prompt of each experiment, from the paper's released lists.
PAPER = {
    "color": (50, ("a red car", "red")),
    "weather": (20, ("a cat on a snowy day", "snowy")),
    "animals": (10, ("photo of a cat", "cat")),
    "material": (50, ("a bowl made of glass", "glass")),
    "style": (50, ("a cubist style painting of a castle", "cubist")),
    "patterns": (25, ("a T-shirt with a polka-dot pattern", "polka-dot")),
    "nature": (10, ("photo of a forest", "forest")),
    "fruits": (10, ("photo of lemons", "lemons")),
    "furniture": (10, ("photo of a bed", "bed")),
    "other-animals": (10, ("photo of a rabbit", "rabbit")),
    "other-color": (50, ("a coral car", "coral")),
    "other-material": (50, ("a bowl made of copper", "copper")),
    "other-fruits": (10, ("photo of lemons", "lemons")),
    "other-nature": (10, ("photo of a glacier", "glacier")),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_experiments(name):
    experiment = Experiment.of(name)
    count, first = PAPER[name]
    assert len(set(experiment.prompts)) == count
    assert experiment.prompts[0] == first
    Relevance.load("sd-1.4").index(experiment.concept)


def test_a_coffee_table_is_no_table():
    # The released scoring takes the first word of the list that the prompt contains.
    assert ("photo of a coffee table", "coffee table") in Experiment.of("furniture").prompts


def test_numbers_of_heads():
    assert counts_of_heads(128) == (0, 1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101, 111, 121, 128)
    assert counts_of_heads(1300) == (0, 11, 111, 211, 311, 411, 511, 611, 711, 811, 911, 1011, 1111, 1211, 1300)
    assert counts_of_heads(48)[:3] == (0, 4, 9)
    assert counts_of_heads(48)[-1] == 48


def test_orders():
    relevance = Relevance.load("sd-1.4")
    assert ordered(relevance, "Color", "MoRHF")[:3] == (120, 108, 117)
    assert sorted(ordered(relevance, "Color", "random")) == list(range(128))
    ties = Relevance(("A",), (("mid", 4),), torch.tensor([[1.0, 2.0, 1.0, 0.0]]))
    assert ordered(ties, "A", "MoRHF") == (1, 0, 2, 3)
    assert ordered(ties, "A", "LeRHF") == (3, 0, 2, 1)


def test_areas_of_the_released_curves():
    """The authors' scores of exp 5 (Image Style, mean of 50 prompts), and the areas that the specification gives."""
    counts = (0, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101, 111, 121, 128)
    most = [2353, 1768, 1632, 1555, 1514, 1326, 1289, 1273, 1308, 1305, 1265, 1221, 1281, 1268]
    least = [2353, 2338, 2305, 2294, 2345, 2336, 2322, 2283, 2313, 2200, 2039, 1882, 1548, 1268]
    scores = {n: torch.tensor(v)[:, None, None] / 1e4 for n, v in {"MoRHF": most, "LeRHF": least}.items()}
    curves = Curves(Experiment.of("style"), 128, counts, scores)
    assert curves.area("MoRHF") == pytest.approx(0.1435, abs=6e-5)
    assert curves.area("LeRHF") == pytest.approx(0.2174, abs=6e-5)
    assert curves.between().mean == pytest.approx(0.2174 - 0.1435, abs=1e-4)


EXPERIMENT = Experiment("Animals", (("a cat", "cat"), ("a frog", "frog")))


def test_curves_meet_and_a_run_goes_on(pocket, tmp_path):
    relevance, jobs = Relevance.load("pocket"), []
    options = {"seeds": (0,), "counts": (20,), "steps": 1, "images": True}

    def count(done, of):
        with pytest.raises(FileError, match="is being written by another program"):
            weakened(pocket, relevance, EXPERIMENT, tmp_path, **options)
        jobs.append(of)

    first = weakened(pocket, relevance, EXPERIMENT, tmp_path, on_job=count, **options)
    assert first.counts == (0, 20, len(relevance.heads))
    assert jobs == [5] * 5  # none and all are generated once, not once per order
    for end in (0, -1):
        assert len({float(first.mean(order)[end]) for order in first.scores}) == 1
    assert len({float(first.mean(order)[1]) for order in first.scores}) == 3
    file = tmp_path / "scores.jsonl"
    lines = file.read_text().splitlines()
    assert len(lines) == 5 * 2
    file.write_text("\n".join(lines[:5]) + '\n{"torn')  # killed while writing
    again = weakened(pocket, relevance, EXPERIMENT, tmp_path, **options)
    for order in first.scores:
        assert torch.allclose(again.scores[order], first.scores[order], atol=1e-5)
    with pytest.raises(FileError, match="scores of other settings"):
        weakened(pocket, relevance, EXPERIMENT, tmp_path, **{**options, "steps": 2})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_where_nothing_can_be_written(pocket, tmp_path, monkeypatch, number):
    """One sentence of a full disk and of a read-only one; afterwards the same call ends."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    relevance, options = Relevance.load("pocket"), {"seeds": (0,), "counts": (), "steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(FileError, match=f"cannot be written: {os.strerror(number)}") as error:
            weakened(pocket, relevance, EXPERIMENT, tmp_path, **options)
    assert "\n" not in str(error.value)
    assert weakened(pocket, relevance, EXPERIMENT, tmp_path, **options).counts == (0, len(relevance.heads))


def test_weakening_everything_loses_the_animal(pocket, tmp_path):
    """The ends of the curves: with every head turned away from the prompt, images say less of it."""
    curves = weakened(
        pocket, Relevance.load("pocket"), EXPERIMENT, tmp_path, seeds=(0,), counts=(), steps=10, orders=("MoRHF",)
    )
    start, end = curves.mean("MoRHF").tolist()
    assert start > end + 0.05


def test_the_commands(limelight, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    out = tmp_path / "v.safetensors"
    code, text, _ = limelight(
        *("heads", "compute", "--out", str(out), "--limit", "2", "--steps", "2", "--batch", "2", "--device", "cpu"),
        *("--workers", "1"),
    )
    assert code == 0, text
    assert "2 of 2 prompts" in text
    code, text, _ = limelight("heads", "show", str(out), "--concepts", "animals", "--out", str(tmp_path / "p"))
    assert code == 0, text
    assert sorted(map(unhashed, (tmp_path / "p").iterdir())) == [
        "v-concepts.png",
        "v-heatmaps.png",
        "v-steps.png",
    ]
    code, text, _ = limelight("heads", "show", str(out), "--concepts", "color", "--out", str(tmp_path / "p"))
    assert code == 0, text
    assert len(list((tmp_path / "p").iterdir())) == 4, "other heat maps beside the first ones"
    code, text, _ = limelight("heads", "show", "sdxl", "--concepts", "Color")
    assert "up\u00a014/6\u00a066.15" in text
    code, text, _ = limelight(
        *("heads", "weaken", "pocket-animals", "--every", "5", "--seeds", "0", "--counts", "10", "--steps", "1"),
        *("--out", str(tmp_path / "w"), "--head-vectors", str(out)),
    )
    assert code == 0, text
    assert "area between LeRHF and MoRHF" in text
    assert ("95 % interval" in text) == (len(list((tmp_path / "w").glob("a*.png"))) > 1)
    with Image.open(saved(tmp_path / "w", "a-cat.png")) as strip:
        assert strip.size == (3 * 260 + 4, 3 * (260 + 20) + 4)
    assert saved(tmp_path / "w", "curves.png")


def test_bad_input_on_the_command_line(limelight, tmp_path):  # noqa: F811
    out = str(tmp_path / "x.safetensors")
    for arguments, message in {
        ("heads", "show", "sd-9"): "'sd-9' cannot be read: No such file",
        ("heads", "show", "sdxl", "--concepts", "Birds"): "Unknown concept 'Birds'",
        ("heads", "compute", "--out", out, "--part", "half"): "Cannot read --part half",
        ("heads", "compute", "--out", out, "--concepts", "none.csv"): "'none.csv' cannot be read: No such file",
        ("heads", "compute", "--out", out, "--prompts", "none.txt"): "'none.txt' cannot be read: No such file",
        ("heads", "compute", "--out", out, "--engine", "spark"): "Unknown engine 'spark'. Choose one of: local, ray.",
        ("heads", "compute", "--out", out, "--part", "99/99", "--limit", "2"): "The part 99/99 has no prompts",
        ("heads", "weaken", "birds", "--out", out): "Unknown experiment 'birds'. Choose one of: color",
        ("heads", "weaken", "weather", "--out", out): "Unknown concept 'Weather Conditions'",
        ("heads", "weaken", "--seeds", "x", "--out", out): "Cannot read 'x' as seeds",
    }.items():
        code, _, err = limelight(*arguments)
        assert code == 2, arguments
        assert message in err.replace("\n", " ")
    assert not list(tmp_path.iterdir())
