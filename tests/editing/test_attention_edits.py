"""The attention edits of prompt-to-prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch.overrides import TorchFunctionMode

import limelight
from limelight.editing import prompt_to_prompt
from limelight.editing.attention_edits import (
    EditedMaps,
    LocalBlend,
    SelfAttention,
    changed,
    cross_attention,
    refinement,
    replacement,
)
from limelight.heads.relevance import Relevance


def pairs(matrix: torch.Tensor, tokens: int) -> dict[tuple[int, int], float]:
    """What is not zero among the first tokens."""
    return {(i, j): matrix[i, j].item() for i, j in matrix[:tokens, :tokens].nonzero().tolist()}


@pytest.fixture
def prompt(tiny):
    # Words outside the vocabulary fall into letters: "zz" is two tokens, "qjx" three.
    return tiny.prompt


def test_words_of_equal_length_swap_token_for_token(prompt):
    assert torch.equal(replacement(prompt("a red car"), prompt("a blue car")), torch.eye(77))


def test_a_longer_word_shares_the_map_of_the_shorter_one(prompt):
    matrix = replacement(prompt("a red car"), prompt("a zz car"))
    assert pairs(matrix, 7) == {(0, 0): 1, (1, 1): 1, (2, 2): 0.5, (2, 3): 0.5, (3, 4): 1, (4, 5): 1, (5, 6): 1}
    assert matrix[75:, 76].tolist() == [1, 1]  # the padding that was pushed out
    assert matrix.sum(dim=1).tolist() == [1] * 77


def test_a_shorter_word_takes_the_sum_of_the_longer_one(prompt):
    matrix = replacement(prompt("a qjx car"), prompt("a red car"))
    assert pairs(matrix, 7) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 2): 1, (4, 2): 1, (5, 3): 1, (6, 4): 1,
    }  # fmt: skip
    assert matrix.sum(dim=1).tolist() == [1] * 77
    assert not matrix[:, 75:].any()


def test_as_published_the_tail_is_shifted(prompt):
    matrix = replacement(prompt("a qjx car"), prompt("a red car"), published=True)
    assert pairs(matrix, 7) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 2): 1, (4, 2): 1, (3, 3): 1, (4, 4): 1, (5, 5): 1, (6, 6): 1,
    }  # fmt: skip


def test_punctuation_of_one_prompt_shifts_nothing(prompt):
    """Every word takes over the map of its own counterpart; "," of the target alone keeps its own map."""
    with_, without = prompt("a red car, and a dog"), prompt("a blue car and a dog")
    longer, shorter = replacement(without, with_), replacement(with_, without)
    # bos a red car , and a dog end | bos a blue car and a dog end
    assert pairs(longer, 9) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 3): 1, (4, 5): 1, (5, 6): 1, (6, 7): 1, (7, 8): 1,
    }  # fmt: skip
    assert pairs(shorter, 9) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 3): 1, (5, 4): 1, (6, 5): 1, (7, 6): 1, (8, 7): 1,
    }  # fmt: skip
    for matrix in (longer, shorter):
        assert matrix.sum(dim=1).tolist() == [1] * 77

    edit = cross_attention([without, with_], 10, 10, "replace", 1.0, {}, False)
    p = torch.rand(2, 2, 5, 77)
    out = edit(None, p, 0)
    assert torch.equal(out[1, ..., 4], p[1, ..., 4])
    assert torch.equal(out[1, ..., 5:8], p[0, ..., 4:7])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a red car.", "a blue car", {(0, 0), (1, 1), (2, 2), (3, 3), (5, 4)}),
        ("a red car", "a blue car.", {(0, 0), (1, 1), (2, 2), (3, 3), (4, 5)}),
        # bos a red , . car end | bos a blue . car end
        ("a red,. car", "a blue. car", {(0, 0), (1, 1), (2, 2), (4, 3), (5, 4), (6, 5)}),
        ("a red, car", "a blue. car", {(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)}),
    ],
)
def test_punctuation_that_both_prompts_have_is_kept(prompt, old, new, expected):
    source, target = prompt(old), prompt(new)
    matrix = replacement(source, target)
    assert set(pairs(matrix[: source.end + 1, : target.end + 1], 77)) == expected
    assert matrix.sum(dim=1).tolist() == [1] * 77


def test_two_words_swapped(prompt):
    matrix = replacement(prompt("a zz cat and a dog"), prompt("a red cat and a zz"))
    assert pairs(matrix, 9) == {
        (0, 0): 1, (1, 1): 1, (2, 2): 1, (3, 2): 1, (4, 3): 1, (5, 4): 1, (6, 5): 1, (7, 6): 0.5, (7, 7): 0.5,
        (8, 8): 1,
    }  # fmt: skip


def test_what_differs_between_two_prompts(prompt):
    assert changed(prompt("a red car and a blue dog"), prompt("a Blue car and a blue dog")) == (("red#1",), ("blue#1",))
    assert changed(prompt("a dog and a dog"), prompt("a dog and a cat")) == (("dog#2",), ("cat#1",))
    assert changed(prompt("a car"), prompt("a car at night")) == ((), ("at#1", "night#1"))


def test_refinement_keeps_what_is_shared(prompt):
    matrix = refinement(prompt("a car"), prompt("a red car and a dog"))
    # bos a car end | bos a red car and a dog end
    assert pairs(matrix, 8) == {(0, 0): 1, (1, 1): 1, (2, 3): 1, (3, 7): 1}
    assert torch.equal(matrix[8:, 8:], torch.eye(69))


class Writes(TorchFunctionMode):
    """Count the writes into tensors by index."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.Tensor.__setitem__
        return function(*args, **(kwargs or {}))


def refinement_by_element(old: Sequence[int], new: Sequence[int], length: int) -> torch.Tensor:
    """The global alignment of the authors' code: a match scores 1, a mismatch -1, a gap 0; a tie is a gap."""
    score = torch.zeros(len(old) + 1, len(new) + 1)
    for i in range(1, len(old) + 1):
        for j in range(1, len(new) + 1):
            match = 1 if old[i - 1] == new[j - 1] else -1
            score[i, j] = max(score[i, j - 1], score[i - 1, j], score[i - 1, j - 1] + match)

    matrix = torch.zeros(length, length)
    i, j = len(old), len(new)
    while i > 0 and j > 0:
        if score[i, j] == score[i, j - 1]:
            j -= 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            matrix[i, j] = 1
    for token in range(len(new), length):
        matrix[token, token] = 1
    return matrix


def test_refinement_against_a_loop_over_elements(prompt):
    words, choose = ["a", "red", "blue", "car", "dog", "and", "zz", "qjx", ","], random.Random(0)
    for _ in range(40):
        texts = [" ".join(choose.choices(words, k=choose.randrange(14))) for _ in range(2)]
        source, target = map(prompt, texts)
        old, new = source.ids[: source.end + 1], target.ids[: target.end + 1]
        wanted = refinement_by_element(old, new, len(source.ids))
        assert torch.equal(refinement(source, target), wanted), texts


def test_refinement_writes_all_pairs_at_once(prompt):
    counts = []
    for words in (1, 10, 60):
        source, target = prompt("a " + "red " * words + "car"), prompt("a " + "red " * words + "dog")
        with Writes() as writes:
            refinement(source, target)
        counts.append(writes.count)
    assert counts == [2, 2, 2]  # the aligned tokens, and the padding


def test_the_cross_edit_against_a_loop(prompt):
    prompts = [prompt("a zz car"), prompt("a red car"), prompt("a blue zz")]
    windows = {"*": (0.0, 0.5), "red": (0.2, 1.0)}
    edit = cross_attention(prompts, 10, 10, "replace", windows, {"red": 3.0}, False)
    p = torch.rand(6, 2, 5, 77, dtype=torch.float64)
    mappers = [replacement(prompts[0], t) for t in prompts[1:]]
    for step in (0, 1, 2, 4, 5, 9):  # the ends of the windows
        out = edit(None, p, step)
        for seed in range(2):
            source = p[3 * seed]
            assert torch.equal(out[3 * seed], source)
            for k, target in enumerate(prompts[1:]):
                for token in range(77):
                    # 11 entries for 10 steps, as published: 0.5 ends after step 4, 0.2 begins with step 2.
                    copied = step < 5
                    if k == 0 and token in target.find("red"):
                        copied = step >= 2
                    own = p[3 * seed + 1 + k, :, :, token]
                    wanted = own
                    if copied:
                        wanted = sum(source[:, :, i] * mappers[k][i, token].item() for i in range(77))
                    if k == 0 and token in target.find("red") and step >= 2:
                        wanted = wanted * 3.0
                    torch.testing.assert_close(out[3 * seed + 1 + k, :, :, token], wanted)


@pytest.mark.parametrize(("passes", "share", "last"), [(50, 0.8, 39), (51, 0.8, 39), (51, 0.5, 24), (51, 1.0, 50)])
def test_windows_end_as_published(prompt, passes, share, last):
    """int(share * 51) of 50 steps, also where the scheduler (PNDM) makes 51 passes of them."""
    prompts = [prompt("a red car"), prompt("a blue car")]
    edit = cross_attention(prompts, 50, passes, "replace", share, {}, False)
    assert edit.share[:, 0, 2].nonzero().flatten().tolist() == list(range(last + 1))


def edited_steps(monkeypatch, name):
    """The kinds of layers and the steps in which a method of the probe is called."""
    edited, own = set(), getattr(limelight.Probe, name)

    def spy(self, layer, *values):
        edited.add((layer.kind, self.step))
        return own(self, layer, *values)

    monkeypatch.setattr(limelight.Probe, name, spy)
    return edited


def test_windows_of_an_edit_under_pndm(tiny_pipeline, monkeypatch):
    """Of 10 steps, which are 11 passes: int(0.8 * 11) of the cross-attention, int(0.6 * 10) of the self-attention."""
    explicit, injected = edited_steps(monkeypatch, "see"), edited_steps(monkeypatch, "inject")
    model = limelight.load(tiny_pipeline("pndm"))
    limelight.edit(model, "a red car", "a blue car", steps=10, cross_steps=0.8, self_steps=0.6, record=False)
    assert (max(explicit), max(injected)) == (("cross", 7), ("self", 5))


def test_words_without_a_window(prompt):
    """They have the default, or as published all steps."""
    prompts = [prompt("a red car"), prompt("a blue car")]
    for published, steps in ((False, 8), (True, 10)):
        edit = cross_attention(prompts, 10, 10, "replace", {"blue": 0.2}, {}, published)
        assert edit.share[:, 0].sum(dim=0)[:4].tolist() == [steps, steps, 2, steps]


def test_a_weight_ends_with_the_windows_of_its_word(prompt):
    source, target = prompt("a car"), prompt("a red car")  # "red" is new: it has no map to take over
    edit = cross_attention([source, target], 10, 10, "refine", {"*": 0.8, "red": (0.0, 0.3)}, {"red": 2.0}, False)
    p = torch.rand(2, 1, 3, 77)
    (red,) = target.find("red")
    found = [edit(None, p, step)[1, ..., red] for step in range(10)]
    assert [torch.equal(value, 2 * p[1, ..., red]) for value in found] == [True] * 3 + [False] * 7
    assert all(torch.equal(value, p[1, ..., red]) for value in found[3:])


def test_a_strengthened_word_keeps_its_own_maps(tiny):
    cross = [layer for layer in tiny.sites if layer.kind == "cross"]
    heads = tuple((layer.group, layer.heads) for layer in cross)
    vectors = Relevance(("Color", "Other"), heads, torch.rand(2, sum(n for _, n in heads)))
    source, target = tiny.prompt("a car"), tiny.prompt("a red car")
    edit = cross_attention([source, target], 10, 10, "auto", 0.5, {}, False)
    edit = edit.strengthened(tiny, [target], {"red": "Color"}, vectors)
    first = cross[0].heads
    p = torch.rand(2, cross[1].heads, 5, 77)
    out = edit(cross[1], p, 0)
    red, car = target.find("red"), target.find("car")
    gains = vectors["Color"][first : first + cross[1].heads]
    torch.testing.assert_close(out[1, ..., red[0]], p[1, ..., red[0]] * gains[:, None])
    assert torch.equal(out[1, ..., car[0]], p[0, ..., source.find("car")[0]])
    assert torch.equal(edit(cross[1], p, 6), p), "after its window the raw maps return"
    with pytest.raises(limelight.PromptError, match="'blue' is not in the prompt"):
        edit.strengthened(tiny, [target], {"blue": "Color"}, vectors)


def test_several_words_of_one_concept_are_strengthened(tiny):
    cross = [layer for layer in tiny.sites if layer.kind == "cross"]
    heads = tuple((layer.group, layer.heads) for layer in cross)
    vectors = Relevance(("Color", "Other"), heads, torch.rand(2, sum(n for _, n in heads)))
    prompts = [tiny.prompt(text) for text in ("a car and a bow", "a red car and a blue bow", "a blue car and a bow")]
    edit = cross_attention(prompts, 10, 10, "auto", 0.5, {}, False)
    edit = edit.strengthened(tiny, prompts[1:], {"red": "Color", "blue": "Color"}, vectors)
    for target, prompt in enumerate(prompts[1:]):
        own = [token for word in ("red", "blue") if word in prompt.text for token in prompt.find(word)]
        strong = ~edit.gains[cross[0]][target, 0, 0].isnan()
        assert strong.nonzero().flatten().tolist() == own


def test_a_full_replacement_copies_the_maps(tiny):
    prompts = [tiny.prompt("a red car"), tiny.prompt("a blue car")]
    seen = []

    def spy(layer, probabilities, step):
        seen.append(probabilities)
        return probabilities

    latents = tiny.noise([torch.Generator().manual_seed(s) for s in (0, 1)], 32, 32)
    edits = [cross_attention(prompts, 1, 1, "auto", 1.0, {}, False), spy]
    with torch.no_grad(), limelight.Probe(tiny, (), edits=edits):
        tiny.predict(latents, tiny.timesteps(1)[0], tiny.encode(prompts))
    assert len(seen) == sum(layer.kind == "cross" for layer in tiny.sites)
    assert all(torch.equal(p[0], p[1]) for p in seen)


def test_self_attention_of_the_inner_layers(tiny):
    edit = SelfAttention(2, tiny.guided_scale, range(3))
    inner = [layer for layer in tiny.sites if edit.touches(layer, 0)]
    assert {(layer.kind, layer.scale) for layer in inner} == {("self", 2), ("self", 4)}
    assert not any(edit.touches(layer, 3) for layer in tiny.sites)
    p = torch.rand(4, 2, 5, 5)
    assert torch.equal(edit(inner[0], p, 0), p[[0, 0, 2, 2]])


def test_a_local_edit_leaves_the_rest(tiny, monkeypatch):
    masks = []
    own = LocalBlend.mask
    monkeypatch.setattr(LocalBlend, "mask", lambda self, size: masks.append(own(self, size)) or masks[-1])
    result = limelight.edit(tiny, "a red car", "a blue car", seeds=[0, 1], steps=5, local="car", self_steps=0)
    assert len(masks) == 4  # not in the first fifth
    outside = ~masks[-1][:, 1, None].expand(-1, 4, -1, -1)
    assert 0 < outside.double().mean() < 1
    assert torch.equal(result.target.latents[outside], result.source.latents[outside])
    assert not torch.equal(result.target.latents[~outside], result.source.latents[~outside])


def test_the_published_blend_reads_the_edited_maps(tiny, monkeypatch):
    """The authors' controller edits the maps in place after it has stored them."""
    stored, means = [], []

    class Spy(EditedMaps):
        def take(self, maps):
            after = super().take(maps)
            stored.append((maps, after))
            return after

    own = LocalBlend.mask
    monkeypatch.setattr(prompt_to_prompt, "EditedMaps", Spy)
    monkeypatch.setattr(LocalBlend, "mask", lambda self, size: means.append(self.mean.result()) or own(self, size))
    options = {"steps": 5, "local": "car", "cross_steps": 1.0, "self_steps": 0}
    limelight.edit(tiny, "a red car", "a blue car", published=True, **options)
    assert len(stored) == 5
    for before, after in stored:
        assert list(after.layers) == list(before.layers)
        for layer in after.layers:
            assert torch.equal(after.layers[layer][0], before.layers[layer][0])  # the source's
            assert torch.equal(after.layers[layer][1], before.layers[layer][0])  # and the target's, which took it over
    assert torch.equal(means[-1].mean()[0], means[-1].mean()[1])
    before_edits = stored[-1][0].mean()
    assert not torch.allclose(before_edits[0], before_edits[1])


def test_only_touched_layers_lose_their_fused_attention(tiny, monkeypatch):
    edited = edited_steps(monkeypatch, "see"), edited_steps(monkeypatch, "inject")
    limelight.edit(tiny, "a red car", "a blue car", steps=4, cross_steps=0.5, self_steps=0.25, record=False)
    assert edited == ({("cross", 0), ("cross", 1)}, {("self", 0)}), "self-attention is never explicit"
