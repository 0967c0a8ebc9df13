"""Learned words: their files, and a model that reads them for as long as they are bound."""

from __future__ import annotations

import base64
import json
import pickle
import sys
import warnings
import zipfile
from contextlib import ExitStack

import pytest
import torch
from accelerate import cpu_offload
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertTokenizer

import limelight
from limelight import LearnedWord, ModelError, PromptError, SettingsError
from limelight.cli import app as cli
from limelight.errors import FileError, LimelightError
from limelight.prompts.prompt import parse
from limelight.prompts.subjects import nouns
from limelight.textual_inversion.binding import ExtendedEmbedding, bound
from tests.conftest import saved

SENTENCE = "a photo of <my-cat> and a dog"


def learned_word(n=2, width=32, token="<my-cat>", encoders=1, **about) -> LearnedWord:
    generator = torch.Generator().manual_seed(n)
    # As long as the rows of a table are at first.
    return LearnedWord(token, tuple(0.02 * torch.randn(n, width, generator=generator) for _ in range(encoders)), about)


# A model with a word, and without it.


def state(model) -> list:
    """All that binding could have changed: modules, weights, tokenizers, and what the encoders give."""
    pipeline, facts = model.pipeline, []
    for number in ("", "_2"):
        encoder = getattr(pipeline, f"text_encoder{number}", None)
        tokenizer = getattr(pipeline, f"tokenizer{number}", None)
        if encoder is None:
            continue
        output = encoder(torch.tensor([model.prompt("a cat and a dog").ids]), output_hidden_states=True)
        tensors = [*encoder.state_dict().values(), output[0], *output.hidden_states]
        facts.append(
            (
                [tensor.clone() for tensor in tensors],
                [(name, id(module), module.training) for name, module in encoder.named_modules()],
                [(name, id(p), p.requires_grad) for name, p in encoder.named_parameters()],
                [getattr(module, "eos_token_id", None) for module in encoder.modules()],
                json.loads(tokenizer._tokenizer.to_str()),
                {name: repr(value) for name, value in vars(tokenizer).items()},
                (len(tokenizer), id(tokenizer._tokenizer), tokenizer.get_vocab()),
            )
        )
    return facts


def same(one: list, other: list) -> None:
    assert len(one) == len(other) > 0
    for (tensors, *facts), (others, *other_facts) in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
        assert facts == other_facts


@pytest.fixture(params=["tiny", "tiny_xl"])
def model(request):
    found = request.getfixturevalue(request.param)
    return found if request.param == "tiny" else limelight.load(found)


def fitting(model, n=2, token="<my-cat>") -> LearnedWord:
    return learned_word(n, token=token, encoders=1 if not hasattr(model.pipeline, "text_encoder_2") else 2)


def test_a_bound_word_is_read_and_nothing_remains(model):
    before = state(model)
    encoder = model.pipeline.text_encoder
    with fitting(model).bind(model) as cat:
        prompt = model.prompt(SENTENCE)
        assert prompt.find("<my-cat>") == prompt.find("<MY-CAT>") == (4, 5)
        assert (prompt.find("dog"), prompt.end, prompt.whole) == ((8,), 9, 10)
        assert prompt.tokens[4:6] == ("<my-cat>", "<my-cat>_1")
        ids = torch.tensor([prompt.ids])
        embedded = encoder.get_input_embeddings()(ids)[0]
        assert torch.equal(embedded[4:6], cat.vectors[0].double())
        table = encoder.get_input_embeddings().weight
        assert torch.equal(embedded[[1, 8]], table[ids[0, [1, 8]]])
        assert encoder.dtype == torch.float64
    same(before, state(model))
    with pytest.raises(RuntimeError, match="on purpose"), fitting(model).bind(model):
        raise RuntimeError("on purpose")
    same(before, state(model))
    assert not model.prompt(SENTENCE).words[3].learned


def test_prompts_without_the_word_are_read_as_before(model):
    plain = model.encode([model.prompt("a cat and a dog")], "a bear")
    with fitting(model).bind(model):
        bound_too = model.encode([model.prompt("a cat and a dog")], "a bear")
    for one, other in ((plain.conditional, bound_too.conditional), (plain.unconditional, bound_too.unconditional)):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_word_made_of_words_is_read_as_they_are(model):
    """Vectors copied from the rows of "black" and "cat" give the very states of "black cat"."""
    words = model.prompt("black cat")
    readers = [(model.pipeline.tokenizer, model.pipeline.text_encoder)]
    if hasattr(model.pipeline, "text_encoder_2"):
        readers.append((model.pipeline.tokenizer_2, model.pipeline.text_encoder_2))
    rows = tuple(encoder.get_input_embeddings().weight[list(words.ids[1:3])] for _, encoder in readers)
    expected = model.encode([model.prompt("a black cat and a dog")], "a black cat")
    with LearnedWord("<black-cat>", rows).bind(model):
        found = model.encode([model.prompt("a <black-cat> and a dog")], "a <black-cat>")
    for name, value in expected.joined.items():
        assert torch.equal(found.joined[name], value), name


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_words_are_bound_inside_each_other_and_end_in_any_order(tiny, order):
    before = state(tiny)
    words = [learned_word(n, token=token) for n, token in ((2, "<a>"), (1, "<a-b>"), (12, "<c>"))]
    stacks = [ExitStack() for _ in words]
    for word, stack in zip(words, stacks, strict=True):
        stack.enter_context(word.bind(tiny))
    prompt = tiny.prompt("<c> <a-b> and <a>, <a>")
    assert [prompt.find(name) for name in ("<c>", "<a-b>", "<a>", "<a>#2")] == [
        tuple(range(1, 13)), (13,), (15, 16), (18, 19),
    ]  # fmt: skip
    embedded = tiny.pipeline.text_encoder.get_input_embeddings()(torch.tensor([prompt.ids]))[0]
    expected = torch.cat([words[2].vectors[0], words[1].vectors[0]]).double()
    assert torch.equal(embedded[1:14], expected)
    for spot in (15, 18):
        assert torch.equal(embedded[spot : spot + 2], words[0].vectors[0].double())
    for index in order:
        assert len(tiny.pipeline.tokenizer) > before[0][-1][0]
        stacks[index].close()
    same(before, state(tiny))


def test_gradient_reaches_only_the_rows(tiny):
    inner, rows = learned_word(1, token="<inner>"), nn.Parameter(learned_word(2).vectors[0].clone())
    encoder = tiny.pipeline.text_encoder
    assert any(p.requires_grad for p in encoder.parameters())
    with bound(tiny, "<my-cat>", [rows]), inner.bind(tiny):
        encoder.requires_grad_(False)  # the rows are not the encoder's
        ids = torch.tensor([tiny.prompt("a <inner> <my-cat> dog").ids])
        encoder(ids)[0].square().sum().backward()
        assert all(p.grad is None for p in encoder.parameters())
        before = encoder(ids)[0]
        with torch.no_grad():
            rows += 1
        assert not torch.equal(before, encoder(ids)[0]), "rows are live"
    assert rows.grad.abs().sum(dim=1).gt(0).all()
    assert rows.dtype == torch.float32


def test_half_precision_and_devices_are_the_tables(tokenizer):
    table = nn.Embedding(5, 4).to("meta")
    given = torch.zeros(1, 2, 4, dtype=torch.float16)
    table.forward = lambda ids: given.clone()  # as accelerate does, which keeps a table elsewhere
    rows = nn.Parameter(torch.ones(2, 4))
    assert torch.equal(
        ExtendedEmbedding(table, rows)(torch.tensor([[3, 6]])), torch.stack([given[0, 0], given[0, 0] + 1])[None]
    )


def test_an_offloaded_table(tiny_pipeline):
    """accelerate keeps the weights elsewhere and brings each module's when it runs."""
    found = []
    for offload in (False, True):
        model = limelight.load(tiny_pipeline())
        if offload:
            cpu_offload(model.pipeline.text_encoder, torch.device("cpu"))
            assert model.pipeline.text_encoder.get_input_embeddings().weight.device.type == "meta"
        with learned_word().bind(model):
            found.append(model.encode([model.prompt(SENTENCE)], "a <my-cat>").joined["encoder_hidden_states"])
    assert torch.equal(*found)


def test_sdxl_still_pools_at_the_end_token(tiny_xl):
    """Old configurations pool at the largest id, which would be the learned word's."""
    for encoder in (tiny_xl.text_encoder, tiny_xl.text_encoder_2):
        inner = getattr(encoder, "text_model", encoder)
        assert inner.eos_token_id == tiny_xl.tokenizer.eos_token_id
    model = limelight.load(tiny_xl)
    word = fitting(model, 1)

    def pooled():
        with word.bind(model):
            return model.encode([model.prompt("a <my-cat> and a dog")]).conditional["text_embeds"]

    expected = pooled()
    for encoder in (tiny_xl.text_encoder, tiny_xl.text_encoder_2):
        getattr(encoder, "text_model", encoder).eos_token_id = 2
    before = state(model)
    assert torch.equal(pooled(), expected)
    same(before, state(model))


def test_ldm_bert():
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a cat dog ##s and photo of * < > - my".split()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)
    torch.manual_seed(0)
    config = LDMBertConfig(
        vocab_size=len(words), d_model=16, encoder_layers=2, encoder_ffn_dim=32, encoder_attention_heads=2, head_dim=8
    )

    class Pipeline:
        bert = text_encoder = LDMBertModel(config).eval()

    Pipeline.tokenizer = tokenizer
    before, json_before = Pipeline.bert(torch.tensor([[2, 5, 6, 3]]))[0], tokenizer._tokenizer.to_str()
    modules = dict(Pipeline.bert.named_modules())
    rows = nn.Parameter(torch.randn(3, 16))
    with bound(Pipeline, "<my-cat>", [rows]):
        prompt = parse("A photo of <my-cat> and cats", tokenizer, 16)
        assert (prompt.find("<my-cat>"), prompt.find("cats"), prompt.padded) == ((4, 5, 6), (8, 9), True)
        assert Pipeline.bert.get_input_embeddings()(torch.tensor(prompt.ids))[4:7].equal(rows)
        Pipeline.bert(torch.tensor([prompt.ids]))[0].sum().backward()
    assert rows.grad.abs().sum() > 0
    assert not any(module.training for module in Pipeline.bert.modules())
    assert torch.equal(before, Pipeline.bert(torch.tensor([[2, 5, 6, 3]]))[0])
    assert (tokenizer._tokenizer.to_str(), dict(Pipeline.bert.named_modules())) == (json_before, modules)


def test_latent_diffusion(tiny_ldm):
    width = tiny_ldm.pipeline.bert.config.d_model
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={}, until=1)
    with learned_word(2, width).bind(tiny_ldm):
        result = limelight.generate(tiny_ldm, "a <my-cat> and a dog", steps=1, guidance=guidance)
        assert tiny_ldm.prompt("a <my-cat> and a dog").find("<my-cat>") == (2, 3)
    assert result.subjects == ("<my-cat>", "dog")
    assert list(result.settings["learned"]) == ["<my-cat>"]


# Prompts.


def test_truncation_counts_every_vector(tiny):
    with learned_word(70).bind(tiny):
        assert tiny.prompt("a <my-cat> and a dog").find("dog") == (74,)
        prompt = tiny.prompt("a photo of <my-cat> and of a dog")
        assert (len(prompt.ids), prompt.end, prompt.ids[-1]) == (77, 76, tiny.pipeline.tokenizer.eos_token_id)
        with pytest.raises(PromptError, match=r"'dog' lies beyond the 77 tokens .* shorten the prompt, which has 79"):
            prompt.find("dog")
    with learned_word(75).bind(tiny), pytest.raises(PromptError, match="'<my-cat>' lies beyond"):
        tiny.prompt("a <my-cat>").find("<my-cat>")


def test_more_vectors_than_a_prompt_holds_are_refused(tiny):
    before = state(tiny)
    refused = r"'<my-cat>' has 76 vectors, and this model reads 75 tokens of a prompt: it could never be read\."
    with pytest.raises(SettingsError, match=refused):
        learned_word(76).bind(tiny).__enter__()
    left = r"'<my-cat>' has 38 vectors; of the 75 tokens .*, 37 are left for all other words"
    with pytest.warns(limelight.PromptWarning, match=left) as found, learned_word(38).bind(tiny):
        pass
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", limelight.PromptWarning)
        with learned_word(37).bind(tiny):
            pass
    same(before, state(tiny))


@pytest.mark.parametrize("name", ["bad_prompt_version2", "verybadimagenegative_v1.3", "my style", "a/b", "x <y> z"])
@pytest.mark.parametrize("n", [1, 2])
def test_words_of_other_programs_have_names_of_any_form(tiny_pipeline, name, n):
    pipeline = tiny_pipeline()
    names = [name, *(f"{name}_{i}" for i in range(1, n))]
    pipeline.tokenizer.add_tokens(names)
    pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
    model = limelight.load(pipeline)
    text = f"a cat, {name} and a {name}"
    prompt = model.prompt(text)
    assert [word.text for word in prompt.words] == ["a", "cat", name, "and", "a", name]
    assert prompt.find(name) == tuple(range(4, 4 + n)) == prompt.words[2].positions
    assert prompt.find(f"{name}#2") == prompt.words[5].positions
    assert prompt.words[2].learned
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={}, until=1)
    result = limelight.generate(model, text, steps=1, guidance=guidance)
    assert result.subjects == ("cat", name, f"{name}#2")


def test_a_failure_in_the_middle_of_binding_leaves_nothing(model, monkeypatch):
    before = state(model)
    with pytest.raises(SettingsError, match=r"'<\\ud83d>' cannot name a learned word: a character in it is half"):
        fitting(model, token="<\ud83d>").bind(model).__enter__()
    for owner, method in ((type(model.pipeline.tokenizer), "add_tokens"), (ExtendedEmbedding, "__init__")):
        with monkeypatch.context() as patch:

            def interrupted(*_args, **_options):
                raise KeyboardInterrupt

            patch.setattr(owner, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                fitting(model).bind(model).__enter__()
        same(before, state(model))


def test_single_vectors_are_no_words(tiny):
    with (
        learned_word(2).bind(tiny),
        pytest.raises(PromptError, match="'<my-cat>_1' in the prompt is one vector of '<my-cat>'; w"),
    ):
        tiny.prompt("a <my-cat> <my-cat>_1 and a dog")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a photo of <my-cat> and a dog", ("<my-cat>", "dog")),
        ("a <my-cat> and a dog", ("<my-cat>", "dog")),
        ("<my-cat> and dog", ("<my-cat>", "dog")),
        ("sunset at dawn over there in the style of <my-cat>", ("style", "<my-cat>")),
        ("two <my-cat> and <my-cat>", ("<my-cat>", "<my-cat>#2")),
    ],
)
def test_a_learned_word_is_a_subject(tiny, text, found):
    with learned_word().bind(tiny):
        assert nouns(tiny.prompt(text)) == found


def test_guidance_on_a_word_of_two_vectors(tiny):
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={})
    watching = limelight.AttendAndExcite(resolution=8, thresholds={}, scale=0)
    with learned_word().bind(tiny):
        plain, guided = (
            limelight.generate(tiny, SENTENCE, seeds=3, steps=4, guidance=how) for how in (watching, guidance)
        )
        edited = limelight.edit(tiny, "a photo of a cat and a dog", "a photo of <my-cat> and a dog", steps=1)
    assert guided.subjects == ("<my-cat>", "dog")
    assert guided.trace[-1]["loss"][0] < plain.trace[-1]["loss"][0]
    together = guided.maps.mean()[..., [4, 5]].sum(-1)
    torch.testing.assert_close(guided.maps["<my-cat>"], together)
    assert list(guided.settings["learned"]) == ["<my-cat>"]
    assert list(edited.target.settings["learned"]) == ["<my-cat>"]
    assert "learned" not in limelight.generate(tiny, "a cat", steps=1, record=False).settings


def test_a_foreign_pipeline_reads_and_steers_a_bound_word(tiny_pipeline):
    pipeline = tiny_pipeline()
    inputs = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(3)}
    guidance = limelight.AttendAndExcite(resolution=8, thresholds={})
    with learned_word().bind(pipeline):
        expected = limelight.generate(limelight.load(pipeline), SENTENCE, seeds=3, steps=3, guidance=guidance)
        with limelight.attach(pipeline, guidance=guidance) as stage:
            latents = pipeline(SENTENCE, **inputs).images
        # diffusers replaces the text of a learned word, and finds none that is written otherwise.
        with pytest.raises(PromptError, match="does not read every vector of <MY-CAT>"), limelight.attach(pipeline):
            pipeline("a <MY-CAT>", **inputs)
    assert float((latents - expected.latents).abs().max()) < 1e-8
    assert stage.trace[0]["presence"][0] == pytest.approx(expected.trace[0]["presence"][0])
    assert len(stage.trace[0]["presence"][0]) == 2


def test_what_a_model_knows_includes_bound_words(pocket):
    with learned_word(1, pocket.pipeline.text_encoder.config.hidden_size).bind(pocket):
        assert pocket.unknown(pocket.prompt("a cat and <my-cat> and a zyx")) == ("zyx",)
    assert "<my-cat>" in pocket.unknown(pocket.prompt("a <my-cat>"))


# Against diffusers.


def test_diffusers_reads_what_we_write_and_draws_the_same(tiny_pipeline, tmp_path):
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


# Files.


def original(params, **extra) -> dict:
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params, **extra}


def old_dictionary(**params) -> nn.ParameterDict:
    """As torch before 1.12 wrote it: without `_keys`."""
    held = nn.ParameterDict({name: nn.Parameter(value) for name, value in params.items()})
    del held.__dict__["_keys"]
    return held


V = learned_word(2).vectors[0]


def kept(value, name, folder):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(value, path)
    else:
        torch.save(value, path)
    return path


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
        ("a.pt", {"model": {"w": V}, "epoch": 3}, "'a.pt' holds no learned word, but 'model', 'epoch'."),
        ("a.pt", [V], "'a.pt' holds no learned word."),
        ("a.pt", original({"*": "x"}), "'a.pt' holds something else than vectors for '*'."),
        ("a.safetensors", {"<a>": torch.zeros(2, 2, 2)}, "holds no learned word, but '<a>'"),
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


def test_torchs_old_format(tmp_path):
    torch.save({"<cat>": V}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(LearnedWord.load(tmp_path / "a.bin").vectors[0], V)
    held = original(nn.ParameterDict({"*": nn.Parameter(V)}))
    torch.save(held, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FileError, match=r"'.*b.pt' is in torch's format from before 1\.6, and holds Python code"):
        LearnedWord.load(tmp_path / "b.pt")


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


@pytest.mark.parametrize("token", ["cat", "<my cat>", "<>", "", "*", "<a>b", "<a><b>"])
def test_tokens_are_placeholders(token):
    with pytest.raises(SettingsError, match="cannot name a learned word; write it in angle brackets"):
        LearnedWord(token, (V,))


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
    with pytest.raises(SettingsError, match=r"names no format; end it with .safetensors or .pt"):
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


# The command line.


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["limelight", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


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
        assert (code, complaint) == (2, "error: 'gone.pt' cannot be read: No such file or directory.\n")
    same(before, state(pocket))
