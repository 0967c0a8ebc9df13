"""The pocket CLIP: `python -m recipes.pocket.clip --sprites NOTO.npz --out DIR --steps N --cooldown N --batch 128`

A `CLIPModel` in transformers' own format, trained contrastively on the generator's scenes: Alec Radford et al.,
"Learning Transferable Visual Models From Natural Language Supervision", 2021, https://arxiv.org/abs/2103.00020. Every
scene has a sibling in its batch that differs in one subject or color, so that single words count.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from limelight.evaluate.clip import TEMPLATES

from .parts import tokenizer
from .scenes import SIDE, Composer, Scene, worn
from .training import Run, arguments, precision
from .vae import to_tensor
from .vocabulary import COLORS

LENGTH, WIDTH = 48, 128
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
    """(pixels, token ids) to logits [B, B]."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, pixel_values=pixels).logits_per_image


def siblings(composer: Composer, rng: np.random.Generator) -> list[Scene]:
    """A scene and another that differs in one subject or one color."""
    wanted = composer.choose(rng, 1 if rng.random() < 0.4 else 2)
    changed, i = list(wanted), int(rng.integers(len(wanted)))
    if rng.random() < 0.5:
        changed[i] = composer.choose(rng, 1)[0]
    else:
        changed[i] = (wanted[i][0], str(rng.choice(list(COLORS))))
    return [composer.scene(rng, wanted), composer.scene(rng, changed)]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sprites", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    words = tokenizer(extra=TEMPLATE_WORDS, length=LENGTH)
    composer, run = Composer(args.sprites), Run(Contrast(build(words)), args)
    for step in run.steps():
        rng = np.random.default_rng((args.seed, step, run.rank))
        scenes = [scene for _ in range(run.share // 2) for scene in siblings(composer, rng)]
        captions = [s.caption for s in scenes]
        texts = [str(rng.choice(TEMPLATES)).format(c) if rng.random() < 0.3 else c for c in captions]
        ids = words(texts, padding=True, truncation=True, return_tensors="pt").input_ids.to(args.device)
        pixels = to_tensor([worn(s.pixels, rng) for s in scenes], args.device)
        # Scenes that say the same are each other's right answer.
        said = [frozenset(thing.phrase for thing in s.things) for s in scenes]
        same = torch.tensor([[a == b for b in said] for a in said], device=args.device).float()
        with precision(args), sdpa_kernel([SDPBackend.MATH]):
            logits = run.model(pixels, ids).float()
        right = same / same.sum(1, keepdim=True)
        run.update(-(right * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2)
    if run.rank:
        return
    with run.averaged() as trained:
        trained.model.half().save_pretrained(args.out / "clip")
        processor(words).save_pretrained(args.out / "clip")


if __name__ == "__main__":
    main()
