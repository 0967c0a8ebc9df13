"""Methods and models of one's own in a run."""

from __future__ import annotations

import json
import sys
from functools import partial

import pytest

import limelight
from limelight import SettingsError
from limelight.evaluate.methods import METHODS, Method, build, named
from limelight.evaluate.runs import run
from limelight.evaluate.suites import Case, wanted
from limelight.guidance.attend_and_excite import excite
from limelight.guidance.combined import weighted
from limelight.utils.images import open_image

CASES = [Case("a cat and a dog", "mine", wanted("a cat and a dog"))]
SMALL = {"steps": 1, "seeds": [3], "workers": 1}
SOURCE = """
import limelight
from limelight.guidance.attend_and_excite import excite

def objective(maps, subjects):
    return excite(maps, subjects)

guidance = limelight.Guidance(objective=objective, scale=3.0)
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own in the folder where a command is called."""
    (tmp_path / "own_methods.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_methods", None)


def image(folder, method):
    (file,) = (folder / method).rglob("3.png")
    return open_image(file)


def test_a_guidance_of_ones_own(tiny, tmp_path):
    guidance = limelight.AttendAndExcite(scale=3.0)
    methods = {"without": "plain", "mine": guidance, "made": Method(guidance=guidance)}
    assert run(tmp_path, CASES, methods, model=tiny, **SMALL) == 3
    expected = limelight.generate(tiny, CASES[0].prompt, subjects=["cat", "dog"], guidance=guidance, seeds=3, steps=1)
    plain = limelight.generate(tiny, CASES[0].prompt, subjects=[], seeds=3, steps=1)
    assert image(tmp_path, "mine").tobytes() == image(tmp_path, "made").tobytes() == expected.images[0].tobytes()
    assert image(tmp_path, "without").tobytes() == plain.images[0].tobytes()
    assert run(tmp_path, CASES, methods, model=tiny, **SMALL) == 0
    with pytest.raises(
        SettingsError, match=r"images by 'mine' with other settings .*guidance.scale: 3.0 there, 4.0 now"
    ):
        run(tmp_path, CASES, {"mine": limelight.AttendAndExcite(scale=4.0)}, model=tiny, **SMALL)


def test_an_imported_method(tiny, own):
    assert run(own / "run", CASES, ["own_methods:guidance", "own_methods:objective"], model=tiny, **SMALL) == 2
    guidance = limelight.Guidance(objective=excite, scale=3.0)
    expected = limelight.generate(tiny, CASES[0].prompt, subjects=["cat", "dog"], guidance=guidance, seeds=3, steps=1)
    folders = [path for path in (own / "run").iterdir() if path.name.startswith("own-methods-guidance")]
    (file,) = folders[0].rglob("3.png")
    assert open_image(file).tobytes() == expected.images[0].tobytes()

    (guidance,) = named(["own_methods:objective"]).values()
    inside = build(limelight.Guidance(objective=weighted((1.0, guidance.objective))), tiny)
    assert len(inside.facts["code"]) == 16
    assert build(limelight.Guidance(objective=weighted((1.0, excite))), tiny).facts == {}

    # Another objective under the same name would generate other images.
    facts = json.loads((own / "run" / "run.json").read_text())["methods"]["own_methods:objective"]["settings"]
    assert len(facts["code"]) == 16
    (own / "own_methods.py").write_text(
        SOURCE.replace("return excite(maps, subjects)", "return  excite(maps, subjects)")
    )
    del sys.modules["own_methods"]
    with pytest.raises(SettingsError, match="with other settings"):
        run(own / "run", CASES, ["own_methods:objective"], model=tiny, **SMALL)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "own_methods:missing",
            "cannot be imported: module 'own_methods' has no attribute 'missing'. Choose one of: pl",
        ),
        ("no_such_module:x", "cannot be imported: No module named 'no_such_module'"),
        ("own_methods:number", "The method 'own_methods:number' is 3; it must be a limelight.Guidance"),
        ("magic", "Unknown method 'magic'. Choose one of: plain"),
        ("magic:scale=3", "Unknown method 'magic'"),
    ],
)
def test_what_is_no_method_is_explained(own, method, message):
    with pytest.raises(SettingsError, match=message):
        named([method])


def test_labels_of_methods_are_not_imported():
    assert named([*METHODS, "focus:scale=2"]) == {label: label for label in (*METHODS, "focus:scale=2")}
    with pytest.raises(SettingsError, match="'mine' is 3; it must be"):
        named({"mine": 3})


def test_a_live_pipeline_with_its_weights(tiny_pipeline, tmp_path):
    """As with a LoRA at work: the images are those of the changed weights, and the run tells the two apart."""
    pipeline = tiny_pipeline()
    generate = partial(run, tmp_path, CASES, ["plain"], **SMALL)
    assert generate(model=pipeline) == 1
    next(pipeline.unet.parameters()).data.mul_(2)
    with pytest.raises(SettingsError, match=r"with other settings .*weights"):
        generate(model=pipeline)
    assert run(tmp_path / "changed", CASES, ["plain"], model=pipeline, **SMALL) == 1
    expected = limelight.generate(limelight.load(pipeline), CASES[0].prompt, subjects=[], seeds=3, steps=1)
    assert image(tmp_path / "changed", "plain").tobytes() == expected.images[0].tobytes()


def test_an_open_model_stays_in_this_process(tiny, tmp_path):
    with pytest.raises(SettingsError, match="The open StableDiffusion cannot go to other workers"):
        run(tmp_path, CASES, ["plain"], [0], model=tiny, steps=1, workers=2)
    with pytest.raises(SettingsError, match="set scheduler where you open it"):
        run(tmp_path, CASES, ["plain"], [0], model=tiny, steps=1, scheduler="ddim")
