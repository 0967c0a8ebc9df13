"""Images generated again from the settings inside their PNG."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import limelight
from limelight import FileError, SettingsError
from limelight.generation import redraw as module
from limelight.generation.redraw import difference
from limelight.utils.files import png
from tests.workers import opened

PROMPT = "a cat and a dog"


@pytest.mark.parametrize(
    "options",
    [
        {"negative": "a car", "guidance_scale": 3.0},
        {"guidance": "recommended"},
        {"guidance": "attend-and-excite", "subjects": ["dog", 2]},
        {"place": {"cat": (0, 0.4, 0.5, 1)}},
        {"audition": 2, "subjects": ["cat", "dog"]},
    ],
    ids=lambda options: "-".join(options),
)
def test_the_same_image(pocket, tmp_path, options):
    result = limelight.generate(pocket, PROMPT, seeds=[3, 5], steps=2, **options)
    path = result.save(tmp_path)[1]
    again = limelight.redraw(path, pocket)
    assert torch.allclose(again.latents[0], result.latents[1], atol=1e-4)
    without = {**result.settings, "audition": None}
    assert {**again.settings, "audition": None} == without


def test_settings_of_ones_own(pocket, tmp_path):
    guidance = limelight.preset("conform", pocket, until=0.7, resolution=8, scale=0.03)
    result = limelight.generate(pocket, PROMPT, steps=2, guidance=guidance)
    (path,) = result.save(tmp_path)
    assert limelight.redraw(path, pocket).settings == result.settings

    own = limelight.Guidance(objective=lambda maps, subjects: guidance.objective(maps, subjects))
    (path,) = limelight.generate(pocket, PROMPT, steps=2, guidance=own).save(tmp_path)
    with pytest.raises(SettingsError, match="its guidance is none of"):
        limelight.redraw(path, pocket)


def test_the_model_is_opened_with_its_scheduler(tmp_path):
    result = limelight.generate(limelight.load("pocket", device="cpu", scheduler="euler"), "a cat", steps=1)
    (path,) = result.save(tmp_path)
    again = limelight.redraw(path, device="cpu")
    assert again.settings == result.settings
    assert difference(path, again) == f"The same image as '{path}', pixel by pixel."


def test_the_weights_are_kept_as_they_were(pocket, tmp_path, monkeypatch):
    seen = opened(monkeypatch, module, pocket)
    monkeypatch.setattr(pocket, "quantize", "8bit")
    (path,) = limelight.generate(pocket, "a cat", steps=1, subjects=[]).save(tmp_path)
    limelight.redraw(path, device="cuda", offload="model")
    expected = {"source": "pocket", "device": "cuda", "dtype": torch.float32, "quantize": "8bit", "offload": "model"}
    assert seen == expected
    monkeypatch.setattr(pocket, "quantize", None)
    with pytest.raises(SettingsError, match="made with quantize='8bit', and the model with None"):
        limelight.redraw(path, pocket)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1]}, "it is a sheet of several images; name one of them"),
        ({"cross_steps": 0.8, "source": "a dog"}, "made by editing; run limelight edit 'a dog' 'a cat'"),
        ({"latents": "given"}, "it was made of given latents, which are not in the file"),
        ({"conditioning": "given"}, "it was made of given conditioning"),
        ({"edits": [{"name": "HeadGain"}]}, "its attention was edited, and edits are not in the file as a whole"),
        ({"seed": None}, "its settings lack 'seed'"),
        ({"learned": {"<cat>": "0123"}}, "needs the learned words <cat> as they were"),
        ({"model": "other"}, "was made with the model 'other', and this one is 'pocket'"),
        ({"scheduler": "LMSDiscreteScheduler"}, "was made with the scheduler 'LMSDiscreteScheduler'"),
    ],
)
def test_what_cannot_be_generated_again_is_said(pocket, tmp_path, changes, message):
    result = limelight.generate(pocket, "a cat", steps=1, subjects=[])
    settings = {**result.settings, "seed": 0, **changes}
    if settings["seed"] is None:
        del settings["seed"]
    file = tmp_path / "image.png"
    file.write_bytes(png(settings, result.images[0]))
    with pytest.raises(SettingsError, match=message):
        limelight.redraw(file, pocket)


def test_files_without_settings(pocket, tmp_path):
    file = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(FileError, match="holds no settings of limelight"):
        limelight.redraw(file, pocket)
    file.write_text(json.dumps({}))
    with pytest.raises(FileError, match="cannot be read: cannot identify image file"):
        limelight.redraw(file, pocket)


def test_a_difference_is_measured(pocket, tmp_path):
    result = limelight.generate(pocket, "a cat", steps=1, subjects=[])
    file = tmp_path / "image.png"
    other = Image.eval(result.images[0], lambda value: value ^ 1)  # every value is one off
    file.write_bytes(png({**result.settings, "versions": {"limelight": "0.1"}, "seed": 0}, other))
    told = difference(file, result)
    assert told.startswith(f"As near to '{file}' as 48.1 dB (PSNR): limelight 0.1 there, ")
