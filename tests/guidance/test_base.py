from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import limelight
from bench.count import Bare, peak, saved, work
from limelight import AttendAndExcite, Guidance, SettingsError
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.base import Score, Steering, layers_to_read, reading
from limelight.guidance.bind import bind
from limelight.guidance.contrast import contrast
from limelight.guidance.divergence import divergence
from limelight.guidance.overlap import overlap
from limelight.guidance.self_cross import peak_overlap, self_cross
from limelight.prompts.subjects import Subject, resolve
from limelight.utils.counting import Peak

PROMPT = "a cat and a dog"


def run(model, guidance, **options):
    return limelight.generate(model, PROMPT, subjects=["cat", "dog"], guidance=guidance, **{"steps": 10, **options})


def test_defaults_are_the_papers():
    guidance = AttendAndExcite()
    assert guidance.thresholds == {0: 0.05, 0.2: 0.5, 0.4: 0.8}
    assert (guidance.until, guidance.scale, guidance.decay, guidance.max_refinements) == (0.5, 20.0, (1.0, 0.5), 20)
    assert guidance.smooth
    assert guidance == AttendAndExcite()


def test_guided_layers_are_chosen_once_and_not_in_each_pass(tiny, monkeypatch):
    chosen, layers = [], AttendAndExcite.layers

    def counted(self, model, latent_size):
        chosen.append(latent_size)
        return layers(self, model, latent_size)

    monkeypatch.setattr(AttendAndExcite, "layers", counted)
    guidance = AttendAndExcite(resolution=8, thresholds={0: 0.9}, max_refinements=2)
    result = run(tiny, guidance, steps=2, seeds=(0, 1, 2), batch=1, record=False)
    assert len(result.images) == 3
    assert len(chosen) == 1


def test_thresholds_that_fall_on_one_step_are_gentle(tiny):
    """At one step all three thresholds of the paper fall on it, and a presence of 0.05 is always there."""
    result = run(tiny, AttendAndExcite(resolution=8), steps=1)
    assert [(row["step"], row["refinements"]) for row in result.trace] == [(0, [0])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_pipeline, dtype):
    model = limelight.load(tiny_pipeline(dtype=dtype))
    result = run(model, AttendAndExcite(resolution=8, thresholds={0: 0.9}, max_refinements=2), steps=2)
    assert result.latents.dtype == dtype
    assert result.latents.isfinite().all()
    assert not torch.equal(result.latents, run(model, None, steps=2).latents)


def test_a_guidance_without_subjects(tiny):
    conditioning = tiny.encode([tiny.prompt(PROMPT)])
    noise = tiny.noise([torch.Generator().manual_seed(0)], *tiny.default_size)
    with pytest.raises(SettingsError, match="needs the subjects of every image"):
        next(limelight.denoise(tiny, conditioning, noise, guidance=AttendAndExcite()))


@pytest.fixture
def passes(tiny):
    """Rows of every denoiser pass: (how many, whether with a gradient)."""
    seen = []
    handle = tiny.denoiser.conv_in.register_forward_hook(lambda m, i, o: seen.append((len(o), torch.is_grad_enabled())))
    yield seen
    handle.remove()


def test_checkpointing_does_not_change_a_guided_run(tiny):
    guidance = {"resolution": 8, "thresholds": {0: 0.6}, "max_refinements": 3}
    plain, lean = (run(tiny, AttendAndExcite(**guidance, checkpoint=c), steps=2) for c in (False, True))
    assert plain.trace[0]["refinements"] != [0]
    assert torch.allclose(plain.latents, lean.latents, atol=1e-10)
    assert not tiny.denoiser.is_gradient_checkpointing
    tiny.denoiser.enable_gradient_checkpointing()  # diffusers' own switch, which a user may have turned
    own = run(tiny, AttendAndExcite(**guidance), steps=2)
    again = run(tiny, AttendAndExcite(**guidance, checkpoint=True), steps=2)
    assert torch.allclose(plain.latents, own.latents, atol=1e-10)
    assert torch.allclose(plain.latents, again.latents, atol=1e-10)
    assert tiny.denoiser.is_gradient_checkpointing


def steering(model, latents, **changes):
    conditioning = model.encode([model.prompt(PROMPT)] * len(latents))
    subjects = [[Subject((2,)), Subject((5,))]] * len(latents)
    guidance = AttendAndExcite(resolution=8, thresholds={}, **changes)
    layers = guidance.layers(model, tuple(latents.shape[-2:]))
    return Steering(guidance, model, conditioning, subjects, 50, model.timesteps(50), layers)


def test_checkpointing_gives_the_same_gradient_in_less_memory(tiny):
    latents = tiny.noise([torch.Generator().manual_seed(s) for s in (0, 1)], 64, 64)
    moved, most = [], []
    for checkpoint in (False, True):
        steered = steering(tiny, latents, checkpoint=checkpoint)
        with Peak() as counted:
            moved.append(steered.update(1, torch.tensor(600), latents).latents)
        most.append(counted.most)
    assert float((moved[0] - latents).abs().max()) > 1e-4
    assert torch.allclose(*moved, atol=1e-13, rtol=0)
    assert most[1] < 0.8 * most[0]  # of the real configuration it is a third, see below


def test_every_second_step(tiny):
    guided = run(tiny, AttendAndExcite(resolution=8, until=0.6, every=2, thresholds={1: 0.9}, max_refinements=2))
    # Refinement is where its threshold says, whether or not that step is guided.
    assert [(row["step"], row["refinements"]) for row in guided.trace] == [(0, [0]), (1, [2]), (2, [0]), (4, [0])]


def test_an_image_with_enough_is_not_moved(tiny):
    options = {"seeds": range(4), "steps": 1}
    far = run(tiny, AttendAndExcite(resolution=8, thresholds={}), **options)
    floor = sorted(far.trace[0]["loss"])[1]  # of two images
    some = run(tiny, AttendAndExcite(resolution=8, thresholds={}, enough=1 - floor), **options)
    plain = run(tiny, None, **options)
    for image, loss in enumerate(far.trace[0]["loss"]):
        wanted = far if loss > floor else plain
        torch.testing.assert_close(some.latents[image], wanted.latents[image])


def test_a_relative_step_has_its_length(tiny):
    conditioning = tiny.encode([tiny.prompt(PROMPT)] * 2)
    latents = tiny.noise([torch.Generator().manual_seed(seed) for seed in (0, 1)], 32, 32)
    moves = []
    for guidance in (
        AttendAndExcite(resolution=8, thresholds={}, scale=20, decay=(1, 0.25)),
        AttendAndExcite(resolution=8, thresholds={}, scale=0.1, decay=(1, 0.25), step_rule="relative"),
    ):
        timesteps = tiny.timesteps(5)
        layers = guidance.layers(tiny, (16, 16))
        steering = Steering(guidance, tiny, conditioning, [[Subject((2,)), Subject((5,))]] * 2, 10, timesteps, layers)
        moves.append((steering.update(4, timesteps[4], latents).latents - latents).flatten(1))
    lengths = moves[1].norm(dim=1) / latents.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.1 * 0.25**0.5))
    torch.testing.assert_close(torch.cosine_similarity(*moves), torch.ones(2, dtype=moves[0].dtype), atol=1e-9, rtol=0)


def test_refinement_of_the_image_with_fewer_subjects(tiny):
    """Beside an image of three subjects, one of two is refined alone."""
    prompts, options = [PROMPT, "a cat and a dog and a car"], {"steps": 1, "seeds": 0}
    watched = limelight.generate(tiny, prompts, guidance=AttendAndExcite(resolution=8, scale=0), **options)
    presence = [1 - result.trace[0]["loss"][0] for result in watched]
    subjects = [["cat", "dog"], ["cat", "dog", "car"]]
    if presence[0] > presence[1]:
        prompts, subjects = prompts[::-1], [["cat"], ["cat", "dog"]]
    guidance = AttendAndExcite(resolution=8, thresholds={0: sum(presence) / 2}, max_refinements=1)
    results = limelight.generate(tiny, prompts, subjects=subjects, guidance=guidance, **options)
    assert all(len(r.trace[0]["presence"][0]) == len(s) for r, s in zip(results, subjects, strict=True))


@pytest.mark.parametrize("thresholds", [{}, {0: 1.0, 0.2: 1.0, 0.4: 1.0}], ids=["unrefined", "refined"])
def test_the_passes_of_a_whole_run(tiny, passes, thresholds):
    """A gradient pass for each guided step and for each try, no other; two rows of ordinary passes a step."""
    run(tiny, AttendAndExcite(resolution=8, thresholds=thresholds, max_refinements=3), record=False)
    assert sum(rows for rows, gradient in passes if gradient) == 5 + 3 * len(thresholds)
    assert sum(rows for rows, gradient in passes if not gradient) == 20


def test_fast_takes_seven_gradient_steps(tiny, passes):
    fast = AttendAndExcite.fast(resolution=8)
    assert fast == AttendAndExcite.fast(tiny, resolution=8)
    assert AttendAndExcite.fast(scale=3).scale == 3
    run(tiny, fast, steps=50, record=False, guidance_scale=1.0)
    assert sum(rows for rows, gradient in passes if gradient) == 7


def test_a_compiled_denoiser_is_steered_uncompiled(tiny):
    """Compiled code does not see hooks, and its gradient would have to be checked."""
    guidance, compiled = AttendAndExcite(resolution=8, thresholds={0: 0.9}, max_refinements=1), []
    expected = run(tiny, guidance, steps=2)

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    tiny.denoiser.mid_block.resnets[0].compile(backend=backend)
    result = run(tiny, guidance, steps=2)
    assert not compiled, "maps are recorded in every pass"
    again = run(tiny, guidance, steps=2, record=False)
    assert compiled, "ordinary passes are as their owner wants them"
    assert torch.allclose(result.latents, expected.latents, atol=1e-10)
    assert torch.allclose(again.latents, expected.latents, atol=1e-10)


def test_fractions_and_step_numbers_agree(tiny):
    settings = {"resolution": 8, "max_refinements": 2}
    by_fraction = run(tiny, AttendAndExcite(until=0.6, thresholds={0.4: 0.9}, **settings), steps=5)
    by_number = run(tiny, AttendAndExcite(until=3, thresholds={2: 0.9}, **settings), steps=5)
    assert torch.equal(by_fraction.latents, by_number.latents)
    assert [row["step"] for row in by_number.trace] == [0, 1, 2]
    assert [row["refinements"] for row in by_number.trace] == [[0], [0], [2]]


def test_refinement_beyond_the_guided_steps(tiny):
    result = run(tiny, AttendAndExcite(until=0, thresholds={2: 1.0}, resolution=8, max_refinements=3), steps=3)
    assert [(row["step"], row["refinements"]) for row in result.trace] == [(2, [3])]
    plain = run(tiny, None, steps=3)
    assert not torch.allclose(result.latents, plain.latents)


def test_guidance_lowers_the_loss(tiny):
    found = []
    for scale in (20.0, 0.0):
        guidance = AttendAndExcite(resolution=8, until=1.0, thresholds={}, scale=scale)
        found.append([row["loss"][0] for row in run(tiny, guidance, steps=4, record=False).trace])
    losses, still = found
    assert losses[0] == still[0]
    assert sum(losses) < sum(still)


def test_a_satisfied_objective_moves_nothing(tiny):
    def satisfied(maps, subjects):
        zero = maps.mean().sum(dim=(1, 2, 3)) * 0
        return Score(zero, zero[:, None].detach().expand(-1, 2), {"neglect": zero.detach()})

    moved = run(tiny, Guidance(objective=satisfied, thresholds={0: 1.0}), steps=2)
    assert torch.equal(moved.latents, run(tiny, None, steps=2).latents)


def test_images_that_are_done_leave_the_refinement(tiny):
    """Each image stops by itself: the denoiser's batches shrink as images reach their threshold."""
    sizes = []
    handle = tiny.denoiser.conv_in.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
    probe = run(tiny, AttendAndExcite(resolution=8, until=1, thresholds={}, scale=0), seeds=range(4), steps=1)
    losses = sorted(probe.trace[0]["loss"])
    sizes.clear()
    between = 1 - (losses[1] + losses[2]) / 2
    guidance = AttendAndExcite(resolution=8, until=1, thresholds={0: between}, scale=1e-6, max_refinements=3)
    result = run(tiny, guidance, seeds=range(4), steps=1)
    handle.remove()
    assert sorted(result.trace[0]["refinements"]) == [0, 0, 3, 3]
    assert sizes == [4, 2, 2, 2, 8], "one evaluation of all, three of the two that lag, one prediction of both branches"


def test_the_guidance_pass_stops_early(tiny):
    conditioning = tiny.encode([tiny.prompt(PROMPT)])
    latents = tiny.noise([torch.Generator().manual_seed(0)], *tiny.default_size)
    layers = layers_to_read(tiny, (16, 16), 8)
    counts = []
    for until in (None, layers[-1]):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tiny.predict(latents, torch.tensor(5), conditioning, until=until)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.7 * counts[0]


def test_the_cost_of_one_gradient_step_of_stable_diffusion():
    """Counted on the real configuration without data: 1.05 forward passes, where diffusers' pipeline takes 1.55."""
    model = Bare("Stable Diffusion 1.4, 512 px")
    unit = work(model.forward)
    assert unit / 1e9 == pytest.approx(803, rel=0.01)
    assert work(model.gradient) / unit < 1.055
    assert saved(model.denoiser, model.gradient) / 2**30 < 0.7
    assert peak(model.gradient) / 2**30 < 0.7
    assert peak(lambda: model.gradient(checkpoint=True)) / 2**30 < 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttendAndExcite(scale=-1), "scale=-1 must be a number that is not negative"),
        (lambda: AttendAndExcite(scale=float("nan")), "scale=nan"),
        (lambda: AttendAndExcite(decay=(1.0, -1.0)), "decay="),
        (lambda: AttendAndExcite(until=25.0), "25.0 is not a fraction of the schedule"),
        (lambda: AttendAndExcite(thresholds={0: 1.5}), r"\{0: 1.5\} must map a step to a presence between 0 and 1"),
        (lambda: AttendAndExcite(until=-0.5), "until=-0.5"),
        (lambda: AttendAndExcite(every=0), "every=0 must be a whole number of steps, at least 1"),
        (lambda: AttendAndExcite(enough=1.5), "enough=1.5 must be a presence between 0 and 1"),
        (lambda: AttendAndExcite(targets={"mixing": 2}), "The target of 'mixing', 2, must be between 0 and 1"),
        (lambda: AttendAndExcite(step_rule="newton"), "Unknown step rule 'newton'. Choose one of: gradient, relative"),
        (lambda: AttendAndExcite(when="after"), "Guidance after the step has no thresholds; set thresholds={}"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(SettingsError, match=message):
        make()


def test_a_resolution_that_no_layer_has(tiny):
    with pytest.raises(SettingsError, match="No layer has maps of 5x5 for this image; there are: 16x16, 8x8"):
        run(tiny, AttendAndExcite(resolution=5))
    result = run(tiny, AttendAndExcite(resolution=(8, 12), thresholds={}), steps=2, height=32, width=48)
    assert len(result.trace) == 1


def test_inference_mode_of_the_caller(tiny):
    guidance = AttendAndExcite(resolution=8, thresholds={0: 0.9}, max_refinements=2)
    with torch.inference_mode():
        inside = run(tiny, guidance, steps=2)
    assert torch.equal(inside.latents, run(tiny, guidance, steps=2).latents)


def test_guidance_raises_presence_on_the_embedded_model(pocket):
    prompt, last = "a crown and a horse and a cat", []
    for guidance in (AttendAndExcite.suited(pocket, scale=0.0), AttendAndExcite.suited(pocket)):
        result = limelight.generate(pocket, prompt, seeds=[0, 1, 2], guidance=guidance, steps=25, record=False)
        last.append(sum(result.trace[-1]["loss"]) / 3)
    assert last[1] < last[0] - 0.015, last


def negative(maps, subjects):
    """An objective whose loss is below 0, as those of the binding methods are."""
    score = excite(maps, subjects)
    return score._replace(loss=score.loss - 5)


def test_gates_act_on_parts_and_not_on_the_loss(tiny):
    settings = {"resolution": 8, "until": 1}
    plain = run(tiny, None, steps=1)
    moved = run(tiny, Guidance(objective=negative, **settings), steps=1)
    assert torch.equal(moved.latents, run(tiny, Guidance(objective=excite, **settings), steps=1).latents)
    assert not torch.equal(moved.latents, plain.latents)
    neglect = moved.trace[0]["neglect"][0]
    for limit, still in ((neglect + 0.01, True), (neglect - 0.01, False)):
        for gate in ({"enough": 1 - limit}, {"targets": {"neglect": limit}}):
            gated = run(tiny, Guidance(objective=negative, **settings, **gate), steps=1)
            assert torch.equal(gated.latents, plain.latents if still else moved.latents)


def test_every_part_has_a_target_of_its_own(tiny):
    """With a target for each part the image stays; one part beyond its own moves it."""
    guidance = partial(Guidance, objective=bind, resolution=8, until=1)
    plain = run(tiny, None, steps=1)
    parts = run(tiny, guidance(), steps=1).trace[0]
    targets = {name: min(parts[name][0] + 0.01, 1.0) for name in ("neglect", "binding", "mixing")}
    assert torch.equal(run(tiny, guidance(targets=targets), steps=1).latents, plain.latents)
    beyond = {**targets, "mixing": parts["mixing"][0] / 2}
    assert not torch.equal(run(tiny, guidance(targets=beyond), steps=1).latents, plain.latents)


def test_a_move_after_the_step_is_added_to_its_result(tiny):
    """With Euler, moving the result of a step is changing its velocity."""
    settings = {"resolution": 8, "until": 1, "thresholds": {}}
    plain = run(tiny, None, steps=1)
    before, after = (run(tiny, AttendAndExcite(when=when, **settings), steps=1) for when in ("before", "after"))
    assert before.trace[0]["loss"] == after.trace[0]["loss"]
    conditioning, timesteps = tiny.encode([tiny.prompt(PROMPT)]), tiny.timesteps(1)
    start = tiny.start(tiny.noise([torch.Generator().manual_seed(0)], *tiny.default_size))
    guidance, subjects = AttendAndExcite(**settings), [[Subject((2,)), Subject((5,))]]
    steered = Steering(guidance, tiny, conditioning, subjects, 1, timesteps, guidance.layers(tiny, (16, 16)))
    shift = steered.update(0, timesteps[0], start).latents - start
    assert shift.abs().max() > 0
    torch.testing.assert_close(after.latents, plain.latents + shift)
    assert not torch.allclose(after.latents, before.latents)


def test_a_step_by_the_sign_moves_every_value_alike(tiny):
    latents = tiny.noise([torch.Generator().manual_seed(0)], 64, 64)
    steered = steering(tiny, latents, step_rule="sign", scale=0.003, decay=(1, 1))
    shift = steered.update(1, torch.tensor(600), latents).latents - latents
    torch.testing.assert_close(shift.abs(), torch.full_like(shift, 0.003))


def test_what_an_objective_reads_and_remembers(tiny):
    """Self-attention of the same blocks beside the cross-attention, and the maps of the last guided step."""
    seen = []

    @reading("cross", "self", remembers=True)
    def watching(maps, subjects):
        before = None if maps.before is None else maps.before.mean()
        seen.append((maps.cross.mean().detach(), maps.between_pixels.mean().shape, before))
        return excite(maps, subjects)

    run(tiny, Guidance(objective=watching, resolution=8, until=4, every=2), steps=8)
    (first, size, nothing), (_, _, remembered) = seen
    assert nothing is None
    assert size == (1, 8, 8, 64)
    torch.testing.assert_close(remembered, first)


OBJECTIVES = {"excite": excite, "overlap": overlap, "bind": bind, "contrast": contrast, "divergence": divergence}
OBJECTIVES |= {"self_cross": partial(self_cross, gate=1.0), "peak_overlap": partial(peak_overlap, gate=1.0)}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_one_small_step_lowers_the_loss(pocket, objective):
    """To first order, on the embedded model; a batch has the gradients of its images."""
    prompts = [pocket.prompt("a red cat and a blue dog"), pocket.prompt("a green car and a crown and a lion")]
    subjects = [resolve(prompt, "auto")[1] for prompt in prompts]
    conditioning, timesteps = pocket.encode(prompts), pocket.timesteps(10)
    latents = pocket.noise([torch.Generator().manual_seed(seed) for seed in (0, 1)], *pocket.default_size)
    guidance = Guidance(objective=objective, step_rule="relative", scale=0.005)
    layers = guidance.layers(pocket, tuple(latents.shape[-2:]))
    steered = Steering(guidance, pocket, conditioning, subjects, 10, timesteps, layers)
    first = steered.update(0, timesteps[0], latents)
    second = steered.update(0, timesteps[0], first.latents)
    wrong = first.loss != 0  # two regions may not touch at all
    assert wrong.any()
    assert (second.loss < first.loss)[wrong].all()
    for i in range(2):
        alone = Steering(guidance, pocket, conditioning.rows([i]), subjects[i : i + 1], 10, timesteps, layers)
        move = alone.update(0, timesteps[0], latents[i : i + 1])
        torch.testing.assert_close(move.latents, first.latents[i : i + 1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a"])
def test_images_that_lack_nothing_in_a_look_ahead_stay_plain(tiny_pipeline, scheduler):
    """The target lies between the parts of two images: one stays plain to the last bit, the other is guided."""
    model = limelight.load(tiny_pipeline(), scheduler=scheduler)
    options = {"seeds": (0, 1), "steps": 4, "record": False}
    guidance = Guidance(objective=divergence, until=3, scale=0.2, step_rule="relative", resolution=8)
    plain = run(model, None, **options)

    watched = run(model, replace(guidance, scale=0.0), **options)
    mixing = watched.trace[2]["mixing"]
    target = sum(mixing) / 2
    assert max(mixing) - min(mixing) > 1e-4
    wanting = mixing.index(max(mixing))

    looked = replace(guidance, look=2, targets={"mixing": target, "neglect": 1})
    ahead, guided = run(model, looked, **options), run(model, replace(looked, look=None), **options)
    assert torch.equal(ahead.latents[1 - wanting], plain.latents[1 - wanting])
    torch.testing.assert_close(ahead.latents[wanting], guided.latents[wanting])
    assert not torch.allclose(ahead.latents[wanting], plain.latents[wanting], atol=1e-3)
    assert [row["mixing"][1 - wanting] for row in ahead.trace] == pytest.approx([min(mixing)] * 3, abs=1e-5)


def test_a_look_ahead_with_memory_and_refinement_guides_each_image_as_alone(tiny):
    guidance = Guidance(
        objective=partial(contrast, memory=True), until=3, scale=0.1, step_rule="relative", resolution=8, look=1
    )
    guidance = replace(guidance, thresholds={1: 0.9}, max_refinements=2)
    options = {"steps": 4, "record": False}
    both = run(tiny, guidance, seeds=(0, 1), **options)
    for row, seed in enumerate((0, 1)):
        torch.testing.assert_close(both.latents[row], run(tiny, guidance, seeds=seed, **options).latents[0])


def test_attach_cannot_look_ahead(tiny_pipeline):
    guidance = Guidance(objective=excite, look=0.1)
    with (
        pytest.raises(SettingsError, match=r"look=0.1 needs a run ahead.*Set look=None"),
        limelight.attach(tiny_pipeline(), guidance=guidance),
    ):
        pass
