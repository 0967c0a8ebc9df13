"""Runs that share a model: in each other's loop, and in threads. Each gives what it gives alone, bit for bit."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import limelight
from limelight.generation.loop import denoise
from limelight.prompts.subjects import resolve

THREADS = 4
CALLS = 25 if os.environ.get("LIMELIGHT_FAILURES") == "all" else 2  # of each thread of a server
GUIDANCE = limelight.AttendAndExcite(resolution=8, thresholds={0: 0.9}, max_refinements=2)
PROMPTS = ("a cat and a dog", "a red car and a frog", "a bear", "a dog and a bird")


@pytest.fixture(params=["euler", "dpm++", "lms"])
def model(request, tiny_pipeline):
    """Schedulers that remember: the index of the step, earlier predictions."""
    return limelight.load(tiny_pipeline(), scheduler=request.param)


def run(model, i, **options):
    """One call: every second one guided, with its own prompt, seed and number of steps."""
    guidance = GUIDANCE if i % 2 and model.scheduler.order == 1 else None
    options = {"steps": 1 + i % 3, "guidance": guidance, **options}
    return limelight.generate(model, PROMPTS[i % len(PROMPTS)], seeds=[i], **options)


def same(result, expected):
    assert torch.equal(result.latents, expected.latents)
    assert list(result.maps.layers) == list(expected.maps.layers)
    assert all(torch.equal(p, expected.maps.layers[layer]) for layer, p in result.maps.layers.items())
    assert result.images[0].tobytes() == expected.images[0].tobytes()
    assert str(result.trace) == str(expected.trace)  # NaN is not equal to itself


def in_threads(count, function):
    """Call a function with 0 .. count - 1, all threads at once."""
    ready = threading.Barrier(count)

    def job(i):
        ready.wait()
        return function(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(job, range(count)))


def test_a_preview_in_on_step_does_not_touch_the_image(model):
    expected, previewed = run(model, 1, steps=3), run(model, 2, steps=2)
    previews = []
    same(run(model, 1, steps=3, on_step=lambda step: previews.append(run(model, 2, steps=2))), expected)
    assert len(previews) >= 3
    for preview in previews:
        same(preview, previewed)


def test_loops_may_take_turns(model):
    def loop(i, steps):
        noise = model.noise([torch.Generator().manual_seed(i)], *model.default_size)
        return denoise(model, model.encode([model.prompt(PROMPTS[i])], ""), noise, steps=steps)

    first, second = ([step.latents for step in loop(i, steps)] for i, steps in ((0, 3), (1, 5)))
    turns = list(zip(loop(0, 3), loop(1, 5), strict=False))
    assert len(turns) >= 3
    for index, (one, other) in enumerate(turns):
        assert torch.equal(one.latents, first[index])
        assert torch.equal(other.latents, second[index])


def test_a_run_leaves_the_models_own_schedule(model):
    model.timesteps(9)
    before = model.scheduler.timesteps.clone()
    run(model, 0)
    assert torch.equal(model.scheduler.timesteps, before)
    assert model.passes(9) == len(before)
    assert torch.equal(model.scheduler.timesteps, before)


def test_threads_share_a_model(tiny):
    expected = [run(tiny, i) for i in range(THREADS)]
    for result, alone in zip(in_threads(THREADS, lambda i: run(tiny, i)), expected, strict=True):
        same(result, alone)


def test_a_server_of_eight_threads(tiny):
    """Each thread makes several calls, of several kinds, all on one model. LIMELIGHT_FAILURES=all: 25 calls each."""
    expected = [run(tiny, i) for i in range(8)]

    def serve(thread):
        kinds = [(thread + call) % 8 for call in range(CALLS)]
        return [(kind, run(tiny, kind)) for kind in kinds]

    for served in in_threads(8, serve):
        assert len(served) == CALLS
        for kind, result in served:
            same(result, expected[kind])


def test_threads_with_a_model_each_share_a_pipeline(tiny):
    expected = [run(tiny, i) for i in range(THREADS)]
    results = in_threads(THREADS, lambda i: run(limelight.load(tiny.pipeline), i))
    for result, alone in zip(results, expected, strict=True):
        same(result, alone)


def test_threads_take_turns_step_by_step(tiny):
    """Loops hold the denoiser for one step each; so hooks of many runs come and go on the same layers."""

    def latents(i):
        noise = tiny.noise([torch.Generator().manual_seed(i)], *tiny.default_size)
        prompt = tiny.prompt(PROMPTS[0])
        subjects = [resolve(prompt, ["cat", "dog"])[1]]
        steps = denoise(
            tiny, tiny.encode([prompt], ""), noise, steps=2, guidance=GUIDANCE, subjects=subjects, record=True
        )
        return [(step.latents, step.maps["cat"]) for step in steps]

    expected = [latents(i) for i in range(THREADS)]
    for found, alone in zip(in_threads(THREADS, latents), expected, strict=True):
        for (x, cat), (x_alone, cat_alone) in zip(found, alone, strict=True):
            assert torch.equal(x, x_alone)
            assert torch.equal(cat, cat_alone)


def test_threads_edit_and_calibrate(tiny):
    def job(i):
        if i % 2:
            edited = limelight.edit(tiny, "a red car", "a blue car", seeds=[i], steps=2, self_steps=0.5)
            return torch.cat([edited.source.latents, edited.target.latents])
        guidance = limelight.AttendAndExcite(resolution=8, thresholds={1: 0.5})
        return limelight.calibrate(tiny, ["a cat and a dog"], seeds=i, guidance=guidance, steps=2 + i // 2).presence[1]

    expected = [job(i) for i in range(4)]
    for found, alone in zip(in_threads(4, job), expected, strict=True):
        assert torch.equal(found, alone)


@pytest.mark.slow
def test_threads_share_the_pocket_model(pocket):
    guidance = limelight.AttendAndExcite.suited(pocket)

    def job(i):
        return limelight.generate(
            pocket, PROMPTS[i % 2], seeds=[i], steps=2, guidance=guidance if i % 2 else None, height=64, width=64
        )

    expected = [job(i) for i in range(THREADS)]
    for result, alone in zip(in_threads(THREADS, job), expected, strict=True):
        same(result, alone)


def test_another_threads_passes_are_neither_recorded_nor_changed(tiny):
    """Plain passes of the denoiser in one thread, guided, recorded and edited generation in another."""
    inputs = torch.randn(3, 4, 16, 16, dtype=torch.float64), torch.tensor(300), torch.randn(3, 77, 32).double()

    def plain():
        with torch.no_grad():
            return tiny.denoiser(*inputs).sample

    def generated():
        edits = [lambda layer, probabilities, step: probabilities.flip(-1)]
        return run(tiny, 1, guidance=guidance, edits=edits)

    guidance = limelight.AttendAndExcite(resolution=8, thresholds={0: 0.9}, max_refinements=2, checkpoint=True)
    untouched, expected, stop, seen = plain(), generated(), threading.Event(), []

    def bystander():
        while not stop.is_set():
            seen.append(torch.equal(plain(), untouched))

    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(bystander)
        try:
            for _ in range(2):
                same(generated(), expected)
        finally:
            stop.set()
        meanwhile.result()
    assert len(seen) > 3
    assert all(seen)


def test_a_probe_watches_the_thread_that_entered_it(tiny):
    latents = tiny.noise([torch.Generator().manual_seed(0)], *tiny.default_size)
    conditioning = tiny.encode([tiny.prompt("a cat")])

    def predict():
        with torch.no_grad():
            return tiny.predict(latents, torch.tensor(5), conditioning)

    with ThreadPoolExecutor(1) as pool, limelight.Probe(tiny, edits=[lambda layer, p, step: p * 0]) as probe:
        elsewhere = pool.submit(predict).result()
        with pytest.raises(limelight.ProbeError, match="this thread has not run it"):
            probe.take(latents, conditioning.prompts)
    assert torch.equal(elsewhere, predict())
