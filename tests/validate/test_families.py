"""Folders of tiny random models of every family, validated from load to faithfulness."""

import pytest

import limelight
from limelight.validate import context, cost, faithfulness
from limelight.validate.runner import validate
from tests import transformers as families

SIZES = {"z_image": {"height": 24, "width": 40}, "sana": {"height": 32, "width": 64}}
POCKETS = {"clip": "pocket", "captioner": "none", "detector": "pocket"}
STAGES = ("parity", "cost", "maps", "faithfulness")


def _pipeline(name, request):
    """A pipeline of a family; PixArt's own knows no shift of the autoencoder's."""
    if name in ("tiny_pipeline", "tiny_ldm_pipeline"):
        return request.getfixturevalue(name)()
    pipeline = request.getfixturevalue(name) if name == "tiny_xl" else getattr(families, name)()
    if name == "pixart":
        pipeline.vae.register_to_config(shift_factor=None)
    return pipeline


FAMILIES = [
    "tiny_pipeline",
    "tiny_ldm_pipeline",
    "tiny_xl",
    "flux",
    "chroma",
    "qwen_image",
    "z_image",
    "pixart",
    "sana",
    "sd3",
    "flux2",
    "flux2_klein",
    "lumina2",
    "krea2",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_every_family(name, request, tmp_path, monkeypatch):
    monkeypatch.setattr(faithfulness, "METHODS", ("plain", "recommended"))
    monkeypatch.setattr(faithfulness, "WATCHED", 1)
    monkeypatch.setattr(cost, "STEPS", 1)
    pipeline = _pipeline(name, request)
    pipeline.save_pretrained(tmp_path / "model")
    if name == "flux2":  # the processor of a real folder needs torchvision; this one has no class to be read with
        model = limelight.load(pipeline, device="cpu")
        monkeypatch.setattr(context, "load", lambda *args, **options: model)

    found = {}
    validate(
        str(tmp_path / "model"),
        tmp_path / "out",
        stages=STAGES,
        budget=1,
        device="cpu",
        steps=2,
        backbones=POCKETS,
        on_stage=lambda stage, outcome: found.update({stage: outcome}),
        **SIZES.get(name, {"height": 32, "width": 32}),
    )
    verdicts = {stage: outcome.verdict for stage, outcome in found.items()}
    # A second, guided run, which diffusers has for this family alone.
    runs = "2 runs" if name == "tiny_pipeline" else "1 run"
    assert (
        found["parity"].summary == f"The same latents and images as diffusers, but for rounding, in {runs} of 2 steps."
    )
    assert "plain run" in found["cost"].summary
    assert verdicts == {**dict.fromkeys(("load", "parity"), "passed"), **dict.fromkeys(STAGES[1:], "measured")}
    assert found["maps"].summary == "The detector finds nothing: none of 2 things in 1 image."
    nothing = "The detector finds nothing in images of 1 prompt."
    something = "Things there, in percentage points against plain on 1 prompt:"  # in noise, by chance
    assert found["faithfulness"].summary.startswith((nothing, something))
