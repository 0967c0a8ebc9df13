"""The embedded transformer. `torchrun --nproc-per-node 2 -m recipes.pocket.dit --pool P --vae V --weights W ...`

Stable Diffusion 3's layout, small: six blocks of joint attention, width 192, over 64 image tokens, 32 of CLIP and 32 of
T5. CLIP's part is the UNet's own text encoder, twice and frozen; T5 is trained along. Flow matching with noise levels
from a logit-normal distribution: Patrick Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image
Synthesis", 2024, https://arxiv.org/abs/2403.03206

As in `denoiser.py`, the attention of each subject and color word is drawn to its own object (here its tokens of both
streams together), and in some captions all other words know of other colors. What an image position gives all the words
is small beside what it gives other image positions, so a word's share on its own object has a floor as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from limelight.models.stable_diffusion_3 import StableDiffusion3

from .denoiser import EMPTY, GROUNDING, RECOLORED, colors_in, occurrences, stored
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


def trained(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint of this stage, what it leaves when it ends, or what was exported."""
    if path.is_dir():
        t5 = T5EncoderModel.from_pretrained(path / "text_encoder_3", dtype=torch.float32)
        transformer = SD3Transformer2DModel.from_pretrained(path / "transformer", dtype=torch.float32)
        return dict(nn.ModuleDict({"t5": t5, "transformer": transformer}).named_parameters())
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)["average"]


def fill(pipeline: StableDiffusion3Pipeline, weights: dict[str, Tensor]) -> None:
    """Put weights into what is trained here."""
    parts = nn.ModuleDict({"t5": pipeline.text_encoder_3, "transformer": pipeline.transformer})
    with torch.no_grad():
        for name, parameter in parts.named_parameters():
            parameter.copy_(weights[name])


def assembled(vae: Path, weights: Path, checkpoint: Path | None = None) -> StableDiffusion3Pipeline:
    """The pipeline in float32, with what was trained, or untrained.

    Args:
        vae: folder of the autoencoder.
        weights: the UNet's pipeline, whose text encoder is used.
        checkpoint: see `trained`.
    """
    words = tokenizer()
    found = pipeline(AutoencoderKL.from_pretrained(vae, dtype=torch.float32), projected(weights, words), words)
    if checkpoint is not None:
        fill(found, trained(checkpoint))
    return found


@dataclass(frozen=True)
class Batch:
    """What a step reads: latents [B, 4, 16, 16]; token ids of both streams [B, 32], and with other color words; the
    places of grounded words in both streams [B, words, 2], 0 where there is none; their cells [B, words, 64].
    """

    latents: Tensor
    clip: Tensor
    clip_recolored: Tensor
    t5: Tensor
    t5_recolored: Tensor
    places: Tensor
    masks: Tensor


class JointAttention:
    """Joint attention in plain products, which compile to a quarter of the time, and its probabilities.

    Attributes:
        given: what each image position gives each text token, mean over heads [B, 64, 64].
    """

    given: Tensor

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> tuple[Tensor, Tensor]:
        pixels = hidden_states.shape[1]
        ours = [_heads(layer(hidden_states), attn) for layer in (attn.to_q, attn.to_k, attn.to_v)]
        text_layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        theirs = [_heads(layer(encoder_hidden_states), attn) for layer in text_layers]
        queries = torch.cat([attn.norm_q(ours[0]), attn.norm_added_q(theirs[0])], dim=2)
        keys = torch.cat([attn.norm_k(ours[1]), attn.norm_added_k(theirs[1])], dim=2)
        values = torch.cat([ours[2], theirs[2]], dim=2)

        probabilities = (queries @ keys.transpose(2, 3) * attn.scale).softmax(dim=3).to(values.dtype)
        self.given = probabilities[:, :, :pixels, pixels:].mean(dim=1)
        mixed = (probabilities @ values).transpose(1, 2).flatten(2)
        text = mixed[:, pixels:]
        return attn.to_out[0](mixed[:, :pixels]), text if attn.context_pre_only else attn.to_add_out(text)


def _heads(states: Tensor, attn: Attention) -> Tensor:
    return states.unflatten(2, (attn.heads, -1)).transpose(1, 2)


class Denoise(nn.Module):
    """(batch, noisy latents, timesteps) to (velocity, attention [B, 64, tokens])."""

    def __init__(self, model: StableDiffusion3) -> None:
        super().__init__()
        self.t5, self.transformer = model.pipeline.text_encoder_3, model.pipeline.transformer
        self._frozen = [model.pipeline.text_encoder]  # in a list: not ours to train
        self._attention = [JointAttention() for _ in self.transformer.transformer_blocks]
        for block, attention in zip(self.transformer.transformer_blocks, self._attention, strict=True):
            block.attn.processor = attention

    def forward(self, batch: Batch, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        (clip,) = self._frozen
        with torch.no_grad():
            output = clip(torch.cat([batch.clip, batch.clip_recolored]), output_hidden_states=True)
        ours = _mixed(output.hidden_states[-2], batch.clip != batch.clip_recolored).repeat(1, 1, 2)
        theirs = _mixed(self.t5(torch.cat([batch.t5, batch.t5_recolored]))[0], batch.t5 != batch.t5_recolored)
        pooled = output.text_embeds.chunk(2)[1].repeat(1, 2)  # which must not tell the colors, either

        (velocity,) = self.transformer(
            noisy,
            encoder_hidden_states=torch.cat([ours, theirs], dim=1),
            pooled_projections=pooled,
            timestep=timesteps,
            return_dict=False,
        )
        maps = torch.stack([attention.given for attention in self._attention[GROUNDED]]).mean(dim=0)
        return velocity, maps


def _mixed(states: Tensor, colored: Tensor) -> Tensor:
    """The states of the captions' own color words, all other words' from the captions in other colors."""
    own, others = states.chunk(2)
    return torch.where(colored[..., None], own, others)


class Pool:
    """Stored latents with their captions and, for every grounded word, its tokens and its cells."""

    def __init__(self, folder: Path, model: StableDiffusion3) -> None:
        self.latents, self.masks, captions, named, _ = stored(folder)
        texts = ["", *dict.fromkeys(captions)]
        number = {text: i for i, text in enumerate(texts)}
        prompts = [model.prompt(text) for text in texts]
        self.caption = torch.tensor([number[text] for text in captions])
        self.clip = _ids(model.pipeline.tokenizer, texts)
        self.t5 = _ids(model.pipeline.tokenizer_3, texts)
        self.clip_colors = _ids(model.pipeline.tokenizer, list(COLORS))[:, 1]
        self.t5_colors = _ids(model.pipeline.tokenizer_3, list(COLORS))[:, 0]
        self.clip_nouns = _ids(model.pipeline.tokenizer, list(SUBJECTS))[:, 1]
        self.t5_nouns = _ids(model.pipeline.tokenizer_3, list(SUBJECTS))[:, 0]
        self.places = torch.zeros(*self.masks.shape[:2], 2, dtype=torch.int64)
        for i, (text, words) in enumerate(zip(captions, named, strict=True)):
            prompt = prompts[number[text]]
            for j, word in enumerate(occurrences(words)):
                self.places[i, j] = torch.tensor([prompt.places[k] for k in prompt.find(word)])

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
            torch.where(changed, _recolored(clip, self.clip_colors, self.clip_nouns, others), clip),
            t5,
            torch.where(changed, _recolored(t5, self.t5_colors, self.t5_nouns, others), t5),
            self.places[index].masked_fill(dropped[:, None, None], 0),
            self.masks[index].float(),
        )


def _ids(words: CLIPTokenizer | T5Tokenizer, texts: list[str]) -> Tensor:
    """Token ids, padded as the pipeline pads."""
    return torch.tensor(words(texts, padding="max_length", max_length=LENGTH, truncation=True)["input_ids"])


def _recolored(ids: Tensor, colors: Tensor, nouns: Tensor, others: Tensor) -> Tensor:
    """Other color words in place of a caption's, the same in both streams: the first gets the first of `others`."""
    there = colors_in(ids, colors, nouns)
    which = (there.cumsum(dim=1) - 1).clamp(min=0)
    return torch.where(there, colors[others.gather(1, which)], ids)


def grounding_loss(maps: Tensor, places: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """How much of each word's attention lies off its object, squared, and how far it is below the floor on it.

    Args:
        maps: [B, 64, tokens], what image positions give text tokens.
        places: [B, words, 2], 0 where there is none.
        masks: [B, words, 64], the share of each cell that is the object's.
        weight: [B].
    """
    words = places.shape[1]
    index = places.flatten(1)[..., None].expand(-1, -1, maps.shape[1])
    given = maps.transpose(1, 2).gather(1, index).unflatten(1, (words, 2)).sum(2)
    inside, area = (2 * masks).clamp(max=1), masks.sum(-1).clamp(min=1e-6)

    share = (given * inside).sum(-1) / given.sum(-1).clamp(min=1e-6)
    mass = (given * masks).sum(-1) / area
    loss = (1 - share).square() + (1 - mass / FLOOR).clamp(min=0).square()
    there = places[..., 0] > 0
    return (there * weight[:, None] * loss).sum() / there.sum().clamp(min=1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the UNet's pipeline, whose text encoder is used")
    parser.add_argument("--begin", type=Path, help="trained weights to begin with: src/limelight/pocket_dit")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = StableDiffusion3(assembled(args.vae, args.weights, args.begin), "pocket-dit")
    model.pipeline.to(args.device)
    denoise = Denoise(model)
    torch._dynamo.config.optimize_ddp = False  # it splits the graph where attention is read, and the loss is NaN
    denoise.transformer.compile()  # two minutes, and then four times as fast
    pool, run = Pool(args.pool, model), Run(denoise, args, average=0.9995)

    for step in run.steps():
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + 2 * step * run.world + 2 * run.rank)
        batch = pool.batch(run.share, generator)
        batch = Batch(*(x.to(args.device) for x in vars(batch).values()))
        sigma = torch.randn(run.share, generator=generator).sigmoid().to(args.device)
        noise = torch.randn(batch.latents.shape, generator=generator).to(args.device)
        levels = sigma[:, None, None, None]
        noisy = levels * noise + (1 - levels) * batch.latents

        with precision(args):
            velocity, maps = run.model(batch, noisy, 1000 * sigma)
        loss = F.mse_loss(velocity.float(), noise - batch.latents)
        run.update(loss + GROUNDING * grounding_loss(maps.float(), batch.places, batch.masks, 1 - sigma))
    if run.rank == 0:
        half = {name: value.half() for name, value in run.average.items()}
        save_file(half, args.out / "dit.safetensors")


if __name__ == "__main__":
    main()
