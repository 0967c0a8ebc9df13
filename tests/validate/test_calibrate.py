"""Calibration: what is chosen, and that a saved preset is loaded."""

import json
import shutil

import pytest

import limelight
from limelight.errors import FileError, ModelError, SettingsError
from limelight.validate import calibrate
from limelight.validate.outcome import Outcome
from limelight.validate.runner import validate
from tests import transformers as families

POCKETS = {"clip": "none", "captioner": "none", "detector": "pocket"}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(calibrate, "PROMPTS", 1)
    monkeypatch.setattr(calibrate, "FACTORS", (0.5, 1.0))


def test_thresholds_are_saved_and_loaded(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    options = {"stages": ["calibrate"], "budget": 1, "steps": 5, "height": 32, "width": 32, "device": "cpu"}
    options |= {"backbones": POCKETS, "save_preset": tmp_path / "model"}
    validate(str(tmp_path / "model"), tmp_path / "out", **options)
    facts = json.loads((tmp_path / "out/stages/calibrate.json").read_text())
    assert facts["summary"] == (
        "Thresholds of 2 subjects proposed. 1 prompt, too few to choose a step size by; the model's own is 20."
    )
    wanted = facts["facts"]["preset"]["attend_and_excite"]["thresholds"]
    assert [row[2] for row in facts["tables"][0]["rows"]] == [f"{value:.2f}" for value in wanted.values()]

    loaded = limelight.load(tmp_path / "model", device="cpu")
    own = limelight.preset("attend-and-excite", loaded).thresholds
    assert own == {float(key): value for key, value in wanted.items()}
    (tmp_path / "model/limelight.json").write_text("{}")
    with pytest.raises(FileError, match="holds something else"):
        validate(str(tmp_path / "model"), tmp_path / "out", **options)


def test_a_larger_step_is_taken_where_it_brings_more(check, tiny, monkeypatch):
    def measured(context, stage, cases, methods, seeds, names):
        rows = []
        for method in methods:
            for i in range(6):
                facts = {"subset": "a", "prompt": str(i), "source": None, "seed": "0", "full_text": None}
                facts |= {"success": None, "binding": None}
                rows.append({"method": method, "present": float(method == "step size 10"), **facts})
                rows[-1] |= {"calls": 1.0, "seconds": 1.0}
        return rows, 6

    monkeypatch.setattr(calibrate, "measured_images", measured)
    outcome = check(tiny, "calibrate", backbones=POCKETS, steps=5)["calibrate"]
    assert "Step size 10 brings more things than 20 on 6 prompts." in outcome.summary
    assert outcome.facts["preset"]["recommended"] == {"preset": "conform", "scale": 10}


def test_blocks_of_the_maps_are_taken_over_and_read(tmp_path):
    families.sd3().save_pretrained(tmp_path / "model")
    last = limelight.load(tmp_path / "model", device="cpu").text_sites[-1].name
    done = {"maps": Outcome(verdict="measured", summary="", facts={"better": [last]})}
    assert calibrate._blocks(type("C", (), {"done": done})()) == [last]

    (tmp_path / "model/limelight.json").write_text(json.dumps({"maps": {"layers": [last]}}))
    loaded = limelight.load(tmp_path / "model", device="cpu")
    assert [layer.name for layer in loaded.guided_sites] == [last]
    (tmp_path / "model/limelight.json").write_text(json.dumps({"maps": {"layers": ["other"]}}))
    with pytest.raises(ModelError, match="names the layer 'other', which has no maps"):
        _ = limelight.load(tmp_path / "model", device="cpu").guided_sites


def test_a_preset_needs_its_stage(tmp_path):
    with pytest.raises(SettingsError, match="needs the stage 'calibrate'"):
        validate("pocket", tmp_path / "out", stages=["load"], save_preset=tmp_path)
    assert not (tmp_path / "out").exists()
