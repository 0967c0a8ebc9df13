"""Learning in a folder: the command line, bad input, earlier versions. Kills: tests/test_kills.py."""

from __future__ import annotations

import doctest
import json
import sys
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import limelight
from limelight.cli.app import main
from limelight.textual_inversion import folder as folder_module
from limelight.textual_inversion import prior
from limelight.textual_inversion import training as training_module
from limelight.textual_inversion import word as word_module
from limelight.textual_inversion.config import TrainingConfig
from limelight.textual_inversion.dataset import sentences
from limelight.textual_inversion.folder import learn, read_losses
from limelight.textual_inversion.state import TrainState
from limelight.textual_inversion.training import held_loss
from limelight.textual_inversion.word import LearnedWord
from tests.textual_inversion.images import TINY, patches


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.held_loss", partial(held_loss, count=2))


def run(*words: str) -> int:
    """The command line's exit code."""
    before, sys.argv = sys.argv, ["limelight", *words]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def test_on_the_command_line(tiny_folder, folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["learn", str(folder), "--token", "<thing>", "--out", str(out)]
    rest = ["--init", "cat", "--steps", "4", "--save-every", "2", "--batch", "1", "--model", str(tiny_folder)]

    def interrupted(step):
        if step.state.step == 3:
            raise KeyboardInterrupt

    own = learn
    monkeypatch.setattr(
        "limelight.textual_inversion.folder.learn",
        lambda *a, **o: own(*a, **{**o, "preview_steps": 1, "on_step": interrupted}),
    )
    assert run(*words, *rest) == 130
    assert "Stopped after step 3" in capsys.readouterr().err
    assert run(*words, *rest) == 2
    assert "holds a training or a learned word already" in capsys.readouterr().err
    assert run(*words, "--resume", "--lr", "7") == 2
    assert "has lr=0.005, not 7.0" in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    assert "'<thing>' learned in 4 steps" in capsys.readouterr().out
    assert [row.step for row in read_losses(out / "loss.csv")] == list(range(5))
    assert json.loads((out / "word.json").read_text())["report"]["steps"] == 4
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert names >= {"README.md", "loss.png", "previews/000000.png", "previews/000004.png", "token_identifier.txt"}
    assert limelight.textual_inversion.word.LearnedWord.load(out).token == "<thing>"


def test_changes_of_the_denoiser_are_learned_and_stay_with_the_word(tiny_folder, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prior, "STEPS", 1)
    out = tmp_path / "out"
    words = ["learn", str(folder), "--token", "<thing>", "--out", str(out), "--init", "cat", "--rank", "2"]
    words += ["--rank-lr", "0.01", "--prior-images", "1"]
    assert run(*words, "--steps", "2", "--save-every", "1", "--batch", "1", "--model", str(tiny_folder)) == 0
    capsys.readouterr()
    last, first = (LearnedWord.load(out / name) for name in ("", "steps/learned_embeds-steps-1"))
    assert last.changes.keys() == first.changes.keys() != set()
    assert any(not torch.equal(value, first.changes[name]) for name, value in last.changes.items())
    assert "changes of rank 2 in the denoiser" in (out / "README.md").read_text()
    assert 'pipe.load_lora_weights("FOLDER")' in (out / "README.md").read_text()
    code = run(
        "generate",
        "a <thing>",
        "--word",
        str(out),
        "--model",
        str(tiny_folder),
        "--steps",
        "1",
        "--subjects",
        "<thing>",
        "--out",
        str(tmp_path / "image.png"),
    )
    assert code == 0, capsys.readouterr().err
    again = ["learn", str(folder), "--token", "<other>", "--out", str(tmp_path / "again"), "--init", str(out)]
    again += ["--prior-images", "1"]
    assert run(*again, "--steps", "1", "--batch", "1", "--model", str(tiny_folder)) == 0
    assert LearnedWord.load(tmp_path / "again").changes.keys() == last.changes.keys()
    capsys.readouterr()
    assert run("word", "show", str(out), "--nearest", "0") == 0
    assert "<thing>: 1 x 32; changes the denoiser" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--token", "<thing>", "--init", "cat", "--rank", "2", "--checkpoint"], "checkpoint and rank do not work"),
        (["--token", "<thing>", "--init", "kite"], "init='kite' is 2 tokens of 'pocket'"),
        (["--token", "<Thing>", "--init", "cat"], "upper-case letters"),
        (["--token", "cat", "--init", "cat"], "in angle brackets, for example '<cat>'"),
        (["--token", "<|endoftext|>", "--init", "cat"], "already has a word"),
        (["--init", "cat"], "Name the word"),
        (["--token", "<thing>", "--init", "cat", "--style"], "give sentences of your own"),
        (["--token", "<thing>", "--init", "cat", "--preview", "a cat"], "lacks the word"),
        (["--token", "<thing>", "--resume"], "holds no training to resume"),
    ],
)
def test_bad_input_writes_nothing(folder, tmp_path, capsys, words, reason, monkeypatch, pocket):
    monkeypatch.setattr("limelight.models.loading.load", lambda *args, **options: pocket)
    assert run("learn", str(folder), *words, "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ")
    assert reason in said
    assert not (tmp_path / "out").exists()


def test_patience_keeps_the_best_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    # Without a learning rate nothing gets better.
    config = TrainingConfig(**{**TINY, "lr": 0.0}, steps=40)
    report = learn(tiny, patches(), config, tmp_path, save_every=2, patience=2, seeds=(0,), preview_steps=1)
    assert report.stopped
    assert report.rows[-1].step == 4
    assert report.best.step == 0
    assert torch.equal(limelight.textual_inversion.word.LearnedWord.load(tmp_path).vectors[0], report.word.vectors[0])
    assert report.word.about["step"] == 0


@pytest.fixture
def counted(tiny, monkeypatch):
    """How often prompts are parsed and states saved."""
    counts = Counter()
    prompt, save = type(tiny).prompt, TrainState.save

    def parsed(self, text):
        counts["prompt"] += 1
        counts[text] += 1
        return prompt(self, text)

    def saved(self, path):
        counts["save"] += 1
        return save(self, path)

    monkeypatch.setattr(type(tiny), "prompt", parsed)
    monkeypatch.setattr(TrainState, "save", saved)
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    return counts


@pytest.mark.parametrize("known", [False, True])
def test_prompts_are_parsed_and_states_saved_once(tiny, tmp_path, counted, monkeypatch, known):
    if known:
        words = set(" ".join(sentences(tiny, "object")).replace("{}", "").split())
        monkeypatch.setattr(tiny, "about", replace(tiny.about, words=frozenset(words)))
    learn(tiny, patches(), TrainingConfig(**TINY, steps=2), tmp_path, seeds=(0,), preview_steps=1)
    assert counted["save"] == 2  # before the first step and after the last
    # Each sentence once, to see that the vectors fit; four images, the sentence of two measurements and of two
    # previews, each with its empty negative prompt.
    assert counted["prompt"] <= 27 * (1 + known) + 4 + 2 + 4


def as_of_version_0_1(path):
    """Split a state into two files, as earlier versions wrote it."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["limelight.training"])
    step = facts.pop("step")
    path.with_suffix(".json").write_text(json.dumps(facts))
    save_file(load_file(path), path, {"step": str(step)})


def test_half_a_state_of_an_earlier_version_is_no_dead_end(tiny, tmp_path, monkeypatch):
    """They wrote the small file first: after a kill between the two there was nothing to resume, and no new start."""
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    (tmp_path / "state.json").write_text("{}")
    report = learn(tiny, patches(), {**TINY, "steps": 1}, tmp_path, seeds=(0,), preview_steps=1)
    assert report.rows[-1].step == 1
    assert not (tmp_path / "state.json").exists()


def test_a_folder_of_an_earlier_version_goes_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    options = {"seeds": (0,), "preview_steps": 1}
    begun = []
    report = learn(tiny, patches(), {**TINY, "steps": 2}, tmp_path, on_begin=begun.append, **options)
    (tmp_path / "word.json").rename(tmp_path / "concept.json")
    as_of_version_0_1(tmp_path / "state.safetensors")
    again = learn(tiny, patches(), {"steps": 3}, tmp_path, resume=True, on_begin=begun.append, **options)
    assert (report.rows[-1].step, again.rows[-1].step) == (2, 3)
    assert [(state.step, state.config.steps) for state in begun] == [(0, 2), (2, 3)]
    assert again.rows[:3] == report.rows
    assert (tmp_path / "word.json").exists()
    assert not {"concept.json", "state.json"} & {path.name for path in tmp_path.iterdir()}
    assert TrainState.load(tmp_path / "state.safetensors").step == 3
    assert again.word.about["config"]["init"] == "cat"


def test_a_word_begins_as_another_one(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    (tmp_path / "other").mkdir()
    other = limelight.LearnedWord("<other>", (torch.randn(2, 32),))
    other.save(tmp_path / "other")
    config = {"token": "<thing>", "steps": 1, "batch": 1}
    options = {"seeds": (0,), "preview_steps": 1}
    limelight.learn(tiny, patches(), config, tmp_path / "new", start=tmp_path / "other", **options)
    assert torch.equal(TrainState.load(tmp_path / "new" / "state.safetensors").begun[0], other.vectors[0])


@pytest.mark.parametrize("module", [folder_module, training_module, word_module])
def test_examples(module):
    found = doctest.testmod(module, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0
