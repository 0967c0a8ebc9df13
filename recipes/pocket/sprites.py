"""Stage 1: icons to sprites. `python -m recipes.pocket.sprites --icons PATH/icons.json --out sprites.npz`

The icons come from the npm package `@iconify-json/noto` (Apache-2.0): `npm pack @iconify-json/noto`, unpack, and
point `--icons` at `package/icons.json`. Only trained weights go into the Python package, never the artwork.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import cairosvg
import numpy as np
from PIL import Image

from .vocabulary import BENCH_SVG, SUBJECTS

SIDE = 128


def render(body: str, box: int) -> np.ndarray:
    """Draw an SVG body on a transparent square, cropped to its ink. Returns uint8 [SIDE, SIDE, 4]."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} viewBox="0 0 {box} {box}">{body}</svg>'
    png = cairosvg.svg2png(bytestring=svg.encode(), output_width=SIDE * 2, output_height=SIDE * 2)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.crop(image.getbbox())
    scale = SIDE / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE))
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return np.asarray(canvas)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icons", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    icons = json.loads(args.icons.read_text())
    sprites = {}
    for subject, icon in SUBJECTS.items():
        if icon is None:
            sprites[subject] = render(BENCH_SVG, 128)
            continue
        name = icons.get("aliases", {}).get(icon, {}).get("parent", icon)
        sprites[subject] = render(icons["icons"][name]["body"], icons["icons"][name].get("width", icons["width"]))
    np.savez_compressed(args.out, **sprites)
    print(f"{len(sprites)} sprites -> {args.out}")


if __name__ == "__main__":
    main()
