"""Old scripts that change one import get the same images."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from limelight import PromptError, SettingsError
from limelight.integrations.diffusers import StableDiffusionAttendAndExcitePipeline as Ours

CALL = {
    "prompt": "a cat and a dog",
    "token_indices": [2, 5],
    "num_inference_steps": 4,
    "max_iter_to_alter": 2,
    "thresholds": {0: 0.24, 1: 0.2, 3: 0.18},  # reached on the way; one that is not: test_odd_arguments_mean_the_same
    "attn_res": (8, 8),
    "output_type": "latent",
}


@pytest.fixture
def pair(tiny_pipeline):
    def build(scheduler: str = "ddim"):
        return (
            tiny_pipeline(scheduler, cls=Ours),
            tiny_pipeline(scheduler, cls=diffusers.StableDiffusionAttendAndExcitePipeline),
        )

    return build


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [
        ("ddim", {}),
        ("pndm", {"negative_prompt": "a frog", "scale_factor": 10}),
        ("ddim", {"prompt": ["a cat and a dog", "a red car and a frog"], "token_indices": [[2, 5], [3, 6]]}),
        ("pndm", {"output_type": "np"}),
    ],
)
def test_equal_to_the_deprecated_pipeline(pair, scheduler, changes):
    ours, theirs = pair(scheduler)
    calls: list[list[tuple]] = [[], []]
    results = [
        pipeline(
            **{**CALL, **changes},
            generator=torch.Generator().manual_seed(4),
            callback=lambda i, t, latents, seen=seen: seen.append((i, t.item(), latents.shape)),
        ).images
        for pipeline, seen in zip((ours, theirs), calls, strict=True)
    ]
    assert np.abs(np.asarray(results[0]) - np.asarray(results[1])).max() < 1e-8
    assert calls[0] == calls[1]
    assert ours.get_indices("a red car") == theirs.get_indices("a red car")


def images(pipeline, **changes):
    call = {**CALL, "num_inference_steps": 2, "thresholds": {}, **changes}
    return pipeline(**call, generator=torch.Generator().manual_seed(4)).images


@pytest.mark.filterwarnings("ignore:Token index")
@pytest.mark.parametrize(
    "changes",
    [
        {"token_indices": [2, 2]},
        {"token_indices": [2, 5, 2]},
        {"token_indices": [0, 2]},  # the original reads its list of maps from the end
        {"token_indices": [-3, 2]},
        {"thresholds": {0: 1.5, 1: -1.0}},
        {"thresholds": {0.0: 0.24, 1.0: 0.2}},
        {"max_iter_to_alter": 1.5, "num_inference_steps": 3},
    ],
)
def test_odd_arguments_mean_the_same(pair, changes):
    ours, theirs = pair()
    changes = {"thresholds": {0: 0.24}, **changes}
    assert float((images(ours, **changes) - images(theirs, **changes)).abs().max()) < 1e-8


def test_an_index_below_one_is_named(pair):
    with pytest.warns(UserWarning, match="Token index 0 is not a token of the prompt.* is index 75"):
        images(pair()[0], token_indices=[0], num_inference_steps=1)


def test_one_number_is_a_square(pair):
    ours, _ = pair()
    assert torch.equal(images(ours, attn_res=8), images(ours, attn_res=(8, 8)))


@pytest.mark.parametrize("kind", ["HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
def test_schedulers_of_second_order(pair, kind):
    """The same calls of a callback, and without guidance the same images; with it, diffusers forgets the scale."""
    made, seen = [], []
    for pipeline in pair():
        pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config)
        steps = []
        options = {"callback": lambda i, t, _, steps=steps: steps.append((i, t.item()))}
        if isinstance(pipeline, Ours):
            with pytest.warns(UserWarning, match="discards what guidance moves in between, as in diffusers"):
                guided = images(pipeline, **options)
            steps.clear()
        made.append(images(pipeline, max_iter_to_alter=0, **options))
        seen.append(steps)
    assert seen[0] == seen[1]
    assert float((made[0] - made[1]).abs().max()) < 1e-8
    assert float((guided - made[0]).abs().max()) > 1e-4


def test_rows_of_the_text_encoder_that_stand_for_no_token(pair):
    """Embeddings may be padded to a round number of rows."""
    for pipeline in (both := pair()):
        torch.manual_seed(0)
        pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer), pad_to_multiple_of=64)
    assert both[0].text_encoder.config.vocab_size > len(both[0].tokenizer)
    assert float((images(both[0]) - images(both[1])).abs().max()) < 1e-8


def test_the_autoencoder_of_consistency_models(pair):
    ours, _ = pair()
    config = {
        "encoder_block_out_channels": (32,),
        "encoder_down_block_types": ("DownEncoderBlock2D",),
        "decoder_block_out_channels": (32,),
        "decoder_add_attention": False,
        "decoder_down_block_types": ("ResnetDownsampleBlock2D",),
        "decoder_up_block_types": ("ResnetUpsampleBlock2D",),
    }
    vae = diffusers.ConsistencyDecoderVAE(**config)
    ours.vae = vae.to(ours.unet.dtype)
    assert torch.isfinite(images(ours, output_type="pt")).all()


@pytest.mark.parametrize("kind", ["default", "sliced"])
def test_other_attention_processors(pair, kind):
    """They give way for the time of a call, and are back afterwards, also after an error."""
    ours, theirs = pair()
    expected = images(theirs)
    if kind == "default":
        ours.unet.set_default_attn_processor()
        ours.unet.set_attn_processor(AttnProcessor())
    else:
        ours.enable_attention_slicing(1)
    before = ours.unet.attn_processors
    assert float((images(ours) - expected).abs().max()) < 1e-8
    assert ours.unet.attn_processors == before

    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        images(ours, callback=fail)
    assert ours.unet.attn_processors == before


def test_the_scale_of_lora_weights(pair):
    peft = pytest.importorskip("peft")
    ours, theirs = pair()
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    for pipeline in (ours, theirs):
        torch.manual_seed(3)
        pipeline.unet.add_adapter(config)
        pipeline.unet.to(torch.float64)
    whole = images(ours)
    for scale in (0.3, 0.0):
        # Without refinement, in which the original forgets the scale.
        options = {"cross_attention_kwargs": {"scale": scale}}
        scaled = images(ours, **options)
        assert float((scaled - images(theirs, **options)).abs().max()) < 1e-8
        assert not torch.allclose(scaled, whole, atol=1e-4)
    assert torch.equal(images(ours), whole)
    with pytest.raises(SettingsError, match="cross_attention_kwargs has 'gligen', which cannot be passed on"):
        images(ours, cross_attention_kwargs={"scale": 1.0, "gligen": {}})


def test_components_are_those_of_the_deprecated_pipeline(pair, tmp_path):
    ours, theirs = pair()
    assert set(ours.components) == set(theirs.components)
    assert dict(ours.config).keys() - {"_name_or_path"} == dict(theirs.config).keys() - {"_name_or_path"}
    copied = type(theirs)(**ours.components, requires_safety_checker=False)
    copied.set_progress_bar_config(disable=True)
    expected = images(ours)
    assert float((images(copied) - expected).abs().max()) < 1e-8
    ours.save_pretrained(tmp_path)
    loaded = Ours.from_pretrained(tmp_path, safety_checker=None, torch_dtype=torch.float64)
    assert torch.allclose(images(loaded), expected)
    ours.register_attention_control()
    assert torch.equal(images(ours), expected)


def test_from_another_pipeline_and_back(tiny_pipeline):
    plain = tiny_pipeline()
    ours = Ours.from_pipe(plain)
    assert (ours.unet, ours.vae, ours.text_encoder) == (plain.unet, plain.vae, plain.text_encoder)
    assert diffusers.StableDiffusionPipeline.from_pipe(ours).unet is plain.unet


def test_embeddings_without_a_text_encoder(pair):
    ours, theirs = pair()
    embedded, _ = ours.encode_prompt(CALL["prompt"], "cpu", 1, False)
    empty, _ = ours.encode_prompt("", "cpu", 1, False)
    expected = images(theirs)
    bare = Ours(**{**ours.components, "text_encoder": None, "tokenizer": None}, requires_safety_checker=False)
    found = images(bare, prompt=None, prompt_embeds=embedded, negative_prompt_embeds=empty)
    assert float((found - expected).abs().max()) < 1e-8
    with pytest.raises(PromptError, match="has no text encoder to read the prompt; give prompt_embeds"):
        images(bare)
    with pytest.raises(PromptError, match="give negative_prompt_embeds, or guidance_scale=1"):
        images(bare, prompt=None, prompt_embeds=embedded)
    images(bare, prompt=None, prompt_embeds=embedded, guidance_scale=1, num_inference_steps=1)


def test_embeddings_of_any_length(pair):
    """Long prompts are encoded in pieces and joined."""
    ours, theirs = pair()
    embedded, _ = ours.encode_prompt(CALL["prompt"], "cpu", 1, False)
    empty, _ = ours.encode_prompt("", "cpu", 1, False)
    options = {
        "prompt": None,
        "prompt_embeds": torch.cat([embedded, embedded], dim=1),
        "negative_prompt_embeds": torch.cat([empty, empty], dim=1),
        "token_indices": [2, 82],
    }
    assert float((images(ours, **options) - images(theirs, **options)).abs().max()) < 1e-8


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_a_progress_bar(pair, capsys, scheduler):
    for pipeline in pair(scheduler):
        pipeline.set_progress_bar_config(disable=False)
        images(pipeline)
        assert "2/2" in capsys.readouterr().err
        pipeline.set_progress_bar_config(disable=True)
        images(pipeline, num_inference_steps=1)
        assert capsys.readouterr().err == ""


def test_several_images_of_a_prompt(pair):
    """What the deprecated pipeline cannot do: a row for every image."""
    ours, _ = pair()
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = ours(**CALL, num_images_per_prompt=2, generator=generators).images
    alone = ours(**CALL, generator=torch.Generator().manual_seed(2)).images
    assert torch.allclose(both[1:], alone, atol=1e-8)


def test_prompt_embeddings(pair):
    ours, _ = pair()
    embedded, _ = ours.encode_prompt("a cat and a dog", "cpu", 1, False)
    empty, _ = ours.encode_prompt("", "cpu", 1, False)
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    given = {**CALL, "prompt": None, "prompt_embeds": embedded, "negative_prompt_embeds": empty}
    with pytest.raises(PromptError, match="Token index 500 is not between 1 and 75"):
        ours(**{**given, "token_indices": [[2, 500]]})
    assert torch.allclose(ours(**given, generator=seeded[0]).images, ours(**CALL, generator=seeded[1]).images)


def test_bad_arguments(pair):
    ours, _ = pair()
    with pytest.raises(PromptError, match="token_indices must hold a list of indices for each of 1 prompts"):
        ours("a cat", [])
    with pytest.raises(PromptError, match="either prompt or prompt_embeds"):
        ours(token_indices=[2])
    with pytest.raises(SettingsError, match="callback_steps=0 must be a whole number"):
        ours("a cat", [2], callback_steps=0)
