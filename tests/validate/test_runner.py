"""The runner: stages, settings, kills, and what is written."""

import json
import multiprocessing
import os
import re
import signal

import pytest

import limelight
from limelight.errors import FileError, MissingDependency, SettingsError
from limelight.validate import runner, stages
from limelight.validate.context import Skip
from limelight.validate.outcome import Outcome
from limelight.validate.runner import validate
from limelight.validate.stages import STAGES, Stage

GOOD = Outcome(verdict="passed", summary="It is so.")


def staged(monkeypatch, **runs):
    """Replace all stages but load."""
    found = {"load": STAGES["load"]}
    for name, run in runs.items():
        found[name] = Stage(name.title(), "A claim.", 1, run)
    for module in (stages, runner, __import__("limelight.validate.report", fromlist=["x"])):
        monkeypatch.setattr(module, "STAGES", found)


def raising(error):
    def run(context):
        raise error

    return run


def test_the_files(check, tiny, tmp_path):
    found = check(tiny, "load")
    assert found["load"].verdict == "passed"
    facts = json.loads((tmp_path / "out/validation.json").read_text())
    assert facts["weights"] == facts["stages"][0]["facts"]["weights"]
    assert re.fullmatch("[0-9a-f]{16}", facts["weights"])
    assert facts["versions"]["limelight"] == limelight.__version__
    assert facts["hardware"]["device"] == "cpu"
    assert "| load | passed |" in (tmp_path / "out/validation.md").read_text()
    page = (tmp_path / "out/validation.html").read_text()
    assert "StableDiffusion in float64 on cpu" in page
    assert "data:image/png;base64," in page
    assert "<script" not in page


def test_what_is_done_stays_and_what_was_skipped_or_broken_is_tried_again(check, tiny, monkeypatch):
    seen = []
    errors = {"skip": Skip("No CLIP."), "lacks": MissingDependency("Install it."), "error": ValueError("a\nb")}
    ends = {"good": GOOD, "bad": Outcome(verdict="failed", summary="No.")}

    def ending(name):
        def run(context):
            seen.append(name)
            if name in ends:
                return ends[name]
            raise errors[name]

        return run

    staged(monkeypatch, **{name: ending(name) for name in ("good", "bad", "skip", "lacks", "error")})
    found = check(tiny, "good", "bad", "skip", "lacks", "error")
    verdicts = {name: outcome.verdict for name, outcome in found.items()}
    assert verdicts == {
        "load": "passed",
        "good": "passed",
        "bad": "failed",
        "skip": "skipped",
        "lacks": "skipped",
        "error": "broken",
    }
    assert found["error"].summary == "ValueError: a"
    del seen[:]
    check(tiny, "good", "bad", "skip", "lacks", "error")
    assert seen == ["skip", "lacks", "error"]


def test_a_killed_validation_goes_on(check, tiny, monkeypatch):
    """A kill is an exception that nothing catches; stages before it are not run again."""
    counts = {"first": 0, "second": 0}

    def first(context):
        counts["first"] += 1
        return GOOD

    def second(context):
        counts["second"] += 1
        if counts["second"] == 1:
            raise KeyboardInterrupt
        return GOOD

    staged(monkeypatch, first=first, second=second)
    with pytest.raises(KeyboardInterrupt):
        check(tiny, "first", "second")
    found = check(tiny, "first", "second")
    assert counts == {"first": 1, "second": 2}
    assert found["second"].verdict == "passed"


def test_a_validation_killed_by_the_system_goes_on(check, tiny, monkeypatch, tmp_path):
    """Neither its lock nor what it has written stands in the way of the next one."""
    parent = os.getpid()

    def second(context):
        (context.out / "half").write_text("")
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return GOOD

    staged(monkeypatch, first=lambda context: GOOD, second=second)
    child = multiprocessing.get_context("fork").Process(target=check, args=(tiny, "first", "second"))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    before = (tmp_path / "out/stages/first.json").stat().st_mtime_ns

    found = check(tiny, "first", "second")
    assert {name: outcome.verdict for name, outcome in found.items()} == dict.fromkeys(found, "passed")
    assert (tmp_path / "out/stages/first.json").stat().st_mtime_ns == before
    assert (tmp_path / "out/validation.html").exists()


def test_a_model_that_does_not_open_skips_the_rest(tmp_path):
    found = {}
    validate("nowhere", tmp_path, stages=["parity"], on_stage=lambda name, got: found.update({name: got}))
    assert found["load"].verdict == "broken"
    assert "'nowhere' is neither a folder" in found["load"].summary
    assert (found["parity"].verdict, found["parity"].summary) == ("skipped", "The model cannot be opened.")
    assert (tmp_path / "validation.html").exists()


def test_other_settings_need_another_folder(check, tiny):
    check(tiny, "load")
    with pytest.raises(SettingsError, match="other settings \\(steps: 2 there, 3 now\\); choose another folder"):
        check(tiny, "load", steps=3)


def test_other_weights_need_another_folder(check, tiny, monkeypatch):
    staged(monkeypatch, other=lambda context: GOOD)
    check(tiny, "load")
    next(tiny.denoiser.parameters()).data += 1
    with pytest.raises(SettingsError, match="has other weights than when"):
        check(tiny, "other")


def test_damaged_stages_are_named(check, tiny, tmp_path):
    check(tiny, "load")
    (tmp_path / "out/stages/load.json").write_text('{"verdict": "passed"}')
    with pytest.raises(FileError, match=r"load\.json' cannot be read as a stage of a validation"):
        check(tiny, "load")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ["laod"]}, "Unknown stage 'laod'. .* Did you mean 'load'?"),
        ({"budget": 0}, "budget=0 must be"),
        ({"loading": {"dtype": "int8"}}, "Unknown dtype 'int8'"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(SettingsError, match=message):
        validate("pocket", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_stage_gets_its_share_of_what_is_left(monkeypatch):
    context = type("C", (), {})()
    context.done = {"load": Outcome(verdict="passed", summary="", seconds=10)}
    context.settings = type("S", (), {"budget": 70})()
    monkeypatch.setattr(runner, "STAGES", {n: Stage(n, "", s, None) for n, s in {"load": 9, "a": 1, "b": 3}.items()})
    assert runner._seconds(context, ["load", "a", "b"], "a") == 15
