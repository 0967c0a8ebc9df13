"""Last stage: what was trained to the folder that is shipped. `python -m recipes.pocket.export --out F ...`

Half-precision safetensors: the generator in diffusers' own layout (`StableDiffusionPipeline.from_pretrained(F)` loads
it), the CLIP and the captioner in transformers', the detector as one file, and `limelight.json` with the words that the
generator knows and the settings that suit it. What is not named on the command line stays as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from .parts import by_word, load_checkpoint, text_encoder
from .scenes import OTHER_WORDS
from .vocabulary import COLORS, SUBJECTS

# Found with `bench/pocket.py` on seeds that are not reported, see docs/results.md.
ATTEND_AND_EXCITE = {"scale": 0.1, "step_rule": "relative", "enough": 0.45, "thresholds": {}}
PRESETS = {
    "recommended": {"preset": "attend-and-excite"},  # the best one that was measured on the whole benchmark
    "guidance": {"scale": 0.1, "step_rule": "relative"},  # of every other method
    "attend_and_excite": ATTEND_AND_EXCITE,
    "textual_inversion": {"steps": 200},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="of denoiser.py")
    parser.add_argument(
        "--vae", type=Path, help="with --checkpoint: the autoencoder's folder; default: the one in --out"
    )
    parser.add_argument("--detect", type=Path, help="detector.safetensors of detector.py")
    parser.add_argument("--clip", type=Path, help="folder of clip.py")
    parser.add_argument("--captioner", type=Path, help="folder of captioner.py")
    args = parser.parse_args()
    if args.checkpoint:
        pipeline = load_checkpoint(args.checkpoint, args.vae or args.out / "vae")
        if (args.out / "tokenizer").exists():
            kept, made = CLIPTokenizer.from_pretrained(args.out, subfolder="tokenizer"), pipeline.tokenizer
            if kept.get_vocab().keys() == made.get_vocab().keys():  # then words keep their numbers
                text = text_encoder(kept)
                by_word(pipeline.text_encoder, made, text, kept)
                pipeline.register_modules(text_encoder=text, tokenizer=kept)
        pipeline.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    if args.detect:
        shutil.copyfile(args.detect, args.out / "detector.safetensors")
    for name in ("clip", "captioner"):
        if getattr(args, name):
            shutil.copytree(getattr(args, name), args.out / name, dirs_exist_ok=True)
    words = sorted({*OTHER_WORDS, *COLORS, *SUBJECTS})
    about = {"words": words, **PRESETS}
    (args.out / "limelight.json").write_text(json.dumps(about, indent=1) + "\n")
    for path in args.out.rglob("*.json"):
        config = json.loads(path.read_text())
        here = [config.pop(key, None) for key in ("_name_or_path", "is_local", "local_files_only")]
        if any(value is not None for value in here):  # where it lay on the machine that trained it
            path.write_text(json.dumps(config, indent=2) + "\n")
    for path in args.out.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
