"""The embedded transformer. `torchrun --nproc-per-node 2 -m recipes.pocket.dit --pool P --vae V --weights W ...`

Stable Diffusion 3's layout, small: six blocks of joint attention, width 192, over 64 image tokens, 32 of CLIP and 32 of
T5. CLIP's part is the UNet's own text encoder, twice and frozen; T5 is trained along. Flow matching with noise levels
from a logit-normal distribution: Patrick Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image
Synthesis", 2024, https://arxiv.org/abs/2403.03206

As in `denoiser.py`, the attention of each subject and color word is drawn to its own object (here the columns of both
streams together), and in some captions all other words know of other colors. What an image position gives all the words
is small beside what it gives other image positions, so a word's share on its own object has a floor as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from limelight import Probe
from limelight.models.base import Conditioning
from limelight.models.stable_diffusion_3 import StableDiffusion3
from limelight.prompts.prompt import Prompt, aligned

from .denoiser import EMPTY, GROUNDING, RECOLORED, occurrences, stored
from .parts import LENGTH, WIDTH, begin_with, denoiser, text_encoder, tokenizer
from .scenes import OTHER_WORDS
from .training import Run, arguments, precision
from .vocabulary import COLORS, SUBJECTS

JOINT = 2 * WIDTH  # both CLIP encoders side by side, and T5
GROUNDED = slice(1, 4)  # the blocks whose attention is drawn to objects
FLOOR = 0.03  # what an image position gives the word of its object, at least; even attention is 1 / 128


def tokenizer_3() -> T5Tokenizer:
    """One piece for every word of the captions; other words fall into letters."""
    words = [*OTHER_WORDS, *COLORS, *SUBJECTS]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{word}", -6.0) for word in dict.fromkeys(words) if len(word) > 1]
    pieces += [(piece, -12.0) for piece in ("\u2581", *letters, *(f"\u2581{letter}" for letter in letters))]
    return T5Tokenizer(vocab=pieces, model_max_length=LENGTH, extra_ids=0)


def text_encoder_3() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer_3()),
            d_model=JOINT,
            d_kv=32,
            d_ff=JOINT,
            num_layers=2,
            num_heads=4,
            is_encoder_decoder=False,
            dropout_rate=0.0,
        )
    )


def projected(folder: Path, words: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """The UNet's text encoder in `folder`, whose pooled state passes a projection that changes nothing."""
    text = text_encoder(words)
    begin_with(folder, words, text, denoiser())
    config = CLIPTextConfig(**{**text.config.to_dict(), "projection_dim": WIDTH})
    found = CLIPTextModelWithProjection(config)
    found.text_model.load_state_dict(text.text_model.state_dict() if hasattr(text, "text_model") else text.state_dict())
    with torch.no_grad():
        found.text_projection.weight.copy_(torch.eye(WIDTH))
    return found.requires_grad_(False).eval()


def transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=6,
        attention_head_dim=32,
        joint_attention_dim=JOINT,
        caption_projection_dim=192,
        pooled_projection_dim=JOINT,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def pipeline(vae: AutoencoderKL, clip: CLIPTextModelWithProjection, words: CLIPTokenizer) -> StableDiffusion3Pipeline:
    """The untrained pipeline around a frozen autoencoder and text encoder."""
    vae.register_to_config(shift_factor=0.0)
    return StableDiffusion3Pipeline(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=clip,
        tokenizer=words,
        text_encoder_2=clip,
        tokenizer_2=words,
        text_encoder_3=text_encoder_3(),
        tokenizer_3=tokenizer_3(),
    )


@dataclass(frozen=True)
class Batch:
    """What a step reads: latents [B, 4, 16, 16]; token ids of both streams [B, 32], and with other color words; the
    parsed captions; the columns of grounded words in both streams [B, words, 2], 0 where there is none; their cells
    [B, words, 64].
    """

    latents: Tensor
    clip: Tensor
    clip_recolored: Tensor
    t5: Tensor
    t5_recolored: Tensor
    prompts: tuple[Prompt, ...]
    columns: Tensor
    masks: Tensor


class Denoise(nn.Module):
    """(batch, noisy latents, timesteps) to (velocity, attention [B, 64, columns])."""

    def __init__(self, model: StableDiffusion3) -> None:
        super().__init__()
        self.t5, self.transformer = model.pipeline.text_encoder_3, model.pipeline.transformer
        self._frozen = [model, model.pipeline.text_encoder]  # in a list: not ours to train

    def forward(self, batch: Batch, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        model, clip = self._frozen
        with torch.no_grad():
            output = clip(torch.cat([batch.clip, batch.clip_recolored]), output_hidden_states=True)
        ours = _mixed(output.hidden_states[-2], batch.clip != batch.clip_recolored).repeat(1, 1, 2)
        theirs = _mixed(self.t5(torch.cat([batch.t5, batch.t5_recolored]))[0], batch.t5 != batch.t5_recolored)
        pooled = output.text_embeds.chunk(2)[1].repeat(1, 2)  # which must not tell the colors, either

        states = {"encoder_hidden_states": torch.cat([ours, theirs], dim=1), "pooled_projections": pooled}
        with Probe(model, model.text_sites[GROUNDED]) as probe:
            velocity = model.predict(noisy, timesteps, Conditioning(batch.prompts, states))
            maps = probe.take(noisy, batch.prompts).mean().flatten(1, 2)
        return velocity, maps


def _mixed(states: Tensor, colored: Tensor) -> Tensor:
    """The states of the captions' own color words, all other words' from the captions in other colors."""
    own, others = states.chunk(2)
    return torch.where(colored[..., None], own, others)


class Pool:
    """Stored latents with their captions and, for every grounded word, its columns and its cells."""

    def __init__(self, folder: Path, model: StableDiffusion3) -> None:
        self.latents, self.masks, captions, named = stored(folder)
        texts = ["", *dict.fromkeys(captions)]
        number = {text: i for i, text in enumerate(texts)}
        self.prompts = aligned([model.prompt(text) for text in texts])
        self.caption = torch.tensor([number[text] for text in captions])
        self.clip = _ids(model.pipeline.tokenizer, texts)
        self.t5 = _ids(model.pipeline.tokenizer_3, texts)
        self.clip_colors = _ids(model.pipeline.tokenizer, list(COLORS))[:, 1]
        self.t5_colors = _ids(model.pipeline.tokenizer_3, list(COLORS))[:, 0]
        self.columns = torch.zeros(*self.masks.shape[:2], 2, dtype=torch.int64)
        for i, (text, words) in enumerate(zip(captions, named, strict=True)):
            for j, word in enumerate(occurrences(words)):
                self.columns[i, j] = torch.tensor(self.prompts[number[text]].find(word))

    def batch(self, count: int, generator: torch.Generator) -> Batch:
        """Random scenes, some without a caption, some with other colors."""
        index = torch.randint(len(self.latents), (count,), generator=generator)
        dropped = torch.rand(count, generator=generator) < EMPTY
        caption = self.caption[index].masked_fill(dropped, 0)
        changed = torch.rand(count, 1, generator=generator) < RECOLORED
        others = torch.randint(len(COLORS), (count, LENGTH), generator=generator)
        clip, t5 = self.clip[caption], self.t5[caption]
        return Batch(
            self.latents[index].float(),
            clip,
            torch.where(changed, _recolored(clip, self.clip_colors, others), clip),
            t5,
            torch.where(changed, _recolored(t5, self.t5_colors, others), t5),
            tuple(map(self.prompts.__getitem__, caption.tolist())),
            self.columns[index].masked_fill(dropped[:, None, None], 0),
            self.masks[index].float(),
        )


def _ids(words: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> Tensor:
    """Token ids, padded as the pipeline pads."""
    return torch.tensor(words(texts, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"])


def _recolored(ids: Tensor, colors: Tensor, others: Tensor) -> Tensor:
    """Other color words in place of a caption's, the same in both streams: the first gets the first of `others`."""
    there = torch.isin(ids, colors)
    which = (there.cumsum(dim=1) - 1).clamp(min=0)
    return torch.where(there, colors[others.gather(1, which)], ids)


def grounding_loss(maps: Tensor, columns: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """How much of each word's attention lies off its object, squared, and how far it is below the floor on it.

    Args:
        maps: [B, 64, columns].
        columns: [B, words, 2], 0 where there is none.
        masks: [B, words, 64], the share of each cell that is the object's.
        weight: [B].
    """
    words = columns.shape[1]
    index = columns.flatten(1)[..., None].expand(-1, -1, maps.shape[1])
    given = maps.transpose(1, 2).gather(1, index).unflatten(1, (words, 2)).sum(2)
    inside, area = (2 * masks).clamp(max=1), masks.sum(-1).clamp(min=1e-6)

    share = (given * inside).sum(-1) / given.sum(-1).clamp(min=1e-6)
    mass = (given * masks).sum(-1) / area
    loss = (1 - share).square() + (1 - mass / FLOOR).clamp(min=0).square()
    there = columns[..., 0] > 0
    return (there * weight[:, None] * loss).sum() / there.sum().clamp(min=1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the UNet's pipeline, whose text encoder is used")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    words = tokenizer()
    vae = AutoencoderKL.from_pretrained(args.vae, dtype=torch.float32)
    model = StableDiffusion3(pipeline(vae, projected(args.weights, words), words), "pocket-dit")
    model.pipeline.to(args.device)
    pool, run = Pool(args.pool, model), Run(Denoise(model), args, average=0.9995)

    for step in run.steps():
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + 2 * step * run.world + 2 * run.rank)
        batch = pool.batch(run.share, generator)
        batch = Batch(*(x.to(args.device) if isinstance(x, Tensor) else x for x in vars(batch).values()))
        sigma = torch.randn(run.share, generator=generator).sigmoid().to(args.device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(args.device)
        levels = sigma[:, None, None, None]
        noisy = levels * noise + (1 - levels) * batch.latents

        # The fused kernel's backward is slow on CPU at these sizes.
        with precision(args), sdpa_kernel([SDPBackend.MATH]):
            velocity, maps = run.model(batch, noisy, 1000 * sigma)
        loss = F.mse_loss(velocity.float(), noise - batch.latents)
        run.update(loss + GROUNDING * grounding_loss(maps.float(), batch.columns, batch.masks, 1 - sigma))


if __name__ == "__main__":
    main()
