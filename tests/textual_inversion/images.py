"""Images to learn from."""

from __future__ import annotations

import torch
from PIL import Image

TINY = {"token": "<thing>", "init": "cat", "batch": 2, "lr": 0.02, "scale_lr": False}


def patches(count: int = 3, side: int = 32) -> list[Image.Image]:
    random = torch.Generator().manual_seed(5)
    pixels = torch.randint(256, (count, 4, 4, 3), generator=random, dtype=torch.uint8).numpy()
    return [Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC) for p in pixels]
