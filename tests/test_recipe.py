"""The recipe of the embedded model, on sprites made of plain shapes."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import limelight
from limelight.evaluate.detectors import PocketDetector
from limelight.models.embedded import POCKET
from limelight.prompts.prompt import parse
from recipes.pocket import large, parts, vae
from recipes.pocket.clip import nameless
from recipes.pocket.denoiser import (
    LOUDEST,
    LOWEST,
    OWN_HEAD,
    RECOLORED,
    RENAMED,
    TURNED,
    Denoise,
    Pool,
    concentration_loss,
    grounding_loss,
    turned_heads,
)
from recipes.pocket.detector import NAMES, Gallery, begin_with, detector_loss, mixture, painted, targets
from recipes.pocket.export import keep_numbers
from recipes.pocket.pool import grounded
from recipes.pocket.scenes import HELD_OUT, OTHER_WORDS, SIDE, Composer, Scene, Thing, caption, tint
from recipes.pocket.training import Run
from recipes.pocket.vocabulary import (
    ANIMALS,
    COLORS,
    CONCEPTS,
    DECIDES,
    DRAWN,
    HARD,
    SENSES,
    SUBJECTS,
    concept_of,
    word_of,
)


@pytest.fixture(scope="module")
def composer(tmp_path_factory) -> Composer:
    """Every subject is an orange disc, lighter above and darker below."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    disc = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    disc[..., :3] = (np.array([220, 140, 60]) * (0.8 - 0.2 * y[..., None])).astype(np.uint8)
    disc[..., 3] = 255 * (x**2 + y**2 < 1)
    path = tmp_path_factory.mktemp("sprites") / "sprites.npz"
    np.savez(path, **dict.fromkeys(DRAWN, disc))
    return Composer(path)


def test_the_truth_of_scenes(composer):
    rng = np.random.default_rng(0)
    scenes = [composer.scene(rng) for _ in range(200)]
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        assert scene.pixels.shape == (SIDE, SIDE, 3)
        words = scene.caption.replace(",", " ,").split()
        for thing, mask in zip(scene.things, scene.masks, strict=True):
            assert thing.word in words
            assert thing.color is None or f"{thing.color} {thing.word}" in scene.caption
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= SIDE
            assert 0 <= top < bottom <= SIDE
            # A disc covers pi/4 of its box, and the mask is the share of each cell that it covers.
            area = (right - left) * (bottom - top) * np.pi / 4
            assert mask.sum() * 16 * 16 == pytest.approx(area, rel=0.1)
        assert not any(pair <= {thing.subject for thing in scene.things} for pair in HELD_OUT)


def test_company_decides_what_a_word_means(composer):
    rng = np.random.default_rng(0)
    scenes = [[name for name, _ in composer.choose(rng, count)] for count in (1, 2, 3) for _ in range(1500)]
    alone = {names[0] for names in scenes if len(names) == 1}
    assert alone > {*SENSES, *map(word_of, SENSES)}
    for sense, deciding in DECIDES.items():
        shown = [names for names in scenes if len(names) > 1 and {sense, word_of(sense)} & {*names}]
        assert {sense in names for names in shown} == {True, False}
        assert all((sense in names) == bool({*deciding} & {*names}) for names in shown)
    assert all(len({*map(word_of, names)}) == len(names) for names in scenes)
    assert {word_of(name) for name in DRAWN} == {*SUBJECTS}
    assert {*SUBJECTS} > {*HARD}


def test_faint_collages_have_the_tone_of_a_thing(composer, monkeypatch):
    monkeypatch.setattr(composer, "choose", lambda rng, count: [("car", "green"), ("dog", "green")])
    ink = tint(composer.sprites["car"], "green")
    tone = ink[ink[..., 3] > 128][:, :3].mean(axis=0)
    corners = [composer.collage(np.random.default_rng(i), faint=1.0)[0, 0] for i in range(200)]
    assert np.abs(np.mean(corners, axis=0) - tone).max() < 10  # a few corners are covered


def test_a_decoder_is_trained_alone():
    model = vae.Autoencode(vae.begun(POCKET / "vae"))
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    pixels = torch.rand(2, 3, SIDE, SIDE)
    output, kl = model(pixels)
    (vae.reconstruction_loss(pixels, output) + kl.mean()).backward()
    optimizer.step()
    changed = {name.split(".")[1] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"decoder", "post_quant_conv"}


def test_a_large_autoencoder_begins_as_an_enlargement(pocket):
    own, wide = pocket.pipeline.vae, large.enlarged(pocket.pipeline.vae)
    latents = pocket.noise([torch.Generator().manual_seed(0)], SIDE, SIDE)
    with torch.no_grad():
        small, drawn = own.decode(latents).sample, wide.decode(latents).sample
        assert drawn.shape == (1, 3, 2 * SIDE, 2 * SIDE)
        away = torch.nn.functional.avg_pool2d(drawn, 2) - small
        assert away.square().mean() < 0.02 * small.var()
        said = wide.encode(drawn).latent_dist.mean
        assert (said - own.encode(small).latent_dist.mean).square().mean() < 0.05 * said.var()


def test_scenes_of_twice_the_size_are_the_same_scenes(composer, tmp_path):
    np.savez(
        tmp_path / "a.npz", **{name: np.kron(s, np.ones((2, 2, 1), np.uint8)) for name, s in composer.sprites.items()}
    )
    wide = Composer(tmp_path / "a.npz", zoom=2)
    for seed in range(5):
        one, two = (c.scene(np.random.default_rng(seed)) for c in (composer, wide))
        halved = two.pixels.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
        assert one.caption == two.caption
        assert np.abs(halved - one.pixels).mean() < 2
        assert np.abs(one.masks - two.masks).max() < 0.05


def test_latents_drawn_anew(pocket, monkeypatch):
    """From hardly any noise on they stay, from more on they are others."""
    latents = limelight.generate(pocket, "a cat", seeds=0, steps=10).latents
    away = {}
    for time in (1, 300):
        monkeypatch.setattr(large, "NOISED", (time, time + 1))
        torch.manual_seed(0)
        drawn = large.redrawn(pocket, latents, ["a cat"], np.random.default_rng(0))
        away[time] = float((drawn - latents).square().mean() / latents.var())
    assert away[1] < 0.02 < away[300] < 0.5


def test_held_out_pairs():
    assert len(HELD_OUT) >= 9
    assert all(len(pair) == 2 and pair <= set(ANIMALS) for pair in HELD_OUT)


@pytest.mark.parametrize("color", COLORS)
def test_tints_have_their_color(composer, color):
    tinted = tint(composer.sprites["car"], color)
    ink = tinted[..., 3] > 128
    middle = np.median(tinted[ink][:, :3], axis=0)
    nearest = min(COLORS, key=lambda name: float(np.abs(np.array(COLORS[name]) - middle).sum()))
    assert nearest == color
    assert np.array_equal(tinted[..., 3], composer.sprites["car"][..., 3])


def test_captions():
    rng = np.random.default_rng(0)
    box = (0, 0, 1, 1)
    seen = {caption((Thing("car", "red", box), Thing("elephant", None, box)), rng) for _ in range(20_000)}
    assert {"a red car and a elephant", "a photo of a red car next to an elephant", "red car with an elephant"} <= seen
    assert {word for text in seen for word in text.split()} <= {*OTHER_WORDS, "red", "car", "elephant"}


def test_every_word_of_the_captions_is_one_token():
    tokenizer = parts.tokenizer()
    assert all(parts.tokenizer().get_vocab() == tokenizer.get_vocab() for _ in range(3)), "hash order decides ids"
    for word in [*SUBJECTS, *COLORS, *OTHER_WORDS]:
        assert len(tokenizer(word)["input_ids"]) == 3, word
    prompt = parse("a red car and a dog", tokenizer, parts.LENGTH)
    assert prompt.find("dog") == (6,)


def test_grounding_loss_by_hand():
    maps = torch.zeros(2, 2, 64, 5)
    maps[0, 0, :32, 2] = 0.6  # half of this word's attention lies on its object, by different heads
    maps[0, 1, 32:, 2] = 0.6
    maps[1, :, :32, 3] = 0.7  # and all of this one's
    masks = torch.zeros(2, 4, 64)
    masks[:, 0, :32] = 1.0
    positions = torch.tensor([[2, 0, 0, 0], [3, 0, 0, 0]])
    assert grounding_loss(maps, positions, masks, torch.ones(2)).item() == pytest.approx(0.5**2 / 2)
    assert grounding_loss(maps, positions, masks, torch.tensor([0.5, 1.0])).item() == pytest.approx(0.5**3 / 2)
    assert grounding_loss(maps, positions * 0, masks, torch.ones(2)).item() == 0


def test_concentration_loss_by_hand():
    maps = torch.zeros(2, 4, 64, 5)
    maps[0, :, :32, 2] = torch.tensor([0.1, 0.2, 0.3, 0.4])[:, None]
    maps[0, 0, 32:, 2] = 0.9  # off the object, where it does not count
    maps[1, :, :32, 3] = torch.tensor([0.0, 0.3, 0.1, 0.0])[:, None]
    masks = torch.zeros(2, 2, 64)
    masks[:, 0, :32] = 1.0
    positions, concepts = torch.tensor([[2, 0], [3, 0]]), torch.tensor([[1, 0], [1, 0]])
    weight = torch.tensor([0.5, 1.0])
    # Of the share that it should have the first word's head has 0.2; the second's has 0.75, which is enough.
    loss = concentration_loss(maps, positions, concepts, masks, weight)
    assert loss.item() == pytest.approx(0.5 * (OWN_HEAD - 0.2) / 2)


def test_heads_are_turned_in_some_images():
    positions, concepts = torch.tensor([[2, 5, 0]] * 2000), torch.tensor([[3, 1, 0]] * 2000)
    gains = turned_heads(positions, concepts, 8, 9, torch.Generator().manual_seed(0))
    assert gains.shape == (2000, 8, 9)
    assert torch.equal(gains[..., [0, 1, 3, 4, 6, 7, 8]], torch.ones(2000, 8, 7)), "no other token is touched"
    turned = (gains != 1).any(dim=1)
    assert turned[:, 2].float().mean() == pytest.approx(TURNED, abs=0.04)
    assert torch.equal(turned[:, 2], turned[:, 5]), "all words of an image"
    own, others = gains[:, 3, 2], gains[:, [0, 1, 2, 4, 5, 6, 7], 2]
    assert own.min() == 1
    assert LOUDEST - 0.5 < own.max() <= LOUDEST
    assert LOWEST <= others.min() < LOWEST + 0.5
    assert others.max() == 1
    assert (others[own > 1] == 1).float().mean() == pytest.approx(0.5, abs=0.05)
    assert gains[:, 1, 5].min() == 1
    assert gains[:, 3, 5].min() < 0


def test_turned_heads_change_the_prediction_and_not_what_is_recorded(pocket):
    generator = torch.Generator().manual_seed(0)
    latents, ids = torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([pocket.prompt("a cat").ids])
    gains = torch.ones(1, 8, ids.shape[1])
    with torch.no_grad():
        plain, maps = Denoise(pocket)(latents, torch.tensor([500]), ids, ids, gains)
        gains[:, :, 2] = 0.0
        turned, maps_of_turned = Denoise(pocket)(latents, torch.tensor([500]), ids, ids, gains)
    assert maps.shape == (1, 3, 8, 64, ids.shape[1])
    assert torch.equal(maps[:, 0], maps_of_turned[:, 0])
    assert not torch.equal(plain, turned)


def test_what_kind_of_thing_each_is():
    kinds = list(CONCEPTS)
    assert len(kinds) == parts.denoiser().config.attention_head_dim  # heads of a layer, in diffusers' naming
    assert sorted(name for names in CONCEPTS.values() for name in names) == sorted(DRAWN), "each is of one kind"
    assert [kinds[concept_of(name)] for name in ("mouse", "mouse (computer)", "orange")] == [
        "Animals",
        "Devices",
        "Food",
    ]
    scene = Scene(np.zeros(0), "", (Thing("orange", "red", (0, 0, 1, 1)),), np.ones((1, 8, 8)))
    words, concepts, masks = zip(*grounded(scene), strict=True)
    assert list(concepts) == [kinds.index("Food"), kinds.index("Color")]
    assert (words, [mask.sum() for mask in masks]) == (("orange", "red"), [64, 64])


def test_a_color_or_a_noun_is_to_be_had_at_its_own_word_alone(tmp_path, pocket):
    captions = ["a red car and a blue dog", "a cat"] * 200
    words, concepts = [["car", "red", "dog", "blue"], ["cat"]] * 200, [[4, 1, 0, 1], [0]] * 200
    state = {"latents": torch.zeros(400, 4, 16, 16), "masks": torch.zeros(400, 6, 8, 8)}
    torch.save({**state, "captions": captions, "words": words, "concepts": concepts}, tmp_path / "part-0.pt")
    pool = Pool(tmp_path, pocket)
    assert pool.weights.tolist() == [1.0, 1.0] * 200
    latents, ids, reworded, positions, concepts, _ = pool.batch(400, torch.Generator().manual_seed(0), "cpu")
    changed = ids != reworded
    assert set(changed.nonzero()[:, 1].tolist()) == {2, 3, 6, 7}
    assert {tuple(row) for row in concepts.tolist()} == {(4, 1, 0, 1, 0, 0), (0, 0, 0, 0, 0, 0)}
    colored = positions[:, 1] == 2
    for columns, words, share in (([2, 6], pool.colors, RECOLORED), ([3, 7], pool.nouns, RENAMED)):
        here = changed[colored][:, columns]
        assert set(reworded[colored][:, columns][here].tolist()) <= set(words.tolist())
        # A word may be replaced by itself, both colors by themselves in one caption of 121.
        assert here.any(dim=1).float().mean() == pytest.approx(share, abs=0.1)
    both = changed[:, [2, 6]].any(dim=1) & changed[:, [3, 7]].any(dim=1)
    assert not both[colored].any(), "a noun's own state tells its color"

    row = (changed[:, 2] & colored).nonzero()[0]
    seen: list[torch.Tensor] = []
    handle = pocket.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    Denoise(pocket)(latents[row], torch.tensor([500]), ids[row], reworded[row], torch.ones(1, 8, ids.shape[1]))
    handle.remove()
    own, other = (pocket.pipeline.text_encoder(some[row])[0] for some in (ids, reworded))
    assert torch.equal(seen[0], torch.where(changed[row][..., None], own, other))
    assert not torch.equal(seen[0][0, 3], own[0, 3])


def test_what_is_drawn_more_often(tmp_path, pocket):
    words = {
        "a cat": ["cat"],
        "a robot": ["robot"],
        "a pig": ["pig"],
        "a cat and a robot": ["cat", "robot"],
        "a white cat": ["cat", "white"],
        "a mouse": ["mouse"],
        "a red mouse": ["mouse", "red"],
        "a mouse and a cat": ["mouse", "cat"],
    }
    state = {"latents": torch.zeros(8, 4, 16, 16), "masks": torch.zeros(8, 6, 8, 8), "concepts": [[]] * 8}
    torch.save({**state, "captions": [*words], "words": [*words.values()]}, tmp_path / "part-0.pt")
    assert Pool(tmp_path, pocket).weights.tolist() == [1.0, 4.0, 14.0, 2.5, 1.5, 16.0, 16.0, 2.5]


def test_orange_is_reworded_before_a_noun_alone(tmp_path, pocket):
    captions = ["an orange and an orange car"] * 2
    state = {"latents": torch.zeros(2, 4, 16, 16), "masks": torch.zeros(2, 6, 8, 8)}
    state |= {"captions": captions, "words": [["orange", "car", "orange"]] * 2, "concepts": [[2, 4, 1]] * 2}
    torch.save(state, tmp_path / "part-0.pt")
    pool = Pool(tmp_path, pocket)
    _, ids, reworded, positions, _, _ = pool.batch(400, torch.Generator().manual_seed(0), "cpu")
    changed = ids != reworded
    assert {*changed.nonzero()[:, 1].tolist()} == {2, 5, 6}
    assert not (changed[:, 5] & changed[:, [2, 6]].any(dim=1)).any(), "the color alone, or the nouns"
    assert {tuple(row) for row in positions.tolist()} == {(2, 6, 5, 0, 0, 0), (0, 0, 0, 0, 0, 0)}


def test_nameless_things_come_twice(composer):
    composer.sprites.update({"a (hammer)": composer.sprites["car"], "a (yarn)": composer.sprites["dog"]})
    scenes = nameless(composer, ["a (hammer)", "a (yarn)"], 2, np.random.default_rng(0))
    first, second = ([scene.things[0].subject for scene in part] for part in (scenes[:2], scenes[2:]))
    assert first == second
    assert {*first} == {"a (hammer)", "a (yarn)"}
    assert not np.array_equal(scenes[0].pixels, scenes[2].pixels)


def test_words_keep_their_weights_in_a_larger_vocabulary():
    known, words = parts.tokenizer(), parts.tokenizer(["zebra"])
    torch.manual_seed(0)
    earlier, model = parts.text_encoder(known), parts.text_encoder(words)
    fresh = model.get_input_embeddings().weight.clone()
    parts.by_word(earlier, known, model, words)
    text = words("a red car and a dog").input_ids
    before = earlier.get_input_embeddings().weight[known("a red car and a dog").input_ids]
    assert torch.equal(model.get_input_embeddings().weight[text], before)
    new = words("zebra").input_ids[1]
    assert torch.equal(model.get_input_embeddings().weight[new], fresh[new])


def test_an_export_keeps_the_numbers_of_words(pocket):
    fresh = pocket.pipeline
    made = parts.pipeline(fresh.vae, parts.tokenizer(), parts.text_encoder(parts.tokenizer()), fresh.unet)
    rows, ids = made.text_encoder.get_input_embeddings().weight, made.tokenizer("a mouse and a star").input_ids
    keep_numbers(made, POCKET)
    kept = made.tokenizer("a mouse and a star").input_ids
    assert kept == fresh.tokenizer("a mouse and a star").input_ids
    assert torch.equal(made.text_encoder.get_input_embeddings().weight[kept], rows[ids])


def test_a_detector_begins_with_one_that_knew_less(tmp_path):
    earlier, detector = PocketDetector(["mouse", "cat"], [*COLORS]).eval(), PocketDetector(NAMES, [*COLORS]).eval()
    facts = {"names": earlier.names, "colors": earlier.colors, "threshold": 0.3, "mixture": 0.8}
    save_file(earlier.state_dict(), tmp_path / "earlier.safetensors", {"detector": json.dumps(facts)})
    begin_with(tmp_path / "earlier.safetensors", detector)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        names, *others = detector(pixels)
        before, *others_before = earlier(pixels)
    assert torch.allclose(names[:, [NAMES.index(name) for name in earlier.names]], before, atol=1e-4)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(others, others_before, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_a_mixture_shows_both(seed):
    red, blue = (Image.new("RGBA", size, color) for size, color in (((40, 60), "red"), ((50, 30), "blue")))
    mixed = np.asarray(mixture(red, blue, np.random.default_rng(seed)))
    assert mixed.shape == (60, 50, 4)
    assert mixed[..., :3].reshape(-1, 3).mean(axis=0)[[0, 2]].min() > 60
    assert mixed[..., 3].min() > 250


@pytest.mark.parametrize("seed", range(4))
def test_an_unsteady_hand_draws_the_same_scene(seed):
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = np.where(((x - 64) ** 2 + (y - 64) ** 2 < 40**2)[..., None], [200, 30, 30], [240, 240, 240]).astype(np.uint8)
    drawn = painted(disc, np.random.default_rng(seed))
    changed = (drawn != disc).any(axis=-1)
    assert (drawn.dtype, drawn.shape) == (disc.dtype, disc.shape)
    away = abs(np.hypot(x - 64, y - 64) - 40)
    assert changed.any()
    assert away[changed].max() < 12, "only the outline moves"


def test_the_judges_scenes_and_targets(tmp_path):
    disc = np.full((SIDE, SIDE, 4), 255, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", **{"cat": disc, "car": disc // 2 + 127, "(hammer)": disc})
    gallery, rng = Gallery([tmp_path / "a.npz"]), np.random.default_rng(0)
    oftener = Gallery([tmp_path / "a.npz"], {"cat": 9})
    drawn = [oftener._name(np.random.default_rng(seed)) for seed in range(300)]
    assert drawn.count("cat") > 200  # 9 of 10 in 7 of 10, and half of the others
    assert (gallery.names, gallery.strangers) == (["cat", "car"], ["(hammer)"])
    scenes = [gallery.scene(rng) for _ in range(30)]
    assert {NAMES[name] for _, truth in scenes for name, _, _ in truth} == {"cat", "car"}
    boxes = [[box for _, _, box in truth] for _, truth in scenes]
    assert {boxes.count(box) for boxes in boxes for box in boxes} == {1, 2}, "one and a mixture of two"
    apart = [[box for _, _, box in gallery.scene(rng, mixed=0.0)[1]] for _ in range(30)]
    assert all(len({*boxes}) == len(boxes) for boxes in apart)
    assert all(pixels.shape == (SIDE, SIDE, 3) for pixels, _ in scenes)
    # A cat of 64 pixels in the middle: its middle is between four cells, its sides are four cells away.
    heat, sides, colors, mixtures, counted = targets([[(0, 3, (32.0, 32.0, 96.0, 96.0))]])
    assert mixtures.max() == 0
    of_two = targets([[(0, 3, (32.0, 32.0, 96.0, 96.0)), (1, 3, (32.0, 32.0, 96.0, 96.0))]])
    assert torch.equal(of_two[3][0] > 0, counted[0])
    assert heat[0, 0, 7:9, 7:9].min() == 1
    assert heat[0, 1:].max() == 0
    assert sides[0, :, 7, 7].tolist() == [3.5, 3.5, 4.5, 4.5]
    assert colors[0, 7, 7] == 3
    assert colors[0, 0, 0] == -1
    assert counted[0, 7, 7]
    assert not counted[0, 2, 2]
    # What says exactly this has almost no loss; what says nothing has.
    hues = torch.zeros(1, len(COLORS), 16, 16)
    hues[0, 3] = 30
    one = torch.full((1, 1, 16, 16), -20.0)
    wanted = (heat, sides, colors, mixtures, counted)
    assert detector_loss((torch.where(heat == 1, 20.0, -20.0), sides, hues, one), wanted).item() < 0.01
    assert detector_loss((torch.full_like(heat, -20.0), sides, hues, one), wanted).item() > 1
    assert detector_loss((torch.where(heat == 1, 20.0, -20.0), sides, hues, -one), wanted).item() > 1


def test_a_resumed_run_is_the_unbroken_run(tmp_path):
    def train(out: str, steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        args = argparse.Namespace(
            out=tmp_path / out, steps=steps, cooldown=2, batch=4, rate=1e-2, device="cpu", seed=0, resume=None
        )
        run = Run(nn.Linear(3, 2), args)
        # The schedule of a run that was cut short is the whole run's.
        run.args.steps = 8
        for step in run.steps():
            if step == steps:
                break
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            run.update(run.model(x).square().mean())
        run._save("checkpoint.pt")
        with run.averaged() as model:
            return {name: value.clone() for name, value in model.state_dict().items()}

    whole = train("whole", 8)
    train("parts", 3)
    resumed = train("parts", 8)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
