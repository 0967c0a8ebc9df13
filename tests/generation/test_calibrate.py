"""Proposed thresholds: against the traces of plain runs."""

from __future__ import annotations

import json

import pytest
import torch

import limelight as package
from limelight import AttendAndExcite, PromptError, SettingsError, calibrate
from tests.cli.test_cli import limelight  # noqa: F401 - a fixture

PROMPTS = ["a cat and a dog", "a cat and a frog and a crown"]


def test_thresholds_are_quantiles_of_plain_runs(tiny):
    guidance = AttendAndExcite(resolution=8, thresholds={0: 0.05, 0.4: 0.5, 2: 0.8})
    options = {"seeds": [0, 1], "steps": 3}
    found = calibrate(tiny, PROMPTS, guidance=guidance, quantile=0.6, batch=3, **options)
    watch = AttendAndExcite(resolution=8, scale=0.0, thresholds={}, until=1.0)
    traces = [result.trace for result in package.generate(tiny, PROMPTS, guidance=watch, **options)]
    for key, step in {0: 0, 0.4: 1, 2: 2}.items():
        expected = sorted(value for trace in traces for row in trace[step]["presence"] for value in row)
        assert sorted(found.presence[key].tolist()) == pytest.approx(expected, abs=1e-6)
        assert len(expected) == 2 * 2 + 2 * 3
        # Of ten sorted values the 0.6 quantile lies 0.4 of the way from the sixth to the seventh.
        exact = expected[5] + 0.4 * (expected[6] - expected[5])
        assert exact - 0.01 < found.thresholds[key] <= exact
    assert AttendAndExcite(thresholds=found.thresholds).thresholds == found.thresholds


def test_no_negative_prompt_is_the_empty_one(tiny):
    guidance = AttendAndExcite(resolution=8, thresholds={1: 0.5})
    empty, none = (calibrate(tiny, PROMPTS, guidance=guidance, steps=2, negative=n) for n in ("", None))
    assert torch.equal(none.presence[1], empty.presence[1])


def test_it_ends_at_the_last_threshold(tiny):
    seen, passes = [], []
    handle = tiny.denoiser.conv_in.register_forward_hook(lambda m, i, o: passes.append(len(o)))
    guidance = AttendAndExcite(resolution=8, thresholds={0: 0.1, 0.4: 0.5})
    calibrate(tiny, PROMPTS, guidance=guidance, steps=10, batch=1, on_progress=lambda *done: seen.append(done))
    handle.remove()
    assert seen == [(i, 10) for i in range(1, 11)]
    # Both branches for five steps of each prompt, and an evaluation at each of two thresholds.
    assert sorted(passes) == [1] * 4 + [2] * 10


def test_thresholds_can_be_reached(tiny):
    """A saturated softmax gives 1 exactly, and rounding must not ask for more than there is."""
    found = package.Calibration({0: torch.ones(4), 0.2: torch.full((4,), 0.498)}, 0.7)
    assert found.thresholds == {0: 0.99, 0.2: 0.49}
    assert found.preset == {"attend_and_excite": {"thresholds": {"0": 0.99, "0.2": 0.49}}}
    assert found.subjects == 4


def test_a_model_without_thresholds_of_its_own(pocket):
    assert not AttendAndExcite.suited(pocket).thresholds
    found = calibrate(pocket, ["a cat and a dog"], steps=1)
    assert list(found.thresholds) == [0, 0.2, 0.4]
    assert 0 <= min(found.thresholds.values()) <= max(found.thresholds.values()) < 1


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([], {}, PromptError, "prompts must be a list of at least one"),
        ("a cat", {}, PromptError, "prompts must be a list of at least one"),
        (["a cat"], {"quantile": 70}, SettingsError, "quantile=70 must be between 0 and 1"),
        (["a cat"], {"batch": 0}, SettingsError, "batch=0 must be a whole number from 1"),
        (["a cat"], {"subjects": [["dog"]]}, PromptError, "'dog' is not in the prompt"),
        (
            ["a cat"],
            {"steps": 5, "guidance": AttendAndExcite(resolution=8, thresholds={9: 0.5})},
            SettingsError,
            "The threshold of step 9 lies beyond the schedule of 5 steps",
        ),
    ],
)
def test_bad_settings(tiny, prompts, options, error, message):
    with pytest.raises(error, match=message):
        calibrate(tiny, prompts, **options)


def test_the_command(limelight, tmp_path):  # noqa: F811
    (tmp_path / "prompts.txt").write_text("a cat and a dog\na frog and a crown\n")
    arguments = ("--suite", str(tmp_path / "prompts.txt"), "--every", "1", "--steps", "2")
    code, out, _ = limelight("calibrate", *arguments)
    assert code == 0
    assert "Presence of 4 subjects" in out
    settings = json.loads(out.splitlines()[-1])["attend_and_excite"]
    assert list(settings["thresholds"]) == ["0", "0.2", "0.4"]
    code, _, error = limelight("calibrate", "--suite", "nothing")
    assert code == 2
    assert "'nothing' is neither a suite" in error
