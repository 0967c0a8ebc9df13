"""What a guided run will need, counted without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import limelight
from bench import transformers as real
from limelight import AttendAndExcite
from limelight.errors import ModelError
from limelight.generation.requirements import Passes, required
from limelight.models.blueprint import blueprint
from limelight.models.memory import weight_bytes
from limelight.utils.counting import counted
from tests import transformers as tiny

SIZE = (32, 48)


def configurations(pipeline: Any, folder: Path) -> Path:
    """A folder with the configuration files of a pipeline alone."""
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if hasattr(part, "save_config"):
            part.save_config(folder / name)
        elif isinstance(part, torch.nn.Module):
            part.config.save_pretrained(folder / name)
    return folder


def test_the_cost_of_one_gradient_step_of_flux():
    """To a third of the blocks, checkpointed: a prototype had measured 1.07 passes and 1.06 GiB."""
    model = real.model_of("FLUX.1-dev")
    layer = real.third(model)
    assert layer.name == "transformer_blocks.18.attn"
    passes = Passes(model, real.SIZE)
    unit = counted(passes.forward).work
    assert unit / 1e12 == pytest.approx(74.6, rel=0.01)
    step = counted(passes.gradient(AttendAndExcite(checkpoint=True), [layer]))
    assert step.work / unit == pytest.approx(1.07, rel=0.03)
    assert step.peak / 2**30 == pytest.approx(1.06, rel=0.03)


@pytest.mark.parametrize("name", ["tiny_pipeline", "flux", "sd3"])
def test_what_is_counted_is_what_the_model_has(name, request, tmp_path):
    pipeline = request.getfixturevalue(name)() if name == "tiny_pipeline" else getattr(tiny, name)()
    model = limelight.load(pipeline)
    needs = required(blueprint(configurations(pipeline, tmp_path), torch.float32), size=SIZE, steps=10)
    for part, module in model.parts.items():
        assert needs.weights[part] == sum(weight.numel() * 4 for weight in module.parameters())

    own = model.for_one_run()
    conditioning = own.prepare(own.encode([own.prompt("a cat")], size=SIZE), 1.0)
    latents, timestep = own.noise([torch.Generator()], *SIZE), own.timesteps(10)[0]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        own.predict(latents, timestep, conditioning)
    assert needs.one.work == pytest.approx(flops.get_total_flops(), rel=0.01)
    assert needs.step.work == own.branches(own.guidance_scale) * needs.one.work
    assert needs.plain == 10 * own.branches(own.guidance_scale)
    assert needs.run == needs.plain + needs.guided * needs.guiding.work / needs.one.work
    assert 0 < needs.guided < 10
    assert needs.checkpointed.work > needs.guiding.work > 0


@pytest.mark.parametrize("name", ["qwen_image", "z_image", "chroma", "lumina2", "krea2", "sana", "flux2"])
def test_every_family_is_counted(name, tmp_path):
    size = (64, 96) if name == "lumina2" else (32, 64)
    needs = required(blueprint(configurations(getattr(tiny, name)(), tmp_path)), size=size)
    assert needs.guiding.work > 0
    assert 0 < needs.checkpointed.peak <= needs.guiding.peak
    assert needs.memory(needs.guiding) > needs.memory(needs.guiding, offload="model") > 0


@pytest.mark.parametrize(("quantize", "share"), [("8bit", 0.5), ("4bit", 0.25)])
def test_small_weights_take_a_half_or_a_quarter(quantize, share, tmp_path):
    opened = blueprint(configurations(tiny.flux(), tmp_path))
    small = {name: weight_bytes(part, name, quantize) / weight_bytes(part, name) for name, part in opened.parts.items()}
    assert share < small["transformer"] < share + 0.1
    assert small["vae"] == 1 > small["text_encoder_2"]


def test_of_a_hub_id_the_configurations_alone_are_fetched(tmp_path, monkeypatch):
    from diffusers import DiffusionPipeline

    def fetch(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(tmp_path)

    asked: list[Any] = []
    index = json.loads((configurations(tiny.sd3(), tmp_path) / "model_index.json").read_text())
    monkeypatch.setattr(DiffusionPipeline, "load_config", staticmethod(lambda where: index))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert type(blueprint("owner/model")).__name__ == "StableDiffusion3"
    ((hub_id, patterns),) = asked
    assert hub_id == "owner/model"
    assert all(pattern.endswith(".json") and "model." not in pattern for pattern in patterns)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="neither a folder in diffusers' layout nor a hub id"):
        blueprint("model.safetensors")
    folder = configurations(tiny.flux(), tmp_path)
    (folder / "transformer" / "config.json").write_text('{"num_layers": "x"}')
    with pytest.raises(ModelError, match="cannot be read as a model"):
        blueprint(folder)
