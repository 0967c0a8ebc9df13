"""Learning a word from pictures."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image
from transformers import CLIPTokenizer

import limelight
from limelight.cli import main
from limelight.concepts.inversion import encode, held_loss, invert
from limelight.concepts.pictures import fitted, read, sentences
from limelight.concepts.state import InversionConfig, TrainState, first_vectors, generator
from limelight.concepts.training import learn, read_losses
from limelight.errors import SettingsError
from limelight.scores import image_similarity, text_similarity

TINY = {"token": "<thing>", "init": "cat", "batch": 2, "lr": 0.02, "scale_lr": False}


def drawn(count: int = 3, side: int = 32) -> list[Image.Image]:
    random = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (count, 4, 4, 3), generator=random, dtype=torch.uint8).numpy()
    return [Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in pixels]


@pytest.fixture
def folder(tmp_path):
    """Pictures in files, between files of other kinds."""
    where = tmp_path / "pictures"
    where.mkdir()
    for i, image in enumerate(drawn()):
        image.save(where / f"{i}.png")
    for name in (".DS_Store", "._0.png", "notes.txt"):
        (where / name).write_bytes(b"no picture")
    return where


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_loss_and_gradient_are_those_of_training_a_resized_table(tiny_pipeline, prediction):
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction)
    model = limelight.load(pipeline)
    config = InversionConfig(**{**TINY, "batch": 1}, steps=1, flip=0, templates=["a photo of a {}"])
    pictures = encode(model, drawn(1), config)
    step = next(invert(model, pictures, config))

    random = generator(0, "pass", 0, 0)
    torch.rand(1, generator=random), torch.randint(1, (1,), generator=random)
    spread, noise = (torch.randn(1, 4, 16, 16, generator=random).double() for _ in range(2))
    t = int(torch.randint(1000, (1,), generator=random))
    kept = copy.deepcopy(pipeline)  # the old way: a larger table, and the gradient of all of it
    kept.tokenizer = CLIPTokenizer.from_pretrained(pipeline.tokenizer.name_or_path, model_max_length=77)
    kept.tokenizer.add_tokens("<thing>")
    kept.text_encoder.resize_token_embeddings(len(kept.tokenizer), mean_resizing=False)
    table = kept.text_encoder.get_input_embeddings().weight
    new, old = (kept.tokenizer.convert_tokens_to_ids(word) for word in ("<thing>", "cat</w>"))
    table.data[new] = table.data[old]
    ids = kept.tokenizer("a photo of a <thing>", padding="max_length", max_length=77, return_tensors="pt").input_ids
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[t].double()
    z = pictures.mean[:, 0] + pictures.std[:, 0] * spread
    predicted = kept.unet(abar.sqrt() * z + (1 - abar).sqrt() * noise, t, kept.text_encoder(ids)[0]).sample
    target = {"epsilon": noise, "sample": z, "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * z}[prediction]
    loss = F.mse_loss(predicted.float(), target.float())
    loss.backward()
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    assert step.gradient == pytest.approx(table.grad[new].norm().item(), rel=1e-4)
    assert step.gradient > 0


@pytest.mark.parametrize("family", ["tiny", "tiny_ldm"])
def test_only_the_new_rows_learn_and_nothing_remains(family, request):
    tiny = request.getfixturevalue(family)
    parts = {"text": tiny.pipeline.text_encoder, "unet": tiny.denoiser, "vae": tiny.pipeline.vae}
    for part in parts.values():
        part.eval()
    before = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
    words = tiny.pipeline.tokenizer.backend_tokenizer.to_str()
    config = InversionConfig(**TINY, steps=12, templates=["a {}"])
    pictures = encode(tiny, drawn(), config)
    steps = invert(tiny, pictures, config)
    first = next(steps)
    start = held_loss(tiny, pictures, config)
    assert not any(module.training for part in parts.values() for _, module in part.named_children())
    last = list(steps)[-1]
    with last.concept.bind(tiny):
        assert held_loss(tiny, pictures, config) < start
    assert last.state.step == 12
    assert last.state.cosine < first.state.cosine < 1
    for name, part in parts.items():
        assert all(torch.equal(v, before[name][k]) for k, v in part.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in part.parameters())
    assert tiny.pipeline.tokenizer.backend_tokenizer.to_str() == words
    assert tiny.denoiser._forward_hooks == {}


def test_a_resumed_training_equals_one_without_a_break(tiny, tmp_path):
    config = InversionConfig(
        **{**TINY, "vectors": 2, "accumulate": 2, "norm": "keep", "anchor_weight": 0.1, "grow_every": 6}, steps=10
    )
    *_, whole = invert(tiny, drawn(), config)
    *_, half = invert(tiny, drawn(), replace(config, steps=5))
    # Of two vectors one waits until step 6.
    assert torch.equal(half.state.vectors[0][1], half.state.begun[0][1])
    assert not torch.equal(half.state.vectors[0][0], half.state.begun[0][0])
    half.state.save(tmp_path / "state")
    torch.manual_seed(99)  # what the rest of the program draws has no part in it
    *_, again = invert(tiny, drawn(), config, state=TrainState.load(tmp_path / "state"))
    assert (again.loss, again.gradient) == (whole.loss, whole.gradient)
    for a, b in zip(again.state.moments, whole.state.moments, strict=True):
        assert all(map(torch.equal, a, b))
    assert torch.equal(again.state.vectors[0], whole.state.vectors[0])
    assert not torch.equal(whole.state.vectors[0][1], whole.state.begun[0][1])
    torch.testing.assert_close(whole.state.vectors[0].norm(dim=1), whole.state.begun[0].norm(dim=1))
    for changes, reason in (({"lr": 0.1}, "lr=0.02, not 0.1"), ({"seed": 3}, "seed=0, not 3")):
        with pytest.raises(SettingsError, match=reason):
            invert(tiny, drawn(), replace(config, **changes), state=half.state)
    with pytest.raises(SettingsError, match="other pictures"):
        invert(tiny, drawn(2), config, state=half.state)


def test_xl_learns_for_both_encoders(tiny_xl):
    model = limelight.load(tiny_xl)
    *_, last = invert(
        model, drawn(1, 64), InversionConfig(**{**TINY, "batch": 1, "vectors": 2}, steps=2, checkpoint=True)
    )
    assert [tuple(v.shape) for v in last.state.vectors] == [(2, 32), (2, 32)]
    assert all((v != b).all(dim=0).any() for v, b in zip(last.state.vectors, last.state.begun, strict=True))


def test_checkpointing_changes_nothing_and_the_attention_term_holds_the_word_back(tiny):
    config = InversionConfig(**TINY, steps=6, attention_weight=0.0, templates=["a {} and a dog"])
    plain = list(invert(tiny, drawn(), config))[-1]
    lean = list(invert(tiny, drawn(), replace(config, checkpoint=True)))[-1]
    torch.testing.assert_close(lean.state.vectors[0], plain.state.vectors[0])
    watched = list(invert(tiny, drawn(), replace(config, attention_weight=1e-9)))
    held = list(invert(tiny, drawn(), replace(config, attention_weight=100.0, checkpoint=True)))
    assert watched[0].attention == pytest.approx(0, abs=1e-9)  # the word is its init word
    assert held[-1].attention < watched[-1].attention


def test_a_word_begins_as_its_init_word(pocket):
    table = pocket.pipeline.text_encoder.get_input_embeddings().weight.float()
    cat, teddy, bear = (
        table[pocket.pipeline.tokenizer.convert_tokens_to_ids(f"{w}</w>")] for w in ("cat", "teddy", "bear")
    )
    (one,) = first_vectors(pocket, InversionConfig(init="cat"))
    assert torch.equal(one, cat[None])
    (pair,) = first_vectors(pocket, InversionConfig(init="teddy bear", vectors=2))
    assert torch.equal(pair, torch.stack([teddy, bear]))
    (two,) = first_vectors(pocket, InversionConfig(init="cat", vectors=2))
    assert 0 < (two[0] - two[1]).norm() < 0.01 * cat.norm()
    (random,) = first_vectors(pocket, InversionConfig(vectors=64))
    assert random.std() == pytest.approx(table.std().item(), rel=0.1)
    with pytest.raises(SettingsError, match=r"init='kite' is 2 tokens of 'pocket' \(k, ite\).*take vectors=2"):
        first_vectors(pocket, InversionConfig(init="kite"))


def test_vectors_grow_with_the_step_alone():
    config = InversionConfig(vectors=3, grow_every=10)
    assert [config.vectors_at(step) for step in (0, 9, 10, 20, 500)] == [1, 1, 2, 3, 3]
    assert InversionConfig(vectors=3).vectors_at(0) == 3


def test_sentences_have_one_place_for_the_word(tiny, pocket):
    for kind, count in (("object", 27), ("style", 19)):
        found = sentences(tiny, kind)
        assert len(set(found)) == count
        assert all(text.count("{}") == 1 for text in found)
    assert set(sentences(pocket, "object")) == {"a photo of a {}", "a picture of a {}", "a drawing of a {}"}
    with pytest.raises(SettingsError, match="was not trained with the words of any sentence of 'style'"):
        sentences(pocket, "style")
    with pytest.raises(SettingsError, match="needs one place"):
        InversionConfig(templates=["a photo"])


def test_pictures_are_read_upright_and_other_files_are_not(folder, tmp_path):
    assert len(read(folder)) == 3
    left = Image.new("RGB", (40, 20), "black")
    left.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, the camera on its side: its left is the top
    left.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = fitted(read(tmp_path / "turned.jpg")[0], (40, 20))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] > 250
    assert upright.getpixel((10, 35))[0] < 5
    cut, stretched = (fitted(left, (20, 20), fit) for fit in ("crop", "stretch"))
    assert [cut.getpixel((x, 10))[0] > 127 for x in (2, 8, 12)] == [True, True, False]
    assert [stretched.getpixel((x, 10))[0] > 127 for x in (2, 8, 12)] == [True, True, False]
    assert fitted(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (8, 8)).getpixel((4, 4)) == (255, 255, 255)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(SettingsError, match=r"broken.png' cannot be read"):
        read(tmp_path / "broken.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.heic").touch()
    with pytest.raises(SettingsError, match=r"has no pictures.*It has: 1 \.heic"):
        read(tmp_path / "none")


def test_a_killed_training_goes_on(tiny_pipeline, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.concepts.training.curve", lambda rows: None)  # slow, and looked at elsewhere
    tiny_pipeline(dtype=torch.float32).save_pretrained(tmp_path / "model")
    model = limelight.load(tmp_path / "model", device="cpu")
    settings = {**TINY, "steps": 20}
    config = InversionConfig(**settings)
    options = {"every": 5, "seeds": (0,), "preview_steps": 1}
    learn(model, folder, config, tmp_path / "whole", **options)
    program = f"""
import torch, limelight
from limelight.concepts.state import InversionConfig
from limelight.concepts.training import learn
from pathlib import Path
torch.set_num_threads(1)
model = limelight.load({str(tmp_path / "model")!r}, device="cpu")
learn(model, {str(folder)!r}, InversionConfig(**{settings!r}), Path({str(tmp_path / "killed")!r}), **{options!r})
"""
    running = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(3000):
        if (
            tmp_path / "killed" / "steps" / "learned_embeds-steps-10.safetensors"
        ).exists() or running.poll() is not None:
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 0 < TrainState.load(tmp_path / "killed" / "state").step < 20
    seen = []
    report = learn(model, folder, config, tmp_path / "killed", resume=True, on_step=seen.append, **options)
    assert 0 < len(seen) < 20
    for name in ("loss.csv", "concept.json", "state.safetensors", "README.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [row.step for row in report.rows] == list(range(21))
    assert [row.step for row in report.held] == [0, 5, 10, 15, 20]


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


def test_on_the_command_line(tiny_pipeline, folder, tmp_path, capsys, monkeypatch):
    tiny_pipeline(dtype=torch.float32).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    words = ["learn", str(folder), "--token", "<thing>", "--out", str(out)]
    rest = ["--init", "cat", "--steps", "6", "--every", "3", "--batch", "1", "--model", str(tmp_path / "model")]

    def interrupted(step):
        if step.state.step == 5:
            raise KeyboardInterrupt

    own = learn
    monkeypatch.setattr(
        "limelight.concepts.learn_command.learn",
        lambda *a, **o: own(*a, **{**o, "preview_steps": 1, "on_step": interrupted}),
    )
    assert run(*words, *rest) == 130
    assert "stopped after step 5" in capsys.readouterr().out
    assert run(*words, *rest) == 2
    assert "holds a training or a concept already" in capsys.readouterr().err
    assert run(*words, "--resume", "--lr", "7") == 2
    assert "has lr=0.005, not 7.0" in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    assert "'<thing>' learned in 6 steps" in capsys.readouterr().out
    assert [row.step for row in read_losses(out / "loss.csv")] == list(range(7))
    assert json.loads((out / "concept.json").read_text())["report"]["steps"] == 6
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert names >= {"README.md", "loss.png", "previews/000000.png", "previews/000006.png", "token_identifier.txt"}
    assert limelight.concepts.Concept.load(out).token == "<thing>"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--token", "<thing>", "--init", "kite"], "init='kite' is 2 tokens of 'pocket'"),
        (["--token", "<Thing>", "--init", "cat"], "upper-case letters"),
        (["--token", "cat", "--init", "cat"], "in angle brackets, for example '<cat>'"),
        (["--token", "<|endoftext|>", "--init", "cat"], "already has a word"),
        (["--init", "cat"], "Name the word"),
        (["--token", "<thing>", "--init", "cat", "--style"], "give sentences of your own"),
        (["--token", "<thing>", "--init", "cat", "--preview", "a cat"], "lacks the word"),
        (["--token", "<thing>", "--resume"], "holds no training"),
    ],
)
def test_bad_input_writes_nothing(folder, tmp_path, capsys, words, reason, monkeypatch, pocket):
    monkeypatch.setattr("limelight.concepts.learn_command.load", lambda *args, **options: pocket)
    assert run("learn", str(folder), *words, "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert reason in said
    assert not (tmp_path / "out").exists()


def test_patience_keeps_the_best_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.concepts.training.curve", lambda rows: None)
    # Without a learning rate nothing gets better.
    config = InversionConfig(**{**TINY, "lr": 0.0}, steps=40)
    report = learn(tiny, drawn(), config, tmp_path, every=2, patience=2, seeds=(0,), preview_steps=1)
    assert report.stopped
    assert report.rows[-1].step == 4
    assert report.best.step == 0
    assert torch.equal(limelight.concepts.Concept.load(tmp_path).vectors[0], report.concept.vectors[0])
    assert report.concept.about["step"] == 0


def test_similarities_by_hand():
    one, other = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), F.normalize(torch.tensor([[1.0, 1.0]]))
    assert image_similarity(one, one) == pytest.approx(0.5)
    assert image_similarity(one, other) == pytest.approx(0.5**0.5)

    class Clip:
        def texts(self, texts):
            assert texts == ["a photo of a on grass"]
            return other

    found = text_similarity(Clip(), one, "a photo of a <cat> on grass", "<cat>")
    torch.testing.assert_close(found, torch.full((2,), 0.5**0.5))
