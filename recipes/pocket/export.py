"""Stage 5: a checkpoint to the folder that is shipped. `python -m recipes.pocket.export --checkpoint C --vae V --out F`

Half-precision safetensors in diffusers' own layout: `StableDiffusionPipeline.from_pretrained(F)` loads it.
"""

from __future__ import annotations

import argparse
import json
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
    for path in args.out.rglob("*.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None):  # where it lay on the machine that trained it
            path.write_text(json.dumps(config, indent=2) + "\n")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
