"""Compare methods on many prompts: draw (`run`), measure (`score`) and show (`report`)."""

from .reporting import report
from .runs import run
from .scoring import score

__all__ = ["report", "run", "score"]
