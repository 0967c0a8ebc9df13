"""The pocket CLIP: `python -m recipes.pocket.clip --sprites NOTO.npz --out DIR --steps N --cooldown N --batch 128`

A `CLIPModel` in transformers' own format, trained contrastively on the generator's scenes: Alec Radford et al.,
"Learning Transferable Visual Models From Natural Language Supervision", 2021, https://arxiv.org/abs/2103.00020. Every
scene has a sibling in its batch that differs in one subject or color, so that single words count. Things that have no
word here come in pairs of scenes that show the same one, which are each other's right answer as in Ting Chen, Simon
Kornblith, Mohammad Norouzi, Geoffrey Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
2020, https://arxiv.org/abs/2002.05709: so images of a thing are alike although nobody named it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from limelight.evaluate.clip import TEMPLATES, Clip

from .parts import by_word, tokenizer
from .scenes import SIDE, Composer, Scene, worn
from .training import Run, arguments, precision
from .vae import to_tensor
from .vocabulary import COLORS

LENGTH, WIDTH = 48, 128
NAMELESS = 0.3  # weight of what has no word
HELD_OUT = 10  # every so many of the nameless things are for the report alone
TEMPLATE_WORDS = tuple(
    dict.fromkeys(" ".join(TEMPLATES).replace("{}", " ").replace(".", " .").replace("-", " - ").split())
)


def build(words: CLIPTokenizer) -> CLIPModel:
    both = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    return CLIPModel(
        CLIPConfig(
            text_config={
                **both,
                "vocab_size": len(words),
                "num_hidden_layers": 2,
                "max_position_embeddings": LENGTH,
                "bos_token_id": words.bos_token_id,
                "eos_token_id": words.eos_token_id,
                "pad_token_id": words.pad_token_id,
            },
            vision_config={**both, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 16},
            projection_dim=WIDTH,
        )
    )


def processor(words: CLIPTokenizer) -> CLIPProcessor:
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return CLIPProcessor(images, words)


class Contrast(nn.Module):
    """(pixels, token ids, pixels of nameless things twice) to logits [B, B] and [things, things]."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor, nameless: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(input_ids=ids, pixel_values=torch.cat([pixels, nameless]))
        known, first, second = output.logits_per_image, *output.image_embeds[len(pixels) :].chunk(2)
        return known[: len(pixels)], first @ second.T * self.model.logit_scale.exp()


def loss_of(logits: Tensor, right: Tensor) -> Tensor:
    """The contrastive loss, both ways."""
    return -(right * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2


def siblings(composer: Composer, rng: np.random.Generator) -> list[Scene]:
    """A scene and another that differs in one subject or one color."""
    wanted = composer.choose(rng, 1 if rng.random() < 0.4 else 2)
    changed, i = list(wanted), int(rng.integers(len(wanted)))
    if rng.random() < 0.5:
        changed[i] = composer.choose(rng, 1)[0]
    else:
        changed[i] = (wanted[i][0], str(rng.choice(list(COLORS))))
    return [composer.scene(rng, wanted), composer.scene(rng, changed)]


def nameless(composer: Composer, things: list[str], count: int, rng: np.random.Generator) -> list[Scene]:
    """Different things without a word, first each once and then each once more; in a third, beside something known."""
    chosen = rng.choice(things, count, replace=False).tolist()
    return [
        composer.scene(rng, [(thing, None), *(composer.choose(rng, 1) if rng.random() < 1 / 3 else ())])
        for thing in chosen * 2
    ]


def report(clip: Clip, composer: Composer, things: list[str], count: int, seed: int) -> dict[str, float]:
    """Of fresh scenes, the share whose caption is the nearest; of new nameless things, that whose other scene is."""
    rng = np.random.default_rng((seed, 7))
    scenes = [composer.scene(rng) for _ in range(count)]
    named = clip.images([Image.fromarray(s.pixels) for s in scenes]) @ clip.texts([s.caption for s in scenes]).T
    first, second = clip.images(
        [Image.fromarray(s.pixels) for s in nameless(composer, things, len(things), rng)]
    ).chunk(2)
    return {
        name: float((x.argmax(1) == torch.arange(len(x))).float().mean())
        for name, x in (("caption", named), ("nameless", first @ second.T))
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--strangers", type=Path, nargs="+", required=True, help="icon sets with things without a word")
    parser.add_argument("--begin", type=Path, help="a CLIP's folder whose weights to begin with")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    words = tokenizer(extra=TEMPLATE_WORDS, length=LENGTH)
    model = build(words)
    if args.begin:
        by_word(CLIPModel.from_pretrained(args.begin), CLIPTokenizer.from_pretrained(args.begin), model, words)
    composer, run = Composer(args.sprites), Run(Contrast(model), args)
    things = composer.add(args.strangers)
    held_out = things[::HELD_OUT]
    things = [thing for thing in things if thing not in held_out]
    for step in run.steps():
        rng = np.random.default_rng((args.seed, step, run.rank))
        scenes = [scene for _ in range(3 * run.share // 8) for scene in siblings(composer, rng)]
        others = nameless(composer, things, run.share // 8, rng)
        captions = [s.caption for s in scenes]
        texts = [str(rng.choice(TEMPLATES)).format(c) if rng.random() < 0.3 else c for c in captions]
        ids = words(texts, padding=True, truncation=True, return_tensors="pt").input_ids.to(args.device)
        pixels, pixels_of_others = (
            to_tensor([worn(s.pixels, rng) for s in part], args.device) for part in (scenes, others)
        )
        # Scenes that say the same are each other's right answer.
        said = [frozenset(thing.phrase for thing in s.things) for s in scenes]
        same = torch.tensor([[a == b for b in said] for a in said], device=args.device).float()
        with precision(args), sdpa_kernel([SDPBackend.MATH]):
            logits, alike = (x.float() for x in run.model(pixels, ids, pixels_of_others))
        own = torch.eye(len(alike), device=args.device)
        run.update(loss_of(logits, same / same.sum(1, keepdim=True)) + NAMELESS * loss_of(alike, own))
    if run.rank:
        return
    with run.averaged() as trained:
        trained.model.half().save_pretrained(args.out / "clip")
        processor(words).save_pretrained(args.out / "clip")
        print(report(Clip(args.out / "clip"), composer, held_out, 256, args.seed))


if __name__ == "__main__":
    main()
