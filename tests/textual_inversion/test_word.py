"""Learned words: names, what fits, their neighbors, and the commands."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import limelight
from limelight import LearnedWord, ModelError, SettingsError
from limelight.cli import app as cli
from tests.conftest import saved
from tests.textual_inversion.words import kept, learned_word, original, same, state


@pytest.mark.parametrize("token", ["cat", "<my cat>", "<>", "", "*", "<a>b", "<a><b>"])
def test_tokens_are_placeholders(token):
    with pytest.raises(SettingsError, match="cannot name a learned word; write it in angle brackets"):
        LearnedWord(token, learned_word().vectors)


def test_what_does_not_fit_is_said(tiny, tiny_xl, tmp_path):
    before = state(tiny)
    with pytest.raises(SettingsError, match=r"'<my-cat>' have 768 dimensions; this text encoder has 32\. They were"):
        learned_word(width=768).bind(tiny).__enter__()
    with pytest.raises(SettingsError, match=r"'<my-cat>' was learned for 1 text encoder; this model has 2\."):
        learned_word().bind(limelight.load(tiny_xl)).__enter__()
    taken = r"already has a word '<my-cat>'; load one .* token='<my-cat-2>'"
    with learned_word().bind(tiny), pytest.raises(SettingsError, match=taken):
        learned_word(1).bind(tiny).__enter__()
    with pytest.raises(SettingsError, match=r"already has a word '<\|endoftext\|>'"):
        learned_word(token="<|endoftext|>").bind(tiny).__enter__()
    with pytest.raises(ModelError, match="'int' has no text encoder"):
        learned_word().bind(3).__enter__()
    with pytest.raises(SettingsError, match=r"has no suffix of a known format\. End it with .safetensors or .pt"):
        learned_word().save(tmp_path / "cat.bin")
    with pytest.raises(SettingsError, match=r"a .pt file is for one text encoder, '<my-cat>' has 2"):
        learned_word(encoders=2).save(tmp_path / "cat.pt")
    same(before, state(tiny))


def test_nearest_words(pocket):
    table = pocket.pipeline.text_encoder.get_input_embeddings().weight
    ids = [pocket.prompt(word).ids[1] for word in ("cat", "dog")]
    word = LearnedWord("<x>", (3 * table[ids],))
    (cat, *_), (dog, *_) = word.nearest(pocket, 3)
    assert (cat[0], dog[0]) == ("cat", "dog")
    assert cat[1] == pytest.approx(1, abs=1e-5)

    facts = word.facts(pocket, 3)
    assert [fact.nearest for fact in facts] == list(word.nearest(pocket, 3))
    assert [fact.lengths for fact in facts] == [(pytest.approx(3 * table[i].norm().item()),) for i in ids]
    assert [fact.nearest for fact in word.facts()] == [(), ()]


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["limelight", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a"])
def test_converting_overwrites_nothing_else(command, tmp_path, name):
    learned_word(2).save(tmp_path / "old.safetensors")
    learned_word(3).save(tmp_path / "other.safetensors")
    out = tmp_path / name
    for _ in range(2):  # the same again is no loss
        assert command("word", "convert", tmp_path / "old.safetensors", out)[0] == 0
    files = [out] if out.is_file() else sorted(out.iterdir())
    before = [file.read_bytes() for file in files]
    code, _, complaint = command("word", "convert", tmp_path / "other.safetensors", out)
    assert (code, "exists already and holds something else" in " ".join(complaint.split())) == (2, True)
    assert [file.read_bytes() for file in files] == before


def test_commands(command, pocket, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.models.loading.load", lambda *_, **__: pocket)
    before = state(pocket)
    width = pocket.pipeline.text_encoder.config.hidden_size
    old = kept(original(nn.ParameterDict({"*": nn.Parameter(learned_word(2, width).vectors[0])})), "old.pt", tmp_path)
    new, out = tmp_path / "new.safetensors", tmp_path / "out"
    assert command("word", "convert", old, new, "--token", "<my-cat>")[0] == 0
    assert list(load_file(new)) == ["<my-cat>"]
    code, shown, _ = command("word", "show", new)
    assert code == 0
    assert f"<my-cat>: 2 x {width}" in shown
    assert "called: *" in shown
    code, _, shown = command(
        *("generate", "a <my-cat> and <old>", "--word", new, "--word", f"<old>={old}"),
        *("--steps", 1, "--guidance", "none", "--out", out),
    )
    assert code == 0
    assert "learned word: <my-cat>\nlearned word: <old>" in shown
    assert "never seen" not in shown
    with Image.open(saved(out, "a-my-cat-and-old-plain-0.png")) as image:
        settings = json.loads(image.text["limelight"])
    assert (list(settings["learned"]), settings["subjects"]) == (["<my-cat>", "<old>"], ["<my-cat>", "<old>"])
    code, _, complaint = command("tokens", "a <my-cat> <my-cat>_1", "--word", new)
    assert (code, "error: '<my-cat>_1' in the prompt is one vector" in complaint) == (2, True)
    for name in ("generate", "explain", "edit"):
        code, _, complaint = command(name, "a cat", *["a dog"] * (name == "edit"), "--word", "gone.pt")
        assert (code, complaint) == (
            2,
            "loading pocket ...\nerror: 'gone.pt' cannot be read: No such file or directory.\n",
        )
    same(before, state(pocket))
