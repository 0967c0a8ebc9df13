from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

import limelight
from limelight import AttendAndExcite, Guidance, SettingsError
from limelight.guidance import Steering, layers_to_read
from limelight.models import Conditioning
from limelight.objectives import Score

PROMPT = "a cat and a dog"


def run(model, guidance, **options):
    return limelight.generate(model, PROMPT, subjects=["cat", "dog"], guidance=guidance, **{"steps": 10, **options})


def test_defaults_are_the_papers():
    guidance = AttendAndExcite()
    assert guidance.thresholds == {0: 0.05, 0.2: 0.5, 0.4: 0.8}
    assert (guidance.until, guidance.scale, guidance.decay, guidance.max_refinements) == (0.5, 20.0, (1.0, 0.5), 20)
    assert guidance.smooth
    assert guidance == AttendAndExcite()


def test_thresholds_that_fall_on_one_step_are_gentle(tiny):
    """At one step all three thresholds of the paper fall on it, and a presence of 0.05 is always there."""
    result = run(tiny, AttendAndExcite(resolution=8), steps=1)
    assert [(row["step"], row["refinements"]) for row in result.trace] == [(0, [0])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_pipeline, dtype):
    model = limelight.load(tiny_pipeline(dtype=dtype))
    result = run(model, AttendAndExcite(resolution=8), steps=4)
    assert result.latents.dtype == dtype
    assert result.latents.isfinite().all()
    assert not torch.equal(result.latents, run(model, None, steps=4).latents)


def test_a_guidance_without_subjects(tiny):
    conditioning = tiny.encode([tiny.prompt(PROMPT)])
    noise = tiny.noise([torch.Generator().manual_seed(0)], *tiny.default_size)
    with pytest.raises(SettingsError, match="needs the subjects of every image"):
        next(limelight.denoise(tiny, conditioning, noise, guidance=AttendAndExcite()))


def test_gradient_checkpointing_does_not_change_a_guided_run(tiny):
    plain = run(tiny, AttendAndExcite(resolution=8), steps=3)
    tiny.denoiser.enable_gradient_checkpointing()
    tiny.denoiser.train()
    assert torch.allclose(plain.latents, run(tiny, AttendAndExcite(resolution=8), steps=3).latents, atol=1e-10)


def test_fractions_and_step_numbers_agree(tiny):
    by_fraction = run(tiny, AttendAndExcite(until=0.3, thresholds={0.2: 0.9}, resolution=8, max_refinements=2))
    by_number = run(tiny, AttendAndExcite(until=3, thresholds={2: 0.9}, resolution=8, max_refinements=2))
    assert torch.equal(by_fraction.latents, by_number.latents)
    assert [row["step"] for row in by_number.trace] == [0, 1, 2]
    assert [row["refinements"] for row in by_number.trace] == [[0], [0], [2]]


def test_refinement_beyond_the_guided_steps(tiny):
    result = run(tiny, AttendAndExcite(until=0, thresholds={6: 1.0}, resolution=8, max_refinements=3))
    assert [(row["step"], row["refinements"]) for row in result.trace] == [(6, [3])]
    plain = run(tiny, None)
    assert not torch.allclose(result.latents, plain.latents)


def test_guidance_lowers_the_loss(tiny):
    losses = [row["loss"][0] for row in run(tiny, AttendAndExcite(resolution=8, until=1.0, thresholds={})).trace]
    still = [row["loss"][0] for row in run(tiny, AttendAndExcite(resolution=8, until=1.0, scale=0.0)).trace]
    assert losses[0] == still[0]
    assert sum(losses) < sum(still)


def test_a_satisfied_objective_moves_nothing(tiny):
    def satisfied(maps, subjects):
        zero = maps.mean().sum(dim=(1, 2, 3)) * 0
        return Score(zero, zero[:, None].detach())

    moved = run(tiny, Guidance(objective=satisfied, thresholds={0: 1.0}))
    assert torch.equal(moved.latents, run(tiny, None).latents)


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


def test_the_cost_of_one_gradient_step_of_stable_diffusion(tiny_pipeline):
    """Counted on the real configuration without data: 1.05 forward passes, where diffusers' pipeline takes 1.55."""
    pipeline = tiny_pipeline()
    with torch.device("meta"):
        pipeline.unet = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        )
        latents, states = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 768)
        timestep = torch.tensor(500)
    model = limelight.load(pipeline)
    conditioning = Conditioning((model.prompt(PROMPT),), {"encoder_hidden_states": states})
    steering = Steering(AttendAndExcite(), model, conditioning, [[(2,), (5,)]], 50, torch.arange(50), (64, 64))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.predict(latents, timestep, conditioning)
    with FlopCounterMode(display=False) as step:
        steering.update(1, timestep, latents)
    assert forward.get_total_flops() / 1e9 == pytest.approx(803, rel=0.01)
    assert step.get_total_flops() / forward.get_total_flops() < 1.055


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttendAndExcite(scale=-1), "scale=-1 must be a number that is not negative"),
        (lambda: AttendAndExcite(scale=float("nan")), "scale=nan"),
        (lambda: AttendAndExcite(decay=(1.0, -1.0)), "decay="),
        (lambda: AttendAndExcite(until=25.0), "25.0 is no fraction of the schedule"),
        (lambda: AttendAndExcite(thresholds={0: 1.5}), r"\{0: 1.5\} must map a step to a presence between 0 and 1"),
        (lambda: AttendAndExcite(until=-0.5), "until=-0.5"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(SettingsError, match=message):
        make()


def test_a_resolution_that_no_layer_has(tiny):
    with pytest.raises(SettingsError, match="No layer has maps of 5x5 for this picture; there are: 16x16, 8x8"):
        run(tiny, AttendAndExcite(resolution=5))
    result = run(tiny, AttendAndExcite(resolution=(8, 12), thresholds={}), steps=2, height=32, width=48)
    assert len(result.trace) == 1


def test_inference_mode_of_the_caller(tiny):
    with torch.inference_mode():
        inside = run(tiny, AttendAndExcite(resolution=8), steps=2)
    assert torch.equal(inside.latents, run(tiny, AttendAndExcite(resolution=8), steps=2).latents)


@pytest.mark.parametrize(
    "prompt", ["a lion and an elephant", "a mouse with a glasses", "a yellow clock and a pink chair"]
)
def test_guidance_raises_presence_on_the_embedded_model(pocket, prompt):
    last = []
    # Latents of 16 x 16 want smaller steps than the paper's 20.
    for guidance in (AttendAndExcite(scale=0.0, thresholds={}), AttendAndExcite(scale=5.0, thresholds={})):
        result = limelight.generate(pocket, prompt, seeds=[0, 1, 2], guidance=guidance, steps=12, record=False)
        last.append(sum(result.trace[-1]["loss"]) / 3)
    assert last[1] < last[0] - 0.02
