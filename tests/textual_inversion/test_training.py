"""Training a word: against a resized table, and what remains."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image
from transformers import CLIPTokenizer

import limelight
from limelight.errors import SettingsError
from limelight.textual_inversion.config import TrainingConfig, generator
from limelight.textual_inversion.training import encode, held_loss, train_word
from tests.textual_inversion.images import TINY, patches


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_loss_and_gradient_are_those_of_training_a_resized_table(tiny_pipeline, prediction):
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction)
    model = limelight.load(pipeline)
    config = TrainingConfig(**{**TINY, "batch": 1}, steps=1, flip=0, templates=["a photo of a {}"])
    images = encode(model, patches(1), config)
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
    tiny.prompt("a cat")  # a tokenizer keeps the padding of its last call, which may have been another test's
    words = tiny.pipeline.tokenizer.backend_tokenizer.to_str()
    config = TrainingConfig(**TINY, steps=6, templates=["a {}"])
    images = encode(tiny, patches(), config)
    steps = train_word(tiny, images, config)
    first = next(steps)
    start = held_loss(tiny, images, config, count=8)
    assert not any(module.training for part in parts.values() for _, module in part.named_children())
    last = list(steps)[-1]
    with last.word.bind(tiny):
        assert held_loss(tiny, images, config, count=8) < start
    assert last.state.step == 6
    assert last.state.cosine < first.state.cosine < 1
    for name, part in parts.items():
        assert all(torch.equal(v, before[name][k]) for k, v in part.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in part.parameters())
    assert tiny.pipeline.tokenizer.backend_tokenizer.to_str() == words
    assert tiny.denoiser._forward_hooks == {}


def test_xl_learns_for_both_encoders(tiny_xl):
    model = limelight.load(tiny_xl)
    *_, last = train_word(
        model, patches(1, 64), TrainingConfig(**{**TINY, "batch": 1, "vectors": 2}, steps=2, checkpoint=True)
    )
    assert [tuple(v.shape) for v in last.state.vectors] == [(2, 32), (2, 32)]
    assert all((v != b).all(dim=0).any() for v, b in zip(last.state.vectors, last.state.begun, strict=True))


def test_checkpointing_changes_nothing_and_the_attention_term_holds_the_word_back(tiny):
    config = TrainingConfig(**TINY, steps=3, attention_weight=0.0, templates=["a {} and a dog"])
    plain = list(train_word(tiny, patches(), config))[-1]
    lean = list(train_word(tiny, patches(), replace(config, checkpoint=True)))[-1]
    torch.testing.assert_close(lean.state.vectors[0], plain.state.vectors[0])
    watched = list(train_word(tiny, patches(), replace(config, steps=6, attention_weight=1e-9)))
    held = list(train_word(tiny, patches(), replace(config, steps=6, attention_weight=100.0, checkpoint=True)))
    assert watched[0].attention == pytest.approx(0, abs=1e-9)  # the word is its init word
    assert held[-1].attention < watched[-1].attention


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
