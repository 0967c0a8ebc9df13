"""Runs: killed, interrupted by full disks, damaged, repeated; scores and reports of them."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import multiprocessing
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch
from PIL import Image
from pyarrow import parquet

import limelight
import limelight.evaluate.runs as module
from limelight import FileError, LearnedWord, PromptError, Result, SettingsError
from limelight.evaluate.clip import Clip, image_text
from limelight.evaluate.metrics import METRICS
from limelight.evaluate.preservation import grown, pixel_change, read, structure_change, written
from limelight.evaluate.report import report
from limelight.evaluate.runs import run
from limelight.evaluate.scoring import score
from limelight.evaluate.store import Run
from limelight.evaluate.suites import Case, attend_excite, load
from limelight.heads.relevance import Relevance
from limelight.utils.files import png
from limelight.utils.statistics import best_of, compare
from tests.workers import kill_a_worker

CASES = attend_excite()[::60][:2]
METHODS = ("plain", "attend-and-excite")
SMALL = {"steps": 2, "height": 32, "width": 32}
PICTURES = len(CASES) * len(METHODS) * 3


@pytest.fixture
def quick(monkeypatch, pocket):
    """Runs with a model that is already there."""
    monkeypatch.setattr(module, "load", lambda *args, **options: pocket)

    def draw(folder, **changes):
        return run(folder, CASES, METHODS, range(3), **{"batch": 2, "workers": 1, **SMALL, **changes})

    return draw


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pocket):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", lambda *args, **options: pocket)
        assert run(folder, CASES, METHODS, range(3), batch=2, workers=1, **SMALL) == PICTURES
    return folder


def content(folder: Path):
    """The manifest's rows, none of them twice, the pictures' bytes, and all else that lies there."""
    rows = (folder / "manifest.jsonl").read_text().splitlines()
    assert len(set(rows)) == len(rows)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    pictures = {name: path.read_bytes() for name, path in files.items() if name.endswith(".png")}
    assert pictures.keys() == {json.loads(row)["file"] for row in rows}
    others = set(files) - set(pictures) - {".lock"}
    return set(rows), pictures, others


def test_pictures_depend_on_learned_words(quick, pocket, tmp_path):
    width = pocket.pipeline.text_encoder.config.hidden_size
    case = Case("a cat and a <my-cat>", "own")
    own, other = (LearnedWord("<my-cat>", (torch.full((1, width), value),)) for value in (0.01, 0.02))
    options = {"batch": 1, "workers": 1, **SMALL}
    assert run(tmp_path, [case], ["plain"], [0], words=[own], **options) == 1
    assert run(tmp_path, [case], ["plain"], [0], words=[own], **options) == 0
    with pytest.raises(SettingsError, match="learned"):
        run(tmp_path, [case], ["plain"], [0], words=[other], **options)
    gc.collect()
    assert not pocket.prompt("a <my-cat>").words[-1].learned


def killed_at(count, folder, draw):
    """Draw, and end by SIGKILL in the middle of the count-th call that writes. In a child process."""
    calls = 0

    def watched(call):
        def watch(*arguments):
            nonlocal calls
            calls += 1
            if calls == count:
                if call is writing:  # half of a row reaches the disk
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                elif calls % 2:
                    call(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return watch

    writing = os.write
    os.write, os.fsync, os.replace = watched(os.write), watched(os.fsync), watched(os.replace)
    draw(folder)
    Path(folder, "calls").write_text(str(calls))


def in_child(*arguments):
    child = multiprocessing.get_context("fork").Process(target=killed_at, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def noise(model, prompt, *, subjects, seeds, guidance, batch, record, **options):
    """Stands in for `generate`: a picture that depends on its seed, its prompt and its method."""
    pictures = []
    for seed in seeds:
        generator = np.random.default_rng([seed, len(prompt), guidance is None])
        pictures.append(Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    return Result(pictures, None, None, (), {"prompt": prompt}, tuple(seeds), subjects)


def test_killed_anywhere_and_run_again(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "generate", noise)
    assert in_child(0, tmp_path / "all", quick) == 0
    whole = tmp_path / "whole"
    quick(whole)
    total = int((tmp_path / "all" / "calls").read_text())
    assert total >= 5 * PICTURES
    for point in random.Random(7).sample(range(1, total + 1), 10):
        folder = tmp_path / str(point)
        assert in_child(point, folder, quick) == -signal.SIGKILL
        there = (
            len((folder / "manifest.jsonl").read_bytes().splitlines()) if (folder / "manifest.jsonl").exists() else 0
        )
        assert there <= PICTURES
        quick(folder)
        assert content(folder) == content(whole)
        assert quick(folder) == 0


def test_exactly_what_is_missing(quick, whole, tmp_path):
    folder = tmp_path / "run"
    seen = []
    assert run(folder, CASES[:1], ["plain"], [1, 0], batch=2, workers=1, **SMALL) == 2
    assert quick(folder, on_progress=lambda *numbers: seen.append(numbers)) == PICTURES - 2
    assert (seen[0], seen[-1]) == ((2, PICTURES), (PICTURES, PICTURES))
    assert content(folder) == content(whole)


def test_changed_settings_are_refused(quick, whole):
    before = content(whole)
    with pytest.raises(SettingsError, match=r"other settings \(steps: 2 there, 3 now\)"):
        quick(whole, steps=3)
    with pytest.raises(SettingsError, match=r"batch: 2 there, 4 now"):
        quick(whole, batch=4)
    changed = (replace(CASES[0], subset="mine"),)
    with pytest.raises(SettingsError, match="with another subset, subjects or concept"):
        run(whole, changed, METHODS, [0], batch=2, workers=1, **SMALL)
    with pytest.raises(SettingsError, match="unexpected keyword argument 'scales'"):
        run(whole, CASES, ["attend-and-excite:scales=3"], [0], workers=1, **SMALL)
    with pytest.raises(SettingsError, match="'magic' is no method"):
        run(whole, CASES, ["magic"], [0], workers=1, **SMALL)
    with Run(whole), pytest.raises(FileError, match="is being written by another run"):
        quick(whole)
    assert content(whole) == before


def test_weights_and_settings_of_ones_own(quick, tmp_path, pocket, monkeypatch):
    run(tmp_path, CASES[:1], ["attend-and-excite:scale=3:until=0.2"], [0], workers=1, **SMALL)
    (facts,) = json.loads((tmp_path / "run.json").read_text())["methods"].values()
    assert (facts["settings"]["guidance"]["scale"], facts["settings"]["guidance"]["until"]) == (3, 0.2)
    monkeypatch.setattr("limelight.generation.provenance.fingerprint", lambda model: "trained again")
    with pytest.raises(SettingsError, match=r"weights: .* there, trained again now"):
        run(tmp_path, CASES[:1], ["attend-and-excite:scale=3:until=0.2"], [0], workers=1, **SMALL)


def test_a_full_disk(quick, whole, tmp_path, monkeypatch):
    real, left = os.write, 5

    def full(file, data):
        nonlocal left
        left -= 1
        if left < 0:
            real(file, data[:10])  # some of it still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(FileError, match=r"'.*\.jsonl' cannot be written: No space left on device"):
            quick(tmp_path / "run")
    said = []
    quick(tmp_path / "run", say=said.append)
    assert said == []  # nothing half-written was left
    assert content(tmp_path / "run") == content(whole)


def test_folders_that_cannot_be_written(quick, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(FileError, match="cannot be written"):
            quick(folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(SettingsError, match=r"'.*run\.json' cannot be read"):
        quick(tmp_path / "run")


def test_damage_is_named_and_mended(quick, whole, tmp_path):
    quick(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    pictures = [tmp_path / json.loads(line)["file"] for line in lines]
    pictures[0].unlink()
    pictures[1].write_bytes(pictures[1].read_bytes()[:200])
    manifest.write_bytes(b"".join([*lines[:5], b"\x00\x00\n", *lines[6:-1], lines[-1][:-30]]))
    (tmp_path / ".a.png.1.part").write_text("left by a kill")
    said = []
    assert quick(tmp_path, say=said.append) == 4
    assert [f"Line {n} of '{manifest}' {what}; its work is done again." in said for n, what in (
        (6, "cannot be read"), (PICTURES, "is cut off"))] == [True, True]  # fmt: skip
    assert f"'{pictures[0]}' is not there; it is drawn again." in said
    assert any("has 200 bytes instead of" in text for text in said)
    assert content(tmp_path) == content(whole)


def test_a_subject_that_is_not_there(quick, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,subjects\na cat and a dog,cat;dig\n")
    cases = load(tmp_path / "mine.csv")
    with pytest.raises(PromptError, match="'dig' is not in the prompt"):
        run(tmp_path / "run", cases, ["attend-and-excite"], [0], workers=1, **SMALL)


EDITS = ("source", "plain", "prompt-to-prompt")


@pytest.fixture
def five(tmp_path, monkeypatch, tiny):
    """A case of each list of edits, drawn by a tiny model, and the methods that did."""
    monkeypatch.setattr(module, "load", lambda *args, **options: tiny)
    layers = tuple((layer.group, layer.heads) for layer in tiny.sites if layer.kind == "cross")
    cases = load("hrv-edit")[::50]
    concepts = tuple(dict.fromkeys(case.concept for case in cases))
    vectors = torch.rand(len(concepts), sum(heads for _, heads in layers))
    file = Relevance(concepts, layers, vectors).save(tmp_path / "vectors.safetensors")
    methods = (*EDITS, f"prompt-to-prompt-heads:head_vectors={json.dumps(str(file))}")
    run(tmp_path / "run", cases, methods, [0, 1], workers=1, **SMALL)
    return tmp_path / "run", cases, methods


def test_edits_of_all_lists(five, tiny):
    folder, cases, methods = five
    assert len({case.concept for case in cases}) == 5
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    drawn = {(row["method"], row["case"], row["seed"]): Image.open(folder / row["file"]) for row in rows}
    case = cases[0]
    same = limelight.edit(tiny, case.source, case.prompt, seeds=[0, 1], **SMALL)
    for seed in (0, 1):
        assert drawn["prompt-to-prompt", case.name, seed].tobytes() == same.target.images[seed].tobytes()
        assert drawn["source", case.name, seed].tobytes() == same.source.images[seed].tobytes()
        assert drawn[methods[3], case.name, seed].tobytes() != same.target.images[seed].tobytes()
        edited = json.loads(drawn["source", case.name, seed].text["limelight"])["edited"]
        assert edited == written(grown(same.source.maps.mask("blue"))[seed])
    # A source and its target, each with both branches, in two steps.
    assert {row["calls"] for row in rows if row["method"].startswith("prompt")} == {8}

    score(folder, {"clip": "pocket", "captioner": "none", "detector": "pocket"}, workers=1)
    table = parquet.read_table(folder / "scores.parquet").to_pylist()
    clip = Clip()
    for row in table:
        assert (row["pixels"] is None) == (row["method"] == "source")
        assert (row["binding"] is not None) == (row["source"] == "a blue car")  # no other says a color
        picture = Image.open(folder / row["file"]).convert("RGB")
        assert row["full_text"] == pytest.approx(image_text(clip, clip.images([picture]), row["prompt"]).item())
    # Where words are everywhere, as with random weights, nothing is left to have a structure.
    assert {row["method"] for row in table if row["structure"] is not None} == set(methods[1:])
    text = report([folder], folder).with_name("report.md").read_text()
    assert "structure changed outside | pixels changed outside" in text
    assert "Change against plain" in text


def test_edits_that_cannot_be_drawn(tmp_path, quick):
    def refused(message, cases, method, **options):
        with pytest.raises(SettingsError, match=message):
            run(tmp_path / "run", cases, ["source", method], [0], workers=1, **SMALL, **options)
        assert not (tmp_path / "run" / "source").exists()

    color, heads = load("hrv-edit-color"), "prompt-to-prompt-heads"
    lacking = "Unknown concept 'Weather Conditions'. Choose one of: Animals"
    refused(lacking, load("hrv-edit-weather"), heads)
    refused("has no concept", [Case("a cat", "mine", source="a dog")], heads)
    refused("brings no new word", [replace(color[0], prompt="a car")], heads)
    refused("'a cat and a dog' has no source to be edited", [Case("a cat and a dog", "mine")], "prompt-to-prompt")
    refused("Edits have no eta", color, "prompt-to-prompt", eta=0.5)


def test_what_changes_outside_a_mask():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2, :2] = True
    before, after = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    after.paste((255, 255, 255), (0, 0, 4, 4))  # all of it within the mask
    assert pixel_change(before, after, mask) == 0
    after.paste((51, 0, 0), (4, 4, 8, 8))
    assert pixel_change(before, after, mask) == pytest.approx((16 * 0.2**2 / (48 * 3)) ** 0.5)
    assert pixel_change(before, after, torch.ones(4, 4, dtype=torch.bool)) is None
    assert pixel_change(before, after.resize((4, 4)), mask) is None
    one, other = torch.rand(2, 4, 3).double()
    left = [1, 2, 3]  # of four patches the mask touches the first
    cosine = torch.nn.functional.cosine_similarity
    each = [(cosine(one[i], one[j], 0) - cosine(other[i], other[j], 0)).item() ** 2 for i in left for j in left]
    assert structure_change(one, other, mask) == pytest.approx((sum(each) / 9) ** 0.5)
    assert structure_change(one, 3 * one, mask) == pytest.approx(0, abs=1e-7)
    assert structure_change(one, other, torch.ones(4, 4, dtype=torch.bool)) is None
    assert grown(mask[None])[0].tolist() == [[True] * 3 + [False]] * 3 + [[False] * 4]
    assert written(mask) == ["1100", "1100", "0000", "0000"]
    # Of a wide picture the patches see the middle.
    wide = torch.nn.functional.pad(mask, (2, 2), value=True)
    assert structure_change(one, other, wide) == structure_change(one, other, mask)
    assert read(png({"edited": written(mask)}, before)).equal(mask)
    assert read(png({}, before)) is None
    assert read(png({"edited": ["01", "0"]}, before)) is None
    assert read(b"no picture") is None


def test_unknown_words_are_named_once(tmp_path, pocket, quick, recwarn):
    said = []
    cases = (Case("a cat and a zebra", "mine"), Case("a wug and a zebra", "mine"))
    run(tmp_path / "run", cases, ["plain"], [0], workers=1, say=said.append, **SMALL)
    assert said == ["The model 'pocket' has never seen 'wug', 'zebra'; what it draws for that means nothing."]
    assert not [warning for warning in recwarn if "never seen" in str(warning.message)]


def test_another_detector_measures_again(whole, tmp_path, monkeypatch, pocket):
    seen = []
    options = {"out": tmp_path, "workers": 1, "on_progress": lambda *numbers: seen.append(numbers)}
    score(whole, {"clip": "none", "captioner": "none"}, **options)
    monkeypatch.setattr("limelight.evaluate.scoring._embedded", lambda names: {"detector": "trained again"})
    seen.clear()
    score(whole, {"clip": "none", "captioner": "none"}, **options)
    assert seen[0] == (0, PICTURES)


@pytest.mark.parametrize(
    ("engine", "name"), [("local", "spawn_main"), pytest.param("ray", "ray::_Actor", marks=pytest.mark.slow)]
)
def test_two_workers_of_which_one_is_killed_equal_one(engine, name, whole, tmp_path):
    kill, killed = kill_a_worker(name)
    options = {"batch": 2, "engine": engine, "workers": 2, "on_progress": kill, "device": "cpu", **SMALL}
    assert run(tmp_path / "run", CASES, METHODS, range(3), **options) == PICTURES
    assert len(killed) == 1
    assert content(tmp_path / "run") == content(whole)


def test_scores(whole, tmp_path, quick):
    quick(tmp_path / "run")
    folder, said, seen = tmp_path / "run", [], []
    options = {"workers": 1, "say": said.append, "on_progress": lambda *numbers: seen.append(numbers)}
    first = score(folder, **options)
    assert (said, seen[0], seen[-1]) == ([], (0, PICTURES), (PICTURES, PICTURES))
    table = parquet.read_table(folder / "scores.parquet").to_pylist()
    assert len(table) == PICTURES
    for row in table:
        assert -1 <= row["minimum_object"] <= row["full_text"] + 2 <= 3
        assert (row["image_image"] is None) == (row["method"] == "plain")
        # Two branches in each of two steps; one guided step of the two.
        assert row["calls"] == (4 if row["method"] == "plain" else 5)
    everything = first["methods"]["plain"]["all"]
    mean = sum(row["full_text"] for row in table if row["method"] == "plain") / (PICTURES / 2)
    assert everything["full_text_aggregation"] == pytest.approx(mean)
    stated = ("min_first_second_aggregation", "average_similarity", "std_similarity", "detection_success")
    assert all(isinstance(everything[name], float) for name in stated)
    assert json.loads((folder / "scores.json").read_text()) == first
    # Again: nothing is measured. One picture is spoilt: it alone is.
    seen.clear()
    assert score(folder, **options) == first
    assert seen == [(PICTURES, PICTURES)]
    spoilt = folder / table[-1]["file"]
    spoilt.write_bytes(spoilt.read_bytes()[:300] + b"garbage")
    seen.clear()
    left = score(folder, **options)["methods"][table[-1]["method"]]["all"]["pictures"]
    assert (left, seen) == (PICTURES / 2 - 1, [(PICTURES - 1, PICTURES), (PICTURES, PICTURES)])
    assert len(said) == 1
    assert f"'{spoilt}' cannot be read and is left out" in said[0]
    # One more is gone.
    (folder / table[0]["file"]).unlink()
    score(folder, **options)
    assert f"1 images of the run are left out, '{folder / table[0]['file']}' is missing" in said[1]
    # The paper's way of handling texts is another measurement.
    assert score(folder, {"paper": True}, **options)["methods"]["plain"] != first["methods"]["plain"]


def test_scores_of_the_original_layout(whole, tmp_path):
    rows = [json.loads(line) for line in (whole / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        if row["method"] == "plain":
            (tmp_path / "outputs" / row["case"]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "outputs" / row["case"] / f"{row['seed']}.png").write_bytes((whole / row["file"]).read_bytes())
    pocket = {"clip": "pocket", "captioner": "pocket", "detector": "pocket"}
    ours = score(whole, pocket, out=tmp_path / "a", workers=1)["methods"]["plain"]["all"]
    theirs = score(tmp_path / "outputs", pocket, out=tmp_path / "b", workers=1)["methods"]["outputs"]["all"]
    for name in ("full_text_aggregation", "min_first_second_aggregation", "average_similarity", "attribute_binding"):
        assert theirs[name] == pytest.approx(ours[name])
    assert theirs["seconds"] is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="is not a run, and has no images"):
        score(tmp_path / "empty", pocket, workers=1)


def scored(folder, values):
    """A scored folder, by hand: method -> prompt -> the score of each seed."""
    rows = []
    for method, prompts in values.items():
        for prompt, column in prompts.items():
            for seed, value in enumerate(column):
                file = folder / method / prompt / f"{seed}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (200, 100), "red").save(file)
                row = dict.fromkeys(("source", "caption", *METRICS))
                row |= {"method": method, "subset": "mine", "prompt": prompt, "seed": str(seed), "full_text": value}
                calls = {"plain": 100.0, "guided": 150.0}[method]
                rows.append({**row, "file": str(file.relative_to(folder)), "calls": calls, "seconds": calls / 100})
    parquet.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    used = {"clip": "c", "captioner": "b", "detector": "d", "paper": False}
    (folder / "scores.json").write_text(json.dumps({"backbones": used}))
    return folder


def test_a_report(tmp_path):
    values = {"plain": {"<b>": [0.1, 0.3], "c|d": [0.2, 0.4], "e": [0.5, 0.5]}}
    values["guided"] = {"<b>": [0.2, 0.4], "c|d": [0.1, 0.3], "e": [0.7, 0.7]}
    folder = scored(tmp_path / "run", values)
    page = report([folder], tmp_path / "out")
    html, text = page.read_text(), (tmp_path / "out" / "report.md").read_text()
    # Two cases of three got better, one worse; of each two pictures of both methods.
    assert html.count("data:image/jpeg;base64,") == 3 * 2 * 2
    assert "&lt;b&gt;" in html
    assert "<b>" not in html.replace('<b style="left', "")
    assert "src=" not in html.replace('src="data:', "")
    cells = {line.split(" | ")[1]: line.split(" | ") for line in text.splitlines() if line.startswith("| all | ")}
    means = [line for line in text.splitlines() if line.startswith("| all | ")][:3]
    assert "| all | plain | 6 | 0.333 | 100.0 | 1.000 |" in means
    assert "| all | guided | 6 | 0.400 | 150.0 | 1.500 |" in means
    # Between one picture (0.333) and the better of two (0.4), in the middle.
    assert "| all | plain, best of 1.50 (denoiser calls of guided) | 6 | 0.367 | 150.0 | 1.500 |" in means
    assert cells["guided"][2].startswith("+0.067 [-0.100, +0.200], 67%")
    with pytest.raises(SettingsError, match="No image is by 'magic'"):
        report([folder], tmp_path, reference="magic")
    with pytest.raises(FileError, match="has no scores"):
        report([tmp_path], tmp_path)
    (folder / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileError, match="cannot be read"):
        report([folder], tmp_path)


def test_best_of_is_the_mean_over_all_choices():
    chosen_by, value = [0.3, 0.1, 0.2, 0.9, 0.5], [1.0, 2.0, 4.0, 8.0, 16.0]
    for n in (1, 2, 4, 5):
        every = list(itertools.combinations(range(5), n))
        expected = sum(value[max(own, key=lambda i: chosen_by[i])] for own in every) / len(every)
        assert best_of(n, chosen_by, {"a": value})["a"] == pytest.approx(expected)
    one, two = (best_of(n, chosen_by, {"a": value})["a"] for n in (1, 2))
    assert best_of(1.25, chosen_by, {"a": value})["a"] == pytest.approx(0.75 * one + 0.25 * two)


def test_the_bootstrap_against_scipy():
    random = np.random.default_rng(3)
    ours, theirs = random.normal(0.3, 1, 80), random.normal(0, 1, 80)
    found = compare(ours, theirs)
    other = scipy.stats.bootstrap((ours - theirs,), np.mean, method="percentile", n_resamples=10_000, rng=random)
    assert (found.low, found.high) == pytest.approx(other.confidence_interval, abs=0.03)
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert compare([1, 2, 3, 0], [1, 1, 1, 1]).wins == (0.5 + 2) / 4


def test_the_command_line(tmp_path, monkeypatch, capsys, pocket):
    from limelight.cli import app as cli

    def limelight(*arguments):
        monkeypatch.setattr("sys.argv", ["limelight", "evaluate", *arguments])
        monkeypatch.setattr("limelight.cli.terminal.console.width", 400)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    (tmp_path / "mine.txt").write_text("a cat and a dog\na red car and a frog\n")
    out = tmp_path / "run"
    arguments = ["run", "--suite", str(tmp_path / "mine.txt"), "--seeds", "0-1", "--steps", "1", "--workers", "1"]
    code, said, _ = limelight(*arguments, "--out", str(out))
    assert (code, "8 images generated, 0 were there" in said) == (0, True)
    assert "0 images generated, 8 were there" in limelight(*arguments, "--out", str(out))[1]
    code, _, error = limelight(*arguments, "--out", str(out), "--guidance-scale", "3")
    assert (code, "guidance_scale: 7.5 there, 3.0 now" in error) == (2, True)
    assert "full_text_aggregation" in limelight("score", str(out), "--workers", "1")[1]
    assert limelight("report", str(out))[0] == 0
    assert (out / "report.html").exists()
    with Image.open(next(out.rglob("*.png"))) as image:
        assert json.loads(image.text["limelight"])["prompt"] in ("a cat and a dog", "a red car and a frog")
    for bad in (["--seeds", "x"], ["--every", "9", "--first", "5"], ["--engine", "spark"], ["--suite", "none"]):
        assert limelight(*arguments, "--out", str(tmp_path / "no"), *bad)[0] == 2
