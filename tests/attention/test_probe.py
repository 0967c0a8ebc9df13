from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.overrides import _get_current_function_mode_stack

import limelight
from limelight import Probe, ProbeError


@pytest.fixture
def pass_inputs(tiny):
    prompts = [tiny.prompt("a cat and a dog")] * 2
    tiny.timesteps(4)
    latents = tiny.noise([torch.Generator().manual_seed(s) for s in (0, 1)], *tiny.default_size)
    return latents, torch.tensor(600), tiny.encode(prompts)


def eager_probabilities(model, layer, inputs):
    """The softmax of the layer's own projections, computed here from what the layer is given."""
    seen = {}
    module = model.denoiser.get_submodule(layer.name)
    handle = module.register_forward_pre_hook(lambda m, a, k: seen.update(a=a, k=k), with_kwargs=True)
    with torch.no_grad():
        model.predict(*inputs)
    handle.remove()
    pixels = seen["a"][0]
    context = seen["k"].get("encoder_hidden_states")
    context = pixels if context is None else context
    query, key = (
        x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (module.to_q(pixels), module.to_k(context))
    )
    with torch.autocast("cpu", enabled=False):
        query, key = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key))
        return torch.einsum("bhpd,bhtd->bhpt", query, key).mul(query.shape[-1] ** -0.5).softmax(-1)


def no_trace_of_a_probe(model):
    for module in model.denoiser.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not _get_current_function_mode_stack()
    return all(type(p) is AttnProcessor2_0 for p in model.denoiser.attn_processors.values())


def test_maps_equal_an_eager_softmax(tiny, pass_inputs):
    with Probe(tiny, tiny.sites) as probe, torch.no_grad():
        tiny.predict(*pass_inputs)
        maps = probe.take(pass_inputs[0], pass_inputs[2].prompts)
    assert list(maps.layers) == list(tiny.sites), "execution order"
    for layer, probabilities in maps.layers.items():
        expected = eager_probabilities(tiny, layer, pass_inputs)
        assert torch.allclose(probabilities, expected, atol=1e-12)
        assert torch.allclose(probabilities.sum(-1), torch.ones(()).double())


def test_autocast_does_not_reach_the_softmax(tiny_pipeline):
    """Under autocast queries and keys are bfloat16, but what is made of them is not."""
    model = limelight.load(tiny_pipeline(dtype=torch.float32))
    prompts = [model.prompt("a cat and a dog")]
    inputs = (
        model.noise([torch.Generator().manual_seed(0)], *model.default_size),
        torch.tensor(9),
        model.encode(prompts),
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), Probe(model) as probe:
        model.predict(*inputs)
        maps = probe.take(inputs[0], prompts)
        layer = next(iter(maps.layers))
        expected = eager_probabilities(model, layer, inputs)
    assert torch.allclose(maps.layers[layer], expected, atol=1e-6)


def test_watching_changes_nothing(tiny, pass_inputs):
    with torch.no_grad():
        untouched = tiny.predict(*pass_inputs)
        with Probe(tiny, tiny.sites):
            watched = tiny.predict(*pass_inputs)
    assert torch.allclose(untouched, watched, atol=1e-12)


def test_half_precision_has_float32_probabilities(tiny_pipeline):
    model = limelight.load(tiny_pipeline(dtype=torch.bfloat16))
    latents = model.noise([torch.Generator().manual_seed(0)], *model.default_size)
    conditioning = model.encode([model.prompt("a cat")])
    with Probe(model) as probe, torch.no_grad():
        assert model.predict(latents, torch.tensor(10), conditioning).dtype == torch.bfloat16
        maps = probe.take(latents, conditioning.prompts)
    assert {p.dtype for p in maps.layers.values()} == {torch.float32}


def test_edits_reach_the_conditional_rows_only(tiny, pass_inputs):
    latents, timestep, _ = pass_inputs
    conditioning = tiny.encode([tiny.prompt("a cat and a dog")] * 2, negative="a frog")
    shapes = []

    def blank(layer, probabilities, step):
        shapes.append(tuple(probabilities.shape[:2]))
        return probabilities * 0

    with torch.no_grad():
        alone = tiny.predict(latents, timestep, conditioning, guidance_scale=0.0)
        with Probe(tiny, (), edits=[blank], images=2):
            edited = tiny.predict(latents, timestep, conditioning, guidance_scale=0.0)
            changed = tiny.predict(latents, timestep, conditioning, guidance_scale=1.0)
        plain = tiny.predict(latents, timestep, conditioning, guidance_scale=1.0)
    assert torch.allclose(alone, edited, atol=1e-12), "guidance scale 0 is the unconditional branch"
    assert not torch.allclose(plain, changed, atol=1e-3)
    assert set(shapes) == {(2, 2)}


def test_an_edit_that_does_nothing_changes_nothing(tiny):
    plain = limelight.generate(tiny, "a cat and a dog", steps=3)
    edited = limelight.generate(tiny, "a cat and a dog", steps=3, edits=[lambda layer, p, step: p])
    assert torch.allclose(plain.latents, edited.latents, atol=1e-10)


def test_nothing_remains(tiny, pass_inputs):
    assert no_trace_of_a_probe(tiny)
    with Probe(tiny, tiny.sites), torch.no_grad():
        tiny.predict(*pass_inputs)
    assert no_trace_of_a_probe(tiny)


def test_nothing_remains_after_an_interrupt(tiny, pass_inputs):
    """Ctrl-C is not an Exception: the layers' own forward hooks are skipped, and the probe leaves in their place."""
    module = next(m for name, m in tiny.denoiser.named_modules() if name.endswith("attn2.to_k"))

    def interrupt(*args):
        raise KeyboardInterrupt

    module.forward = interrupt
    with pytest.raises(KeyboardInterrupt), Probe(tiny, tiny.sites):
        tiny.predict(*pass_inputs)
    assert no_trace_of_a_probe(tiny)


def test_an_adapters_second_attention_is_left_alone(tiny, pass_inputs):
    """IP-Adapter attends to its image inside the same layer, after the words."""

    class Twice(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            words = super().__call__(attn, hidden_states, encoder_hidden_states)
            image = None if encoder_hidden_states is None else encoder_hidden_states[:, :4]
            return words + super().__call__(attn, hidden_states, image)

    tiny.denoiser.set_attn_processor(Twice())
    with Probe(tiny) as probe, torch.no_grad():
        tiny.predict(*pass_inputs)
        maps = probe.take(pass_inputs[0], pass_inputs[2].prompts)
    assert {p.shape[-1] for p in maps.layers.values()} == {77}


@pytest.mark.parametrize("where", ["attn2.to_k", "attn1.to_out.0", "norm3"])
def test_nothing_remains_after_an_exception(tiny, pass_inputs, where):
    module = next(m for name, m in tiny.denoiser.named_modules() if name.endswith(where))
    forward = module.forward

    def fail(*args, **kwargs):
        raise RuntimeError("broken on purpose")

    module.forward = fail
    with pytest.raises(RuntimeError, match="on purpose"), Probe(tiny, tiny.sites):
        tiny.predict(*pass_inputs)
    module.forward = forward
    assert no_trace_of_a_probe(tiny)


def test_nothing_remains_after_guidance(tiny):
    for parameter in tiny.denoiser.parameters():
        parameter.requires_grad_(True)
    limelight.generate(
        tiny, "a cat and a dog", guidance=limelight.AttendAndExcite(resolution=8, max_refinements=2), steps=2
    )
    assert no_trace_of_a_probe(tiny)
    assert all(p.requires_grad and p.grad is None for p in tiny.denoiser.parameters())


def test_stopping_early_gives_the_same_maps_and_gradient(tiny, pass_inputs):
    latents, timestep, conditioning = pass_inputs
    layers = [layer for layer in tiny.sites if layer.kind == "cross" and layer.scale == 2]
    gradients = []
    for until in (None, layers[-1]):
        variable = latents.clone().requires_grad_()
        with Probe(tiny, layers) as probe:
            prediction = tiny.predict(variable, timestep, conditioning, until=until)
            maps = probe.take(variable, conditioning.prompts)
        assert (prediction is None) == (until is not None)
        gradients.append(torch.autograd.grad(maps["cat"].amax(), variable)[0])
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)
    assert no_trace_of_a_probe(tiny)


def test_gradient_checkpointing_gives_the_same_gradient(tiny, pass_inputs):
    latents, timestep, conditioning = pass_inputs
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            tiny.denoiser.enable_gradient_checkpointing()
            tiny.denoiser.train()
        variable = latents.clone().requires_grad_()
        with Probe(tiny) as probe:
            tiny.predict(variable, timestep, conditioning)
            maps = probe.take(variable, conditioning.prompts)
            gradients.append(torch.autograd.grad(maps.map("cat", size=(8, 8)).amax(), variable)[0])
    assert torch.allclose(*gradients, atol=1e-14)
    assert no_trace_of_a_probe(tiny)


def test_a_processor_that_hides_its_attention_is_named(tiny, pass_inputs):
    tiny.denoiser.set_attn_processor(AttnProcessor())
    with Probe(tiny) as probe, torch.no_grad():
        tiny.predict(*pass_inputs)
        with pytest.raises(ProbeError, match=r"'down_blocks\.0.*attn2' recorded no attention.*'AttnProcessor'"):
            probe.take(pass_inputs[0], pass_inputs[2].prompts)


@pytest.mark.parametrize("change", ["processor", "sliced", "forward"])
def test_attention_that_another_tool_has_changed_is_reset(tiny, pass_inputs, change):
    layer = tiny.denoiser.get_submodule(tiny.text_sites[0].name)
    expected = tiny.denoiser(pass_inputs[0], 5, pass_inputs[2].conditional["encoder_hidden_states"]).sample
    if change == "forward":  # as in prompt-to-prompt's own code
        name, usual = "function '.*another'", AttnProcessor()

        def another(*args, **kwargs):
            return usual(layer, *args, **kwargs)

        layer.forward = another
    elif change == "sliced":
        name = "processor 'SlicedAttnProcessor'"
        tiny.denoiser.set_attention_slice(1)
    else:
        name = "processor 'AttnProcessor'"
        tiny.denoiser.set_attn_processor(AttnProcessor())

    with Probe(tiny) as probe, torch.no_grad():
        tiny.predict(*pass_inputs)
        with pytest.raises(ProbeError, match=rf"{name}.*does not call.*limelight\.reset_attention\(pipe\)"):
            probe.take(pass_inputs[0], pass_inputs[2].prompts)

    changed = limelight.reset_attention(tiny.pipeline)
    assert len(changed) == (1 if change == "forward" else len(tiny.sites))
    assert limelight.reset_attention(tiny) == ()
    with Probe(tiny) as probe, torch.no_grad():
        tiny.predict(*pass_inputs)
        assert "cat" in probe.take(pass_inputs[0], pass_inputs[2].prompts)
    again = tiny.denoiser(pass_inputs[0], 5, pass_inputs[2].conditional["encoder_hidden_states"]).sample
    assert torch.equal(again, expected)


def test_a_processor_with_weights_is_not_thrown_away(tiny):
    class Weighted(torch.nn.Linear):
        def __call__(self, attn, *args, **kwargs):
            return AttnProcessor()(attn, *args, **kwargs)

    layer = tiny.denoiser.get_submodule(tiny.text_sites[0].name)
    layer.set_processor(Weighted(2, 2))
    with pytest.raises(ProbeError, match="processor 'Weighted' has weights of its own"):
        limelight.reset_attention(tiny)
    assert isinstance(layer.processor, Weighted)
