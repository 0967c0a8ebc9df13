"""Counting against a literal oracle, by parts and workers, stopped and continued."""

from __future__ import annotations

import doctest
import time

import pytest
import torch

import limelight
from limelight.attention.passengers import Passengers
from limelight.errors import FileError, ModelError, SettingsError
from limelight.heads import counting as counting_module
from limelight.heads import gains
from limelight.heads.counting import Counter, Counting, compute, merge
from limelight.heads.relevance import Relevance, layers_of
from limelight.heads.vocabulary import Concepts
from limelight.utils import parallel
from limelight.utils.parallel import open_executor
from tests import transformers
from tests.workers import FORK, forked_workers, opened  # noqa: F401 - a fixture

CONCEPTS = Concepts(
    {
        "Animals": ("cat", "teddy bear", "lion"),
        "Color": ("red", "light gray", "blue"),
        "Things": ("car", "bow", "a red bow tie"),
    }
)
PROMPTS = ("a cat and a dog", "a red car", "a cat and a dog")
COUNTING = Counting(CONCEPTS, PROMPTS, steps=3, batch=2, blocks=2, seed=5, guidance_scale=7.5)


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
def tiny_module(tiny_pipeline):
    return limelight.load(tiny_pipeline("pndm"))


def test_counts_equal_a_literal_implementation(tiny_module, counted):
    with torch.no_grad():
        expected = literal(tiny_module.pipeline, COUNTING)
    assert expected.shape[0] == 4  # PNDM's extra pass counts
    assert torch.equal(counted.counts, expected)
    assert (counted.counts.sum(dim=2) == len(PROMPTS)).all()
    assert len(counted.counts.sum(dim=(0, 1)).nonzero()) > 1  # not one concept everywhere
    assert torch.allclose(counted.vectors.mean(dim=1), torch.ones(3))


def test_a_prompt_that_stands_twice_is_generated_twice(counted):
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


def test_a_stopped_run_continues(tiny_module, counted, tmp_path):
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
    with pytest.raises(SettingsError, match="holds prompts of another part than 1/2"):
        compute(tiny_module, COUNTING, out, part=(1, 2))


def test_the_generation_and_the_model_are_left_alone(tiny_module):
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


@pytest.mark.parametrize(("wanted", "used"), [(None, 5.0), (2.0, 2.0)])
def test_the_guidance_scale_is_the_models_own(tiny_xl, wanted, used):
    counting = Counting(CONCEPTS, ("a cat",), steps=1, guidance_scale=wanted)
    assert Counter(limelight.load(tiny_xl), counting).facts["guidance_scale"] == used


def test_a_word_longer_than_the_encoder(tiny_module):
    long = Concepts({"A": ("cat", "dog"), "B": ("red", " ".join(["cat"] * 90))})
    with pytest.raises(SettingsError, match="is longer than the 77 tokens"):
        Counter(tiny_module, Counting(long, PROMPTS))


SMALL = Counting(Concepts.read("pocket"), ("a cat", "a red car", "a dog", "a cat"), steps=2, batch=1, blocks=3)


@pytest.fixture(scope="module")
def alone(pocket):
    """The counts of one worker."""
    return compute(pocket, SMALL)


def counts_are_those_of(alone, shared):
    assert shared.counted.all()
    assert torch.equal(shared.counts, alone.counts)
    assert torch.equal(shared.blocks, alone.blocks)


def test_workers_count_the_same(alone, forked_workers):  # noqa: F811
    """Those that die: tests/evaluate/test_runs.py."""
    counts_are_those_of(alone, compute("pocket", SMALL, device="cpu", workers=2))


def test_a_worker_that_is_no_fork_counts_the_same(alone, monkeypatch):
    """In a process of its own; one alone, as its imports take most of the time."""
    processes = parallel._Processes
    monkeypatch.setattr(parallel, "_Processes", lambda start, _: processes(start, 1))
    counts_are_those_of(alone, compute("pocket", SMALL, device="cpu", workers=2))


def test_the_workers_are_those_that_were_asked_for(monkeypatch):
    """Ray's own: tests/utils/test_parallel.py, tests/evaluate/test_runs.py and tests/test_cluster.py."""
    asked = []

    def executor(start, **options):
        asked.append(options)
        return open_executor(start, workers=1)

    monkeypatch.setattr(counting_module, "open_executor", executor)
    counting = Counting(SMALL.concepts, ("a cat",), steps=1)
    assert compute("pocket", counting, device="cpu", engine="ray", workers=3, address="auto").counted.all()
    assert asked == [{"engine": "ray", "workers": 3, "address": "auto"}]


def test_an_open_model_stays_here(tiny_module):
    with pytest.raises(
        SettingsError, match=r"The open model 'StableDiffusionPipeline' cannot go to other workers; give its name"
    ):
        compute(tiny_module, COUNTING, workers=2)
    with pytest.raises(
        SettingsError, match=r"The model 'StableDiffusionPipeline' is open already; set device where you open it\."
    ):
        compute(tiny_module, COUNTING, device="cpu")


def test_unknown_words_are_named(pocket):
    strange = Concepts({"A": ("cat", "quokka"), "B": ("red", "mauve")})
    with pytest.warns(UserWarning, match="never seen 'quokka', 'mauve'; counts of them mean nothing"):
        compute(pocket, Counting(strange, ("a cat",), steps=1))


def count_and_wait(out):
    """Count with two workers, and stay after the first pass. In a child process."""
    compute("pocket", SMALL, out, device="cpu", workers=2, every=0, on_job=lambda *_: time.sleep(600))


@pytest.mark.slow
def test_counting_survives_a_kill(alone, tmp_path, forked_workers):  # noqa: F811
    """A run of two workers killed in the middle and begun again gives the counts of an undisturbed one."""
    out = tmp_path / "killed.safetensors"
    process = FORK.Process(target=count_and_wait, args=(out,))
    process.start()
    while not out.exists() and process.is_alive():
        time.sleep(0.05)
    process.kill()
    process.join()
    assert int(Relevance.load(out).counted.sum()) == 1
    again = compute("pocket", SMALL, out, device="cpu", workers=1)
    assert torch.equal(again.counts, alone.counts)
    assert torch.equal(again.blocks, alone.blocks)
    assert torch.equal(Relevance.load(out).counts, alone.counts)


def test_examples():
    found = doctest.testmod(counting_module)
    assert found.attempted > 0
    assert found.failed == 0


def test_two_parts_do_not_write_one_file_at_once(tiny_module, tmp_path):
    """Each reads the file before the other has written it, and the second would overwrite the first's counts."""
    out, tries = tmp_path / "new" / "x.safetensors", []

    def second(*_):
        with pytest.raises(FileError, match=r"x\.safetensors' is being written by another program"):
            compute(tiny_module, COUNTING, out, part=(2, 2))
        tries.append(1)

    compute(tiny_module, COUNTING, out, part=(1, 2), every=0, on_job=second)
    assert tries == [1]
    assert Relevance.load(out).counted.tolist() == [True, True, False]
    with pytest.raises(SettingsError, match="holds prompts of another part"):  # the lock is free again
        compute(tiny_module, COUNTING, out, part=(2, 2))


def test_attention_that_is_not_a_number_counts_for_nothing(tiny_pipeline):
    pipeline = tiny_pipeline()
    with torch.no_grad():
        pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"as float64 gives attention that is not a number \(NaN\)"):
        compute(limelight.load(pipeline), COUNTING)


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen_image", "pixart"])
def test_transformers_count_words_beside_the_prompt(name):
    """Against loops over single heads, with the queries and keys of every pass."""
    model = limelight.load(getattr(transformers, name)())
    concepts = Concepts({"Animals": ("cat", "frog"), "Color": ("red", "blue"), "Things": ("red house", "tree")})
    size = {"height": 32, "width": 32}
    counting = Counting(concepts, ("a cat", "a red house"), steps=2, batch=2, guidance_scale=4.0, blocks=1, **size)
    found = compute(model, counting)
    assert found.counts.sum() == 2 * 2 * sum(site.heads for site in model.text_sites)

    riders = Passengers.of(model, [word for words in concepts.words.values() for word in words], model.text_sites)
    counts = torch.zeros_like(found.counts)
    for which, text in enumerate(counting.prompts):
        noise = counting.generator(which, "noise")
        sampled = counting.words(which, 2, len(model.text_sites))
        negative = "" if model.branches(4.0) == 2 else None
        latents = model.noise([noise], 32, 32)
        queries = {}

        def keep(site, values, scale, queries=queries):
            if not riders.riding:
                assert values.shape[2] == 64, "image positions alone"
                queries[site] = values[0] * scale

        with limelight.Probe(model, (), images=1, queries=keep):
            for step in limelight.denoise(
                model,
                model.encode([model.prompt(text)], negative, (32, 32)),
                latents,
                steps=2,
                guidance_scale=4.0,
                passengers=riders,
            ):
                first = 0
                for i, site in enumerate(model.text_sites):
                    chosen = [concepts.each * c + int(word) for c, word in enumerate(sampled[step.index, i])]
                    columns = [(riders.owners == word).nonzero().flatten() for word in chosen]
                    for head in range(site.heads):
                        keys = riders.keys[site][0, head]
                        attention = (queries[site][head] @ keys[torch.cat(columns)].T).softmax(-1).mean(0)
                        means = [float(part.mean()) for part in attention.split([len(own) for own in columns])]
                        counts[step.index, first + head, means.index(max(means))] += 1
                    first += site.heads
    assert torch.equal(found.counts, counts)


def test_vectors_of_a_joint_model_adjust_and_strengthen_it():
    model = limelight.load(transformers.flux())
    heads = sum(site.heads for site in model.text_sites)
    vectors = Relevance(("Animals", "Color"), layers_of(model), torch.rand(2, heads, generator=torch.manual_seed(0)))
    settings = {"steps": 2, "height": 32, "width": 32, "subjects": []}
    plain = limelight.generate(model, "a black cat", **settings).latents
    for edit in (
        gains.strengthen("cat", "Animals", head_vectors=vectors),
        gains.adjust("black", "Color", "Animals", head_vectors=vectors),
        gains.weaken(range(heads)),
    ):
        changed = limelight.generate(model, "a black cat", edits=[edit], **settings).latents
        assert float((changed - plain).abs().max()) > 1e-6


def test_workers_open_the_model_as_it_was_asked_for(monkeypatch, pocket):
    seen = opened(monkeypatch, counting_module, pocket)
    loading = {"dtype": "bfloat16", "quantize": "8bit", "offload": "model"}
    counting_module._start("pocket", "cpu", loading, SMALL, 0)
    assert seen == {"source": "pocket", "device": "cpu", **loading}


def test_how_weights_are_kept_reaches_other_processes(forked_workers):  # noqa: F811
    few = Counting(Concepts({"Animals": ("cat",), "Color": ("red",)}), ("a cat", "a dog"), steps=1, batch=1)
    found = compute("pocket", few, device="cpu", workers=2, loading={"dtype": "bfloat16"})
    assert found.facts["dtype"] == "bfloat16"
    with pytest.raises(SettingsError, match="offload='model' keeps parts of a model in the main memory"):
        compute("pocket", few, device="cpu", workers=2, loading={"offload": "model"})
