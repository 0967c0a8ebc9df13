"""The head relevance vectors in the package.

`python -m recipes.heads import --authors FOLDER` converts the authors' (sd_v1_4_vectors.npy, sd_v1_4_head_index.npy,
sdxl_vectors.npy, sdxl_head_index.npy). `python -m recipes.heads pocket` counts the embedded model's own; stopped, it
goes on where it was (after a new training, remove the old file first).
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import limelight
from limelight.evaluate.suites import attend_excite
from limelight.heads.counting import Counting, compute
from limelight.heads.relevance import Relevance
from limelight.heads.vocabulary import Concepts

VECTORS = Path(str(files("limelight.heads") / "vectors"))
SOURCE = (
    "Jungwon Park, Jungmin Ko, Dongnam Byun, Jangwon Suh, Wonjong Rhee, 'Cross-Attention Head Position Patterns Can "
    "Align with Human Visual Concepts in Text-to-Image Generative Models', 2024, https://arxiv.org/abs/2412.02237; "
    "https://github.com/SNU-DRL/HRV; converted, counts recovered from the vectors"
)
AUTHORS = {
    "sd-1.4": ("sd_v1_4", "CompVis/stable-diffusion-v1-4"),
    "sdxl": ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
}
CHOICES = 2100 * 51  # prompts x passes: how often every head chose


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["import", "pocket"])
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--prompts", type=int, default=len(attend_excite()), help="spread over the benchmark's")
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    if args.what == "import":
        for name, (stem, model) in AUTHORS.items():
            paths = (args.authors / f"{stem}_{kind}.npy" for kind in ("vectors", "head_index"))
            relevance = Relevance.read_npy(
                *paths,
                Concepts.read("paper").words,
                model=model,
                choices=CHOICES,
                seed=22,
                steps=50,
                guidance_scale=7.5,
                source=SOURCE,
                licence="Apache-2.0",
            )
            print(
                relevance.save(VECTORS / f"{name}.safetensors"), "with counts" if relevance.counts is not None else ""
            )
        return
    prompts = [case.prompt for case in attend_excite()]
    counting = Counting(
        Concepts.read("pocket"),
        tuple(prompts[:: max(len(prompts) // args.prompts, 1)][: args.prompts]),
        batch=args.batch,
    )
    model = limelight.load("pocket", device="cpu")
    out = VECTORS / "pocket.safetensors"
    compute(model, counting, out, on_job=lambda done, of: print(f"{done} of {of} prompts", flush=True))
    print(out)


if __name__ == "__main__":
    main()
