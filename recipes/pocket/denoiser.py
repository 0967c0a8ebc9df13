"""Stage 4: text encoder and denoiser. `torchrun --nproc-per-node 2 -m recipes.pocket.denoiser --pool P --vae V ...`

Velocity prediction; the weights of the noise levels follow Tiankai Hang et al., "Efficient Diffusion Training via
Min-SNR Weighting Strategy", 2023, https://arxiv.org/abs/2303.09556, with a floor so that layout is learned, too. The
attention of each subject and color word is drawn to its own object as in Zirui Wang et al., "TokenCompose:
Text-to-Image Diffusion with Token-level Supervision", 2023, https://arxiv.org/abs/2312.03626: a word's map must
mean something before guidance can use it.

A text encoder tells a noun's state the color before it, and the states behind a word that word, and a denoiser that
finds it there never looks at the word itself. So in most captions all other states come from the same caption with
other colors, or other nouns: what a word says is then to be had at the word alone, where attention shows it and edits
reach it.

One head of each layer is for each of eight kinds of things (`CONCEPTS`): as in the models of Jungwon Park et al.,
"Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in Text-to-Image Generative Models", 2024,
https://arxiv.org/abs/2412.02237, where that came about by itself, a word of two meanings is then read by other heads in
each of them. That a head looks at a word does not yet make the image depend on it: so of some of the words that are to
be had nowhere else, the own head is turned up and others are turned down, and what the own head reads has to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from limelight import Probe
from limelight.models.stable_diffusion import StableDiffusion

from . import parts
from .training import Run, arguments, precision
from .vocabulary import COLORS, CONCEPTS, HARD, SENSES, SUBJECTS, word_of

EMPTY = 0.1  # share of captions dropped, for classifier-free guidance
GROUNDING = 0.05
CONCENTRATION = 0.1
OWN_HEAD = 0.7  # share of a word's attention that its concept's head is to have
TURNED, LOUDEST, LOWEST = 0.25, 16.0, -8.0  # share of images with heads turned up and down, as far as `adjust` does
AMBIGUOUS = {word_of(name) for name in SENSES}
RECOLORED, RENAMED = 0.5, 0.4  # shares of captions whose other words know of other colors, or of other nouns


class Denoise(nn.Module):
    """(noisy latents, timesteps, token ids) to (velocity, 8 x 8 cross-attention [B, layers, heads, 64, tokens]).

    `reworded` are the ids with other colors or nouns: the states of all words but these are those of that caption.
    `gains` [B, heads, tokens] are those of the heads of every layer on the words, as an edit's.
    """

    def __init__(self, model: StableDiffusion) -> None:
        super().__init__()
        self.text, self.unet = model.pipeline.text_encoder, model.pipeline.unet
        self._model = [model]  # in a list: its modules are already ours
        self._layers = [layer for layer in model.sites if layer.kind == "cross" and layer.scale == model.guided_scale]

    def forward(
        self, latents: Tensor, timesteps: Tensor, ids: Tensor, reworded: Tensor, gains: Tensor
    ) -> tuple[Tensor, Tensor]:
        own, others = self.text(torch.cat([ids, reworded]))[0].chunk(2)
        states = torch.where((ids != reworded)[..., None], own, others)
        with Probe(self._model[0], self._layers, edits=[lambda _, maps, __: maps * gains[:, :, None]]) as probe:
            velocity = self.unet(latents, timesteps, states, return_dict=False)[0]
            maps = torch.stack(list(probe.take(latents, ()).layers.values()), dim=1)
        return velocity, maps


def stored(folder: Path) -> tuple[Tensor, Tensor, list[str], list[list[str]], list[list[int]]]:
    """What `pool.py` wrote: latents, cells of the grounded words [scenes, words, 64], captions, those words and their
    concepts."""
    states = [torch.load(path, weights_only=True) for path in sorted(folder.glob("part-*.pt"))]
    latents, masks = (torch.cat([state[name] for state in states]) for name in ("latents", "masks"))
    captions, words, concepts = (
        list(chain.from_iterable(state[name] for state in states)) for name in ("captions", "words", "concepts")
    )
    return latents, masks.flatten(2), captions, words, concepts


def occurrences(words: Sequence[str]) -> Iterator[str]:
    """Which occurrence of a word each is: of "a red car and a red bow" the second red is red#2."""
    seen: dict[str, int] = {}
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        yield f"{word}#{seen[word]}"


def colors_in(ids: Tensor, colors: Tensor, nouns: Tensor) -> Tensor:
    """Which of the tokens [captions, tokens] is a color: one that stands before a noun, for "orange" may be either."""
    return torch.isin(ids, colors) & torch.isin(ids.roll(-1, dims=1), nouns)


def _weight(words: Sequence[str]) -> float:
    """How often a scene is drawn: by its nouns, see `HARD`, more often where one is white, and sixteen times where
    nothing decides between two meanings."""
    nouns = [word for word in words if word in SUBJECTS]
    if {*nouns} <= AMBIGUOUS:
        return 16.0
    return sum(HARD.get(noun, 1) for noun in nouns) / len(nouns) * (1.5 if "white" in words else 1)


class Pool:
    """Stored latents with token ids and, for every grounded word, its token position and its cells."""

    def __init__(self, folder: Path, model: StableDiffusion) -> None:
        self.latents, self.masks, captions, words, concepts = stored(folder)
        parsed = {text: model.prompt(text) for text in set(captions)}
        self.ids = torch.tensor([parsed[text].ids for text in captions])
        self.weights = torch.tensor([_weight(named) for named in words])
        self.positions = torch.zeros(self.masks.shape[:2], dtype=torch.int64)
        self.concepts = torch.zeros_like(self.positions)
        for row, kinds in zip(self.concepts, concepts, strict=True):
            row[: len(kinds)] = torch.tensor(kinds)
        for i, (text, named) in enumerate(zip(captions, words, strict=True)):
            for j, word in enumerate(occurrences(named)):
                self.positions[i, j] = parsed[text].find(word)[0]
        self.empty = torch.tensor(model.prompt("").ids)
        self.colors, self.nouns = (
            torch.tensor([model.prompt(word).ids[1] for word in words]) for words in (COLORS, SUBJECTS)
        )

    def batch(self, count: int, generator: torch.Generator, device: str) -> tuple[Tensor, ...]:
        """Latents, ids, ids with other colors or nouns, positions of words, their concepts, their cells."""
        index = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        ids, positions = self.ids[index], self.positions[index]
        dropped = torch.rand(count, generator=generator) < EMPTY
        ids = torch.where(dropped[:, None], self.empty, ids)
        positions = positions.masked_fill(dropped[:, None], 0)
        colored, chance = colors_in(ids, self.colors, self.nouns), torch.rand(count, 1, generator=generator)
        named = torch.isin(ids, self.nouns) & ~colored
        recolored = colored & (chance < RECOLORED)
        renamed = named & (chance > 1 - RENAMED)  # not both: a noun's own state tells its color
        others = [
            words[torch.randint(len(words), ids.shape, generator=generator)] for words in (self.colors, self.nouns)
        ]
        reworded = torch.where(recolored, others[0], torch.where(renamed, others[1], ids))
        batch = self.latents[index].float(), ids, reworded, positions, self.concepts[index], self.masks[index].float()
        return tuple(x.to(device) for x in batch)


def turned_heads(positions: Tensor, concepts: Tensor, heads: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Gains of heads on words, [B, heads, tokens]: in some images the own head's up to `LOUDEST`, and of each other
    head with even chance 1 or down to `LOWEST`.

    Args:
        positions: [B, words], 0 where there is none.
        concepts: [B, words], which head is a word's own.
        heads, tokens: how many there are.
    """
    chances = torch.rand(4, *positions.shape, heads, generator=generator).to(positions.device)
    own = concepts[..., None] == torch.arange(heads, device=positions.device)
    lower = torch.where(chances[0] < 0.5, 1.0, 1 + (LOWEST - 1) * chances[1])
    gains = torch.where(own, 1 + (LOUDEST - 1) * chances[2], lower)
    turned = (positions > 0) & (chances[3, :, :1, 0] < TURNED)
    gains = torch.where(turned[..., None], gains, 1.0).transpose(1, 2)
    full = torch.ones(len(positions), heads, tokens, device=positions.device)
    return full.scatter(2, positions[:, None].expand_as(gains), gains)


def grounding_loss(maps: Tensor, positions: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """How much of each word's attention lies off its object, squared.

    maps [B, heads, 64, tokens]; positions [B, words], 0 where there is none; masks [B, words, 64]; weight [B].
    """
    columns = columns_of(maps, positions).mean(dim=1)
    inside = (columns * (2 * masks).clamp(max=1)).sum(-1) / columns.sum(-1).clamp(min=1e-6)
    counted = (positions > 0) * weight[:, None]
    return (counted * (1 - inside).square()).sum() / (positions > 0).sum().clamp(min=1)


def columns_of(maps: Tensor, positions: Tensor) -> Tensor:
    """What each head gives each word, [B, heads, words, 64]."""
    index = positions[:, None, :, None].expand(-1, maps.shape[1], -1, maps.shape[2])
    return maps.transpose(2, 3).gather(2, index)


def concentration_loss(maps: Tensor, positions: Tensor, concepts: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """How far the head of each word's concept is from having its share of what a layer's heads give the word on its
    object.

    Arguments as of `grounding_loss`; concepts [B, words].
    """
    given = (columns_of(maps, positions) * masks[:, None]).sum(-1)
    own = given.gather(1, concepts[:, None])[:, 0] / given.sum(1).clamp(min=1e-6)
    counted = positions > 0
    return (counted * weight[:, None] * (OWN_HEAD - own).clamp(min=0)).sum() / counted.sum().clamp(min=1)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="a pipeline whose text encoder and denoiser to begin with")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    words = parts.tokenizer()
    text, unet = parts.text_encoder(words), parts.denoiser()
    if args.weights:
        parts.begin_with(args.weights, words, text, unet)
    pipeline = parts.pipeline(AutoencoderKL.from_pretrained(args.vae, dtype=torch.float32), words, text, unet)
    model = StableDiffusion(pipeline, "pocket")
    pool, run = Pool(args.pool, model), Run(Denoise(model), args, average=0.9995)
    alphas = pipeline.scheduler.alphas_cumprod.to(args.device)
    for step in run.steps():
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + 2 * step * run.world + 2 * run.rank)
        latents, ids, reworded, positions, concepts, masks = pool.batch(run.share, generator, args.device)
        timesteps = torch.randint(len(alphas), (run.share,), generator=generator).to(args.device)
        noise = torch.randn(latents.shape, generator=generator).to(args.device)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        # The fused kernel's backward is slow on CPU at these sizes.
        with precision(args), sdpa_kernel([SDPBackend.MATH]):
            alone = (ids != reworded).gather(1, positions)
            gains = turned_heads(positions * alone, concepts, len(CONCEPTS), ids.shape[1], generator)
            velocity, maps = run.model(noisy, timesteps, ids, reworded, gains)
        snr = (alpha / (1 - alpha)).flatten()
        error = F.mse_loss(velocity.float(), target, reduction="none").mean(dim=(1, 2, 3))
        loss = (error * snr.clamp(0.25, 5) / (snr + 1)).mean()
        maps, weight = maps.float(), alpha.flatten().sqrt()
        grounding = grounding_loss(maps.mean(dim=1), positions, masks, weight)
        layers = maps.unbind(dim=1)
        apart = sum(concentration_loss(layer, positions, concepts, masks, weight) for layer in layers) / len(layers)
        run.update(loss + GROUNDING * grounding + CONCENTRATION * apart)


if __name__ == "__main__":
    main()
