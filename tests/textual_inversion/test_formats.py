"""Files of learned words."""

from __future__ import annotations

import base64
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from torch import nn

import limelight
from limelight import LearnedWord
from limelight.errors import FileError, LimelightError
from tests.textual_inversion.words import SENTENCE, kept, learned_word, old_dictionary, original


def test_diffusers_reads_what_we_write_and_generates_the_same(tiny_pipeline, tmp_path):
    cat = learned_word(3)
    cat.save(tmp_path / "cat.safetensors")
    theirs = tiny_pipeline()
    theirs.load_textual_inversion(str(tmp_path / "cat.safetensors"))
    seed = torch.Generator().manual_seed(3)
    expected = theirs(
        SENTENCE, negative_prompt="a <my-cat>", num_inference_steps=2, generator=seed, output_type="latent"
    )
    model = limelight.load(tiny_pipeline())
    with cat.bind(model):
        ours = limelight.generate(model, SENTENCE, negative="a <my-cat>", seeds=3, steps=2)
        pipe = model.pipeline(
            SENTENCE,
            negative_prompt="a <my-cat>",
            num_inference_steps=2,
            generator=seed.manual_seed(3),
            output_type="latent",
        )
    assert float((ours.latents - expected.images).abs().max()) < 1e-8
    assert float((pipe.images - expected.images).abs().max()) < 1e-8, "their own pipeline on a bound word"
    # A pipeline that loaded the word by itself is read as we read a bound one.
    loaded = limelight.generate(limelight.load(theirs), SENTENCE, negative="a <my-cat>", seeds=3, steps=2)
    assert float((loaded.latents - expected.images).abs().max()) < 1e-8
    assert loaded.subjects == ("<my-cat>", "dog")


def test_diffusers_reads_the_folder(tiny_pipeline, tmp_path):
    learned_word(2).save(tmp_path / "cat")
    assert (tmp_path / "cat" / "token_identifier.txt").read_text() == "<my-cat>"
    theirs = tiny_pipeline()
    theirs.load_textual_inversion(str(tmp_path / "cat"))
    assert "<my-cat>_1" in theirs.tokenizer.get_added_vocab()


V = learned_word(2).vectors[0]


@pytest.mark.parametrize(
    ("name", "content", "token", "about"),
    [
        ("embeddings.pt", original(nn.ParameterDict({"*": nn.Parameter(V)})), "<star>", {"called": "*"}),
        ("embeddings_gs-6099.pt", original(old_dictionary(toy=V)), "<toy>", {"called": "toy"}),
        (
            "a.pt",
            original({"*": V}, name="Bad Hands", step=99, sd_checkpoint="abc", sd_checkpoint_name="v1-5"),
            "<bad-hands>",
            {"called": "Bad Hands", "step": 99, "base_model": "v1-5"},
        ),
        ("Easy.pt", original({"*": V}, name=""), "<easy>", {"called": "Easy"}),
        ("learned_embeds.safetensors", {"<cat-toy>": V}, "<cat-toy>", {}),
        ("learned_embeds-steps-500.safetensors", {"<cat-toy>": V.half()}, "<cat-toy>", {}),
        ("learned_embeds.bin", {"<cat-toy>": nn.Parameter(V[0])}, "<cat-toy>", {}),
        ("cat.safetensors", {"emb_params": V}, "<cat>", {"called": "cat"}),
        ("cat.safetensors", {"clip_l": V, "clip_g": torch.cat([V, V], 1)}, "<cat>", {"called": "cat"}),
    ],
)
def test_formats(tmp_path, name, content, token, about):
    found = LearnedWord.load(kept(content, name, tmp_path))
    assert (found.token, dict(found.about)) == (token, about)
    assert all(v.dtype == torch.float32 and not v.requires_grad for v in found.vectors)
    rows = 1 if name == "learned_embeds.bin" else 2
    torch.testing.assert_close(found.vectors[0], V[:rows], atol=2e-3 if "steps" in name else 0, rtol=0)
    assert [v.shape[1] for v in found.vectors] == ([32, 64] if "clip_l" in content else [32])
    assert LearnedWord.load(tmp_path / name, "<other>").token == "<other>"
    assert LearnedWord.load(tmp_path / name, "other").token == "<other>"


def test_a_file_of_several(tmp_path):
    path = kept(original(nn.ParameterDict({"*": nn.Parameter(V), "<dog>": nn.Parameter(V + 1)})), "merged.pt", tmp_path)
    assert [word.token for word in LearnedWord.load_all(path)] == ["<star>", "<dog>"]
    assert torch.equal(LearnedWord.load(path, "<dog>").vectors[0], V + 1)
    with pytest.raises(FileError, match=r"holds 2 learned words; choose one as its token: <star>, <dog>\."):
        LearnedWord.load(path)


def test_folders(tmp_path):
    path = kept({"<x>": V}, "hub/learned_embeds.bin", tmp_path)
    assert LearnedWord.load(path.parent).token == "<x>"
    (tmp_path / "hub" / "token_identifier.txt").write_text("<cat-toy>\n")
    assert LearnedWord.load(path.parent).token == "<cat-toy>"
    kept({"<y>": V}, "other/my.safetensors", tmp_path)
    assert LearnedWord.load(tmp_path / "other").token == "<y>"
    with pytest.raises(FileError, match=r"has no learned_embeds.safetensors but nothing of the kind; name the file"):
        LearnedWord.load(tmp_path)


@pytest.mark.parametrize("name", ["cat.safetensors", "cat.pt", "folder", "pair.safetensors"])
def test_what_is_written_is_read_back(tmp_path, name):
    about = {"base_model": "pocket", "step": 500, "init": "cat", "config": {"lr": 0.005, "templates": ["a {}"]}}
    word = learned_word(3, encoders=2 if name.startswith("pair") else 1, **about)
    word.save(tmp_path / name)
    found = LearnedWord.load(tmp_path / name)
    assert found.token == "<my-cat>"
    assert dict(found.about) == ({"step": 500, "called": "<my-cat>"} if name == "cat.pt" else about) or name == "cat.pt"
    assert all(torch.equal(a, b) for a, b in zip(found.vectors, word.vectors, strict=True))


def test_the_original_format_is_what_its_readers_ask_for(tmp_path):
    for width, star in ((768, 265), (1280, 1008)):  # "*" in CLIP's vocabulary and in BERT's
        learned_word(2, width).save(tmp_path / "cat.pt")
        with torch.serialization.safe_globals([nn.ParameterDict]):
            content = torch.load(tmp_path / "cat.pt", weights_only=True)
        assert (content["string_to_token"], content["name"]) == ({"*": torch.tensor(star)}, "<my-cat>")
        assert isinstance(content["string_to_param"], nn.ParameterDict)
        assert content["string_to_param"]["*"].shape == (2, width)


class Rude:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.pt",
            {"<a>": Rude()},
            "'a.pt' is refused: it asks to run 'exec', and tensors do not; get it as .safetensors.",
        ),
        ("a.bin", b"hello", "'a.bin' cannot be read as a learned word"),
        ("a.safetensors", b"hello", "'a.safetensors' cannot be read as a learned word"),
        ("none.pt", None, "'none.pt' cannot be read: No such file"),
        ("none.safetensors", None, "'none.safetensors' cannot be read: No such file"),
        ("a.pt", {"model": {"w": V}, "epoch": 3}, "'a.pt' does not hold a learned word, but 'model', 'epoch'."),
        ("a.pt", [V], "'a.pt' does not hold a learned word."),
        ("a.pt", original({"*": "x"}), "'a.pt' does not hold vectors for '*'."),
        ("a.safetensors", {"<a>": torch.zeros(2, 2, 2)}, "does not hold a learned word, but '<a>'"),
        ("a.safetensors", {"<a>": torch.zeros(0, 4)}, "these are [0, 4]"),
        ("a.safetensors", {"<a>": torch.tensor([float("nan")])}, "not all finite"),
        ("a.safetensors", {"<MyCat>": V}, "The token '<MyCat>' has upper-case letters"),
        (
            "a.safetensors",
            {"clip_l": V, "clip_g": V[:1].clone()},
            "as many for each text encoder; these are [2, 32], [1, 32]",
        ),
    ],
)
def test_bad_files(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        kept(content, name, tmp_path)
    with pytest.raises(LimelightError) as error:
        LearnedWord.load(name)
    assert message in str(error.value)


def test_files_of_a_few_bytes_stay_small(tmp_path):
    """A view that repeats one number is as large as it says only once it is copied."""
    path = kept({"<a>": torch.ones(1).as_strided((10**6, 10**4), (0, 0))}, "a.pt", tmp_path)
    assert path.stat().st_size < 3000
    with pytest.raises(
        FileError, match=r"is refused: it holds 4 bytes for vectors of '<a>' of shape \[1000000, 10000\]"
    ):
        LearnedWord.load(path)
    with zipfile.ZipFile(kept({"<a>": V}, "b.pt", tmp_path)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(FileError, match="is refused: its parts are compressed"):
        LearnedWord.load(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight",
        "unet.down_blocks.0.attn1.to_q.lora_A.weight",
        "unet.down_blocks.0.attn1.processor.to_q_lora.down.weight",
        "lycoris.hada_w1_a",
    ],
)
def test_a_lora_is_called_one(tmp_path, key):
    path = kept({key: V, key.replace("down", "mid"): V.clone(), "x": V.clone()}, "style.safetensors", tmp_path)
    with pytest.raises(FileError, match=r"'.*style.safetensors' is a LoRA, which changes a model's weights"):
        LearnedWord.load(path)


def test_saves_of_one_word_are_equal(tmp_path):
    word = learned_word(3, step=500, base_model="pocket")
    contents = set()
    for i in range(20):
        word.save(tmp_path / f"{i}.safetensors")
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    (content,) = contents
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0
    assert list(json.loads(content[8 : 8 + size])["__metadata__"]) == ["about", "format", "limelight", "token"]
    assert torch.equal(load_file(tmp_path / "0.safetensors")["<my-cat>"], word.vectors[0])


def test_the_two_files_of_the_xl_trainer(tmp_path):
    kept({"<s>": V}, "word/learned_embeds.safetensors", tmp_path)
    kept({"<s>": torch.cat([V, V], 1)}, "word/learned_embeds_2.safetensors", tmp_path)
    assert [v.shape for v in LearnedWord.load(tmp_path / "word").vectors] == [(2, 32), (2, 64)]
    assert len(LearnedWord.load(tmp_path / "word" / "learned_embeds.safetensors").vectors) == 1
    kept({"<t>": V}, "word/learned_embeds_2.safetensors", tmp_path)
    with pytest.raises(
        FileError, match=r"learned_embeds_2.safetensors' holds '<t>', and the file beside it other words"
    ):
        LearnedWord.load(tmp_path / "word")


@pytest.mark.parametrize("held", ["ParameterDict", "old", "plain", "diffusers"])
def test_torchs_old_format(tmp_path, held):
    contents = {
        "ParameterDict": original(nn.ParameterDict({"*": nn.Parameter(V)})),
        "old": original(old_dictionary(**{"*": V})),
        "plain": original({"*": V}),
        "diffusers": {"<star>": V},
    }
    torch.save(contents[held], tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    torch.save(contents[held], tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        word = LearnedWord.load(tmp_path / name)
        assert word.token == "<star>"
        assert torch.equal(word.vectors[0], V)


class Program:
    """Runs when it is read by `pickle`."""

    def __reduce__(self):
        return exec, ("print('read')",)  # not `print` itself, which Ray replaces


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (Program(), r"\w*builtins?_*.exec"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (nn.ParameterDict.__init__, "getattr"),
        (Path("x"), "pathlib.PosixPath"),
    ],
)
def test_torchs_old_format_holds_nothing_else(tmp_path, value, code, capsys):
    held = {"string_to_param": nn.ParameterDict({"*": nn.Parameter(V)}), "x": value}
    torch.save(held, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FileError, match=rf"'.*a.pt' is refused: it asks to run '.*{code}'"):
        LearnedWord.load(tmp_path / "a.pt")
    assert capsys.readouterr().out == ""


def test_a_tar_is_not_unpacked(tmp_path):
    """torch's format from before 0.1.10, whose files it would write to a folder."""
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            (tmp_path / name).write_bytes(pickle.dumps(0, 2))
            archive.add(tmp_path / name, name)
    with pytest.raises(FileError, match=r"'.*a.pt' cannot be read as a learned word"):
        LearnedWord.load(tmp_path / "a.pt")


def test_a_word_in_an_image(tmp_path):
    """As AUTOMATIC1111 writes it: JSON in base64 under a name of its own."""
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": V.tolist()}},
        "name": "Cat",
        "step": 7,
        "sd_checkpoint": None,
        "sd_checkpoint_name": "v1-5",
    }
    text = PngInfo()
    text.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png", pnginfo=text)
    word = LearnedWord.load(tmp_path / "cat.png")
    assert (word.token, dict(word.about)) == ("<cat>", {"called": "Cat", "step": 7, "base_model": "v1-5"})
    assert torch.equal(word.vectors[0], V)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(FileError, match=r"'.*plain.png' is an image without a learned word in its text"):
        LearnedWord.load(tmp_path / "plain.png")


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"<a>": Rude()}))
    with pytest.raises(FileError, match=r"is refused: it asks to run|torch did not write this file"):
        LearnedWord.load(tmp_path / "a.pt")
