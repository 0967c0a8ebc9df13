"""Latent diffusion with a BERT text encoder: against diffusers' own pipeline, and every verb of the library on it."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, LDMTextToImagePipeline, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from PIL import Image
from transformers import BertTokenizer

import limelight
from limelight import AttendAndExcite, HeadWeightedAttendAndExcite, ModelError, PromptError, SettingsError
from limelight.attention.maps import AttentionMaps
from limelight.editing.attention_edits import replacement
from limelight.guidance.attend_and_excite import excite
from limelight.heads.counting import Counting, compute
from limelight.heads.gains import strengthen
from limelight.heads.relevance import Relevance, relevance_for
from limelight.prompts.subjects import Subject
from limelight.viz.explain import explain
from tests.heads.test_counting import CONCEPTS, literal
from tests.heads.test_gains import random_relevance

PROMPT = "a cat and a dog"


def by_diffusers(pipeline: LDMTextToImagePipeline, prompt: str | list[str], **options) -> tuple[torch.Tensor, list]:
    """Latents and images of diffusers' own loop."""
    seen, decode = [], pipeline.vqvae.decode
    pipeline.vqvae.decode = lambda z, *a, **k: seen.append(z) or decode(z, *a, **k)
    try:
        images = pipeline(prompt, **options).images
    finally:
        del pipeline.vqvae.decode
    return seen[0] * pipeline.vqvae.config.scaling_factor, images


@pytest.mark.parametrize(("scheduler", "guidance_scale"), [("ddim", 1.0), ("pndm", 5.0)])
def test_equals_diffusers(tiny_ldm_pipeline, scheduler, guidance_scale):
    pipeline = tiny_ldm_pipeline(scheduler)
    model = limelight.load(pipeline)
    prompts = [PROMPT, "A photo of the red cats"]
    noise = model.noise([torch.Generator().manual_seed(seed) for seed in (0, 1)], *model.default_size)
    options = {"guidance_scale": guidance_scale, "latents": noise.clone()}
    expected, images = by_diffusers(pipeline, prompts, num_inference_steps=4, **options)
    results = limelight.generate(model, prompts, steps=4, **options)
    for i, result in enumerate(results):
        assert (result.latents[0] - expected[i]).abs().max() < 1e-8
        assert np.abs(np.asarray(result.images[0], int) - np.asarray(images[i], int)).max() <= 1


def test_the_same_seed_gives_the_same_picture(tiny_ldm_pipeline):
    pipeline = tiny_ldm_pipeline()
    options = {"guidance_scale": 5.0, "generator": torch.Generator().manual_seed(9)}
    expected, _ = by_diffusers(pipeline, PROMPT, num_inference_steps=2, **options)
    result = limelight.generate(limelight.load(pipeline), PROMPT, steps=2, guidance_scale=5.0, seeds=9)
    assert (result.latents - expected).abs().max() < 1e-8


def test_the_size_of_latents_is_the_autoencoders(tiny_ldm_pipeline):
    """diffusers' pipeline divides by 8 whatever the autoencoder does."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        norm_num_groups=2,
    )
    model = limelight.load(tiny_ldm_pipeline(vqvae=vae))
    result = limelight.generate(model, PROMPT, steps=1, height=32, width=48)
    assert result.latents.shape == (1, 4, 16, 24)
    assert result.images[0].size == (48, 32)


def test_the_callers_pipeline_is_left_alone(tiny_ldm_pipeline):
    pipeline = tiny_ldm_pipeline()
    before = dict(vars(pipeline))
    model = limelight.load(pipeline)
    limelight.generate(model, PROMPT, steps=1)
    assert vars(pipeline) == before
    assert model.pipeline.text_encoder is pipeline.bert
    assert model.pipeline.vae is pipeline.vqvae
    assert copy.copy(model).pipeline.tokenizer is pipeline.tokenizer
    assert model.describe()["family"] == "LDMTextToImagePipeline"
    assert model.describe()["context"] == "77 tokens of width 32"


def test_dropout_of_a_live_encoder_is_off(tiny_ldm_pipeline):
    pipeline = tiny_ldm_pipeline()
    pipeline.bert.train()
    model = limelight.load(pipeline)
    a, b = (model.encode([model.prompt(PROMPT)]).conditional["encoder_hidden_states"] for _ in range(2))
    assert torch.equal(a, b)
    assert all(part.training for part in pipeline.bert.modules()), "the caller's encoder keeps its mode"


def test_clip_skip_leaves_out_the_last_layers(tiny_ldm):
    prompt, bert = tiny_ldm.prompt(PROMPT), tiny_ldm.pipeline.bert
    found = tiny_ldm.encode([prompt], clip_skip=1).conditional["encoder_hidden_states"]
    shorter = copy.deepcopy(bert)
    shorter.model.layers = shorter.model.layers[:-1]
    expected = shorter(torch.tensor([prompt.ids]))[0]
    assert torch.allclose(found, expected, atol=1e-12)
    assert not torch.allclose(found, bert(torch.tensor([prompt.ids]))[0], atol=1e-3)


def test_other_embeddings_can_be_put_in(tiny_ldm):
    """What learned words need: the encoder's own way to exchange its input embeddings."""
    encoder, prompt = tiny_ldm.pipeline.text_encoder, tiny_ldm.prompt(PROMPT)
    before = tiny_ldm.encode([prompt]).conditional["encoder_hidden_states"]
    own = encoder.get_input_embeddings()
    other = copy.deepcopy(own)
    other.weight.data[prompt.ids[2]] += torch.randn(32, generator=torch.Generator().manual_seed(0))
    encoder.set_input_embeddings(other)
    assert not torch.allclose(tiny_ldm.encode([prompt]).conditional["encoder_hidden_states"], before, atol=1e-3)
    encoder.set_input_embeddings(own)
    assert torch.equal(tiny_ldm.encode([prompt]).conditional["encoder_hidden_states"], before)


# Files


def old_layout(folder) -> None:
    """The files as they were before safetensors and tokenizer.json."""
    for part, cls, name in (
        ("bert", LDMBertModel, "pytorch_model.bin"),
        ("unet", UNet2DConditionModel, "diffusion_pytorch_model.bin"),
        ("vqvae", AutoencoderKL, "diffusion_pytorch_model.bin"),
    ):
        state = cls.from_pretrained(folder / part).state_dict()
        for path in (folder / part).glob("*.safetensors"):
            path.unlink()
        torch.save(state, folder / part / name)
    tokenizer = BertTokenizer.from_pretrained(folder / "tokenizer")
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(words) + "\n")
    facts = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(facts))


@pytest.fixture
def folder(tiny_ldm_pipeline, tmp_path):
    tiny_ldm_pipeline(dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("layout", ["new", "old"])
def test_a_folder(tiny_ldm_pipeline, folder, layout, caplog):
    if layout == "old":
        old_layout(folder)
        assert not list(folder.rglob("*.safetensors"))
    model = limelight.load(folder, device="cpu")
    live = limelight.load(tiny_ldm_pipeline(dtype=torch.float32))
    assert "unsafe" not in caplog.text
    assert model.prompt(PROMPT) == live.prompt(PROMPT)
    results = [limelight.generate(m, PROMPT, steps=2) for m in (model, live)]
    assert torch.equal(results[0].latents, results[1].latents)


class Evil:
    def __reduce__(self):
        return exec, ("import sys; sys.limelight_was_fooled = True",)


@pytest.mark.parametrize(
    ("part", "message"), [("bert", "holds more than weights"), ("unet", "cannot be read as a model")]
)
def test_pickles_run_nothing(folder, part, message):
    old_layout(folder)
    weights = next((folder / part).glob("*.bin"))
    torch.save({**torch.load(weights, weights_only=True), "more": Evil()}, weights)
    with pytest.raises(ModelError, match=message):
        limelight.load(folder, device="cpu")
    assert not hasattr(sys, "limelight_was_fooled")


def test_a_vocabulary_that_was_not_found(tiny_ldm_pipeline):
    """A BertTokenizer that is given a path as `vocab_file` silently knows five tokens."""
    with pytest.raises(ModelError, match="knows 5 of 25 tokens; its files are incomplete"):
        limelight.load(tiny_ldm_pipeline(tokenizer=BertTokenizer(vocab_file="no/such/vocab.txt")))


# Words


@pytest.mark.parametrize(
    ("text", "subject", "positions"),
    [
        (PROMPT, "cat", (2,)),
        ("a CAT and a Dog", "dog", (5,)),
        ("a Cats and a dog", "cats", (2, 3)),
        ("the cat and the cats in the cat", "cat#2", (9,)),
        ("the dog and the zebrafish", "Zebrafish", (5, 6)),
        ("a rose-colored car", "rose-colored", (2, 3, 4)),
        ("a rose-colored car", "rose-colored car", (2, 3, 4, 5)),
        ("the cats' dog", "dog", (5,)),
        ("a Caf\u00e9 and a cat", "caf\u00e9", (2,)),
        ("a Cafe\u0301 and a cat", "caf\u00e9", (2,)),
        ("a cat [SEP] and a dog", "dog", (6,)),
        ("a cat and a dog", 5, (5,)),
    ],
)
def test_find(tiny_ldm, text, subject, positions):
    prompt = tiny_ldm.prompt(text)
    assert prompt.find(subject) == positions
    assert prompt.tokens[0] == "[CLS]"
    assert prompt.tokens[prompt.end] == "[SEP]"
    assert set(prompt.tokens[prompt.end + 1 :]) == {"[PAD]"}
    assert (len(prompt.ids), prompt.padded) == (77, True)


def test_words_beyond_the_length(tiny_ldm):
    prompt = tiny_ldm.prompt("a cat " * 37 + "zebrafish dog")
    with pytest.raises(PromptError, match="'dog' lies beyond the 77 tokens that this model reads"):
        prompt.find("dog")
    with pytest.raises(PromptError, match="'zebrafish' lies beyond"):  # half of it is read
        prompt.find("zebrafish")
    with pytest.raises(PromptError, match="lies beyond"):
        limelight.generate(tiny_ldm, prompt.text, subjects=["cat", "dog"], guidance=AttendAndExcite(), steps=1)


def test_words_that_cannot_be_read(tiny_ldm):
    with pytest.raises(PromptError, match="can read no word of '\u732b \u72ac'; write it in words"):
        tiny_ldm.prompt("\u732b \u72ac")
    assert tiny_ldm.prompt("").words == ()
    assert tiny_ldm.unknown(tiny_ldm.prompt("a cat and a xylophone")) == ("xylophone",)
    with pytest.warns(UserWarning, match="has never seen 'xylophone'"):
        limelight.generate(tiny_ldm, "a cat and a xylophone", steps=1)


# Look, steer, edit


def test_settings_of_the_family(tiny_ldm):
    suited = AttendAndExcite.suited(tiny_ldm)
    assert suited == AttendAndExcite(scale=7.5, thresholds={0: 0.05, 0.2: 0.5, 0.4: 0.7})
    assert AttendAndExcite.fast(tiny_ldm) == AttendAndExcite.fast(scale=7.5)


def test_guidance_lowers_the_loss(tiny_ldm):
    guidance = AttendAndExcite.suited(tiny_ldm, thresholds={}, until=1.0)
    options = {"steps": 5, "seeds": [0, 1], "guidance_scale": 1.0}
    steered, watched = (
        limelight.generate(tiny_ldm, PROMPT, guidance=dataclasses.replace(guidance, scale=scale), **options)
        for scale in (2.0, 0.0)
    )
    losses = [torch.tensor([row["loss"] for row in result.trace]) for result in (steered, watched)]
    assert torch.equal(losses[0][0], losses[1][0])
    assert (losses[0].sum(dim=0) < losses[1].sum(dim=0)).all()
    assert steered.maps["cat"].shape == (2, 16, 16)


def test_refinement_lowers_the_loss_of_its_step(tiny_ldm):
    options = {"scale": 0.5, "until": 0, "thresholds": {0: 0.99}}
    losses = []
    for tries in (0, 1, 4):
        guidance = AttendAndExcite.suited(tiny_ldm, max_refinements=tries, **options)
        row = limelight.generate(tiny_ldm, PROMPT, guidance=guidance, steps=1, guidance_scale=1.0).trace[0]
        assert row["refinements"] == [tries]
        losses.append(row["loss"][0])
    assert losses[0] > losses[1] > losses[2]


def test_a_batch_of_prompts_equals_its_singles(tiny_ldm):
    prompts = [PROMPT, "the zebrafish and a red car in the cafe"]
    subjects = [["cat", "dog"], ["zebrafish", "red car", "cafe"]]
    options = {"guidance": AttendAndExcite.suited(tiny_ldm, max_refinements=2), "steps": 2, "seeds": [0, 1]}
    together = limelight.generate(tiny_ldm, prompts, subjects=subjects, **options)
    for result, prompt, own in zip(together, prompts, subjects, strict=True):
        alone = limelight.generate(tiny_ldm, prompt, subjects=own, **options)
        assert (result.latents - alone.latents).abs().max() < 1e-8


def test_the_softmax_is_over_the_prompts_own_tokens(tiny_ldm):
    """A word in two pieces of p/2 scores as one token of p; [CLS], [SEP] and [PAD] do not take part."""
    layer = tiny_ldm.sites[1]

    def score(text: str, columns: dict[int, float], word: str) -> torch.Tensor:
        prompt = tiny_ldm.prompt(text)
        p = torch.full((1, 1, 256, 77), 0.9, dtype=torch.float64)  # what must not take part has most
        p[..., 1 : prompt.end] = 0.1
        for position, value in columns.items():
            p[..., position] = value
        maps = AttentionMaps({layer: p}, (16, 16), (prompt,))
        return excite(maps, [(Subject(prompt.find(word)), Subject(prompt.find("dog")))], smooth=False).presence[0]

    whole, split = (
        score("the cat and the dog", {2: 0.12}, "cat"),
        score("the cats and the dog", {2: 0.06, 3: 0.06}, "cats"),
    )
    assert torch.allclose(whole, split)
    assert whole.tolist() == pytest.approx([np.exp(2) / (np.exp(2) + 4), 1 / (np.exp(2) + 4)])


def test_explain(tiny_ldm, tmp_path):
    found = explain(
        tiny_ldm, "a Zebrafish and a dog", guidance=AttendAndExcite.suited(tiny_ldm), compare=True, over_steps=True,
        steps=2, guidance_scale=5.0,
    )  # fmt: skip
    assert list(found.runs) == ["plain", "guided"]
    paths = found.save(tmp_path, html=True)
    assert any(path.suffix == ".html" for path in paths)
    assert "Zebrafish" in next(path for path in paths if path.suffix == ".html").read_text()


def test_the_pieces_of_a_swapped_word_share_its_map(tiny_ldm):
    matrix = replacement(tiny_ldm.prompt("a red cat"), tiny_ldm.prompt("a red cats"))
    # [CLS] a red cat [SEP] | [CLS] a red cat ##s [SEP]
    assert {(i, j): matrix[i, j].item() for i, j in matrix[:5].nonzero().tolist()} == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 3): 0.5, (3, 4): 0.5, (4, 5): 1,
    }  # fmt: skip
    assert matrix.sum(dim=1).tolist() == [1] * 77


def test_editing(tiny_ldm):
    options = {"steps": 2, "guidance_scale": 5.0}
    source = "a red cat and a dog"
    plain = limelight.generate(tiny_ldm, source, **options)
    edited = limelight.edit(tiny_ldm, source, [source.upper(), "a red cats and a dog", "a cat"], **options)
    assert torch.allclose(edited.source.latents, plain.latents, atol=1e-10)
    assert torch.allclose(edited.targets[0].latents, plain.latents, atol=1e-10)
    for target, text in zip(edited.targets[1:], ["a red cats and a dog", "a cat"], strict=True):
        free = limelight.generate(tiny_ldm, text, **options)
        assert (target.latents - plain.latents).abs().max() > 1e-3
        assert (target.latents - free.latents).abs().max() > 1e-3


def test_editing_a_picture(tiny_ldm):
    image = Image.effect_noise((128, 128), 60).convert("RGB")
    inversion = limelight.invert_image(tiny_ldm, image, "a red cat", steps=2, guidance_scale=1.0)
    assert inversion.noise.shape == (1, 4, 16, 16)
    edited = limelight.edit(tiny_ldm, "a red cat", "a blue cat", image=inversion, steps=2, guidance_scale=1.0)
    assert edited.target.images[0].size == (128, 128)
    assert not torch.allclose(edited.target.latents, edited.source.latents)


def test_counting_equals_a_literal_implementation(tiny_ldm):
    words = {"Animals": ("cat", "zebrafish", "frog"), "Color": ("red", "rose-colored", "blue")}
    counting = Counting(type(CONCEPTS)(words), (PROMPT, "the red cats"), steps=2, batch=2, blocks=2, guidance_scale=5.0)
    relevance = compute(tiny_ldm, counting)
    expected = literal(tiny_ldm.pipeline, dataclasses.replace(counting, guidance_scale=5.0))
    assert torch.equal(relevance.counts, expected)
    plain = limelight.generate(tiny_ldm, "the cats", steps=2)
    more = limelight.generate(
        tiny_ldm, "the cats", steps=2, edits=[strengthen("cats", "Animals", head_vectors=relevance)]
    )
    assert (more.latents - plain.latents).abs().max() > 1e-4


def test_maps_weighted_by_head(tiny_ldm):
    guidance = HeadWeightedAttendAndExcite.suited(
        tiny_ldm, concepts="Animals", head_vectors=random_relevance(tiny_ldm), thresholds={}
    )
    result = limelight.generate(tiny_ldm, PROMPT, guidance=guidance, steps=2)
    assert 0 < result.trace[0]["loss"][0] < 1


# The real configuration


@pytest.fixture
def real(tiny_ldm_pipeline):
    """The published denoiser without its weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=32, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=1280, attention_head_dim=8
        )
    return limelight.load(tiny_ldm_pipeline(unet=unet, dtype=torch.float32))


def test_the_real_configuration(real):
    assert real.describe()["parameters"] == "872.3 M in the denoiser"
    assert real.default_size == (256, 256)
    cross = [layer for layer in real.sites if layer.kind == "cross"]
    names = [
        *(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)),
        "mid_block.attentions.0",
        *(f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)),
    ]
    assert [layer.name for layer in cross] == [f"{name}.transformer_blocks.0.attn2" for name in names]
    sides = [layer.size((32, 32))[0] for layer in cross]
    assert sides == [32, 32, 16, 16, 8, 8, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32]
    guided = [layer.name for layer in cross if layer.scale == real.guided_scale]
    assert guided == [layer.name for layer, side in zip(cross, sides, strict=True) if side == 16]


def test_vectors_of_stable_diffusion_are_not_taken(real):
    """Layers and heads are those of Stable Diffusion 1.x, and yet the heads are others."""
    assert Relevance.load("sd-1.4").of(real)
    with pytest.raises(SettingsError, match="No head relevance vectors are shipped for"):
        relevance_for(real)


def test_attach_says_what_it_steers(tiny_ldm_pipeline):
    with (
        pytest.raises(ModelError, match="'LDMTextToImagePipeline' has no method encode_prompt"),
        limelight.attach(tiny_ldm_pipeline(), subjects=["cat"]),
    ):
        pass
