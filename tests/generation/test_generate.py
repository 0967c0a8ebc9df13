"""Several prompts in one call, passes of any size, and what else `generate` takes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import CLIPTextConfig

import limelight
from limelight import PromptError, SettingsError
from limelight.generation.batches import in_passes
from limelight.models.base import About
from limelight.models.unet import UNet

PROMPTS = ["a cat and a dog", "a red car and a frog and a bear"]
GUIDANCE = limelight.AttendAndExcite(resolution=8, thresholds={0: 0.6}, max_refinements=5)


@pytest.fixture(scope="module")
def singles(tiny_pipeline):
    """A call for each prompt."""
    model = limelight.load(tiny_pipeline())
    return [limelight.generate(model, prompt, seeds=[1, 2], guidance=GUIDANCE, steps=2) for prompt in PROMPTS]


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_several_prompts_equal_single_calls(tiny, singles, batch):
    together = limelight.generate(tiny, PROMPTS, seeds=[1, 2], guidance=GUIDANCE, steps=2, batch=batch)
    assert [result.subjects for result in together] == [("cat", "dog"), ("red car", "frog", "bear")]
    for alone, result in zip(singles, together, strict=True):
        assert float((result.latents - alone.latents).abs().max()) < 1e-7
        assert result.settings == alone.settings
        assert list(result.maps) == list(alone.maps)
        assert torch.allclose(result.maps["a"], alone.maps["a"], atol=1e-7)
        for row, expected in zip(result.trace, alone.trace, strict=True):
            assert row["refinements"] == expected["refinements"]
            assert torch.allclose(torch.tensor(row["presence"]), torch.tensor(expected["presence"]), atol=1e-7)


def test_subjects_of_several_prompts(tiny):
    both = limelight.generate(tiny, PROMPTS, subjects=[["dog"], "auto"], guidance=GUIDANCE, steps=1)
    assert [result.subjects for result in both] == [("dog",), ("red car", "frog", "bear")]
    with pytest.raises(PromptError, match="2 prompts need 2 lists of subjects, not 1"):
        limelight.generate(tiny, PROMPTS, subjects=[["dog"]], guidance=GUIDANCE, steps=1)
    with pytest.raises(PromptError, match="list of prompts is empty"):
        limelight.generate(tiny, [])


def test_passes_shrink_where_memory_is_short(tiny, monkeypatch):
    predict, passes = type(tiny).predict, []

    def short(self, latents, *args, **kwargs):
        passes.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, latents, *args, **kwargs)

    expected = limelight.generate(tiny, PROMPTS[0], seeds=range(5), steps=1)
    monkeypatch.setattr(type(tiny), "predict", short)
    result = limelight.generate(tiny, PROMPTS[0], seeds=range(5), steps=1)
    assert passes == [5, 3, 2, 2, 1]
    assert float((result.latents - expected.latents).abs().max()) < 1e-7


@pytest.mark.parametrize(
    "text", ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte", "could not create a primitive"]
)
def test_an_image_that_does_not_fit(tiny, monkeypatch, text):
    """The texts of torch's allocator and of oneDNN."""

    def never(self, *args, **kwargs):
        raise RuntimeError(text)

    monkeypatch.setattr(type(tiny), "predict", never)
    with pytest.raises(SettingsError, match="An image of 32x32 does not fit into memory"):
        limelight.generate(tiny, PROMPTS[0], steps=1)


def test_the_last_picture_is_drawn_leanly(tiny, monkeypatch):
    """Where even one image does not fit, guidance recomputes; where that does not help either, it is said."""
    predict, lean = type(tiny).predict, []

    def short(self, *args, until=None, **kwargs):
        lean.append(self.denoiser.is_gradient_checkpointing)
        if until is not None and not lean[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, *args, until=until, **kwargs)

    expected = limelight.generate(tiny, PROMPTS[0], seeds=[1, 2], guidance=GUIDANCE, steps=2)
    monkeypatch.setattr(type(tiny), "predict", short)
    result = limelight.generate(tiny, PROMPTS[0], seeds=[1, 2], guidance=GUIDANCE, steps=2)
    assert lean[:3] == [False, False, True], "two at once, one, one leanly"
    assert float((result.latents - expected.latents).abs().max()) < 1e-7
    assert result.settings == expected.settings


class _Elsewhere(torch.nn.Module):
    """Stands for a text encoder on a device that this machine does not have: notes where it is moved."""

    def __init__(self, encoder):
        super().__init__()
        self.config, self.where, self.ran = encoder.config, ["meta"], []

    def to(self, device):
        self.where.append(str(device))
        return self

    def forward(self, ids, **options):
        self.ran.append(self.where[-1])
        return [torch.zeros(*ids.shape, 32, dtype=torch.float64)]


def test_the_text_encoder_leaves_the_device_where_memory_is_short(tiny, monkeypatch):
    tiny.pipeline.text_encoder = encoder = _Elsewhere(tiny.pipeline.text_encoder)
    monkeypatch.setattr(UNet, "device", property(lambda self: torch.device("meta")))
    prompts, tried = [tiny.prompt("a cat")], []

    def one_pass(rows, lean):
        tiny.encode(prompts, "")
        tried.append(encoder.where[-1])
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    assert in_passes(tiny, one_pass, 2, 2, (8, 8), lean=True) == [range(2)], "no smaller pass was needed"
    assert tried == ["meta", "cpu"], "gone while the pass runs"
    assert set(encoder.ran) == {"meta"}, "there while it encodes"
    assert encoder.where[-1] == "meta", "back when all passes are done"
    assert tiny.stow()
    assert not tiny.stow(), "nothing more to gain"
    tiny.stow(away=False)
    encoder._hf_hook = object()  # offloaded by diffusers, whose hooks move it
    assert not tiny.stow()
    del encoder._hf_hook
    monkeypatch.setattr(UNet, "device", property(lambda self: torch.device("cpu")))
    assert not tiny.stow(), "there is nowhere else"


def test_memory_and_batch_are_checked(tiny):
    with pytest.raises(SettingsError, match=r"memory=2 .* CUDA alone"):
        limelight.generate(tiny, PROMPTS[0], steps=1, memory=2)
    with pytest.raises(SettingsError, match="batch=-1 must be a whole number from 1"):
        limelight.generate(tiny, PROMPTS[0], steps=1, batch=-1)


def test_encoded_prompts_may_be_given(tiny):
    prompt = tiny.prompt(PROMPTS[0])
    conditioning = tiny.encode([prompt] * 2, "")
    expected = limelight.generate(tiny, PROMPTS[0], seeds=[1, 2], guidance=GUIDANCE, steps=2)
    given = limelight.generate(tiny, PROMPTS[0], seeds=[1, 2], guidance=GUIDANCE, steps=2, conditioning=conditioning)
    assert torch.equal(given.latents, expected.latents)
    states = {name: 0.5 * value for name, value in conditioning.conditional.items()}
    faint = dataclasses.replace(conditioning, conditional=states)
    other = limelight.generate(tiny, PROMPTS[0], seeds=[1, 2], steps=2, conditioning=faint)
    assert not torch.allclose(other.latents, expected.latents)
    with pytest.raises(SettingsError, match="conditioning has 2 rows for 1 images"):
        limelight.generate(tiny, PROMPTS[0], conditioning=conditioning)


def test_clip_skip_leaves_out_layers(tiny):
    """By hand: the last layer but one, through the encoder's final normalisation."""
    prompt, encoder = tiny.prompt("a cat"), tiny.pipeline.text_encoder
    hidden = encoder(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
    skipped = tiny.encode([prompt], clip_skip=1).conditional["encoder_hidden_states"]
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    assert torch.allclose(skipped, norm(hidden[-2]))
    assert torch.allclose(tiny.encode([prompt]).conditional["encoder_hidden_states"], norm(hidden[-1]))
    with pytest.raises(SettingsError, match="clip_skip=9 does not fit a text encoder of 3 layers"):
        limelight.generate(tiny, "a cat", clip_skip=9)


def test_a_text_encoder_of_one_layer(tiny_pipeline):
    pipeline = tiny_pipeline()
    encoder = pipeline.text_encoder
    config = CLIPTextConfig(**{**encoder.config.to_dict(), "num_hidden_layers": 1})
    pipeline.text_encoder = type(encoder)(config).to(encoder.dtype).eval()
    model = limelight.load(pipeline)
    prompt = model.prompt("a cat")
    found = model.encode([prompt]).conditional["encoder_hidden_states"]
    with torch.no_grad():
        assert torch.equal(found, pipeline.text_encoder(torch.tensor([prompt.ids]))[0])
    with pytest.raises(SettingsError, match="clip_skip=1 does not fit a text encoder of 1 layers"):
        model.encode([prompt], clip_skip=1)


def test_eta(tiny):
    still, noisy, again = (
        limelight.generate(tiny, "a cat", seeds=1, steps=3, eta=eta).latents for eta in (0.0, 0.8, 0.8)
    )
    assert torch.equal(noisy, again)
    assert not torch.allclose(still, noisy)
    tiny.scheduler = limelight.load("pocket", scheduler="euler").scheduler
    with pytest.raises(SettingsError, match=r"eta=0\.8 is DDIM's; the scheduler EulerDiscreteScheduler has none"):
        limelight.generate(tiny, "a cat", steps=2, eta=0.8)


def test_words_that_the_model_has_never_seen(tiny):
    tiny.about = About(words=frozenset({"a", "cat", "and"}))
    with pytest.warns(limelight.UnknownWords, match="has never seen 'zebra', 'Kiwi'"):
        limelight.generate(tiny, "a zebra and a Cat and a Kiwi", steps=1)
    tiny.about = About()
    assert tiny.unknown(tiny.prompt("a zebra")) == ()


def test_settings_that_suit_a_model(tiny):
    tiny.about = About(presets={"attend_and_excite": {"scale": 5.0, "thresholds": {0.1: 0.3}}})
    suited = limelight.AttendAndExcite.suited(tiny, until=0.2)
    assert (suited.scale, suited.thresholds, suited.until) == (5.0, {0.1: 0.3}, 0.2)
    tiny.about = About()
    assert limelight.AttendAndExcite.suited(tiny) == limelight.AttendAndExcite()


def test_seconds(tiny):
    steps = []
    limelight.generate(tiny, "a cat", steps=3, on_step=steps.append)
    assert [step.index for step in steps] == [0, 1, 2]
    assert all(step.seconds > 0 for step in steps)


def test_an_empty_prompt_among_others(tiny):
    empty, cat = limelight.generate(tiny, ["", "a cat"], seeds=[0, 1], steps=1)
    assert list(empty.maps) == []
    assert len(empty.maps.prompts) == len(cat.maps.prompts) == 2
    assert cat.maps["cat"].shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": -1}, "seeds has the entry -1; each must be a whole number"),
        ({"seeds": 2**64}, "each must be a whole number"),
        ({"batch": 0}, "batch=0 must be a whole number from 1"),
        ({"steps": -3}, "steps=-3 must be a whole number from 1"),
    ],
)
def test_numbers_out_of_range(tiny, options, message):
    with pytest.raises(SettingsError, match=message):
        limelight.generate(tiny, "a cat", **options)


def test_given_latents_do_not_change_later_noise(tiny):
    noise = tiny.noise([torch.Generator().manual_seed(5)], 32, 32)
    own, given = (
        limelight.generate(tiny, "a cat", seeds=5, steps=3, eta=1.0, latents=latents).latents
        for latents in (None, noise)
    )
    assert torch.equal(own, given)


def test_settings_of_a_folder_that_do_not_fit(tiny):
    tiny.about = About(presets={"attend_and_excite": {"strength": 5.0}})
    with pytest.raises(limelight.ModelError, match=r"limelight\.json of '.*' do not fit"):
        limelight.AttendAndExcite.suited(tiny)
    tiny.about = About()


def test_no_negative_prompt_is_the_empty_one(tiny):
    """As in diffusers: None does not switch classifier-free guidance off."""
    empty, none, alone = (
        limelight.generate(tiny, PROMPTS[0], steps=2, **changes)
        for changes in ({}, {"negative": None}, {"guidance_scale": 1.0})
    )
    assert torch.equal(none.latents, empty.latents)
    assert not torch.allclose(alone.latents, empty.latents, atol=1e-3)
    assert (none.settings["negative"], none.settings["guidance_scale"]) == ("", 7.5)
    assert (alone.settings["negative"], alone.settings["guidance_scale"]) == (None, 1.0)


def test_a_negative_prompt_for_each_prompt(tiny):
    both = limelight.generate(tiny, PROMPTS, negative=["a frog", None], seeds=[1, 2], steps=2, batch=3)
    for prompt, negative, result in zip(PROMPTS, ["a frog", ""], both, strict=True):
        alone = limelight.generate(tiny, prompt, negative=negative, seeds=[1, 2], steps=2)
        assert torch.allclose(result.latents, alone.latents, atol=1e-8)
        assert result.settings == alone.settings


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        (["a frog"], "negative has 1 entries for 2 prompts"),
        (["a frog", 3], "negative has the entry 3"),
        (7, "negative=7 must be text"),
    ],
)
def test_negative_prompts_that_do_not_fit(tiny, negative, message):
    with pytest.raises(PromptError, match=message):
        limelight.generate(tiny, PROMPTS, negative=negative, steps=1)


def test_conditioning_of_one_branch_records_no_guidance(tiny):
    prompts = [tiny.prompt(PROMPTS[0])]
    for negative, recorded in ((None, 1.0), ("", 7.5)):
        conditioning = tiny.encode(prompts, negative)
        result = limelight.generate(tiny, PROMPTS[0], conditioning=conditioning, steps=2)
        assert (result.settings["guidance_scale"], result.settings["negative"]) == (recorded, None)
        expected = limelight.generate(tiny, PROMPTS[0], guidance_scale=recorded, steps=2)
        assert torch.allclose(result.latents, expected.latents, atol=1e-8)


def test_no_subjects(tiny):
    assert limelight.generate(tiny, PROMPTS[0], subjects=None, steps=1).subjects == ()
    assert [r.subjects for r in limelight.generate(tiny, PROMPTS, subjects=None, steps=1)] == [(), ()]
    assert [r.subjects for r in limelight.generate(tiny, PROMPTS, subjects=[None, ["car"]], steps=1)] == [(), ("car",)]
    with pytest.raises(PromptError, match="subjects is empty; guidance needs"):
        limelight.generate(tiny, PROMPTS[0], subjects=None, guidance=GUIDANCE, steps=1)
