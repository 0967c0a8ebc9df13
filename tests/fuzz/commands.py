"""Command lines: every command with arguments that are odd, out of range or of other kinds.

Accepting means exit code 0, without an error on stderr; values that are out of an option's range must be refused.
"""

from __future__ import annotations

import itertools

LONG = "9" * 5000
NO_NUMBER = ("", " ", "x", "1.5.2", "--", "0x10", "1e", "nan", "inf", "-inf", "1e999", LONG, "\x1b[31m", "1\n2", "½")
NO_COUNT = (*NO_NUMBER, "0", "-1", "1.5", "99999999999", "1e3", "true")
NO_SIDE = (*NO_COUNT, "7", "1048576")
NO_SEEDS = ("", " ", ",", "a", "1-", "-1", "3-1", "0-99999999", "0-9999,10000-19999", "1.5", LONG, str(2**63))
TEXTS = (
    "",
    " ",
    "\x1b]0;title\x07\x1b[31mred",
    "\u202egnp.exe",
    "a cat\x00",
    "a cat\nerror: nothing",
    "cat " * 3000,
    "((((a cat:1.5))))[[]]",
    "[bold]a cat[/bold] [/]",
    "<lora:x:0.8> BREAK a cat --ar 16:9",
    "🐱" * 50,
    "ก็" * 200,
    "e" + "\u0301" * 500,
    "<cat> <|startoftext|> <|endoftext|>",
    "a cat and a dog " + "and " * 500,
    "%s {} {0} $HOME `id`",
    "\ufeffa cat",
    "-1",
)
PLAIN = "--guidance none --steps 1 --height 32 --width 32 --device cpu".split()
ODD_FILES = (
    "nowhere",
    "/dev/zero",
    "/",
    "/proc/self/mem",
    "\x1b[31m.png",
    "a" * 5000,
    "~nowhere/x",
    "pyproject.toml",
)

_COUNTS = {
    "generate": (("generate", "a cat", *PLAIN), ("--steps", "--batch", "--audition")),
    "edit": (("edit", "a red car", "a blue car", "--device", "cpu", "--steps", "1"), ("--steps",)),
    "explain": (("explain", "a cat", *PLAIN), ("--steps",)),
    "calibrate": (("calibrate", "--device", "cpu", "--steps", "1"), ("--steps", "--batch")),
    "compute": (("heads", "compute", "--workers", "1", "--device", "cpu"), ("--steps", "--batch", "--workers")),
    "weaken": (("heads", "weaken", "--device", "cpu"), ("--steps", "--batch")),
    "run": (("evaluate", "run", "--workers", "1", "--device", "cpu"), ("--steps", "--batch", "--workers")),
    "learn": (
        ("learn", "IMAGE", "--token", "<x>", "--device", "cpu"),
        ("--steps", "--batch", "--accumulate", "--size", "--num-vectors"),
    ),
}
# A large number is fine there: all, or never.
_LIMITS = {
    "calibrate": (("calibrate",), ("--every",)),
    "compute": (("heads", "compute", "--workers", "1"), ("--limit",)),
    "weaken": (("heads", "weaken"), ("--every",)),
    "learn": (("learn", "IMAGE", "--token", "<x>"), ("--save-every", "--patience")),
    "show": (("heads", "show", "pocket"), ("--top",)),
}
_NUMBERS = {
    "generate": (("generate", "a cat", *PLAIN), ("--guidance-scale", "--scale", "--until")),
    "edit": (
        ("edit", "a red car", "a blue car", "--steps", "1"),
        ("--guidance-scale", "--self", "--cross", "--reweight"),
    ),
    "calibrate": (("calibrate",), ("--quantile", "--guidance-scale")),
    "compute": (("heads", "compute", "--workers", "1"), ("--guidance-scale",)),
    "weaken": (("heads", "weaken"), ("--factor",)),
    "learn": (("learn", "IMAGE", "--token", "<x>"), ("--lr", "--flip", "--attention")),
    "run": (("evaluate", "run", "--workers", "1"), ("--guidance-scale", "--gpus-per-worker")),
}
_SEEDS = {
    "generate": ("generate", "a cat", *PLAIN),
    "edit": ("edit", "a red car", "a blue car", "--steps", "1"),
    "explain": ("explain", "a cat", *PLAIN),
    "calibrate": ("calibrate",),
    "weaken": ("heads", "weaken"),
    "run": ("evaluate", "run", "--workers", "1"),
}
_FILES = (
    ("edit", "a red car", "a blue car", "--steps", "1", "--image"),
    ("learn", "--token", "<x>", "--steps", "1"),
    ("learn", "IMAGE", "--token", "<x>", "--templates"),
    ("word", "show"),
    ("tokens", "a cat", "--word"),
    ("heads", "show"),
    ("heads", "compute", "--concepts"),
    ("heads", "compute", "--prompts"),
    ("heads", "merge"),
    ("evaluate", "run", "--suite"),
    ("calibrate", "--suite"),
    ("evaluate", "score"),
    ("evaluate", "report"),
    ("info", "--model"),
)
_NAMES = (
    ("generate", "a cat", *PLAIN, "--guidance"),
    ("generate", "a cat", *PLAIN, "--scheduler"),
    ("generate", "a cat", "--steps", "1", "--device"),
    ("generate", "a cat", "--steps", "1", "--height", "32", "--width", "32", "--subjects"),
    ("generate", "a cat", *PLAIN, "--strengthen"),
    ("generate", "a cat", *PLAIN, "--adjust"),
    ("edit", "a red car", "a blue car", "--mode"),
    ("edit", "a red car", "a blue car", "--steps", "1", "--local"),
    ("evaluate", "run", "--workers", "1", "--methods"),
    ("evaluate", "run", "--engine"),
    ("heads", "show", "pocket", "--concepts"),
    ("heads", "weaken"),
    ("heads", "weaken", "--counts"),
    ("heads", "compute", "--part"),
    ("learn", "IMAGE", "--init", "cat", "--token"),
    ("learn", "IMAGE", "--token", "<x>", "--dtype"),
    ("learn", "IMAGE", "--token", "<x>", "--norm"),
    ("learn", "IMAGE", "--token", "<x>", "--fit"),
    (),
)
BAD_NAMES = (
    "\x1b[31mred",
    "[/bold]",
    LONG,
    f"{LONG}/{LONG}",
    "x" * 3000,
    "nothing\nerror: x",
    "plain:scale=" + "[" * 5000,
    "🐱",
)


def _lines() -> list[tuple[bool, tuple[str, ...]]]:
    """Command lines, each with whether it must be refused."""
    turn = itertools.count()

    def some(values: tuple[str, ...], every: int = 4) -> tuple[str, ...]:
        """Other values for each option."""
        return values[next(turn) % every :: every]

    found: list[tuple[bool, tuple[str, ...]]] = []
    for head, options in _COUNTS.values():
        found += [(True, (*head, option, value)) for option in options for value in some(NO_COUNT)]
    for head, options in _LIMITS.values():
        found += [(True, (*head, option, value)) for option in options for value in (*some(NO_NUMBER), "0", "-1")]
    for head, options in _NUMBERS.values():
        found += [(True, (*head, option, value)) for option in options for value in some(NO_NUMBER)]
    for head in _SEEDS.values():
        found += [(True, (*head, "--seeds", value)) for value in some(NO_SEEDS, 2)]
    for side in ("--height", "--width"):
        found += [(True, ("generate", "a cat", "--guidance", "none", "--steps", "1", side, value)) for value in NO_SIDE]
    for head in _FILES:
        found += [(True, (*head, value)) for value in some(ODD_FILES, 2)]
    for head in _NAMES:
        found += [(True, (*head, value)) for value in some(BAD_NAMES, 2)]
    for head in (("tokens",), ("generate", *PLAIN), ("generate", "a cat", *PLAIN, "--negative"), ("edit", "a cat")):
        found += [(False, (*head, text)) for text in some(TEXTS, 2)]
    return found


LINES = _lines()
