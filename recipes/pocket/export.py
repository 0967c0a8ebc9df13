"""Stage 5: a checkpoint to the folder that is shipped. `python -m recipes.pocket.export --checkpoint C --vae V --out F`

Half-precision safetensors in diffusers' own layout: `StableDiffusionPipeline.from_pretrained(F)` loads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .parts import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    load_checkpoint(args.checkpoint, args.vae).to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
