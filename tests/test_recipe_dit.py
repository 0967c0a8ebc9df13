"""The recipe of the embedded transformer."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from limelight.models.embedded import POCKET
from limelight.models.stable_diffusion_3 import StableDiffusion3
from recipes.pocket import dit, parts

CAPTION = "a red car and a blue dog"


@pytest.fixture(scope="module")
def model() -> StableDiffusion3:
    torch.manual_seed(0)
    words = parts.tokenizer()
    vae = AutoencoderKL.from_pretrained(POCKET / "vae", dtype=torch.float32)
    return StableDiffusion3(dit.pipeline(vae, dit.projected(POCKET, words), words), "pocket-dit")


@pytest.fixture(scope="module")
def pool(model, tmp_path_factory) -> dit.Pool:
    folder = tmp_path_factory.mktemp("pool")
    state = {"latents": torch.randn(200, 4, 16, 16), "masks": torch.rand(200, 6, 8, 8)}
    words = [["car", "red", "dog", "blue"], ["cat"]] * 100
    torch.save({**state, "captions": [CAPTION, "a cat"] * 100, "words": words}, folder / "part-0.pt")
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


def test_columns_are_those_of_the_words(model, pool):
    batch = pool.batch(200, torch.Generator().manual_seed(1))
    row = next(i for i, prompt in enumerate(batch.prompts) if prompt.text == CAPTION)
    assert batch.columns[row, 1].tolist() == list(batch.prompts[row].find("red"))
    assert not batch.columns[[prompt.text == "" for prompt in batch.prompts]].any()


def test_grounding_loss_by_hand():
    maps = torch.zeros(1, 64, 5)
    maps[0, :32, 2] = maps[0, 32:, 2] = dit.FLOOR  # half of this word's attention lies on its object
    masks = torch.zeros(1, 2, 64)
    masks[:, 0, :32] = 1.0
    columns = torch.tensor([[[2, 3], [0, 0]]])
    one = torch.ones(1)
    assert dit.grounding_loss(maps, columns, masks, one).item() == pytest.approx(0.5**2)
    # A third of the floor, in both streams together.
    assert dit.grounding_loss(maps / 3, columns, masks, one / 2).item() == pytest.approx((0.5**2 + (2 / 3) ** 2) / 2)
    assert dit.grounding_loss(maps, columns * 0, masks, one).item() == 0


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
        grounded = dit.grounding_loss(maps, batch.columns, batch.masks, 1 - sigma)
        losses.append((flow.item(), grounded.item()))
        optimizer.zero_grad()
        (flow + grounded).backward()
        optimizer.step()
    assert losses[-1][0] < losses[0][0]
    assert losses[-1][1] < losses[0][1]
    assert all(torch.equal(value, frozen[name]) for name, value in model.pipeline.text_encoder.state_dict().items())
