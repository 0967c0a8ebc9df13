"""`limelight calibrate`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..evaluate.suites import load as load_suite
from ..utils.numbers import amount, parse_seeds
from .options import (
    Device,
    Dtype,
    Every,
    ModelName,
    Offload,
    OwnGuidanceScale,
    Quantize,
    Scheduler,
    Seeds,
    Steps,
    Suite,
    loading,
)
from .terminal import bar, console, open_model, say_loading

if TYPE_CHECKING:
    from ..generation.calibrate import Calibration


def calibrate_command(
    model: ModelName = "pocket",
    suite: Suite = "attend-excite",
    every: Every = 23,
    seeds: Seeds = "0",
    quantile: Annotated[
        float, typer.Option(help="Share of the subjects that stay below the threshold.", min=0, max=1)
    ] = 0.7,
    scheduler: Scheduler = None,
    steps: Steps = 50,
    guidance_scale: OwnGuidanceScale = None,
    batch: Annotated[int, typer.Option(help="Most images in one pass.", min=1)] = 4,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
) -> None:
    """Propose thresholds of Attend-and-Excite for a model, from what its better subjects reach without guidance."""
    cases, numbers = load_suite(suite)[::every], parse_seeds(seeds)

    say_loading(model)

    from ..generation.calibrate import calibrate

    opened = open_model(model, device, scheduler, **loading(dtype, quantize, offload))
    with bar("calibrating") as show:
        calibration = calibrate(
            opened,
            [case.prompt for case in cases],
            subjects=[case.subjects or "auto" for case in cases],
            seeds=numbers,
            quantile=quantile,
            steps=steps,
            guidance_scale=guidance_scale,
            batch=batch,
            on_progress=show,
        )

    console.print(_table(calibration, steps))
    console.print(f"Presence of {amount(calibration.subjects, 'subject')}, generated without guidance.")
    console.print("For the limelight.json in the model's folder:")
    console.print(json.dumps(calibration.preset), markup=False, soft_wrap=True)


def _table(calibration: Calibration, steps: int) -> Table:
    """Quantiles of the subjects' presence at each step that has a threshold."""
    from ..guidance.base import step_of

    shares = (0, 0.5, 0.6, 0.7, 0.8, 1)
    table = Table("step", "lowest", *(f"{share:.0%}" for share in shares[1:-1]), "highest", "threshold")
    for key, values in calibration.presence.items():
        cells = [f"{values.quantile(share).item():.3f}" for share in shares]
        table.add_row(str(step_of(key, steps)), *cells, f"{calibration.thresholds[key]:.2f}")
    return table
