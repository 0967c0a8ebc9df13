"""The words the pocket model knows: the subjects and colours of the Attend-and-Excite benchmark."""

from __future__ import annotations

# Subject -> its icon in the Noto set (Apache-2.0). One drawing per subject: a small model learns a few things well.
ANIMALS = {
    "cat": "cat-face",
    "dog": "dog-face",
    "bird": "bird",
    "bear": "bear",
    "lion": "lion",
    "horse": "horse-face",
    "elephant": "elephant",
    "monkey": "monkey-face",
    "frog": "frog",
    "turtle": "turtle",
    "rabbit": "rabbit-face",
    "mouse": "mouse-face",
}
OBJECTS = {
    "backpack": "backpack",
    "glasses": "glasses",
    "crown": "crown",
    "suitcase": "luggage",
    "chair": "chair",
    "balloon": "balloon",
    "bow": "ribbon",
    "car": "automobile",
    "bowl": "bowl-with-spoon",
    "bench": None,  # no icon set has one: drawn below
    "clock": "mantelpiece-clock",
    "apple": "red-apple",
}
SUBJECTS = {**ANIMALS, **OBJECTS}

# The middle of each tint's ramp, sRGB 0-255; dark and light ends are black and white except where that would
# turn the colour into another one.
COLOURS = {
    "red": (214, 30, 36),
    "orange": (245, 130, 20),
    "yellow": (248, 214, 30),
    "green": (44, 160, 60),
    "blue": (40, 90, 215),
    "purple": (125, 50, 175),
    "pink": (245, 120, 180),
    "brown": (125, 75, 38),
    "gray": (128, 128, 132),
    "black": (40, 40, 44),
    "white": (240, 240, 242),
}

BENCH_SVG = """
<g fill="none" stroke="#5d4037" stroke-width="7" stroke-linecap="round">
<path d="M22 66v50M106 66v50M14 78v34M114 78v34"/></g>
<g fill="#a5673f"><rect x="10" y="22" width="108" height="13" rx="4"/>
<rect x="10" y="40" width="108" height="13" rx="4"/></g>
<g fill="#5d4037"><rect x="20" y="20" width="7" height="56"/><rect x="101" y="20" width="7" height="56"/></g>
<g fill="#b97a4e"><rect x="6" y="66" width="116" height="8" rx="3"/>
<rect x="4" y="76" width="120" height="10" rx="4"/></g>
"""
