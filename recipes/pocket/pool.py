"""Stage 3: scenes to stored latents. `python -m recipes.pocket.pool --sprites S --vae DIR/vae --out FOLDER --count N`

Composing and encoding cost as much as a fifth of a training step, so a pool of scenes is encoded once. Several
processes may fill one folder: give each its own `--part`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from .scenes import Composer, Scene
from .training import FULL, precision
from .vae import to_tensor
from .vocabulary import CONCEPTS, concept_of


def grounded(scene: Scene) -> Iterator[tuple[str, int, np.ndarray]]:
    """Every subject and color word of a scene, its concept, and the cells of its own object."""
    for thing, mask in zip(scene.things, scene.masks, strict=True):
        yield thing.word, concept_of(thing.subject), mask
        if thing.color:
            yield thing.color, list(CONCEPTS).index("Color"), mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of part-*.pt files")
    parser.add_argument("--count", type=int, required=True, help="scenes in this part")
    parser.add_argument("--part", type=int, default=0, help="number of this part, which is its seed as well")
    parser.add_argument("--full", action="store_true", help=FULL)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.vae, dtype=torch.float32).to(args.device)
    composer, rng = Composer(args.sprites), np.random.default_rng((1, args.part))
    latents, captions, words, concepts, masks = [], [], [], [], []
    for _ in range(0, args.count, 64):
        scenes = [composer.scene(rng) for _ in range(64)]
        with torch.no_grad(), precision(args):
            mean = vae.encode(to_tensor([s.pixels for s in scenes], args.device)).latent_dist.mean
        latents.append((mean.float() * vae.config.scaling_factor).half().cpu())
        captions += [s.caption for s in scenes]
        for scene in scenes:
            own_words, own_concepts, own_masks = zip(*grounded(scene), strict=True)
            words.append([*own_words])
            concepts.append([*own_concepts])
            padded = np.zeros((6, 8, 8), dtype=np.float16)  # three subjects with a color each
            padded[: len(own_masks)] = own_masks
            masks.append(torch.from_numpy(padded))
    args.out.mkdir(parents=True, exist_ok=True)
    state = {"latents": torch.cat(latents), "captions": captions, "masks": torch.stack(masks)}
    state |= {"words": words, "concepts": concepts}
    torch.save(state, args.out / f"part-{args.part}.pt")
    print(f"{len(captions)} scenes -> {args.out}/part-{args.part}.pt")


if __name__ == "__main__":
    main()
