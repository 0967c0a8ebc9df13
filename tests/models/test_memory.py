"""Models in less memory: 8-bit weights, offloaded parts, and gradients that offloading would make wrong."""

from __future__ import annotations

import sys

import pytest
import torch
from diffusers.hooks import apply_group_offloading

import limelight
from limelight.errors import MissingDependency, ModelError, SettingsError
from limelight.generation.provenance import fingerprint
from limelight.models import memory
from tests import transformers as tiny

SETTINGS = {"steps": 2, "height": 32, "width": 48, "subjects": ["cat"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    tiny.chroma().to(torch.float32).save_pretrained(where)
    return where


def test_8_bit_weights_are_guided(folder):
    pytest.importorskip("torchao")
    guidance = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.05, step_rule="relative")
    plain, small = limelight.load(folder, device="cpu"), limelight.load(folder, device="cpu", quantize="8bit")
    weight = small.denoiser.transformer_blocks[0].attn.to_q.weight
    assert type(weight).__module__.startswith("torchao")
    results = [limelight.generate(model, "a black cat", guidance=guidance, **SETTINGS) for model in (plain, small)]
    far = (results[0].latents - results[1].latents).norm() / results[0].latents.norm()
    assert 0 < float(far) < 0.05
    assert results[1].trace[-1]["loss"][0] == pytest.approx(results[0].trace[-1]["loss"][0], rel=0.05)
    assert fingerprint(plain) != fingerprint(small) == fingerprint(small)


def test_without_torchao_the_line_to_install_it_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingDependency, match=r"needs torchao\. Install it: pip install 'limelight\[memory\]'"):
        limelight.load(folder, device="cpu", quantize="8bit")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"quantize": "3bit"}, "Unknown quantize='3bit'. Choose one of: 8bit"),
        ({"offload": "group"}, "Unknown offload='group'. Choose one of: model, sequential"),
        ({"offload": "model"}, "the device is the CPU. Leave it out"),
    ],
)
def test_what_cannot_save_memory_is_refused(folder, options, why):
    with pytest.raises(SettingsError, match=why):
        limelight.load(folder, device="cpu", **options)


def test_a_live_pipeline_keeps_its_weights():
    with pytest.raises(SettingsError, match="quantize='8bit' is for models that load"):
        limelight.load(tiny.chroma(), quantize="8bit")


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloading_is_diffusers_own(offload):
    class Pipeline:
        def __getattr__(self, name):
            return lambda **options: calls.append((name, options))

    calls, device = [], torch.device("cuda")
    memory.check_memory(None, offload, device)
    memory.place(Pipeline(), device, None, offload)
    assert calls == [(f"enable_{offload}_cpu_offload", {"device": device})]


def test_gradients_through_offloaded_groups_are_refused(folder):
    model = limelight.load(folder, device="cpu")
    plain = limelight.generate(model, "a black cat", **{**SETTINGS, "subjects": []}).latents
    cpu = torch.device("cpu")
    apply_group_offloading(
        model.denoiser, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    again = limelight.generate(model, "a black cat", **{**SETTINGS, "subjects": []}).latents
    assert torch.equal(plain, again)
    with pytest.raises(ModelError, match=r"offloaded in groups .* gradients are wrong"):
        limelight.generate(model, "a black cat", **SETTINGS, guidance=limelight.AttendAndExcite())
