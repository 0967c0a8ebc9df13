"""Models in less memory: weights of 8 and 4 bits, offloaded parts, and gradients that offloading would make wrong."""

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


@pytest.mark.parametrize(("quantize", "package", "most"), [("8bit", "torchao", 0.05), ("4bit", "bitsandbytes", 0.3)])
def test_small_weights_are_guided(folder, quantize, package, most):
    pytest.importorskip(package)
    guidance = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.05, step_rule="relative")
    plain, small = limelight.load(folder, device="cpu"), limelight.load(folder, device="cpu", quantize=quantize)
    weight = small.denoiser.transformer_blocks[0].attn.to_q.weight
    assert type(weight).__module__.startswith(package)
    results = [limelight.generate(model, "a black cat", guidance=guidance, **SETTINGS) for model in (plain, small)]
    far = (results[0].latents - results[1].latents).norm() / results[0].latents.norm()
    assert 0 < float(far) < most
    assert [row["loss"][0] < 1 for row in results[1].trace] == [True, True]
    assert fingerprint(plain) != fingerprint(small) == fingerprint(small)


@pytest.mark.parametrize(
    ("quantize", "package", "module"),
    [("8bit", "torchao", "torchao.quantization"), ("4bit", "bitsandbytes", "bitsandbytes.nn")],
)
def test_without_its_package_the_line_to_install_it_is_named(folder, monkeypatch, quantize, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"needs {package}\. Install it: pip install 'limelight\[memory\]'"
    with pytest.raises(MissingDependency, match=message):
        limelight.load(folder, device="cpu", quantize=quantize)


def test_the_gradient_is_that_of_the_weights_that_are_read(folder):
    """Against a model whose weights are what the 4-bit ones stand for."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    small, plain = limelight.load(folder, device="cpu", quantize="4bit"), limelight.load(folder, device="cpu")
    changed = 0
    for part, module in small.parts.items():
        for name, layer in module.named_modules():
            if isinstance(layer, Linear4bit):
                own = plain.parts[part].get_submodule(name)
                own.weight.data.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
                changed += 1
    assert changed > 20
    assert not any(isinstance(layer, Linear4bit) for layer in small.parts["vae"].modules())
    for name, layer in small.parts["text_encoder"].named_modules():  # T5's class wants these whole
        assert not (name.endswith("wo") and isinstance(layer, Linear4bit))

    guidance = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.05, step_rule="relative")
    results = [limelight.generate(model, "a black cat", guidance=guidance, **SETTINGS) for model in (plain, small)]
    assert torch.allclose(results[0].latents, results[1].latents, atol=1e-4)


def test_4_bit_weights_have_a_device_that_they_run_on():
    with pytest.raises(SettingsError, match=r"no gradients on 'mps'\. Use '8bit'"):
        memory.check_memory("4bit", None, torch.device("mps"))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"quantize": "3bit"}, "Unknown quantize='3bit'. Choose one of: 8bit, 4bit"),
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
