"""Learned words: their files, and a model that reads them for as long as they are bound."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from limelight.concepts import Concept, bound


def concept(n=2, width=32, token="<my-cat>", encoders=1, **about) -> Concept:
    generator = torch.Generator().manual_seed(n)
    return Concept(token, tuple(torch.randn(n, width, generator=generator) for _ in range(encoders)), about)


def state(model):
    """All that binding could have changed: weights, tokenizers and their settings, what an encoder gives."""
    pipeline, facts = model.pipeline, []
    for number in ("", "_2"):
        encoder, tokenizer = (
            getattr(pipeline, f"text_encoder{number}", None),
            getattr(pipeline, f"tokenizer{number}", None),
        )
        if encoder is None:
            continue
        weights = {name: value.clone() for name, value in encoder.state_dict().items()}
        output = encoder(torch.tensor([model.prompt("a cat and a dog").ids]), output_hidden_states=True)
        facts.append(
            (
                weights,
                [(name, id(module), module.training) for name, module in encoder.named_modules()],
                [(name, id(p), p.requires_grad) for name, p in encoder.named_parameters()],
                {k: v for k, v in vars(getattr(encoder, "text_model", encoder)).items() if isinstance(v, int)},
                [output[0], *output.hidden_states],
                json.loads(tokenizer._tokenizer.to_str()),
                {name: repr(value) for name, value in vars(tokenizer).items()},
                (len(tokenizer), id(tokenizer._tokenizer), tokenizer.get_vocab()),
            )
        )
    return facts


def same(one, other):
    assert len(one) == len(other) > 0
    for (weights, *facts), (others, *other_facts) in zip(one, other, strict=True):
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
        assert all(torch.equal(a, b) for a, b in zip(facts.pop(3), other_facts.pop(3), strict=True))
        assert facts == other_facts


def test_a_bound_word_is_read_and_nothing_remains(tiny):
    before = state(tiny)
    with concept().bind(tiny) as cat:
        prompt = tiny.prompt("a photo of <my-cat> and a dog")
        assert prompt.find("<my-cat>") == (4, 5)
        assert prompt.find("dog") == (8,)
        embedded = tiny.pipeline.text_encoder.get_input_embeddings()(torch.tensor([prompt.ids]))
        assert torch.equal(embedded[0, 4:6], cat.vectors[0].double())
        table = before[0][0]["embeddings.token_embedding.weight"]
        assert torch.equal(embedded[0, [1, 8]], table[[prompt.ids[1], prompt.ids[8]]])
    same(before, state(tiny))
    with pytest.raises(RuntimeError, match="on purpose"), concept().bind(tiny):
        raise RuntimeError("on purpose")
    same(before, state(tiny))


def test_gradient_reaches_only_the_rows(tiny):
    rows = nn.Parameter(concept(2).vectors[0].clone())
    encoder = tiny.pipeline.text_encoder
    with bound(tiny, "<my-cat>", [rows]):
        encoder.requires_grad_(False)  # the rows are not the encoder's
        ids = torch.tensor([tiny.prompt("a <my-cat>").ids])
        encoder(ids)[0].square().sum().backward()
        assert all(p.grad is None for p in encoder.parameters())
    assert rows.grad.abs().sum(dim=1).gt(0).all()
    assert rows.dtype == torch.float32
