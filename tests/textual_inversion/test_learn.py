"""Learning a word from images."""

from __future__ import annotations

import copy
import doctest
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image
from transformers import CLIPTokenizer

import limelight
from limelight.cli.app import main
from limelight.errors import FileError, SettingsError
from limelight.evaluate.clip import image_similarity, text_similarity
from limelight.textual_inversion import folder as folder_module
from limelight.textual_inversion import training as training_module
from limelight.textual_inversion import word as word_module
from limelight.textual_inversion.config import TrainingConfig, generator
from limelight.textual_inversion.dataset import read_images, sentences
from limelight.textual_inversion.folder import learn, read_losses
from limelight.textual_inversion.state import TrainState, first_vectors
from limelight.textual_inversion.training import encode, held_loss, train_word
from limelight.utils.images import fit_image

TINY = {"token": "<thing>", "init": "cat", "batch": 2, "lr": 0.02, "scale_lr": False}


def drawn(count: int = 3, side: int = 32) -> list[Image.Image]:
    random = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (count, 4, 4, 3), generator=random, dtype=torch.uint8).numpy()
    return [Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in pixels]


@pytest.fixture
def folder(tmp_path):
    """Images in files, between files of other kinds."""
    where = tmp_path / "images"
    where.mkdir()
    for i, image in enumerate(drawn()):
        image.save(where / f"{i}.png")
    for name in (".DS_Store", "._0.png", "notes.txt"):
        (where / name).write_bytes(b"no image")
    return where


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_loss_and_gradient_are_those_of_training_a_resized_table(tiny_pipeline, prediction):
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction)
    model = limelight.load(pipeline)
    config = TrainingConfig(**{**TINY, "batch": 1}, steps=1, flip=0, templates=["a photo of a {}"])
    images = encode(model, drawn(1), config)
    step = next(train_word(model, images, config))

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
    z = images.mean[:, 0] + images.std[:, 0] * spread
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
    config = TrainingConfig(**TINY, steps=12, templates=["a {}"])
    images = encode(tiny, drawn(), config)
    steps = train_word(tiny, images, config)
    first = next(steps)
    start = held_loss(tiny, images, config)
    assert not any(module.training for part in parts.values() for _, module in part.named_children())
    last = list(steps)[-1]
    with last.word.bind(tiny):
        assert held_loss(tiny, images, config) < start
    assert last.state.step == 12
    assert last.state.cosine < first.state.cosine < 1
    for name, part in parts.items():
        assert all(torch.equal(v, before[name][k]) for k, v in part.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in part.parameters())
    assert tiny.pipeline.tokenizer.backend_tokenizer.to_str() == words
    assert tiny.denoiser._forward_hooks == {}


def test_a_resumed_training_equals_one_without_a_break(tiny, tmp_path):
    config = TrainingConfig(
        **{**TINY, "vectors": 2, "accumulate": 2, "norm": "keep", "anchor_weight": 0.1, "grow_every": 6}, steps=10
    )
    *_, whole = train_word(tiny, drawn(), config)
    *_, half = train_word(tiny, drawn(), replace(config, steps=5))
    # Of two vectors one waits until step 6.
    assert torch.equal(half.state.vectors[0][1], half.state.begun[0][1])
    assert not torch.equal(half.state.vectors[0][0], half.state.begun[0][0])
    half.state.save(tmp_path / "state")
    torch.manual_seed(99)  # what the rest of the program draws has no part in it
    *_, again = train_word(tiny, drawn(), config, state=TrainState.load(tmp_path / "state"))
    assert (again.loss, again.gradient) == (whole.loss, whole.gradient)
    for a, b in zip(again.state.moments, whole.state.moments, strict=True):
        assert all(map(torch.equal, a, b))
    assert torch.equal(again.state.vectors[0], whole.state.vectors[0])
    assert not torch.equal(whole.state.vectors[0][1], whole.state.begun[0][1])
    torch.testing.assert_close(whole.state.vectors[0].norm(dim=1), whole.state.begun[0].norm(dim=1))
    for changes, reason in (({"lr": 0.1}, "lr=0.02, not 0.1"), ({"seed": 3}, "seed=0, not 3")):
        with pytest.raises(SettingsError, match=reason):
            train_word(tiny, drawn(), replace(config, **changes), state=half.state)
    with pytest.raises(SettingsError, match="other images"):
        train_word(tiny, drawn(2), config, state=half.state)


def test_xl_learns_for_both_encoders(tiny_xl):
    model = limelight.load(tiny_xl)
    *_, last = train_word(
        model, drawn(1, 64), TrainingConfig(**{**TINY, "batch": 1, "vectors": 2}, steps=2, checkpoint=True)
    )
    assert [tuple(v.shape) for v in last.state.vectors] == [(2, 32), (2, 32)]
    assert all((v != b).all(dim=0).any() for v, b in zip(last.state.vectors, last.state.begun, strict=True))


def test_checkpointing_changes_nothing_and_the_attention_term_holds_the_word_back(tiny):
    config = TrainingConfig(**TINY, steps=6, attention_weight=0.0, templates=["a {} and a dog"])
    plain = list(train_word(tiny, drawn(), config))[-1]
    lean = list(train_word(tiny, drawn(), replace(config, checkpoint=True)))[-1]
    torch.testing.assert_close(lean.state.vectors[0], plain.state.vectors[0])
    watched = list(train_word(tiny, drawn(), replace(config, attention_weight=1e-9)))
    held = list(train_word(tiny, drawn(), replace(config, attention_weight=100.0, checkpoint=True)))
    assert watched[0].attention == pytest.approx(0, abs=1e-9)  # the word is its init word
    assert held[-1].attention < watched[-1].attention


def test_a_word_begins_as_its_init_word(pocket):
    table = pocket.pipeline.text_encoder.get_input_embeddings().weight.float()
    cat, teddy, bear = (
        table[pocket.pipeline.tokenizer.convert_tokens_to_ids(f"{w}</w>")] for w in ("cat", "teddy", "bear")
    )
    (one,) = first_vectors(pocket, TrainingConfig(init="cat"))
    assert torch.equal(one, cat[None])
    (pair,) = first_vectors(pocket, TrainingConfig(init="teddy bear", vectors=2))
    assert torch.equal(pair, torch.stack([teddy, bear]))
    (two,) = first_vectors(pocket, TrainingConfig(init="cat", vectors=2))
    assert 0 < (two[0] - two[1]).norm() < 0.01 * cat.norm()
    (random,) = first_vectors(pocket, TrainingConfig(vectors=64))
    assert random.std() == pytest.approx(table.std().item(), rel=0.1)
    with pytest.raises(SettingsError, match=r"init='kite' is 2 tokens of 'pocket' \(k, ite\).*take vectors=2"):
        first_vectors(pocket, TrainingConfig(init="kite"))


def test_vectors_grow_with_the_step_alone():
    config = TrainingConfig(vectors=3, grow_every=10)
    assert [config.vectors_at(step) for step in (0, 9, 10, 20, 500)] == [1, 1, 2, 3, 3]
    assert TrainingConfig(vectors=3).vectors_at(0) == 3


def test_sentences_have_one_place_for_the_word(tiny, pocket):
    for kind, count in (("object", 27), ("style", 19)):
        found = sentences(tiny, kind)
        assert len(set(found)) == count
        assert all(text.count("{}") == 1 for text in found)
    assert set(sentences(pocket, "object")) == {"a photo of a {}", "a picture of a {}", "a drawing of a {}"}
    with pytest.raises(SettingsError, match="was not trained with the words of any sentence of 'style'"):
        sentences(pocket, "style")
    with pytest.raises(SettingsError, match="needs one place"):
        TrainingConfig(templates=["a photo"])


def test_pictures_are_read_upright_and_other_files_are_not(folder, tmp_path):
    assert len(read_images(folder)) == 3
    left = Image.new("RGB", (40, 20), "black")
    left.paste("white", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, the camera on its side: its left is the top
    left.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = fit_image(read_images(tmp_path / "turned.jpg")[0], (40, 20))
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[0] > 250
    assert upright.getpixel((10, 35))[0] < 5
    cut, stretched = (fit_image(left, (20, 20), fit) for fit in ("crop", "stretch"))
    assert [cut.getpixel((x, 10))[0] > 127 for x in (2, 8, 12)] == [True, True, False]
    assert [stretched.getpixel((x, 10))[0] > 127 for x in (2, 8, 12)] == [True, True, False]
    assert fit_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (8, 8)).getpixel((4, 4)) == (255, 255, 255)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(FileError, match=r"broken.png' cannot be read"):
        read_images(tmp_path / "broken.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.raw").touch()
    with pytest.raises(FileError, match=r"has no images.*It has: 1 \.raw"):
        read_images(tmp_path / "none")


def test_a_killed_training_goes_on(tiny_pipeline, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)  # slow, and looked at elsewhere
    tiny_pipeline(dtype=torch.float32).save_pretrained(tmp_path / "model")
    model = limelight.load(tmp_path / "model", device="cpu")
    settings = {**TINY, "steps": 20}
    config = TrainingConfig(**settings)
    options = {"save_every": 5, "seeds": (0,), "preview_steps": 1}
    learn(model, folder, config, tmp_path / "whole", **options)
    program = f"""
import torch, limelight
from limelight.textual_inversion import folder as folder_module
from limelight.textual_inversion import training as training_module
from limelight.textual_inversion import word as word_module
from limelight.textual_inversion.config import TrainingConfig
from limelight.textual_inversion.folder import learn
from pathlib import Path
torch.set_num_threads(1)
model = limelight.load({str(tmp_path / "model")!r}, device="cpu")
learn(model, {str(folder)!r}, TrainingConfig(**{settings!r}), Path({str(tmp_path / "killed")!r}), **{options!r})
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
    for name in ("loss.csv", "word.json", "state.safetensors", "README.md"):
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
    rest = ["--init", "cat", "--steps", "6", "--save-every", "3", "--batch", "1", "--model", str(tmp_path / "model")]

    def interrupted(step):
        if step.state.step == 5:
            raise KeyboardInterrupt

    own = learn
    monkeypatch.setattr(
        "limelight.textual_inversion.folder.learn",
        lambda *a, **o: own(*a, **{**o, "preview_steps": 1, "on_step": interrupted}),
    )
    assert run(*words, *rest) == 130
    assert "Stopped after step 5" in capsys.readouterr().err
    assert run(*words, *rest) == 2
    assert "holds a training or a learned word already" in capsys.readouterr().err
    assert run(*words, "--resume", "--lr", "7") == 2
    assert "has lr=0.005, not 7.0" in capsys.readouterr().err
    assert run(*words, "--resume") == 0
    assert "'<thing>' learned in 6 steps" in capsys.readouterr().out
    assert [row.step for row in read_losses(out / "loss.csv")] == list(range(7))
    assert json.loads((out / "word.json").read_text())["report"]["steps"] == 6
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert names >= {"README.md", "loss.png", "previews/000000.png", "previews/000006.png", "token_identifier.txt"}
    assert limelight.textual_inversion.word.LearnedWord.load(out).token == "<thing>"


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
        (["--token", "<thing>", "--resume"], "holds no training to resume"),
    ],
)
def test_bad_input_writes_nothing(folder, tmp_path, capsys, words, reason, monkeypatch, pocket):
    monkeypatch.setattr("limelight.models.loading.load", lambda *args, **options: pocket)
    assert run("learn", str(folder), *words, "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert reason in said
    assert not (tmp_path / "out").exists()


def test_patience_keeps_the_best_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    # Without a learning rate nothing gets better.
    config = TrainingConfig(**{**TINY, "lr": 0.0}, steps=40)
    report = learn(tiny, drawn(), config, tmp_path, save_every=2, patience=2, seeds=(0,), preview_steps=1)
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
    learn(tiny, drawn(), TrainingConfig(**TINY, steps=2), tmp_path, seeds=(0,), preview_steps=1)
    assert counted["save"] == 2  # before the first step and after the last
    # Four images, the sentence of two measurements and of two previews, each with its empty negative prompt.
    assert counted["prompt"] <= 27 * known + 4 + 2 + 4


def test_a_folder_of_an_earlier_version_goes_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    options = {"seeds": (0,), "preview_steps": 1}
    begun = []
    report = learn(tiny, drawn(), {**TINY, "steps": 2}, tmp_path, on_begin=begun.append, **options)
    (tmp_path / "word.json").rename(tmp_path / "concept.json")
    again = learn(tiny, drawn(), {"steps": 3}, tmp_path, resume=True, on_begin=begun.append, **options)
    assert (report.rows[-1].step, again.rows[-1].step) == (2, 3)
    assert [(state.step, state.config.steps) for state in begun] == [(0, 2), (2, 3)]
    assert again.rows[:3] == report.rows
    assert (tmp_path / "word.json").exists()
    assert not (tmp_path / "concept.json").exists()
    assert again.word.about["config"]["init"] == "cat"


def test_a_word_begins_as_another_one(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("limelight.textual_inversion.folder.curve", lambda rows: None)
    (tmp_path / "other").mkdir()
    other = limelight.LearnedWord("<other>", (torch.randn(2, 32),))
    other.save(tmp_path / "other")
    config = {"token": "<thing>", "steps": 1, "batch": 1}
    options = {"seeds": (0,), "preview_steps": 1}
    limelight.learn(tiny, drawn(), config, tmp_path / "new", start=tmp_path / "other", **options)
    assert torch.equal(TrainState.load(tmp_path / "new" / "state").begun[0], other.vectors[0])


@pytest.mark.parametrize("module", [folder_module, training_module, word_module])
def test_examples(module):
    found = doctest.testmod(module, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0


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


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (76, "'<teal>' has 76 vectors, and this model reads 75 tokens"),
        (73, r"reads 77 tokens, and 'a .*<teal>.*' has \d+ with the 73 vectors of '<teal>'; learn fewer vectors"),
    ],
)
@pytest.mark.filterwarnings("ignore::limelight.PromptWarning")
def test_vectors_that_no_sentence_holds_are_refused_before_the_first_step(tiny, vectors, message):
    config = TrainingConfig(token="<teal>", vectors=vectors, steps=1, batch=1, size=32)
    with pytest.raises(SettingsError, match=message):
        train_word(tiny, Image.new("RGB", (32, 32), "teal"), config)
