"""A word's own keys and values: what they change, and that they change nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import limelight
from limelight.errors import FileError, ModelError, SettingsError
from limelight.textual_inversion.config import TrainingConfig, generator
from limelight.textual_inversion.keys import first_changes
from limelight.textual_inversion.state import TrainState
from limelight.textual_inversion.training import encode, train_word
from limelight.textual_inversion.word import LearnedWord
from tests.textual_inversion.images import TINY, patches
from tests.textual_inversion.words import fitting

RANK = 2


def changed_word(model, scale: float = 1.0) -> LearnedWord:
    """A word of two vectors with random keys and values."""
    torch.manual_seed(0)
    changes = first_changes(model, RANK, generator(0, "changes"))
    return replace(fitting(model), changes={name: scale * torch.randn_like(value) for name, value in changes.items()})


def keys_of(model, text: str, negative: str | None = None) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """What each maker of keys and values got in one pass, and what it gave."""
    seen, hooks = [], []
    for site in model.text_sites:
        for part in ("to_k", "to_v"):
            name = f"{site.name}.{part}"
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
def test_keys_and_values_by_hand(family, request):
    model = request.getfixturevalue(family)
    word = changed_word(model)
    with word.bind(model):
        prompt = model.prompt("a <my-cat> and a dog")
        positions = list(prompt.find("<my-cat>"))
        seen = keys_of(model, prompt.text, negative="a <my-cat>")
    assert len(positions) == 2
    assert {name for name, _, _ in seen} == {name.rpartition(".lora_")[0] for name in word.changes}
    for name, states, made in seen:
        plain = model.denoiser.get_submodule(name)(states)
        down, up = (word.changes[f"{name}.lora_{factor}.weight"].to(states) for factor in "AB")
        change = states @ down.T @ up.T
        wanted = plain.clone()
        wanted[1, positions] += change[1, positions]  # row 0 is the negative prompt
        torch.testing.assert_close(made, wanted)
        assert not torch.allclose(made[1, positions], plain[1, positions])
    assert all(not model.denoiser.get_submodule(name)._forward_hooks for name, _, _ in seen)


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
        alone = keys_of(tiny, text)
    with one.bind(tiny), other.bind(tiny):
        both = keys_of(tiny, text)
    assert all(torch.equal(a, b) for (_, _, a), (_, _, b) in zip(alone, both, strict=True))


def test_training_begins_as_without_and_resumes_as_unbroken(tiny, tmp_path):
    config = TrainingConfig(**TINY, steps=4, rank=RANK)
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


def test_a_word_begins_with_another_ones(tiny):
    config = TrainingConfig(**TINY, steps=1, rank=RANK, vectors=2)
    images, other = encode(tiny, patches(), config), changed_word(tiny)
    state = TrainState.begin(tiny, images, config, other)
    assert all(torch.equal(value, other.changes[name]) for name, value in state.changes.items())
    assert state.changes.keys() == other.changes.keys()
    bare = TrainState.begin(tiny, images, config, fitting(tiny))
    assert all(value.max() == 0 for name, value in bare.changes.items() if name.endswith("lora_B.weight"))
    with pytest.raises(SettingsError, match=r"^'<my-cat>' has keys and values of rank 2, not 0; begin with rank=2"):
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
    with pytest.raises(SettingsError, match=r"has no place for the keys and values of '<my-cat>'; name a folder"):
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
    with pytest.raises(ModelError, match="a pipeline does not tell where the word is"), word.bind(tiny.pipeline):
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
