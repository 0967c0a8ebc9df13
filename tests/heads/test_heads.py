"""Head relevance vectors: counting against a literal oracle, the authors' numbers, files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import limelight
from limelight.errors import FileError, SettingsError
from limelight.heads.counting import Counter, Counting, compute, merge
from limelight.heads.relevance import Relevance
from limelight.heads.vocabulary import Concepts
from tests.evaluate.test_evaluate import kill_a_worker

CONCEPTS = Concepts(
    {
        "Animals": ("cat", "teddy bear", "lion"),
        "Color": ("red", "light gray", "blue"),
        "Things": ("car", "bow", "a red bow tie"),
    }
)
PROMPTS = ("a cat and a dog", "a red car", "a cat and a dog")
COUNTING = Counting(CONCEPTS, PROMPTS, steps=3, batch=2, blocks=2, seed=5)


def literal(pipeline, counting: Counting) -> torch.Tensor:
    """The specification word by word: one prompt, one layer, one head after the other. [steps, heads, concepts]."""
    tokenizer, encoder, unet = pipeline.tokenizer, pipeline.text_encoder, pipeline.unet
    places = ("down_blocks", "mid_block", "up_blocks")
    names = [n for p in places for n, _ in unet.named_modules() if n.startswith(p) and n.endswith("attn2")]

    def encode(text):
        read = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return encoder(read.input_ids)[0][0], len(tokenizer(text).input_ids)

    vocabulary = {c: [encode(w) for w in words] for c, words in counting.concepts.words.items()}
    heads = {name: unet.get_submodule(name).heads for name in names}
    pipeline.scheduler.set_timesteps(counting.steps)
    timesteps = pipeline.scheduler.timesteps
    counts = torch.zeros(len(timesteps), sum(heads.values()), len(vocabulary), dtype=torch.int64)
    for which, prompt in enumerate(counting.prompts):
        states = torch.stack([encode("")[0], encode(prompt)[0]])
        generator = counting.generator(which, "noise")
        latents = (
            torch.randn(1, 4, 16, 16, generator=generator, dtype=torch.float64) * pipeline.scheduler.init_noise_sigma
        )
        words = counting.words(which, len(timesteps), len(names))
        pipeline.scheduler.set_timesteps(counting.steps)
        for s, timestep in enumerate(timesteps):
            queries = {}
            hooks = [
                unet.get_submodule(n).to_q.register_forward_hook(
                    lambda _m, _i, o, n=n, seen=queries: seen.update({n: o[1]})
                )
                for n in names
            ]
            scaled = pipeline.scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            empty, full = unet(scaled, timestep, states).sample
            for hook in hooks:
                hook.remove()
            flat = 0
            for place, name in enumerate(names):
                sequence, owner = [], [None]
                for c, entries in enumerate(vocabulary.values()):
                    embedding, length = entries[words[s, place, c]]
                    if c == 0:
                        sequence.append(embedding[0])
                    for n in range(1, length - 1):
                        sequence.append(embedding[n])
                        owner.append(c)
                keys = unet.get_submodule(name).to_k(torch.stack(sequence))
                width = keys.shape[1] // heads[name]
                for h in range(heads[name]):
                    part = slice(h * width, (h + 1) * width)
                    attention = (queries[name][:, part] @ keys[:, part].T / width**0.5).softmax(dim=1).mean(dim=0)
                    means = [
                        attention[[i for i, o in enumerate(owner) if o == c]].mean() for c in range(len(vocabulary))
                    ]
                    counts[s, flat, max(range(len(means)), key=lambda c: means[c])] += 1
                    flat += 1
            latents = pipeline.scheduler.step(
                (empty + counting.guidance_scale * (full - empty))[None], timestep, latents
            ).prev_sample
    return counts


@pytest.fixture(scope="module")
def counted(tiny_module):
    return compute(tiny_module, COUNTING)


@pytest.fixture(scope="module")
def tiny_module(tiny_parts):
    import copy

    from diffusers import StableDiffusionPipeline

    from tests.conftest import SCHEDULERS

    pipeline = StableDiffusionPipeline(
        **{name: copy.deepcopy(part) for name, part in tiny_parts.items()},
        scheduler=SCHEDULERS["pndm"](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return limelight.load(pipeline.to(torch.float64))


def test_counts_equal_a_literal_implementation(tiny_module, counted):
    with torch.no_grad():
        expected = literal(tiny_module.pipeline, COUNTING)
    assert expected.shape[0] == 4  # PNDM's extra pass counts
    assert torch.equal(counted.counts, expected)
    assert (counted.counts.sum(dim=2) == len(PROMPTS)).all()
    assert len(counted.counts.sum(dim=(0, 1)).nonzero()) > 1  # not one concept everywhere
    assert torch.allclose(counted.vectors.mean(dim=1), torch.ones(3))


def test_a_prompt_that_stands_twice_is_drawn_twice(counted):
    # Prompts 0 and 2 share a block, prompt 1 has the other; four passes each.
    assert counted.blocks.sum(dim=2).unique(dim=1).tolist() == [[8], [4]]
    assert torch.equal(counted.blocks.sum(dim=0), counted.counts.sum(dim=0))
    assert torch.equal(
        COUNTING.generator(0, "noise").get_state(),
        Counting(CONCEPTS, PROMPTS[:1], seed=5).generator(0, "noise").get_state(),
    )
    assert not torch.equal(COUNTING.words(0, 4, 3), COUNTING.words(2, 4, 3))


def test_parts_add_to_the_same_counts(tiny_module, counted, tmp_path):
    parts = [compute(tiny_module, COUNTING, tmp_path / f"{i}.safetensors", part=(i, 2)) for i in (1, 2)]
    merged = merge([Relevance.load(tmp_path / f"{i}.safetensors") for i in (2, 1)])
    assert torch.equal(merged.counts, counted.counts)
    assert torch.equal(merged.blocks, counted.blocks)
    assert merged.counted.all()
    assert not parts[0].counted.all()
    with pytest.raises(SettingsError, match="counted twice"):
        merge([merged, parts[0]])


def test_a_stopped_run_goes_on(tiny_module, counted, tmp_path):
    out, done = tmp_path / "v.safetensors", []

    class Stopped(BaseException):
        pass

    def stop(prompts, of):
        raise Stopped

    with pytest.raises(Stopped):
        compute(tiny_module, COUNTING, out, every=0, on_job=stop)
    assert Relevance.load(out).counted.tolist() == [True, True, False]
    again = compute(tiny_module, COUNTING, out, on_job=lambda prompts, of: done.append((prompts, of)))
    assert done == [(3, 3)]
    assert torch.equal(again.counts, counted.counts)
    with pytest.raises(SettingsError, match="counted with other seed"):
        compute(tiny_module, Counting(CONCEPTS, PROMPTS, steps=3, batch=2, blocks=2, seed=6), out)


def test_the_drawing_and_the_model_are_left_alone(tiny_module):
    before = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in tiny_module.denoiser.named_modules()}
    Counter(tiny_module, COUNTING).count(range(1))
    # Read on the side, a pass gives the same bits.
    conditioning, noise = tiny_module.encode([tiny_module.prompt("a cat")], ""), torch.ones(1, 4, 16, 16).double()
    timestep, heard = tiny_module.timesteps(2)[0], []
    with torch.no_grad():
        alone = tiny_module.predict(noise, timestep, conditioning)
        with limelight.Probe(
            tiny_module, (), images=1, queries=lambda layer, q, scale: heard.append((layer, q, scale))
        ):
            watched = tiny_module.predict(noise, timestep, conditioning)
    assert torch.equal(alone, watched)
    assert [layer for layer, _, _ in heard] == [layer for layer in tiny_module.sites if layer.kind == "cross"]
    assert all(q.shape[:2] == (1, x.heads) and s == q.shape[-1] ** -0.5 for x, q, s in heard)
    after = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in tiny_module.denoiser.named_modules()}
    assert before == after


def test_xl_is_counted(tiny_xl):
    relevance = compute(limelight.load(tiny_xl), Counting(CONCEPTS, ("a cat",), steps=1))
    assert relevance.counts.sum() == len(relevance.heads)


# The authors' vectors: numbers of the specification.
TOP = {
    ("sd-1.4", "Color"): ["up 8/0 8.307", "up 6/4 5.128", "up 7/5 4.704", "up 7/2 4.692", "up 8/3 4.686"],
    ("sd-1.4", "Animals"): ["up 8/3 4.427", "down 5/3 4.216", "up 6/7 3.799", "up 7/5 3.551", "down 1/6 3.406"],
    ("sd-1.4", "Material"): ["up 2/0 7.549", "down 3/6 7.314", "up 5/3 4.535", "up 2/3 4.420", "up 1/7 4.397"],
    ("sd-1.4", "Image Style"): ["mid 0/3 18.169", "up 2/1 9.599", "up 5/2 7.465", "mid 0/6 6.138", "mid 0/0 5.584"],
    ("sdxl", "Color"): ["up 14/6 66.145", "down 5/17 33.086", "up 34/3 28.365", "down 0/4 27.662", "down 4/8 24.225"],
    ("sdxl", "Animals"): [
        "down 18/4 19.150",
        "up 21/18 11.596",
        "mid 4/1 11.484",
        "down 18/3 11.348",
        "up 28/8 10.965",
    ],
    ("sdxl", "Plants"): ["mid 7/4 8.704", "up 23/4 8.270", "mid 7/10 7.830", "down 7/1 7.594", "up 24/11 7.519"],
}


@pytest.mark.parametrize(("name", "concept"), TOP)
def test_most_relevant_heads_of_the_authors_vectors(name, concept):
    relevance = Relevance.load(name)
    for index, expected in zip(relevance.order(concept), TOP[name, concept], strict=False):
        head, (place, at, value) = relevance.heads[index], expected.split()
        assert (head.group, f"{head.layer}/{head.head}") == (place, at)
        assert float(relevance[concept][index]) == pytest.approx(float(value), abs=6e-4)


@pytest.mark.parametrize(
    ("name", "heads", "most", "mean", "low", "high"),
    [("sd-1.4", 128, 23.187, 0.334, 0.030, 0.804), ("sdxl", 1300, 66.145, 0.300, 0.091, 0.563)],
)
def test_facts_of_the_authors_vectors(name, heads, most, mean, low, high):
    relevance = Relevance.load(name)
    assert relevance.vectors.shape == (34, heads)
    assert (relevance.vectors.sum(dim=1) - heads).abs().max() < 3e-3
    assert float(relevance.vectors.max()) == pytest.approx(most, abs=6e-4)
    cosines = relevance.similarity()[~torch.eye(34, dtype=torch.bool)]
    found = (float(cosines.mean()), float(cosines.min()), float(cosines.max()))
    assert found == pytest.approx((mean, low, high), abs=6e-4)
    # Counts recovered from the vectors: 2100 prompts of 51 passes.
    assert (relevance.counts.sum(dim=2) == 107_100).all()
    assert torch.allclose(relevance.vectors, _scaled(relevance), atol=1e-4)


def _scaled(relevance: Relevance) -> torch.Tensor:
    counts = relevance.counts.sum(dim=0).double()
    return (counts * counts.shape[0] / counts.sum(dim=0)).T.float()


def test_recovered_counts_and_shares():
    relevance = Relevance.load("sd-1.4")
    color = relevance.index("Color")
    assert relevance.counts[0, list(relevance.order("Color")[:5]), color].tolist() == [
        59400,
        36667,
        33633,
        33547,
        33506,
    ]
    wins = relevance.counts.sum(dim=(0, 1)).double() / relevance.counts.sum()
    assert [round(100 * float(wins[relevance.index(c)]), 1) for c in ("Brand Logos", "Animals", "Color")] == [
        9.8,
        7.8,
        6.7,
    ]
    shares = relevance.shares()
    assert torch.allclose(shares.sum(dim=0), torch.ones(128, dtype=torch.float64))
    assert float(shares.amax(dim=0).mean()) == pytest.approx(0.215, abs=6e-4)


def test_import_refuses_what_does_not_fit(tmp_path):
    import numpy as np

    np.save(tmp_path / "v.npy", np.ones((2, 3), dtype=np.float32))
    np.save(
        tmp_path / "h.npy", np.array(["down, layer: 0, head: 0", "down, layer: 0, head: 1", "up, layer: 0, head: 0"])
    )
    two = {"A": ["a"], "B": ["b"]}
    relevance = Relevance.read_npy(tmp_path / "v.npy", tmp_path / "h.npy", two)
    assert relevance.layers == (("down", 2), ("up", 1))
    assert relevance.counts is None
    with pytest.raises(FileError, match=r"3 concepts and 3 heads need \[3, 3\]"):
        Relevance.read_npy(tmp_path / "v.npy", tmp_path / "h.npy", {**two, "C": ["c"]})
    with pytest.raises(FileError, match="is not a file of head relevance vectors"):
        Relevance.load(tmp_path / "v.npy")
    with pytest.raises(FileError, match="cannot be read as NumPy"):
        Relevance.read_npy(tmp_path / "none.npy", tmp_path / "h.npy", two)


def test_file_keeps_everything(counted, tmp_path):
    back = Relevance.load(counted.save(tmp_path / "x.safetensors"))
    assert back.concepts == counted.concepts
    assert back.layers == counted.layers
    assert json.dumps(back.facts) == json.dumps(counted.facts)
    for name in ("vectors", "counts", "blocks", "counted"):
        assert torch.equal(getattr(back, name), getattr(counted, name))


def test_scales():
    relevance = Relevance.load("sdxl")
    assert torch.allclose(relevance.scaled().vectors, relevance.vectors, atol=1e-4)
    assert float(relevance.scaled(clamp=9).vectors.max()) == 9
    narrow = relevance.scaled(power=0.5).vectors
    assert torch.allclose(narrow.mean(dim=1), torch.ones(34), atol=1e-4)
    assert narrow.max() < 16
    level = relevance.scaled("rms").vectors
    assert torch.allclose(level.square().mean(dim=1), torch.ones(34), atol=1e-4)


def test_intervals_and_agreement_of_a_known_truth():
    # 40 blocks of a head that chooses the first concept with probability 0.2, another with 0.6.
    torch.manual_seed(0)
    wins = torch.stack([torch.distributions.Binomial(100, torch.tensor([0.2, 0.6])).sample() for _ in range(40)])
    blocks = torch.stack([wins, 100 - wins], dim=2).long()
    relevance = Relevance(("A", "B"), (("mid", 2),), torch.ones(2, 2), blocks.sum(0)[None], blocks, torch.ones(40) > 0)
    low, high = relevance.interval()
    assert float(low[0, 0]) < 2 * 0.25 < float(high[0, 0])
    # The element is 2 a / (a + b); its spread by the delta method is about 0.0051 for 40 blocks.
    assert float(high[0, 0] - low[0, 0]) == pytest.approx(2 * 1.96 * 0.0098, rel=0.35)
    prompts, cosines = zip(*relevance.agreement(), strict=True)
    assert prompts[-1] == 20
    assert cosines[0].min() < cosines[-1].min() < 1


BAD = {
    "1. Dog\n2. Cat\n": "begins a list, but no concept's name",
    "Animals\n1. Dog\n2. Cat\n\n1. Tree\n2. Rose\n": "line 5: '1. Tree' begins a list",
    "Animals\n1. Dog\nPlants\n1. Tree\nAnimals\n1. Cat\n": "line 5: the concept 'Animals' is there already",
    "Animals\n1. Dog\n2. Cat\nPlants\n1. Rose\n2. dog\n": "The word 'dog' is in 'Animals' and again in 'Plants'",
    "Animals\n1. Dog\n2. Cat\nPlants\n1. Rose\n": "'Plants' has 1 words and 'Animals' has 2",
    "Animals\n1. Dog\n": "1 is too few",
    "": "holds no concepts",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_concept_files(text, tmp_path):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises((FileError, SettingsError), match=BAD[text]):
        Concepts.read(tmp_path / "c.csv")


def test_concept_files_of_every_kind(tmp_path):
    paper = Concepts.read("paper")
    assert len(paper.names) == 34
    assert paper.each == 10
    assert paper.names[0] == "Animals"  # without the file's byte order mark
    assert paper.words["Plants"][6] == "Oak tree"
    (tmp_path / "c.json").write_text(json.dumps(paper.words))
    assert Concepts.read(tmp_path / "c.json") == paper
    assert Concepts.read("pocket").each == 7
    for text, message in {
        "A: [yes, no]\nB: [a, b]": "'A' is not text; write it in quotes",
        "A: [a]\nA: [b]": "The concept 'A' is there twice",
        "- a": "must map every concept to a list",
        "A: [": "cannot be read",
    }.items():
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(FileError, match=message):
            Concepts.read(tmp_path / "c.yaml")
    with pytest.raises(FileError, match="cannot be read as concepts"):
        Concepts.read(tmp_path / "none.csv")


def test_a_word_longer_than_the_encoder(tiny_module):
    long = Concepts({"A": ("cat", "dog"), "B": ("red", " ".join(["cat"] * 90))})
    with pytest.raises(SettingsError, match="is longer than the 77 tokens"):
        Counter(tiny_module, Counting(long, PROMPTS))


def test_vectors_of_another_model(tiny_module):
    with pytest.raises(SettingsError, match="do not fit"):
        Relevance.load("sd-1.4").of(tiny_module)


SMALL = Counting(Concepts.read("pocket"), ("a cat", "a red car", "a dog", "a cat"), steps=2, batch=1, blocks=3)


@pytest.fixture(scope="module")
def alone(pocket):
    """The counts of one worker."""
    return compute(pocket, SMALL)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_two_workers_count_the_same(engine, alone):
    kill, killed = kill_a_worker("ray::_Actor")  # that processes survive it: tests/test_evaluate.py
    shared = compute("pocket", SMALL, device="cpu", engine=engine, workers=2, on_job=kill)
    assert len(killed) == (engine == "ray")
    assert shared.counted.all()
    assert torch.equal(shared.counts, alone.counts)
    assert torch.equal(shared.blocks, alone.blocks)


def test_an_open_model_stays_here(tiny_module):
    for options in ({"workers": 2}, {"engine": "ray"}):
        with pytest.raises(SettingsError, match="cannot go to other workers; give its name"):
            compute(tiny_module, COUNTING, **options)


def test_words_that_nobody_knows_are_named(pocket):
    strange = Concepts({"A": ("cat", "quokka"), "B": ("red", "mauve")})
    with pytest.warns(UserWarning, match="never seen 'quokka', 'mauve'; counts of them mean nothing"):
        compute(pocket, Counting(strange, ("a cat",), steps=1))


@pytest.mark.slow
def test_counting_survives_a_kill(alone, tmp_path):
    """A run of two workers killed in the middle and begun again gives the counts of an undisturbed one."""
    script = """
import sys, time
from tests.heads.test_heads import SMALL, compute
compute("pocket", SMALL, sys.argv[1], device="cpu", workers=2, every=0, on_job=lambda *_: time.sleep(600))
"""
    out = tmp_path / "killed.safetensors"
    process = subprocess.Popen([sys.executable, "-c", script, str(out)], cwd=Path(__file__).parents[2])
    while not out.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert int(Relevance.load(out).counted.sum()) == 1
    again = compute("pocket", SMALL, out, device="cpu", workers=1)
    assert torch.equal(again.counts, alone.counts)
    assert torch.equal(again.blocks, alone.blocks)
    assert torch.equal(Relevance.load(out).counts, alone.counts)
