"""Prompt-to-prompt as a whole."""

from __future__ import annotations

import doctest
import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import limelight
from limelight.editing import prompt_to_prompt
from limelight.errors import KeptByLocal, PoorReconstruction, PromptWarning
from limelight.utils.images import grid
from tests.conftest import saved, unhashed


def test_source_is_the_plain_image_and_equal_prompts_give_it_again(tiny):
    plain = limelight.generate(tiny, "a red car", seeds=[3, 4], steps=4, record=False)
    result = limelight.edit(tiny, "a red car", ["a red car", "a blue car"], seeds=[3, 4], steps=4)
    torch.testing.assert_close(result.source.latents, plain.latents)
    torch.testing.assert_close(result.target.latents, plain.latents)
    assert not torch.allclose(result.targets[1].latents, plain.latents, atol=1e-3)
    assert result.target.images[0].tobytes() == plain.images[0].tobytes()
    assert result.targets[1].maps["blue"].shape[0] == 2


def test_passes_do_not_change_the_images(tiny):
    whole, parts = (
        limelight.edit(tiny, "a red car", "a blue car", seeds=[0, 1, 2], steps=3, batch=size) for size in (6, 2)
    )
    torch.testing.assert_close(whole.target.latents, parts.target.latents)


def test_without_windows_the_target_is_generated_alone(tiny):
    free = limelight.edit(tiny, "a red car", "a blue car", steps=3, cross_steps=0, self_steps=0)
    alone = limelight.generate(tiny, "a blue car", steps=3)
    torch.testing.assert_close(free.target.latents, alone.latents)


def test_no_negative_prompt_is_the_empty_one(tiny):
    empty, none, alone = (
        limelight.edit(tiny, "a red car", "a blue car", steps=2, **changes)
        for changes in ({}, {"negative": None}, {"guidance_scale": 0.5})
    )
    assert torch.equal(none.target.latents, empty.target.latents)
    assert not torch.allclose(alone.target.latents, empty.target.latents, atol=1e-3)
    recorded = [(r.target.settings["negative"], r.target.settings["guidance_scale"]) for r in (none, alone)]
    assert recorded == [("", 7.5), (None, 1.0)]


def test_the_grid_has_a_row_for_each_prompt(tiny, tmp_path):
    result = limelight.edit(tiny, "a red car", ["a blue car", "a car"], seeds=[3, 4], steps=1)
    rows = [result.source.images, result.targets[0].images, result.targets[1].images]
    names = ["a red car", "a blue car", "a car"]
    wanted = grid(rows, names, captions=[["seed 3", "seed 4"]])
    assert result.grid().tobytes() == wanted.tobytes()

    path = result.save_grid(tmp_path / "new")
    assert path == saved(tmp_path / "new", "a-red-car-to-a-blue-car.png")
    with Image.open(path) as image:
        assert image.tobytes() == wanted.tobytes()
        settings = json.loads(image.text["limelight"])
    assert settings == json.loads(json.dumps({**result.target.settings, "seeds": [3, 4], "rows": names}))


def test_files_of_the_source_come_first(tiny, tmp_path):
    result = limelight.edit(tiny, "a red car", ["a blue car", "a car"], seeds=[3, 4], steps=1)
    names = [unhashed(path) for path in result.save(tmp_path)]
    wanted = ["a-red-car-3", "a-red-car-4", "a-blue-car-3", "a-blue-car-4", "a-car-3", "a-car-4"]
    assert names == [f"{name}.png" for name in wanted]


def test_edits_that_differ_at_the_end_of_a_long_prompt(tiny, tmp_path):
    start = "a red car in front of a very old house with many small windows and a door of blue "
    result = limelight.edit(tiny, start + "wood", [start + "iron", start + "stone"], seeds=[3, 4], steps=1)
    paths = result.save(tmp_path)
    assert len(set(paths)) == len(list(tmp_path.glob("*.png"))) == 6
    grids = {result.save_grid(tmp_path)}
    for target in ("iron", "glass"):
        grids.add(limelight.edit(tiny, start + "wood", start + target, seeds=3, steps=1).save_grid(tmp_path))
    assert len(grids) == 3


def test_xl(tiny_xl):
    result = limelight.edit(limelight.load(tiny_xl), "a red car", ["a blue car", "a red car and a dog"], steps=2)
    assert [r.settings["prompt"] for r in result.targets] == ["a blue car", "a red car and a dog"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "a big blue car", "mode": "replace"}, "'a red car' has 3 words and 'a big blue car' has 4"),
        ({"local": "cat"}, "'cat' is not in the prompt"),
        ({"reweight": {"cat": 2.0}}, "'cat' is not in the prompt"),
        ({"cross_steps": {"cat": 0.5}}, "'cat' is not in the prompt"),
        ({"cross_steps": 1.5}, r"cross_steps=1.5 must lie between 0 and 1"),
        ({"self_steps": (0.8, 0.2)}, r"self_steps=\(0.8, 0.2\) must lie"),
        ({"cross_steps": (0.5,)}, r"cross_steps=\(0.5,\) must lie"),
        ({"self_steps": "long"}, "self_steps=long must lie"),
        ({"mode": "swap"}, "mode='swap' must be"),
        ({"target": []}, "at least one target"),
        ({"null_text": True}, "give one as image"),
    ],
)
def test_bad_input(tiny, arguments, words):
    with pytest.raises(limelight.LimelightError, match=words):
        limelight.edit(tiny, **{"source": "a red car", "target": "a blue car", "steps": 2, **arguments})


def test_examples():
    found = doctest.testmod(prompt_to_prompt, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0


def quiet_edit(model, *prompts, **options):
    """An edit, and its warnings."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = limelight.edit(model, *prompts, **options)
    return result, [warning.message for warning in found if isinstance(warning.message, PromptWarning)]


def test_a_real_image_stands_in_the_grid_and_its_reconstruction_is_measured(tiny, tmp_path):
    photo = Image.effect_noise((64, 48), 60).convert("RGB")
    result, (warning,) = quiet_edit(tiny, "a red car", ["a blue car", "a car"], image=photo, steps=2)
    fitted = ImageOps.fit(photo, (32, 32), Image.Resampling.LANCZOS)
    assert result.image.tobytes() == fitted.tobytes()
    error = np.square(np.asarray(fitted, float) - np.asarray(result.source.images[0], float)).mean()
    assert result.reconstruction == pytest.approx(10 * np.log10(255**2 / error))
    assert isinstance(warning, PoorReconstruction)
    assert f"reconstructed with only {result.reconstruction:.1f} dB (PSNR)" in str(warning)
    assert "'a red car' may not describe it" in str(warning)
    assert "or use null_text" in str(warning)

    names = ["given image", "a red car (reconstructed)", "a blue car", "a car"]
    rows = [[fitted], result.source.images, *(target.images for target in result.targets)]
    assert result.grid().tobytes() == grid(rows, names).tobytes()
    with Image.open(result.save_grid(tmp_path)) as sheet:
        assert json.loads(sheet.text["limelight"])["rows"] == names

    inversion = limelight.invert_image(tiny, photo, "a red car", steps=2)
    again, _ = quiet_edit(tiny, "a red car", "a blue car", image=inversion, steps=2)
    assert again.reconstruction == result.reconstruction


def test_a_generated_source_has_no_reconstruction(tiny):
    result, found = quiet_edit(tiny, "a red car", "a blue car", steps=1)
    assert (result.image, result.reconstruction, found) == (None, None, [])


@pytest.mark.parametrize(
    ("source", "target", "local", "kept"),
    [
        ("a red car and a dog", "a red car", "car", "'dog'"),
        ("a cat and a dog", "a cat", ["cat"], "'dog'"),
        ("a red car and a dog", "a red car", ["car", "dog"], ""),
        ("a red car and a dog", "a car and a dog", "car", ""),
        ("a red car and a dog", "a blue car and a dog", "car", ""),
        ("a red car and a dog", "a red car and a cat", ["dog"], ""),
    ],
)
def test_what_a_local_edit_keeps_is_said(tiny, source, target, local, kept):
    _, found = quiet_edit(tiny, source, target, local=local, steps=1)
    if not kept:
        assert not found
        return
    (warning,) = found
    assert isinstance(warning, KeptByLocal)
    assert str(warning).startswith(f"{kept} stays in the image although '{target}' lacks it")
    assert str(warning).endswith(f"--local {'car' if local == 'car' else 'cat'},dog.")
