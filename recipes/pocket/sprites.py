"""Stage 1: icons to sprites. `python -m recipes.pocket.sprites --icons PATH/icons.json --out sprites.npz`

The icons are those of the npm packages `@iconify-json/...`: `npm pack @iconify-json/noto`, unpack, and point `--icons`
at `package/icons.json`. The generator learns one set (Noto), the detector others. Only trained weights go into the
Python package, never the artwork.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from .drawings import BENCH, OWN
from .vocabulary import DRAWN, LONE_VIEWS, STRANGERS

SIDE = 128


def render(body: str, box: int, side: int = SIDE) -> np.ndarray:
    """Draw an SVG body on a transparent square, cropped to its ink. Returns uint8 [side, side, 4]."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} width="{box}" height="{box}" viewBox="0 0 {box} {box}">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * side, height=2 * side, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    image = image.crop(image.getbbox())
    scale = side / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--icons", type=Path, help="an icon set; without it, the project's own drawings for the detector"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lone", action="store_true", help="only what the detector is to learn of the generator's set")
    parser.add_argument("--strangers", action="store_true", help="also things that have no word, for the detector")
    parser.add_argument("--side", type=int, default=SIDE, help="pixels of a sprite's side: 256 for `large.py`")
    args = parser.parse_args()
    if args.icons is None:
        own = {
            f"{subject}~{i}": render(svg, 128, args.side)
            for subject, drawn in OWN.items()
            for i, svg in enumerate(drawn)
        }
        np.savez_compressed(args.out, **own)
        print(f"{len(own)} sprites -> {args.out}")
        return
    icons = json.loads(args.icons.read_text())
    sprites, missing = {}, []
    drawn = {name: DRAWN[name] for name in LONE_VIEWS} if args.lone else DRAWN
    wanted = {**drawn, **({f"({name})": name for name in STRANGERS} if args.strangers else {})}
    for subject, icon in wanted.items():
        name = icons.get("aliases", {}).get(icon, {}).get("parent", icon)
        if icon is None:
            if not args.strangers:  # the detector has benches of its own
                sprites[subject] = render(BENCH, 128, args.side)
        elif name in icons["icons"]:
            drawing = icons["icons"][name]
            sprites[subject] = render(drawing["body"], drawing.get("width", icons["width"]), args.side)
        else:
            missing.append(subject)
    np.savez_compressed(args.out, **sprites)
    print(f"{len(sprites)} sprites -> {args.out}" + (f"; not in this set: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
