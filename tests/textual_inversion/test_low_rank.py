"""A word's own changes of the denoiser: what they change, and that they change nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import limelight
from limelight.errors import FileError, ModelError, SettingsError
from limelight.textual_inversion import prior
from limelight.textual_inversion.config import TrainingConfig, generator
from limelight.textual_inversion.low_rank import first_changes
from limelight.textual_inversion.state import TrainState
from limelight.textual_inversion.training import encode, train_word
from limelight.textual_inversion.word import LearnedWord
from tests.textual_inversion.images import TINY, patches
from tests.textual_inversion.words import fitting

RANK = 2


@pytest.fixture(autouse=True)
def _quick_prior(monkeypatch):
    monkeypatch.setattr(prior, "STEPS", 1)


def changed_word(model, scale: float = 1.0) -> LearnedWord:
    """A word of two vectors with random changes."""
    torch.manual_seed(0)
    changes = first_changes(model, RANK, generator(0, "changes"))
    return replace(fitting(model), changes={name: scale * torch.randn_like(value) for name, value in changes.items()})


def layers_of(model, text: str, negative: str | None = None) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """What each layer that a word may change got in one pass, and what it gave."""
    seen, hooks = [], []
    for name in {name.rpartition(".lora_")[0] for name in first_changes(model, 1, generator(0, "x"))}:
        module = model.denoiser.get_submodule(name)
        hooks.append(module.register_forward_hook(lambda m, a, o, name=name: seen.append((name, a[0], o))))
    conditioning = model.encode([model.prompt(text)], negative)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    model.for_one_run().predict(latents, torch.tensor([500]), conditioning)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
@pytest.mark.parametrize("family", ["tiny", "tiny_ldm"])
def test_changes_by_hand(family, request):
    model = request.getfixturevalue(family)
    word = changed_word(model)
    with word.bind(model):
        prompt = model.prompt("a <my-cat> and a dog")
        positions = list(prompt.find("<my-cat>"))
        seen = layers_of(model, prompt.text, negative="a <my-cat>")
    assert len(positions) == 2
    assert {name for name, _, _ in seen} == {name.rpartition(".lora_")[0] for name in word.changes}
    for name, x, made in seen:
        plain = model.denoiser.get_submodule(name)(x)
        down, up = (word.changes[f"{name}.lora_{factor}.weight"].to(x) for factor in "AB")
        change = x @ down.T @ up.T
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            elsewhere = [i for i in range(x.shape[1]) if i not in positions]
            change[0] = 0  # the negative prompt
            change[1, elsewhere] = 0
        torch.testing.assert_close(made, plain + change)
        assert not torch.allclose(made, plain)
    assert all(not model.denoiser.get_submodule(name)._forward_hooks for name, _, _ in seen)


@torch.no_grad()
def test_which_layers_are_changed(tiny):
    found = {name.rpartition(".lora_")[0] for name in first_changes(tiny, 1, generator(0, "x"))}
    block = "mid_block.attentions.0.transformer_blocks.0"
    attention = {f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert {name for name in found if name.startswith("mid_block")} == {
        f"{block}.{part}" for part in attention | {"ff.net.0.proj", "ff.net.2"}
    }
    assert {name.partition("_")[0] for name in found} == {"down", "mid", "up"}


@torch.no_grad()
def test_only_the_images_of_its_prompts_are_changed(tiny):
    texts, options = ["a dog", "a <my-cat>", "a cat"], {"steps": 2, "seeds": [0, 1], "record": False, "batch": 6}
    with changed_word(tiny).bind(tiny):
        together = limelight.generate(tiny, texts, subjects=[()] * 3, **options)
        alone = limelight.generate(tiny, "a <my-cat>", subjects=(), **options)
    with fitting(tiny).bind(tiny):
        plain = limelight.generate(tiny, texts, subjects=[()] * 3, **options)
    same = [
        [a.tobytes() == b.tobytes() for a, b in zip(one.images, other.images, strict=True)]
        for one, other in zip(together, plain, strict=True)
    ]
    assert same == [[True, True], [False, False], [True, True]]
    for one, other in zip(together[1].images, alone.images, strict=True):
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() <= 1


def test_prompts_without_the_word_are_left_alone(tiny):
    options = {"subjects": [], "steps": 2, "seeds": 0, "record": False}
    plain = limelight.generate(tiny, "a dog", **options).images[0]
    with changed_word(tiny).bind(tiny):
        assert limelight.generate(tiny, "a dog", **options).images[0].tobytes() == plain.tobytes()
        own = limelight.generate(tiny, "a <my-cat>", **options)
    with fitting(tiny).bind(tiny):
        bare = limelight.generate(tiny, "a <my-cat>", **options)
    assert own.images[0].tobytes() != bare.images[0].tobytes()
    assert own.settings["learned"] != bare.settings["learned"]


def test_words_inside_each_other_keep_their_own(tiny):
    one, other = changed_word(tiny), replace(changed_word(tiny, scale=-1.0), token="<other>")
    text = "a <my-cat> and a dog"
    with one.bind(tiny):
        alone = layers_of(tiny, text)
    with one.bind(tiny), other.bind(tiny):
        both = layers_of(tiny, text)
    assert all(torch.equal(a, b) for (_, _, a), (_, _, b) in zip(alone, both, strict=True))


def test_training_begins_as_without_and_resumes_as_unbroken(tiny, tmp_path):
    config = TrainingConfig(**TINY, steps=4, rank=RANK, prior_images=2, rank_lr=0.01)
    images = encode(tiny, patches(), config)
    without = next(train_word(tiny, images, replace(config, rank=0)))
    *_, third, last = train_word(tiny, images, config)
    first = next(train_word(tiny, images, config))
    assert first.loss == without.loss
    assert first.gradient > without.gradient  # that of B, as A gets none at first

    third.state.save(tmp_path / "state.safetensors")
    state = TrainState.load(tmp_path / "state.safetensors")
    (resumed,) = train_word(tiny, images, config, state=state)
    assert {*resumed.word.changes} == {*last.word.changes} == {*first_changes(tiny, RANK, generator(0, "x"))}
    for name, value in last.word.changes.items():
        assert torch.equal(value, resumed.word.changes[name])
        assert value.abs().max() > 0
    assert torch.equal(resumed.word.vectors[0], last.word.vectors[0])


def test_the_prior_is_what_the_model_draws(tiny):
    config = TrainingConfig(**TINY, rank=RANK, prior_images=3)
    drawn = prior.Prior.draw(tiny, config)
    assert drawn.prompts == ("a cat", "a dog", "a car and a horse")
    image = limelight.generate(tiny, "a dog", subjects=(), seeds=1, steps=1, record=False).images[0]
    torch.testing.assert_close(drawn.latents[1], tiny.posterior([image])[0][0])
    assert prior.Prior.draw(tiny, replace(config, init=None)).prompts == (
        "a cat and a crown",
        "a backpack",
        "a dog and a balloon",
    )


def test_the_prior_holds_the_changes_and_not_the_word(tiny):
    config = TrainingConfig(**TINY, steps=1, rank=RANK, prior_images=2)
    images, means = encode(tiny, patches(), config), []
    for weight in (0.0, 1.0, 2.0):  # after one step AdamW's running means are a tenth of the gradient
        state = next(train_word(tiny, images, replace(config, prior_weight=weight))).state
        names = ["vectors", *state.changes]
        means.append(dict(zip(names, (mean for mean, _ in state.moments), strict=True)))
    for name, without in means[0].items():
        once, twice = means[1][name] - without, means[2][name] - without
        torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-6 * float(without.abs().max()))
        held = name.endswith("lora_B.weight") and not any(f"attn2.to_{part}" in name for part in "kv")
        assert (float(once.abs().max()) > 0) == held, name
    bare = next(train_word(tiny, images, replace(config, prior_images=0))).state
    assert all(torch.equal(a, b) for (a, _), b in zip(bare.moments, means[0].values(), strict=True))


def test_a_word_begins_with_another_ones(tiny):
    config = TrainingConfig(**TINY, steps=1, rank=RANK, vectors=2, prior_images=1)
    images, other = encode(tiny, patches(), config), changed_word(tiny)
    state = TrainState.begin(tiny, images, config, other)
    assert all(torch.equal(value, other.changes[name]) for name, value in state.changes.items())
    assert state.changes.keys() == other.changes.keys()
    bare = TrainState.begin(tiny, images, config, fitting(tiny))
    assert all(value.max() == 0 for name, value in bare.changes.items() if name.endswith("lora_B.weight"))
    with pytest.raises(SettingsError, match=r"^'<my-cat>' changes the denoiser with rank 2, not 0; begin with rank=2"):
        TrainState.begin(tiny, images, replace(config, rank=0), other)


def test_a_folder_holds_them_as_diffusers_names_them(tiny, tmp_path):
    word = changed_word(tiny)
    word.save(tmp_path)
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        modules = dict(tiny.denoiser.named_modules())
        for key in file.keys():  # noqa: SIM118 - it is no dictionary
            part, _, name = key.partition(".")
            owner, _, factor = name.rpartition(".lora_")
            shape = modules[owner].weight.shape
            assert part == "unet"
            assert file.get_tensor(key).shape == {"A.weight": (RANK, shape[1]), "B.weight": (shape[0], RANK)}[factor]
    again = LearnedWord.load(tmp_path)
    assert all(torch.equal(value, word.changes[name]) for name, value in again.changes.items())
    assert again.changes.keys() == word.changes.keys()


@pytest.mark.parametrize("name", ["word.safetensors", "word.pt"])
def test_a_file_has_no_place_for_them(tiny, tmp_path, name):
    with pytest.raises(SettingsError, match=r"has no place for what '<my-cat>' changes in the denoiser; name a folder"):
        changed_word(tiny).save(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_a_lora_beside_a_word_is_refused(tiny, tmp_path):
    changed_word(tiny).save(tmp_path)
    save_file({"unet.x.lora_A.weight": torch.ones(1, 1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(FileError, match="is a LoRA for all words"):
        LearnedWord.load(tmp_path)
    assert LearnedWord.load(tmp_path / "learned_embeds.safetensors").changes == {}


def test_what_cannot_be_bound(tiny):
    word = changed_word(tiny)
    with (
        pytest.raises(ModelError, match="a pipeline does not tell in which images the word is"),
        word.bind(tiny.pipeline),
    ):
        pass
    lacking = replace(word, changes=dict(list(word.changes.items())[1:]))
    with pytest.raises(SettingsError, match=r"do not fit '.*learned for another model"), lacking.bind(tiny):
        pass
    name = next(iter(word.changes))
    odd = replace(word, changes={**word.changes, name: torch.ones(RANK + 1, word.changes[name].shape[1])})
    with pytest.raises(SettingsError, match=r"do not fit '.*they differ in '"), odd.bind(tiny):
        pass
    with pytest.raises(SettingsError, match="not all finite"):
        replace(word, changes={"a": torch.tensor([[float("nan")]])})


@pytest.mark.parametrize("rank", [-1, 1.5, 999])
def test_ranks_that_are_none(rank):
    with pytest.raises(SettingsError, match=r"^rank=.* must be a whole number from 0 to 128"):
        TrainingConfig(rank=rank)


def test_checkpointing_is_refused():
    with pytest.raises(SettingsError, match="checkpoint and rank do not work together"):
        TrainingConfig(rank=2, checkpoint=True)
