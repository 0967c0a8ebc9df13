"""Last stage: what was trained to the folder that is shipped. `python -m recipes.pocket.export --out F ...`

Half-precision safetensors: the generator in diffusers' own layout (`DiffusionPipeline.from_pretrained(F)` loads it),
the CLIP and the captioner in transformers', the detector as one file, and `limelight.json` with the words that the
generator knows and the settings that suit it. What is not named on the command line stays as it is. The transformer has
a folder of its own: `--out F/pocket_dit --transformer CHECKPOINT --weights F/pocket --vae F/pocket/vae`, and so has the
autoencoder of 256 pixels: `--out F/pocket --large FOLDER` writes it to `F/pocket_256`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer

from . import dit
from .parts import by_word, load_checkpoint, text_encoder
from .scenes import OTHER_WORDS
from .vocabulary import COLORS, SUBJECTS

# Found with `bench/pocket.py` on seeds that are not reported, see docs/results.md.
ATTEND_AND_EXCITE = {"scale": 0.1, "step_rule": "relative", "enough": 0.45, "thresholds": {}}
GUIDANCE = {
    "recommended": {"preset": "focus-then-excite"},  # the best one that was measured on the whole benchmark
    "guidance": {"scale": 0.1, "step_rule": "relative"},  # of every other method
    "attend_and_excite": ATTEND_AND_EXCITE,
}
LEARNING = {"textual_inversion": {"steps": 400, "rank_lr": 2e-3}}
TRANSFORMER = {"generate": {"guidance_scale": 4.0}}


def vocabulary() -> list[str]:
    """Every word that the model has seen."""
    return sorted({*OTHER_WORDS, *COLORS, *SUBJECTS})


def keep_numbers(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Give words the numbers that they have in an earlier export that knows each of them."""
    if not (folder / "tokenizer").exists():
        return
    kept, made = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"), pipeline.tokenizer
    if {f"{word}</w>" for word in vocabulary()} <= kept.get_vocab().keys():
        text = text_encoder(kept)
        by_word(pipeline.text_encoder, made, text, kept)
        pipeline.register_modules(text_encoder=text, tokenizer=kept)


def generator(args: argparse.Namespace) -> DiffusionPipeline | None:
    """What was trained, where the command line names it."""
    vae = args.vae or args.out / "vae"
    if args.transformer:
        return dit.assembled(vae, args.weights, args.transformer)
    if args.checkpoint is None:
        return None
    pipeline = load_checkpoint(args.checkpoint, vae)
    keep_numbers(pipeline, args.out)
    return pipeline


def tidy(folder: Path) -> None:
    """Take from the settings where they lay on the machine that trained, let everybody read, and say the size."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        here = [config.pop(key, None) for key in ("_name_or_path", "is_local", "local_files_only")]
        if any(value is not None for value in here):
            path.write_text(json.dumps(config, indent=2) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="of denoiser.py")
    parser.add_argument(
        "--vae", type=Path, help="of --checkpoint or --transformer: the autoencoder's folder; default: the one in --out"
    )
    parser.add_argument("--detect", type=Path, help="detector.safetensors of detector.py")
    parser.add_argument("--clip", type=Path, help="folder of clip.py")
    parser.add_argument("--captioner", type=Path, help="folder of captioner.py")
    parser.add_argument("--transformer", type=Path, help="checkpoint of dit.py, with --weights and --vae")
    parser.add_argument("--weights", type=Path, help="with --transformer: the UNet's pipeline")
    parser.add_argument("--large", type=Path, help="folder of the autoencoder of large.py")
    args = parser.parse_args()
    folders = [args.out]
    pipeline = generator(args)
    if pipeline is not None:
        pipeline.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    if args.detect:
        shutil.copyfile(args.detect, args.out / "detector.safetensors")
    for name in ("clip", "captioner"):
        if getattr(args, name):
            shutil.copytree(getattr(args, name), args.out / name, dirs_exist_ok=True)
    if args.large:
        folders.append(args.out.with_name("pocket_256"))
        AutoencoderKL.from_pretrained(args.large).half().save_pretrained(folders[-1] / "vae")
    about = {"words": vocabulary(), **GUIDANCE, **(TRANSFORMER if args.transformer else LEARNING)}
    (args.out / "limelight.json").write_text(json.dumps(about, indent=1) + "\n")
    for folder in folders:
        tidy(folder)


if __name__ == "__main__":
    main()
