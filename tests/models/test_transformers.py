"""Transformer families: equal output with diffusers' own pipelines, maps and edits by word, guidance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode

import limelight
from limelight.errors import ModelError, ProbeError, SettingsError
from limelight.models.base import FEATURES
from limelight.models.families import FAMILIES, features
from tests import transformers as tiny

PROMPT = "a black cat and a white dog"
SIZE = (32, 48)
STEPS = 2


class Case(NamedTuple):
    """A family under test.

    Attributes:
        build: a fresh pipeline.
        call: arguments of the pipeline's own call.
        run: arguments of `limelight.generate` that mean the same.
        first: from the number of image tokens, the key of the text's first token.
        cat: the places of "cat" in the text.
        size: of the images, not square; Z-Image's has no multiple of 32 tokens.
        error: how far a run may be from the pipeline's; Z-Image's and Sana's compute in float32.
    """

    build: Callable[[], Any]
    call: dict[str, Any]
    run: dict[str, Any]
    first: Callable[[int], int]
    cat: tuple[int, ...]
    error: float = 1e-8
    size: tuple[int, int] = SIZE


CASES = {
    "flux-dev": Case(
        tiny.flux,
        {"guidance_scale": 3.5},
        {},
        lambda pixels: 0,
        (2,),
    ),
    "flux-cfg": Case(
        tiny.flux,
        {"guidance_scale": 3.5, "true_cfg_scale": 4.0, "negative_prompt": "a frog"},
        {"true_cfg_scale": 4.0, "negative": "a frog"},
        lambda pixels: 0,
        (2,),
    ),
    "flux-schnell": Case(lambda: tiny.flux(guidance=False), {"max_sequence_length": 256}, {}, lambda pixels: 0, (2,)),
    "sd3": Case(
        tiny.sd3,
        {"guidance_scale": 5.0, "negative_prompt": "a frog"},
        {"negative": "a frog", "guidance_scale": 5.0},
        lambda pixels: pixels,
        (3, 77 + 2),
    ),
    "sd3-without-t5": Case(
        lambda: tiny.sd3(t5=False), {"guidance_scale": 1.0}, {"guidance_scale": 1.0}, lambda pixels: pixels, (3,)
    ),
    "sd3.5": Case(
        lambda: tiny.sd3(dual=(0,), dynamic=True), {"guidance_scale": 7.0}, {}, lambda pixels: pixels, (3, 77 + 2)
    ),
    "chroma": Case(
        tiny.chroma,
        {"guidance_scale": 4.0, "negative_prompt": "a frog"},
        {"guidance_scale": 4.0, "negative": "a frog"},
        lambda pixels: 0,
        (2,),
    ),
    "qwen-image": Case(
        tiny.qwen_image,
        {"true_cfg_scale": 4.0, "negative_prompt": "a frog on the tree"},
        {"negative": "a frog on the tree"},
        lambda pixels: 0,
        (88,),
    ),
    "z-image": Case(
        tiny.z_image,
        {"guidance_scale": 5.0, "negative_prompt": "a frog on the tree"},
        {"negative": "a frog on the tree"},
        lambda pixels: pixels,
        (6,),
        error=1e-4,
        size=(24, 40),
    ),
    "pixart": Case(
        tiny.pixart,
        {"negative_prompt": "a frog", "use_resolution_binning": False, "clean_caption": False},
        {"negative": "a frog"},
        lambda pixels: 0,
        (2,),
    ),
    "sana": Case(
        tiny.sana,
        {"negative_prompt": "a frog", "use_resolution_binning": False},
        {"negative": "a frog"},
        lambda pixels: 0,
        (3,),
        error=1e-5,
        size=(32, 64),
    ),
    "flux2-dev": Case(tiny.flux2, {"guidance_scale": 4.0}, {}, lambda pixels: 0, (505,)),
    "flux2-klein": Case(tiny.flux2_klein, {"guidance_scale": 4.0}, {}, lambda pixels: 0, (6,)),
    "flux2-klein-distilled": Case(
        lambda: tiny.flux2_klein(distilled=True), {"guidance_scale": 1.0}, {}, lambda pixels: 0, (6,)
    ),
    "lumina2": Case(
        tiny.lumina2,
        {"negative_prompt": "a frog on the tree"},
        {"negative": "a frog on the tree"},
        lambda pixels: 0,
        (137,),
        size=(64, 96),
    ),
    "krea2": Case(
        tiny.krea2,
        {"negative_prompt": "a frog on the tree"},
        {"negative": "a frog on the tree"},
        lambda pixels: 0,
        (88,),
        error=1e-5,
    ),
    "krea2-distilled": Case(
        lambda: tiny.krea2(distilled=True), {"guidance_scale": 0.0}, {}, lambda pixels: 0, (88,), error=1e-5
    ),
}
every = pytest.mark.parametrize("name", CASES)


@cache
def model_of(name: str) -> limelight.Model:
    """Tests share it: nothing remains on a model."""
    return limelight.load(CASES[name].build())


def run(name: str, **options: Any) -> limelight.Result:
    height, width = CASES[name].size
    settings = {"steps": STEPS, "height": height, "width": width, "subjects": [], **CASES[name].run, **options}
    return limelight.generate(model_of(name), PROMPT, **settings)


def in_rows(latents: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Latents as the pipeline returns them: some pack 2 x 2 of them into a token."""
    if latents.ndim == like.ndim:
        return latents
    if latents.shape[1] == like.shape[2]:
        return latents.flatten(2).mT
    images, channels, height, width = latents.shape
    cells = latents.reshape(images, channels, height // 2, 2, width // 2, 2)
    return torch.einsum("bchiwj->bhwcij", cells).reshape(like.shape)


@every
def test_a_run_equals_diffusers(name):
    case = CASES[name]
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = case.build()(
        prompt=[PROMPT, PROMPT],
        num_inference_steps=STEPS,
        height=case.size[0],
        width=case.size[1],
        generator=generators,
        output_type="latent",
        **{key: [value] * 2 if "prompt" in key else value for key, value in case.call.items()},
    ).images
    latents = run(name, seeds=[3, 4]).latents
    if "klein" in name:  # its pipeline gives them as the autoencoder takes them
        mean, std = model_of(name)._statistics()
        latents = model_of(name).pipeline._unpatchify_latents(latents * std + mean)
    assert float((in_rows(latents, expected) - expected).abs().max()) < case.error
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize(("name", "scale"), [("z-image", 0.0), ("sana", 4.5), ("flux-dev", 3.5)])
def test_a_run_in_half_precision_equals_diffusers(name, scale):
    case, pipeline = CASES[name], CASES[name].build().to(torch.bfloat16)
    options = {**case.call, "guidance_scale": scale, "height": case.size[0], "width": case.size[1]}
    generator = torch.Generator().manual_seed(0)
    expected = pipeline(
        prompt=PROMPT, num_inference_steps=STEPS, generator=generator, output_type="latent", **options
    ).images
    settings = {"steps": STEPS, "height": case.size[0], "width": case.size[1], "guidance_scale": scale, **case.run}
    found = limelight.generate(limelight.load(pipeline), PROMPT, subjects=None, **settings).latents
    assert torch.equal(in_rows(found, expected), expected)


def test_the_negative_prompt_of_klein_equals_diffusers_embeddings_of_it():
    pipeline = tiny.flux2_klein()
    options = {"num_inference_steps": STEPS, "height": SIZE[0], "width": SIZE[1], "output_type": "latent"}
    negative, _ = pipeline.encode_prompt("a frog on the tree")
    generator = torch.Generator().manual_seed(0)
    expected = pipeline(prompt=PROMPT, negative_prompt_embeds=negative, generator=generator, **options).images
    found = run("flux2-klein", negative="a frog on the tree").latents
    mean, std = model_of("flux2-klein")._statistics()
    assert float((pipeline._unpatchify_latents(found * std + mean) - expected).abs().max()) < 1e-10


def test_latents_of_images_equal_diffusers_of_flux2():
    model = model_of("flux2-dev")
    image = Image.effect_noise(SIZE[::-1], 80).convert("RGB")
    pixels = model.pipeline.image_processor.preprocess(image).double()
    expected = model.pipeline._encode_vae_image(pixels, None)
    assert float((model.latents([image]) - expected).abs().max()) < 1e-10


class Spy(TorchFunctionMode):
    """Keeps the probabilities of every attention call, made explicitly."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[torch.Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | (kwargs or {})
            logits, mask = given["query"] @ given["key"].mT / given["query"].shape[-1] ** 0.5, given.get("attn_mask")
            if mask is not None:
                logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
            self.calls.append(logits.softmax(-1))
        return func(*args, **(kwargs or {}))


def one_pass(
    name: str, *edits, model: Any = None, layers: Any = None, within: Any = None
) -> tuple[torch.Tensor, Any, Any]:
    """The prediction of one conditional pass, its maps, and the prompt.

    Args:
        within: a context around the denoiser's pass.
    """
    model = (model or model_of(name)).for_one_run()
    prompt, size = model.prompt(PROMPT), CASES[name].size
    timestep = model.timesteps(STEPS, size)[0]
    latents = model.start(model.noise([torch.Generator().manual_seed(0)], *size))
    conditioning = model.prepare(model.encode([prompt], size=size), model.guidance_scale if "dev" in name else 1.0)
    with torch.no_grad(), within or nullcontext(), limelight.Probe(model, layers, edits=edits) as probe:
        prediction = model.predict(latents, timestep, conditioning)
        maps = probe.take(latents, conditioning.prompts)
    return prediction, maps, prompt


@every
def test_a_word_is_where_its_text_states_change(name):
    # Without attention between tokens only the word's own would change; with it they change most.
    model = model_of(name)
    states = [
        model.encode([model.prompt(f"a black {word} and a white dog")]).conditional["encoder_hidden_states"][0]
        for word in ("cat", "frog")
    ]
    moved = (states[0] - states[1]).flatten(1).norm(dim=-1)
    prompt = model.prompt(PROMPT)
    places = tuple(prompt.places[position] for position in prompt.find("cat"))
    assert places == CASES[name].cat
    for place, part in zip(places, (slice(0, 77), slice(77, None)), strict=False):
        where = part if len(places) > 1 else slice(None)
        assert int(moved[where].argmax()) + (where.start or 0) == place


@every
def test_maps_are_the_columns_of_the_softmax_over_all_keys(name):
    case = CASES[name]
    unit = model_of(name).pixels_per_latent * model_of(name).patch
    height, width = case.size[0] // unit, case.size[1] // unit
    pixels = height * width
    spy = Spy()
    _, _, prompt = one_pass(name, layers=(), within=spy)
    _, maps, _ = one_pass(name)

    sites = model_of(name).sites
    for site, explicit in zip(sites, spy.calls[-len(sites) :], strict=True):  # Z-Image's refiners come before
        if not site.reads_text:
            continue
        first = case.first(pixels + (-pixels % 32 if name == "z-image" else 0))
        rows = explicit[:, :, -pixels:] if first == 0 else explicit[:, :, :pixels]
        for position, place in zip(prompt.find("cat"), case.cat, strict=True):
            difference = rows[..., first + place] - maps.layers[site][..., position]
            assert float(difference.abs().max()) < 1e-12
        assert site.joint == (name not in ("pixart", "sana"))
    # A word has what its tokens have in every stream.
    (own,) = model_of(name).guided_sites[:1]
    summed = maps.layers[own][..., list(prompt.find("cat"))].sum(-1).mean(1)
    assert torch.allclose(maps.select(lambda layer: layer is own)["cat"].flatten(1), summed)
    assert tuple(maps["dog"].shape) == (1, height, width)


@every
def test_an_edit_that_changes_nothing_changes_nothing(name):
    plain, _, prompt = one_pass(name, layers=())
    same, _, _ = one_pass(name, lambda layer, p, step: p * 1.0)
    assert torch.equal(plain, same)

    def unmoved(layer, values, step):
        return values * 1.0

    unmoved.injects, unmoved.touches = True, lambda layer, step: layer.joint or not layer.reads_text
    same, _, _ = one_pass(name, unmoved)
    assert torch.equal(plain, same)

    columns = list(prompt.find("cat"))

    def stronger(layer, p, step):
        gains = torch.ones(p.shape[-1], dtype=p.dtype)
        gains[columns] = 3.0
        return p * gains

    edited, _, _ = one_pass(name, stronger)
    assert float((edited - plain).abs().max()) > 1e-5


def test_an_edit_is_that_of_the_whole_matrix():
    # The oracle: the explicit matrix, edited, times the values.
    model = model_of("flux-dev")
    site = model.sites[0]

    def silent(layer, p, step):
        return p * 0.0

    silent.touches = lambda layer, step: layer == site

    class Explicit(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is not F.scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            self.calls += 1
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            query, key, value = given["query"], given["key"], given["value"]
            p = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
            if self.calls == 1:
                own = [place for place in prompt.places if place >= 0]
                p[:, :, 512:, own] = 0
            return p @ value

    prompt = model.prompt(PROMPT)
    expected, _, _ = one_pass("flux-dev", layers=(), within=Explicit())
    edited, _, _ = one_pass("flux-dev", silent, layers=())
    assert float((edited - expected).abs().max()) < 1e-12


@every
def test_guidance_lowers_the_loss(name):
    guidance = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.05, step_rule="relative")
    subjects = {"subjects": ["cat", "dog"], "guidance_scale": 1.0, "steps": 3}
    still = limelight.AttendAndExcite(until=1.0, thresholds={}, scale=0.0, step_rule="relative")
    guided = run(name, guidance=guidance, **subjects)
    plain = run(name, guidance=still, **subjects)
    assert guided.trace[-1]["loss"][0] < plain.trace[-1]["loss"][0]


def test_the_negative_prompt_of_flux_is_read_in_edits_and_stored(tmp_path):
    model, settings = model_of("flux-cfg"), {"steps": STEPS, "height": SIZE[0], "width": SIZE[1], "true_cfg_scale": 4.0}
    edited = limelight.edit(model, PROMPT, "a black frog and a white dog", negative="a frog", **settings)
    result = run("flux-cfg")
    assert float((edited.source.latents - result.latents).abs().max()) < 1e-10
    assert edited.source.settings["true_cfg_scale"] == result.settings["true_cfg_scale"] == 4.0
    assert result.settings["negative"] == "a frog"
    (saved,) = result.save(tmp_path)
    assert torch.equal(limelight.redraw(saved, model).latents, result.latents)
    assert "true_cfg_scale" not in run("flux-dev").settings


@pytest.mark.parametrize("name", ["flux-dev", "sd3.5"])
def test_checkpointing_changes_nothing(name):
    results = [
        run(name, subjects=["cat"], guidance=limelight.AttendAndExcite(until=1, thresholds={}, checkpoint=checkpoint))
        for checkpoint in (False, True)
    ]
    assert float((results[0].latents - results[1].latents).abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["flux-dev", "sd3", "flux2-klein", "lumina2"])
def test_prompt_to_prompt_leaves_the_source(name):
    height, width = CASES[name].size
    model, settings = model_of(name), {"steps": STEPS, "height": height, "width": width}
    target = "a black frogs and a white dog"  # two tokens in some tokenizers
    edited = limelight.edit(model, PROMPT, [target, PROMPT], **settings)
    alone = limelight.generate(model, [PROMPT, target], subjects=None, **settings)
    assert float((edited.source.latents - alone[0].latents).abs().max()) < 1e-10
    changed, same = edited.targets
    assert float((same.latents - alone[0].latents).abs().max()) < 1e-10
    for other in alone:
        assert float((changed.latents - other.latents).abs().max()) > 1e-6


@pytest.mark.parametrize("name", ["flux-dev", "sd3.5", "chroma", "z-image", "pixart", "lumina2"])
def test_self_attention_is_the_sources(name):
    model, (height, width) = model_of(name), CASES[name].size
    settings = {"steps": STEPS, "height": height, "width": width, "cross_steps": 0}
    target = "a black frog and a white dog"
    free, kept = (limelight.edit(model, PROMPT, [target, PROMPT], self_steps=x, **settings) for x in (0, 1.0))
    assert torch.equal(free.source.latents, kept.source.latents)
    difference = free.targets[1].latents - kept.targets[1].latents
    assert float(difference.abs().max()) < 1e-12, "nothing is taken over from an equal run"
    away = [float((x.target.latents - x.source.latents).abs().max()) for x in (free, kept)]
    assert away[0] != away[1] > 0


@pytest.mark.parametrize("name", ["flux-dev", "sd3"])
def test_the_injected_pass_is_that_of_the_sources_queries_and_keys(name):
    from limelight.editing.attention_edits import SelfAttention

    model = model_of(name).for_one_run()
    prompts = [model.prompt(PROMPT), model.prompt("a black frog and a white horse")]
    conditioning = model.prepare(model.encode(prompts), 1.0)
    latents, timestep = model.noise([torch.Generator().manual_seed(s) for s in (0, 1)], *SIZE), model.timesteps(1)[0]
    pixels = slice(0, 96) if name == "sd3" else slice(512, None)

    class Explicit(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is not F.scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            query, key = given["query"].clone(), given["key"].clone()
            for values in (query, key):
                values[1, :, pixels] = values[0, :, pixels]
            return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ given["value"]

    with torch.no_grad(), Explicit():
        expected = model.predict(latents, timestep, conditioning)
    edit = SelfAttention(2, model.guided_scale, range(1))
    with torch.no_grad(), limelight.Probe(model, edits=[edit], images=2) as probe:
        found = model.predict(latents, timestep, conditioning)
        maps = probe.take(latents, conditioning.prompts)
    assert float((found - expected).abs().max()) < 1e-12
    first = maps.layers[model.sites[0]]
    assert not torch.allclose(first[0], first[1]), "maps are recorded before the edit"


def test_linear_self_attention_cannot_be_taken_over():
    model, settings = model_of("sana"), {"steps": 1, "height": 32, "width": 64}
    with pytest.raises(SettingsError, match=r"it is linear, without a softmax\. Leave out self_steps=0.4"):
        limelight.edit(model, PROMPT, PROMPT, self_steps=0.4, **settings)
    edited = limelight.edit(model, PROMPT, "a black frog and a white dog", **settings)
    assert edited.target.settings["self_steps"] == 0


def test_each_stream_is_mapped_by_itself():
    from limelight.editing.attention_edits import refinement, replacement
    from limelight.prompts.prompt import aligned

    model = model_of("sd3")
    source, target = aligned([model.prompt("a cat and a dog"), model.prompt("a qqq and a dog")])
    old, new = source.find("cat"), target.find("qqq")
    assert len(old) == 2 < len(new)
    mapped = replacement(source, target)
    for a, b in zip(source.parts, target.parts, strict=True):
        within = mapped[a.start : a.stop, b.start : b.stop]
        assert within.sum() == len(a)  # every token goes to the same text encoder's
    kept = refinement(source, target)
    for word in ("and", "dog"):
        for i, j in zip(source.find(word), target.find(word), strict=True):
            assert kept[i, j] == 1 == mapped[i, j]
    assert not kept[:, list(new)].any()


def test_t5_reads_as_much_as_its_tokenizer_says():
    """diffusers' own call must be told."""
    pipeline = tiny.sd3()
    pipeline.tokenizer_3 = copy.deepcopy(pipeline.tokenizer_3)
    pipeline.tokenizer_3.model_max_length = 32
    model = limelight.load(pipeline)
    found = model.encode([model.prompt(PROMPT)]).conditional["encoder_hidden_states"]
    options = model.own_options(1.0, "")
    length = options["max_sequence_length"]
    expected = pipeline.encode_prompt(PROMPT, None, None, do_classifier_free_guidance=False, max_sequence_length=length)
    assert torch.allclose(found, expected[0], atol=1e-12)
    assert found.shape[1] == 77 + 32


@pytest.mark.parametrize("name", ["sd3", "qwen-image", "z-image", "lumina2", "krea2"])
def test_a_batch_equals_its_single_images_whatever_the_prompts_lengths(name):
    long = f"{PROMPT} in a red house on the green tree"
    settings = {"steps": 2, "height": CASES[name].size[0], "width": CASES[name].size[1], "subjects": None}
    model = model_of(name)
    together = limelight.generate(model, [PROMPT, long], **settings)
    for prompt, result in zip((PROMPT, long), together, strict=True):
        alone = limelight.generate(model, prompt, **settings)
        assert float((alone.latents - result.latents).abs().max()) < 1e-10
        assert torch.allclose(alone.maps["dog"], result.maps["dog"], atol=1e-10)


def test_the_table_of_features_is_that_of_the_adapters():
    table = features()
    assert [list(row) for row in table.values()] == [list(FEATURES)] * len(FAMILIES)
    assert all(table["Stable Diffusion XL"].values())
    assert [feature for feature, works in table["FLUX.1"].items() if not works] == ["learn"]
    for name in CASES:
        model = model_of(name)
        for feature in FEATURES:
            with nullcontext() if feature in model.can else pytest.raises(ModelError, match=f"'{feature}'"):
                model.require(feature)


def test_an_image_comes_out():
    result = run("flux-dev", subjects="auto", record="all")
    assert result.images[0].size == SIZE[::-1]
    assert result.settings["guidance_scale"] == 3.5
    assert result.settings["negative"] is None
    assert result.steps.mean().select(lambda layer: layer.group == "single")["cat"].shape == (1, 8, 12)


def test_watched_layers_call_the_kernel_that_can_be_watched():
    model = limelight.load(tiny.flux())
    first = model.denoiser.get_submodule(model.sites[0].name).processor
    first._attention_backend = "flex"
    one_pass("flux-dev", model=model, layers=model.sites[:1])
    assert first._attention_backend == "flex"
    other = model.denoiser.get_submodule(model.sites[1].name).processor
    assert "_attention_backend" not in vars(other)


class CausalProcessor:
    """Attention of a kind that no family has."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        values = hidden_states[:, None]
        return F.scaled_dot_product_attention(values, values, values, is_causal=True), encoder_hidden_states


def test_an_attention_call_that_cannot_be_watched_is_named():
    model = limelight.load(tiny.flux())
    model.denoiser.get_submodule(model.sites[0].name).set_processor(CausalProcessor())
    message = r"'transformer_blocks.0.attn' cannot be watched: its processor 'CausalProcessor' uses dropout, causal or"
    with pytest.raises(ProbeError, match=message):
        one_pass("flux-dev", model=model)


def test_keys_are_not_edited_where_texts_of_a_batch_end_at_different_places():
    model, size = model_of("lumina2").for_one_run(), CASES["lumina2"].size
    conditioning = model.encode([model.prompt(PROMPT), model.prompt("a frog")], size=size)
    latents, timestep = model.noise([torch.Generator().manual_seed(s) for s in (0, 1)], *size), model.timesteps(1)[0]

    def doubled(layer, keys, step):
        return keys * 2.0

    doubled.before_softmax = True
    with (
        torch.no_grad(),
        limelight.Probe(model, layers=(), edits=[doubled]),
        pytest.raises(ProbeError, match=r"needs texts of one length.*Generate the prompts one by one"),
    ):
        model.predict(latents, timestep, conditioning)


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("flux-dev", {"negative": "a frog"}, "no negative prompt unless true_cfg_scale is above 1"),
        ("flux-dev", {"true_cfg_scale": 0.5}, "true_cfg_scale=0.5 must be 1"),
        ("flux-dev", {"true_cfg_scale": float("nan")}, "true_cfg_scale"),
        ("sd3", {"true_cfg_scale": 4.0}, r"true_cfg_scale=4.0 .* Set guidance_scale instead"),
        ("flux-schnell", {"guidance_scale": 3.5}, "reads none"),
        ("flux-dev", {"clip_skip": 1}, "clip_skip=1"),
        ("flux-dev", {"height": 34}, "multiples of 4"),
        ("flux-dev", {"eta": 1.0}, "eta=1.0 is DDIM's"),
        ("flux2-dev", {"negative": "a frog"}, "no negative prompt"),
        ("flux2-klein-distilled", {"guidance_scale": 4.0}, "reads none"),
    ],
)
def test_what_a_family_has_not_is_refused(name, options, what):
    with pytest.raises(SettingsError, match=what):
        run(name, **options)


def test_methods_that_do_not_work_are_refused():
    model = model_of("flux-dev")
    with pytest.raises(ModelError, match="'learn' does not work yet"):
        limelight.LearnedWord("<cat>", (torch.zeros(1, 32),)).bind(model).__enter__()
    with pytest.raises(SettingsError, match="no attention layers of pixels alone"):
        run("flux-dev", guidance=limelight.preset("self-cross", model), subjects=["cat"])
    with pytest.raises(SettingsError, match="scheduler='euler'"):
        limelight.load(model.pipeline, scheduler="euler")
    with pytest.raises(ModelError, match="attach"):
        limelight.attach(model_of("sana").pipeline, subjects=["cat"]).__enter__()
