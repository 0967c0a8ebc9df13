"""Runs: continued, repeated, shared by workers. Those that are killed anywhere: tests/test_kills.py."""

import gc
import json

import pytest
import torch

import limelight
from limelight import LearnedWord, PromptError, SettingsError
from limelight.evaluate import runs
from limelight.evaluate.runs import Worker, run
from limelight.evaluate.suites import Case, load
from tests import transformers as families
from tests.evaluate.conftest import CASES, IMAGES, METHODS, SMALL, content
from tests.workers import forked_workers, kill_a_worker, opened  # noqa: F401 - a fixture


def test_images_depend_on_learned_words(quick, pocket, tmp_path):
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


def test_exactly_what_is_missing(quick, whole, tmp_path):
    folder = tmp_path / "run"
    seen = []
    assert run(folder, CASES[:1], ["plain"], [1, 0], batch=2, workers=1, **SMALL) == 2
    assert quick(folder, on_progress=lambda *numbers: seen.append(numbers)) == IMAGES - 2
    assert (seen[0], seen[-1]) == ((2, IMAGES), (IMAGES, IMAGES))
    assert content(folder) == content(whole)


def test_weights_and_settings_of_ones_own(quick, tmp_path, pocket, monkeypatch):
    run(tmp_path, CASES[:1], ["attend-and-excite:scale=3:until=0.2"], [0], workers=1, **SMALL)
    (facts,) = json.loads((tmp_path / "run.json").read_text())["methods"].values()
    assert (facts["settings"]["guidance"]["scale"], facts["settings"]["guidance"]["until"]) == (3, 0.2)
    monkeypatch.setattr("limelight.generation.provenance.fingerprint", lambda model: "trained again")
    with pytest.raises(SettingsError, match=r"weights: .* there, trained again now"):
        run(tmp_path, CASES[:1], ["attend-and-excite:scale=3:until=0.2"], [0], workers=1, **SMALL)


@pytest.mark.parametrize(("name", "branches"), [("flux", 1), ("z_image", 2), ("pixart", 2)])
def test_passes_of_transformers_are_counted(name, branches, tmp_path):
    """PixArt's scheduler has a setting that is not finite, -inf, which must not end the run."""
    model = limelight.load(getattr(families, name)())
    run(tmp_path, CASES[:1], ["plain"], [0, 1], model=model, **SMALL)
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [row["calls"] for row in rows] == [SMALL["steps"] * branches] * 2


def test_a_subject_that_is_not_there(quick, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,subjects\na cat and a dog,cat;dig\n")
    cases = load(tmp_path / "mine.csv")
    with pytest.raises(PromptError, match="'dig' is not in the prompt"):
        run(tmp_path / "run", cases, ["attend-and-excite"], [0], workers=1, **SMALL)


def test_unknown_words_are_named_once(tmp_path, pocket, quick, recwarn):
    said = []
    cases = (Case("a cat and a zebra", "mine"), Case("a wug and a zebra", "mine"))
    run(tmp_path / "run", cases, ["plain"], [0], workers=1, say=said.append, **SMALL)
    assert said == [
        "The model 'pocket' has never seen 'zebra', 'wug'; what it generates for that means nothing; try words of "
        "`limelight info`."
    ]
    assert not [warning for warning in recwarn if "never seen" in str(warning.message)]


def test_words_beyond_the_length_are_named_once(tmp_path, quick, recwarn):
    """Of all methods and prompts together, before the first image."""
    said = []
    long = "a cat, " + "red " * 40
    cases = [Case(long + "car", "mine"), Case(long + "frog", "mine"), Case("a cat and a dog", "mine")]
    methods = {"plain": "plain", "again": "plain"}
    run(tmp_path / "run", cases, methods, [0], workers=1, say=said.append, **SMALL)
    assert said == [
        "The model 'pocket' reads 32 tokens of a prompt and leaves out 'red', 'car' of "
        f"'{long[:77]}...', which has 46, and 1 other prompt is too long as well; shorten it."
    ]
    assert not [warning for warning in recwarn if "leaves out" in str(warning.message)]


def test_a_killed_worker_changes_nothing(whole, tmp_path, forked_workers):  # noqa: F811
    """Workers that are no forks: tests/heads/test_counting.py; of Ray: tests/utils/test_parallel.py."""
    kill, killed = kill_a_worker()
    options = {"batch": 2, "engine": "local", "workers": 2, "on_progress": kill, "device": "cpu", **SMALL}
    assert run(tmp_path / "run", CASES, METHODS, range(3), **options) == IMAGES
    assert len(killed) == 1
    assert content(tmp_path / "run") == content(whole)


def test_workers_open_the_model_as_it_was_asked_for(monkeypatch, pocket):
    seen = opened(monkeypatch, runs, pocket)
    loading = {"dtype": "bfloat16", "quantize": "8bit", "offload": "model"}
    Worker({"plain": "plain"}, "pocket", "cpu", "ddim", loading, {})
    assert seen == {"source": "pocket", "device": "cpu", "scheduler": "ddim", **loading}


def test_how_weights_are_kept_reaches_other_processes(forked_workers, tmp_path):  # noqa: F811
    """The workers of a pool open the model, and not this process."""
    run(tmp_path / "run", CASES[:1], ["plain"], [0], workers=2, loading={"dtype": "bfloat16"}, **SMALL)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["methods"]["plain"]["settings"]["dtype"] == "bfloat16"
    with pytest.raises(SettingsError, match="offload='model' keeps parts of a model in the main memory"):
        run(tmp_path / "other", CASES[:1], ["plain"], [0], workers=2, loading={"offload": "model"}, **SMALL)
