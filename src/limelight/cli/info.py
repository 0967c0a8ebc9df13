"""`limelight info`."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import SettingsError
from ..guidance.names import RECOMMENDED
from ..utils.numbers import check_sampling
from .options import (
    Device,
    Dtype,
    GuidanceName,
    Height,
    ModelName,
    Offload,
    Quantize,
    Steps,
    Width,
    loading,
    parse_guidance,
    was_given,
)
from .terminal import console, log, open_model, say_loading

if TYPE_CHECKING:
    from ..generation.requirements import Requirements


def info(
    context: typer.Context,
    model: ModelName = "pocket",
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Count what a guided run will need, from the configuration files alone: memory and work."
        ),
    ] = False,
    guidance: GuidanceName = RECOMMENDED,
    steps: Steps = 50,
    height: Height = None,
    width: Width = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    offload: Offload = None,
) -> None:
    """Show the model, device, dtype and versions in use; or, with --plan, what a guided run of it will need."""
    if plan:
        check_sampling(steps=steps, height=height, width=width)
        if device is not None or offload is not None:
            raise SettingsError(
                "A plan is of a graphics card, with and without offloading. Leave out --device and --offload."
            )
        _plan(model, guidance, (height, width), steps, dtype or "float16", quantize)
        return
    _check_unplanned(context)
    say_loading(model)
    table = Table(show_header=False)
    opened = open_model(model, device, **loading(dtype, quantize, offload))
    for key, value in opened.describe().items():
        table.add_row(key, escape(value))
    if opened.about.words is not None:
        table.add_row("words", escape(" ".join(sorted(opened.about.words))))
    for package in ("limelight", "torch", "diffusers", "transformers"):
        table.add_row(package, version(package))
    table.add_row("python", platform.python_version())
    console.print(table)


def _check_unplanned(context: typer.Context) -> None:
    """Refuse options of a plan where none is made.

    Raises:
        SettingsError: one was given.
    """
    for name in ("guidance", "steps", "height", "width"):
        if was_given(context, name):
            raise SettingsError(f"--{name} is for a plan. Add --plan, or leave it out.")


def _plan(
    model: str,
    guidance: str,
    size: tuple[int | None, int | None],
    steps: int,
    dtype: str,
    quantize: str | None,
) -> None:
    """Print what a guided run will need."""
    log.print(f"counting {escape(model)} ...")

    from ..generation.requirements import required
    from ..models.blueprint import blueprint
    from ..models.memory import check_known
    from ..utils.torch import dtype_of

    check_known(quantize, None)
    opened = blueprint(model, dtype_of(dtype))
    chosen = parse_guidance(opened, guidance)
    if chosen is None:
        raise SettingsError("A plan is of a guided run. Leave out --guidance none.")
    wanted = opened.size_or_own(*size)
    needs = required(opened, chosen, size=wanted, steps=steps, quantize=quantize)
    kept = dtype if quantize is None else f"{dtype}, {quantize} weights"
    console.print(_weights(needs, f"{wanted[0]}x{wanted[1]} pixels, {kept}"))
    console.print(_memory(needs))
    console.print(_work(needs))


def _weights(needs: Requirements, title: str) -> Table:
    table = Table("weights", "GiB", title=title)
    for name, size in needs.weights.items():
        table.add_row(escape(name), _gib(size))
    table.add_row("all", _gib(sum(needs.weights.values())))
    return table


def _memory(needs: Requirements) -> Table:
    """Peak memory with all parts on the graphics card, and with one at a time."""
    table = Table("peak memory in GiB", "all parts on the card", "one at a time (--offload model)")
    rows = {"plain run": needs.step, "guided run": needs.guiding, "guided, checkpointed": needs.checkpointed}
    for name, count in rows.items():
        table.add_row(name, _gib(needs.memory(count)), _gib(needs.memory(count, offload="model")))
    return table


def _work(needs: Requirements) -> Table:
    """The work of passes and of runs, in passes of one image."""
    table = Table("work", "F")
    table.add_row(f"F, a pass of the denoiser: {needs.one.work / 1e12:.3g} TFLOP", "1.00")
    table.add_row("a gradient step", f"{needs.passes(needs.guiding):.2f}")
    table.add_row("a gradient step, checkpointed", f"{needs.passes(needs.checkpointed):.2f}")
    table.add_row(f"a plain run of {needs.steps} steps", f"{needs.plain:.1f}")
    table.add_row(f"a guided run, {needs.guided} of them guided", f"{needs.run:.1f}")
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
