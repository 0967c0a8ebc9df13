"""What guidance did to each image, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..guidance.base import limits_of, step_of

_LITTLE = 0.25
"""A presence, and a share of the strongest subject's attention: a missing subject of the embedded model has less."""


def sentences(
    trace: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    names: Sequence[Any],
    peaks: Sequence[Sequence[float]] = (),
) -> tuple[str, ...]:
    """One sentence per seed, see `limelight.generation.result.Result.sentences`.

    Args:
        trace, settings, seeds: of a result.
        names: its subjects.
        peaks: for each image the largest attention to each subject in the mean over the run, 0..1, where it is known.
    """
    if not trace:
        return ()

    found = []
    for i, seed in enumerate(seeds):
        acted, doubtful = _acted(trace, settings, i, names)
        end = _end(names, peaks[i], doubtful) if peaks else ""
        found.append(f"seed {seed}: {acted}{end}")
    return tuple(found)


def measured(
    trace: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], index: int
) -> tuple[Mapping[str, Any], ...]:
    """The rows of a trace that were measured for an image: of one that stays plain all of them repeat a single one."""
    plain = trace[0].get("plain_presence")
    if plain is None or any(row["presence"][index] != plain[index] for row in trace):
        return tuple(trace)
    at = step_of(settings["guidance"]["look"], settings["steps"])
    return (next((row for row in trace if row["step"] == at), {**trace[0], "step": at}),)


def _acted(
    trace: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], index: int, names: Sequence[Any]
) -> tuple[str, bool]:
    """What guidance did to one image, and whether that leaves open if all subjects are there."""
    if "plain_presence" not in trace[0]:
        row = trace[-1]
        # Of most methods the presence is the noun's alone: in the place of a red car "red" may get more than "car".
        doubtful = min(row["presence"][index], default=1.0) < _LITTLE
        return f"{_listed(names, row['presence'][index])} at step {row['step'] + 1}", doubtful

    guidance = settings["guidance"]
    limits = limits_of(guidance["enough"], guidance["targets"])
    at = step_of(guidance["look"], settings["steps"])
    plain = _at(trace[0], index, "plain_")
    guided = next((_at(row, index) for row in trace if row["step"] == at), None)
    acted = _change(plain, guided, limits, names, at + 1)
    return acted, acted.endswith("not yet fixed")


def _end(names: Sequence[Any], peaks: Sequence[float], doubtful: bool) -> str:
    """What the whole run says of the finished image, where that is another thing than what was seen early."""
    most = max(peaks)
    weak = [f"{name} {peak:.2f}" for name, peak in zip(names, peaks, strict=True) if peak < _LITTLE * most]
    if weak:
        return f"; perhaps missing: {', '.join(weak)} in the mean over the run, of up to {most:.2f}"
    return "; in the end none seems to be missing" if doubtful else ""


def _listed(names: Sequence[Any], values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in zip(names, values, strict=True))


def _at(row: Mapping[str, Any], index: int, start: str = "") -> dict[str, Any]:
    """The presence and the parts of the score of one image, by their names without `start`."""
    found = {}
    for name in ("presence", "neglect", "mixing", "binding", "outside"):
        if start + name in row:
            found[name] = row[start + name][index]
    return found


def _change(
    plain: Mapping[str, Any],
    guided: Mapping[str, Any] | None,
    limits: Mapping[str, float],
    names: Sequence[Any],
    at: int,
) -> str:
    """What was wrong with the plain image, and what became of it by the same step."""
    if not _wrong(plain, limits):
        return f"nothing to fix at step {at} ({_listed(names, plain['presence'])})"

    before = _values(plain, names)
    shown = _shown(plain, limits, names)
    if guided is None:
        return f"{', '.join(f'{name} {before[name]:.2f}' for name in shown)} without guidance at step {at}"

    after = _values(guided, names)
    changes = ", ".join(f"{name} {before[name]:.2f} -> {after[name]:.2f}" for name in shown)
    return f"{changes} at step {at}, {'not yet fixed' if _wrong(guided, limits) else 'fixed'}"


def _values(found: Mapping[str, Any], names: Sequence[Any]) -> dict[str, float]:
    """The presence of each subject and the parts of the score, by name."""
    parts = {name: value for name, value in found.items() if name != "presence"}
    return {**parts, **dict(zip(map(str, names), found["presence"], strict=True))}


def _shown(plain: Mapping[str, Any], limits: Mapping[str, float], names: Sequence[Any]) -> list[str]:
    """The subjects that are neglected, and the other parts of the score that are wrong."""
    wrong, least = _wrong(plain, limits), 1 - limits.get("neglect", 0.0)
    weak = [str(name) for name, value in zip(names, plain["presence"], strict=True) if value < least]
    if "neglect" in wrong and weak:
        wrong.remove("neglect")
        return weak + wrong
    return wrong


def _wrong(values: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """The parts of a score that are above their limits."""
    return [name for name, value in values.items() if name != "presence" and value > limits.get(name, 0.0)]
