"""The names of `limelight.preset`. They stand apart so that the command line can list them without torch."""

RECOMMENDED = "recommended"
NAMES = (
    RECOMMENDED,
    "attend-and-excite",
    "attend-and-excite-fast",
    "focus-then-excite",
    "focus",
    "jedi",
    "conform",
    "ebama",
    "syngen",
    "self-cross",
    "initno",
    "overlap",
)
