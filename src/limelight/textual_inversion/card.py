"""The card and the curves of a training."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from .config import TrainingConfig

if TYPE_CHECKING:
    from .folder import Report, Row

_CARD = """---
base_model: {about[model]}
tags:
- textual_inversion
- limelight
---

# {token}

A word for `{about[model]}`, learned by [textual inversion](https://arxiv.org/abs/2208.01618) with limelight
{about[versions][limelight]}.

![{token}]({preview})

From above: {listed}; [previews](previews) has the same seeds of every save. On the command line, in Python and in
diffusers (`FOLDER` is this one):

    limelight generate "{prompts[0]}" --word FOLDER

```python
with limelight.LearnedWord.load("FOLDER").bind(model):
    limelight.generate(model, "{prompts[0]}")
```

    pipe.load_textual_inversion("FOLDER"){lora}

| | |
|---|---|
| began as | {begun} |
| vectors | {count} of {widths} numbers{changes} |
| training | {steps} steps of {images} images each, learning rate {rate:g}{stopped} |
| error on fixed noise | {held} |
| cosine to what it began as | {last.cosine:.3f} |
| length | {last.norm:.2f} times that of what it began as |

{summary}
"""


def card(report: Report, preview: str, prompts: Sequence[str]) -> str:
    """Write the README.md of a learned word's folder."""
    about, last = report.word.about, report.rows[-1]
    config = TrainingConfig(**about["config"])
    first, final, best = report.held[0].held, report.held[-1].held, report.best
    return _CARD.format(
        about=about,
        token=report.word.token,
        preview=preview,
        prompts=prompts,
        listed=", ".join(f'"{prompt}"' for prompt in prompts),
        begun=f"'{config.init}'" if config.init else "other vectors",
        count=len(report.word.vectors[0]),
        widths=" and ".join(str(v.shape[1]) for v in report.word.vectors),
        changes=f"; changes of rank {config.rank} in the denoiser" if config.rank else "",
        lora='\n    pipe.load_lora_weights("FOLDER")  # changes all images a little there' if config.rank else "",
        steps=last.step,
        images=config.batch * config.accumulate,
        rate=config.rate,
        stopped=f"; ended early, the word is that of step {best.step}" if report.stopped else "",
        held=f"{first:.4f} at first, {final:.4f} at last, least {best.held:.4f} after {best.step} steps",
        last=last,
        summary=summary(report),
    )


def summary(report: Report) -> str:
    """Say in a sentence whether anything was learned, and what to watch."""
    last, first, best = report.rows[-1], report.held[0], report.best
    assert first.held is not None  # those rows are measured ones
    assert best.held is not None
    if last.step == 0:
        return "Nothing is learned yet."
    if best.held > 0.98 * first.held:
        return "It fits the images no better than what it began as: more steps, or a larger learning rate."
    said = f"It fits the images better than what it began as by {1 - best.held / first.held:.0%}"
    if last.norm > 3:
        return said + ", and is so long that it may drown other words: norm keep, or a smaller learning rate."
    last_held = report.held[-1]
    if last_held.held is not None and last_held.held > 1.05 * best.held:
        return said + f", best at step {best.step}; later steps are in `steps/` to compare."
    return said + "."


def curve(rows: Sequence[Row]) -> Image.Image | None:
    """Plot the errors, and cosine and length of the vectors, over the steps; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None

    figure = Figure(figsize=(7.6, 5.2), dpi=100, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _plot_errors(above, rows)
    steps = [row.step for row in rows]
    below.plot(steps, [row.cosine for row in rows], color="#009E73", label="cosine to the beginning")
    below.plot(steps, [row.norm for row in rows], color="#CC79A7", label="length, 1 at the beginning")
    below.set_xlabel("steps")
    for axes in (above, below):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Image.open(buffer)


def _plot_errors(axes: Any, rows: Sequence[Row]) -> None:
    """Plot the error of each step, its running mean, and the error on fixed noise."""
    losses = {row.step: row.loss for row in rows if row.loss is not None}
    held = {row.step: row.held for row in rows if row.held is not None}
    window = max(len(losses) // 20, 1)

    axes.plot(list(losses), list(losses.values()), color="#d0d7de", linewidth=0.8)
    means = _running_mean(list(losses.values()), window)
    axes.plot(list(losses), means, color="#0072B2", label=f"of a step, mean of {window}")
    axes.plot(list(held), list(held.values()), "o-", color="#D55E00", label="on fixed noise")
    axes.set_ylabel("mean squared error")


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """For each value the mean of it and those before it, at most `window` in all."""
    return [sum(values[max(i - window + 1, 0) : i + 1]) / min(i + 1, window) for i in range(len(values))]
