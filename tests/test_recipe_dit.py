"""The recipe of the embedded transformer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from limelight import Probe
from limelight.models.embedded import POCKET
from limelight.models.stable_diffusion_3 import StableDiffusion3
from recipes.pocket import dit

CAPTION = "a red car and a blue dog"


@pytest.fixture(scope="module")
def model() -> StableDiffusion3:
    torch.manual_seed(0)
    return StableDiffusion3(dit.assembled(POCKET / "vae", POCKET), "pocket-dit")


@pytest.fixture(scope="module")
def pool(model, tmp_path_factory) -> dit.Pool:
    folder = tmp_path_factory.mktemp("pool")
    state = {"latents": torch.randn(200, 4, 16, 16), "masks": torch.rand(200, 6, 8, 8)}
    words = [["car", "red", "dog", "blue"], ["cat"]] * 100
    state |= {"captions": [CAPTION, "a cat"] * 100, "words": words, "concepts": [[-1] * len(named) for named in words]}
    torch.save(state, folder / "part-0.pt")
    return dit.Pool(folder, model)


def test_every_word_is_one_token_of_each_stream(model):
    for word in (*dit.OTHER_WORDS, *dit.COLORS, *dit.SUBJECTS):
        if len(word) > 1:
            assert len(model.prompt(f"a {word}").find(word)) == 2, word


def test_the_frozen_text_encoder_is_the_one_of_the_unet(model, pocket):
    """Its pooled state is the projected one of the end token, and the projection changes nothing."""
    theirs = pocket.pipeline.text_encoder
    ids = torch.tensor([pocket.prompt(CAPTION).ids])
    words, known = model.pipeline.tokenizer.get_vocab(), pocket.pipeline.tokenizer.convert_ids_to_tokens(ids[0])
    ours = model.pipeline.text_encoder(torch.tensor([[words[token] for token in known]]), output_hidden_states=True)
    expected = theirs(ids, output_hidden_states=True)
    assert torch.allclose(ours.hidden_states[-2], expected.hidden_states[-2], atol=1e-5)
    assert torch.allclose(ours.text_embeds, expected.pooler_output, atol=1e-5)


def test_colors_change_in_both_streams_alike(model, pool):
    batch = pool.batch(200, torch.Generator().manual_seed(0))
    changed, changed_t5 = batch.clip != batch.clip_recolored, batch.t5 != batch.t5_recolored
    assert set(changed.nonzero()[:, 1].tolist()) == {2, 6}
    assert set(changed_t5.nonzero()[:, 1].tolist()) == {1, 5}
    assert torch.equal(changed[:, 1:7], changed_t5[:, :6])
    row = int(changed.any(dim=1).nonzero()[0])
    spelled = model.pipeline.tokenizer.decode(batch.clip_recolored[row], skip_special_tokens=True)
    assert model.pipeline.tokenizer_3.decode(batch.t5_recolored[row], skip_special_tokens=True) == spelled.strip()


def test_places_are_those_of_the_words(model, pool):
    batch = pool.batch(200, torch.Generator().manual_seed(1))
    texts = model.pipeline.tokenizer.batch_decode(batch.clip, skip_special_tokens=True)
    row, prompt = [text.strip() for text in texts].index(CAPTION), model.prompt(CAPTION)
    assert batch.places[row, 1].tolist() == [prompt.places[k] for k in prompt.find("red")]
    assert not batch.places[[text == "" for text in texts]].any()


def test_training_runs_the_model_that_is_shipped(model, pool):
    """The same velocity and the same attention as the library's own pass and its probe."""
    batch = pool.batch(4, torch.Generator().manual_seed(0))
    noisy, timesteps = torch.randn(batch.latents.shape), torch.tensor([10.0, 300.0, 700.0, 990.0])
    prompts = [
        model.prompt(text) for text in model.pipeline.tokenizer.batch_decode(batch.clip, skip_special_tokens=True)
    ]
    plain = replace(batch, clip_recolored=batch.clip, t5_recolored=batch.t5)
    processors = model.denoiser.attn_processors
    with torch.no_grad():
        encoded = model.encode(prompts, None)
        with Probe(model, model.text_sites[dit.GROUNDED]) as probe:
            expected = model.predict(noisy, timesteps, encoded)
            maps = probe.take(noisy, encoded.prompts).mean()
        velocity, given = dit.Denoise(model)(plain, noisy, timesteps)
    model.denoiser.set_attn_processor(processors)

    assert torch.allclose(velocity, expected, atol=1e-5)
    for image, prompt in enumerate(encoded.prompts):
        for word in {"car", "blue", "cat"} & set(prompt.keys):
            columns = list(prompt.find(word))
            places = [prompt.places[k] for k in columns]
            assert torch.allclose(given[image][:, places], maps[image].flatten(0, 1)[:, columns], atol=1e-6)


def test_what_was_trained_is_loaded_again(model, tmp_path):
    """From a checkpoint, the file that training leaves and what is exported; every weight that is trained is there."""
    weights = {name: torch.rand_like(p) for name, p in dit.Denoise(model).named_parameters() if p.requires_grad}
    torch.save({"average": weights}, tmp_path / "checkpoint.pt")
    save_file(weights, tmp_path / "dit.safetensors")
    for file in ("checkpoint.pt", "dit.safetensors"):
        found = dit.assembled(POCKET / "vae", POCKET, tmp_path / file)
        assert torch.equal(found.transformer.proj_out.weight, weights["transformer.proj_out.weight"])
        assert torch.equal(found.text_encoder_3.get_input_embeddings().weight, weights["t5.shared.weight"])
    found.save_pretrained(tmp_path / "exported")
    again = dit.trained(tmp_path / "exported")
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)

    del weights["t5.shared.weight"]
    with pytest.raises(KeyError, match=r"t5\.shared\.weight"):
        dit.fill(model.pipeline, weights)


def test_grounding_loss_by_hand():
    maps = torch.zeros(1, 64, 5)
    maps[0, :32, 2] = maps[0, 32:, 2] = dit.FLOOR  # half of this word's attention lies on its object
    masks = torch.zeros(1, 2, 64)
    masks[:, 0, :32] = 1.0
    places = torch.tensor([[[2, 3], [0, 0]]])
    one = torch.ones(1)
    assert dit.grounding_loss(maps, places, masks, one).item() == pytest.approx(0.5**2)
    # A third of the floor, in both streams together.
    assert dit.grounding_loss(maps / 3, places, masks, one / 2).item() == pytest.approx((0.5**2 + (2 / 3) ** 2) / 2)
    assert dit.grounding_loss(maps, places * 0, masks, one).item() == 0


def test_a_step_lowers_both_losses(model, pool):
    """On one batch, with its noise, as `main` does it; only T5 and the transformer learn."""
    batch = pool.batch(8, torch.Generator().manual_seed(0))
    denoise = dit.Denoise(model)
    frozen = {name: value.clone() for name, value in model.pipeline.text_encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in denoise.parameters() if p.requires_grad], lr=1e-3)
    noise, sigma = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0)), torch.full((8,), 0.5)
    losses = []
    for _ in range(3):
        velocity, maps = denoise(batch, (noise + batch.latents) / 2, 1000 * sigma)
        flow = (velocity - noise + batch.latents).square().mean()
        grounded = dit.grounding_loss(maps, batch.places, batch.masks, 1 - sigma)
        losses.append((flow.item(), grounded.item()))
        optimizer.zero_grad()
        (flow + grounded).backward()
        optimizer.step()
    assert losses[-1][0] < losses[0][0]
    assert losses[-1][1] < losses[0][1]
    assert all(torch.equal(value, frozen[name]) for name, value in model.pipeline.text_encoder.state_dict().items())
