"""Numbers that are not finite: refused as options, reported as results, never written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import limelight
from limelight import ModelError, SettingsError
from limelight.generation.batches import check_latents
from limelight.generation.calibrate import calibrate
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.combined import weighted
from limelight.heads.gains import adjust, weaken
from limelight.utils.files import json_text
from limelight.utils.jsonl import Log
from limelight.utils.numbers import check_finite
from limelight.utils.parallel import open_executor
from tests.cli.test_cli import limelight as command  # noqa: F401 - a fixture

NAN, INF = float("nan"), float("inf")


def test_the_check():
    good = (None, "inf", True, 10**400, -1.5, np.float32(2), [1, (2.0, None)], {0.5: [1]}, torch.zeros(2))
    for value in good:
        check_finite(option=value)
    for value in (NAN, INF, -INF, np.float16(INF), [1, (NAN,)], {NAN: 1}, {"a": {"b": INF}}, torch.tensor([1, NAN])):
        with pytest.raises(SettingsError, match=r"option.* must be finite"):
            check_finite(option=value)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "use",
    [
        lambda model, x: limelight.generate(model, "a cat", steps=1, guidance_scale=x),
        lambda model, x: limelight.generate(model, "a cat", steps=1, eta=x),
        lambda model, x: limelight.generate(model, "a cat", steps=1, memory=x),
        lambda model, x: limelight.generate(model, "a cat", steps=1, latents=torch.full((1, 4, 16, 16), x)),
        lambda model, x: limelight.edit(model, "a cat", "a dog", steps=1, guidance_scale=x),
        lambda model, x: limelight.edit(model, "a cat", "a dog", steps=1, cross_steps={"*": (0.0, x)}),
        lambda model, x: limelight.edit(model, "a cat", "a dog", steps=1, self_steps=x),
        lambda model, x: limelight.edit(model, "a cat", "a dog", steps=1, reweight={"dog": x}),
        lambda model, x: limelight.invert_image(model, "a.png", "a cat", guidance_scale=x),
        lambda model, x: next(limelight.denoise(model, None, None, guidance_scale=x)),
        lambda model, x: calibrate(model, ["a cat"], quantile=x),
        lambda model, x: calibrate(model, ["a cat"], steps=1, guidance_scale=x),
        lambda model, x: limelight.AttendAndExcite(scale=x),
        lambda model, x: limelight.AttendAndExcite(until=x),
        lambda model, x: limelight.AttendAndExcite(thresholds={0.2: x}),
        lambda model, x: limelight.AttendAndExcite(thresholds={x: 0.2}),
        lambda model, x: limelight.AttendAndExcite(decay=(1.0, x)),
        lambda model, x: limelight.AttendAndExcite(enough=x),
        lambda model, x: limelight.Guidance(objective=excite, targets={"mixing": x}),
        lambda model, x: limelight.Guidance(objective=partial(excite, temperature=x)),
        lambda model, x: limelight.HeadWeightedAttendAndExcite(concepts={"cat": "Animals"}, scale=x),
        lambda model, x: weighted((x, excite)),
        lambda model, x: weaken([0], factor=x),
        lambda model, x: weaken([0], window=(0.0, x)),
        lambda model, x: adjust("cat", "Animals", "Color", clamp=x),
        lambda model, x: open_executor(None, gpus_per_worker=x).__enter__(),
    ],
)  # fmt: skip
def test_options_are_finite(tiny, use, value):
    with pytest.raises(SettingsError, match=r"finite|between|positive|fraction|not negative"):
        use(tiny, value)


@pytest.mark.parametrize("option", ["--guidance-scale", "--scale"])
def test_options_of_the_command_line(command, tmp_path, option):  # noqa: F811
    for value in ("nan", "inf"):
        code, _, err = command("generate", "a cat", "--steps", "1", option, value, "--out", str(tmp_path / "o"))
        assert (code, err.count("error: ")) == (2, 1)
        assert value in err
    assert not (tmp_path / "o").exists()


def test_json_has_no_word_for_them(tmp_path):
    assert json_text({"a": [1.5, None]}) == '{"a": [1.5, null]}'
    for value in (NAN, [INF], {"a": -INF}):
        with pytest.raises(ModelError, match="not finite"):
            json_text(value)
    log = Log(tmp_path / "log.jsonl", dict, say=lambda text: None)
    with pytest.raises(ModelError, match="not finite"):
        log.add([{"score": 1.0}, {"score": NAN}])
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_the_trace_is_json(tiny, tmp_path):
    result = limelight.generate(
        tiny, "a cat and a dog", steps=2, guidance=limelight.AttendAndExcite(resolution=8, max_refinements=2)
    )
    trace = ({**result.trace[0], "presence": [[0.5, NAN]], "loss": [NAN]},)
    (path,) = replace(result, trace=trace).save(tmp_path)
    (row,) = json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)["trace"]
    assert (row["presence"], row["loss"]) == ([0.5, None], None)


def test_latents_that_are_not_finite_name_their_cause(tiny, tmp_path, monkeypatch):
    def run(**options):
        return limelight.generate(tiny, "a cat", subjects=["cat"], steps=2, **options)

    with pytest.raises(SettingsError, match=r"the image would be black\. Lower guidance_scale=1e\+308\.$"):
        run(guidance_scale=1e308)
    guidance = limelight.AttendAndExcite(resolution=8, scale=1e308, step_rule="relative", thresholds={})
    with pytest.raises(SettingsError, match=r"Lower scale=1e\+308 of the guidance"):
        run(guidance=guidance)
    with pytest.raises(SettingsError, match=r"Lower guidance_scale=1e\+308 or the factors of the attention edits"):
        limelight.edit(tiny, "a cat", "a dog", steps=2, guidance_scale=1e308)

    step = type(tiny).step
    monkeypatch.setattr(type(tiny), "step", lambda *inputs: step(*inputs) * NAN)
    with pytest.raises(ModelError, match=r"computes them in torch\.float64; its weights or scheduler do not fit"):
        run()
    monkeypatch.undo()
    with monkeypatch.context() as half:
        half.setattr(type(tiny), "dtype", torch.float16)
        with pytest.raises(ModelError, match=r"overflows in float16\. Load it with dtype=torch\.float32"):
            check_latents(tiny, torch.tensor([NAN]), 7.5, limelight.AttendAndExcite())
        with pytest.raises(SettingsError, match=r"Lower guidance_scale=1000\.0 or scale=1e\+20 of the guidance"):
            check_latents(tiny, torch.tensor([NAN]), 1000.0, limelight.AttendAndExcite(scale=1e20))
    weight = next(tiny.denoiser.parameters())
    weight.data.flatten()[0] = NAN
    with pytest.raises(ModelError, match=r"the weight 'conv_in\.weight' of .* is not\. Take another copy"):
        run()


def test_an_autoencoder_that_overflows(tiny, monkeypatch):
    decode = tiny.pipeline.vae.decode
    monkeypatch.setattr(tiny.pipeline.vae, "decode", lambda *a, **k: (decode(*a, **k)[0] * INF,))
    with pytest.raises(
        SettingsError, match=r"overflows in float64, and the image would be black.*Lower guidance_scale"
    ):
        limelight.generate(tiny, "a cat", subjects=[], steps=1)
    monkeypatch.setattr(type(tiny), "_image_dtype", torch.float16)
    monkeypatch.setattr(tiny.pipeline.vae, "decode", lambda latents, **_: (latents.float() * INF,))
    with pytest.raises(
        ModelError, match=r"overflows in float16, and the image .* Load the model with dtype=torch.float32"
    ):
        tiny.decode(torch.ones(1, 4, 16, 16))


def test_nothing_is_saved_of_a_black_image(command, tmp_path):  # noqa: F811
    code, _, err = command(
        *(
            "generate",
            "a cat",
            "--steps",
            "1",
            "--guidance",
            "none",
            "--guidance-scale",
            "1e38",
            "--out",
            str(tmp_path / "o"),
        )
    )
    assert (code, err.count("error: ")) == (2, 1)
    assert "the image would be black" in err
    assert not (tmp_path / "o").exists()
