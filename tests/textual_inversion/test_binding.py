"""Learned words in text encoders."""

from __future__ import annotations

import warnings
from contextlib import ExitStack

import pytest
import torch
from accelerate import cpu_offload
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import nn
from transformers import BertTokenizer

import limelight
from limelight import LearnedWord, PromptError, SettingsError
from limelight.prompts.prompt import parse
from limelight.prompts.subjects import nouns
from limelight.textual_inversion.binding import ExtendedEmbedding, bound
from tests.textual_inversion.words import SENTENCE, fitting, learned_word, same, state


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
        ("sunset at dawn over there in the style of <my-cat>", ("sunset",)),  # a style has no place
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
