"""Learned words with random vectors, and their files."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file
from torch import nn

from limelight import LearnedWord

SENTENCE = "a photo of <my-cat> and a dog"


def learned_word(n=2, width=32, token="<my-cat>", encoders=1, **about) -> LearnedWord:
    generator = torch.Generator().manual_seed(n)
    # As long as the rows of a table are at first.
    return LearnedWord(token, tuple(0.02 * torch.randn(n, width, generator=generator) for _ in range(encoders)), about)


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


def fitting(model, n=2, token="<my-cat>") -> LearnedWord:
    return learned_word(n, token=token, encoders=1 if not hasattr(model.pipeline, "text_encoder_2") else 2)


def original(params, **extra) -> dict:
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params, **extra}


def old_dictionary(**params) -> nn.ParameterDict:
    """As torch before 1.12 wrote it: without `_keys`."""
    held = nn.ParameterDict({name: nn.Parameter(value) for name, value in params.items()})
    del held.__dict__["_keys"]
    return held


def kept(value, name, folder):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(value, path)
    else:
        torch.save(value, path)
    return path
