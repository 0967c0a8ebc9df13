"""The pocket captioner: `python -m recipes.pocket.captioner --sprites NOTO.npz --out DIR --steps N --cooldown N ...`

A `BlipForConditionalGeneration` in transformers' own format, trained on the generator's scenes: Junnan Li et al.,
"BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and Generation", 2022,
https://arxiv.org/abs/2201.12086
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from limelight.evaluate.clip import BEGINNING, Captioner

from .parts import by_word
from .scenes import SIDE, Composer, Thing, worn
from .training import Run, arguments, precision
from .vae import to_tensor
from .vocabulary import COLORS, SUBJECTS

WIDTH = 128
BEGUN = 0.3  # share of captions with the beginning that the authors of Attend-and-Excite gave BLIP


def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "an", "and", *COLORS, *SUBJECTS, *BEGINNING.split()]
    return BertTokenizer(vocab={word: i for i, word in enumerate(dict.fromkeys(words))}, model_max_length=16)


def build(words: BertTokenizer) -> BlipForConditionalGeneration:
    both = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    return BlipForConditionalGeneration(
        BlipConfig(
            text_config={
                **both,
                "vocab_size": len(words),
                "encoder_hidden_size": WIDTH,
                "num_hidden_layers": 2,
                "max_position_embeddings": 16,
                "bos_token_id": words.cls_token_id,
                "sep_token_id": words.sep_token_id,
                "eos_token_id": words.sep_token_id,
                "pad_token_id": words.pad_token_id,
            },
            vision_config={**both, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 16},
        )
    )


def processor(words: BertTokenizer) -> BlipProcessor:
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return BlipProcessor(images, words)


class Caption(nn.Module):
    """(pixels, token ids, mask, whether the beginning is given) to the loss of the next word."""

    def __init__(self, model: BlipForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor, begun: Tensor) -> Tensor:
        given = 1 + len(BEGINNING.split())  # the start token, and words that it is told and never has to say
        unsaid = (mask == 0) | begun[:, None] & (torch.arange(ids.shape[1], device=ids.device) < given)
        labels = ids.masked_fill(unsaid, -100)
        return self.model(pixel_values=pixels, input_ids=ids, attention_mask=mask, labels=labels).loss


def plain_caption(things: tuple[Thing, ...]) -> str:
    """What is in a scene, from left to right: "a red car and an owl"."""
    phrases = [thing.phrase for thing in sorted(things, key=lambda thing: thing.box[0])]
    return " and ".join(f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}" for phrase in phrases)


def report(captioner: Captioner, composer: Composer, count: int, seed: int) -> dict[str, float]:
    """Of fresh scenes of two things, the share whose caption is right to the word, plain and begun as the paper's; of
    the latter those count whose caption is long enough for the paper's ten tokens."""
    rng = np.random.default_rng((seed, 7))
    scenes = [composer.scene(rng, composer.choose(rng, 2)) for _ in range(count)]
    images, truths = [Image.fromarray(s.pixels) for s in scenes], [plain_caption(s.things) for s in scenes]
    plain, begun = (captioner.captions(images, paper) for paper in (False, True))
    long = [i for i, truth in enumerate(truths) if len(truth.split()) >= 6]
    return {
        "plain": sum(map(str.__eq__, plain, truths)) / count,
        "begun": sum(begun[i] == truths[i] for i in long) / len(long),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--begin", type=Path, help="a captioner's folder whose weights to begin with")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    words = tokenizer()
    model = build(words)
    if args.begin:
        by_word(
            BlipForConditionalGeneration.from_pretrained(args.begin),
            BertTokenizer.from_pretrained(args.begin),
            model,
            words,
        )
    composer, run = Composer(args.sprites), Run(Caption(model), args)
    for step in run.steps():
        rng = np.random.default_rng((args.seed, step, run.rank))
        scenes = [composer.scene(rng) for _ in range(run.share)]
        captions = [plain_caption(scene.things) for scene in scenes]
        begun = rng.random(run.share) < BEGUN
        captions = [f"{BEGINNING} {c}" if given else c for c, given in zip(captions, begun, strict=True)]
        texts = words(captions, padding=True, return_tensors="pt").to(args.device)
        pixels = to_tensor([worn(s.pixels, rng) for s in scenes], args.device)
        with precision(args), sdpa_kernel([SDPBackend.MATH]):
            given = torch.from_numpy(begun).to(args.device)
            run.update(run.model(pixels, texts.input_ids, texts.attention_mask, given))
    if run.rank:
        return
    with run.averaged() as trained:
        trained.model.half().save_pretrained(args.out / "captioner")
        processor(words).save_pretrained(args.out / "captioner")
        print(report(Captioner(args.out / "captioner"), composer, 512, args.seed))


if __name__ == "__main__":
    main()
