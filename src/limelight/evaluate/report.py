"""Methods side by side: one HTML page that needs nothing else, and a Markdown table."""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import FileError, LimelightError, MissingDependency, SettingsError
from ..utils.files import write
from ..utils.images import open_image
from ..utils.statistics import Difference, best_of, compare, mean_of_known
from .metrics import METRICS
from .scoring import Row

CHOSEN_BY = "full_text"  # how the best of several images is chosen: what a person without a detector has
SHOWN, SEEDS = 4, 4  # cases at either end, and images of each
COLUMNS = {"calls": "denoiser calls", "seconds": "seconds"}


@dataclass(frozen=True)
class Line:
    """A row of the table: a method on a subset.

    Attributes:
        means: by name, over its images.
        changes: by name, against the reference; empty for the reference itself.
    """

    method: str
    subset: str
    images: int
    means: Mapping[str, float | None]
    changes: Mapping[str, Difference]


@dataclass(frozen=True)
class Example:
    """A case on which a method changed much.

    Attributes:
        change: of the score that the page names.
        rows: label and images (data URIs) of the reference and of the method.
    """

    case: str
    change: float
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def report(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, reference: str | None = None
) -> Path:
    """Write report.html and report.md.

    Args:
        folders: that were scored. A method that two of them have is named after its folder too.
        out: folder to write into.
        reference: what the methods are compared with; by default "plain" or else the first that is not "source".

    Returns:
        The page's path.

    Raises:
        SettingsError: a folder has no images of the reference.
        FileError: a folder was not scored, or nothing can be written.
        MissingDependency: pyarrow or jinja2 is not installed.
    """
    rows, backbones = _rows([Path(folder) for folder in folders])
    base = _reference(rows, reference)
    names = _measured(rows)
    lines = table(rows, base, names)
    target = next((name for name in ("present", "minimum_object") if name in names), names[0])
    methods = [method for method in _methods(rows) if method != base]
    page = _page(
        lines=lines,
        names=names,
        base=base,
        examples={method: _examples(rows, base, method, target) for method in methods},
        target=METRICS[target].title,
        backbones=backbones,
        folders=[str(folder) for folder in folders],
    )

    out = Path(out)
    write(out / "report.md", _markdown(lines, names, base).encode())
    write(out / "report.html", page.encode())
    return out / "report.html"


def _measured(rows: Sequence[Row]) -> list[str]:
    """The metrics that some image has."""
    return [name for name in METRICS if any(row[name] is not None for row in rows)]


def _methods(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _reference(rows: Sequence[Row], wanted: str | None) -> str:
    """The method that the others are compared with."""
    methods = _methods(rows)
    if wanted is None and "plain" in methods:
        return "plain"
    if wanted is None:
        return next((method for method in methods if method != "source"), methods[0])
    if wanted not in methods:
        raise SettingsError(f"No image is by '{wanted}'. Choose one of: {', '.join(methods)}.")
    return wanted


def table(rows: Sequence[Row], base: str, names: Sequence[str]) -> list[Line]:
    """All methods, and for each that costs more than the reference the best of as many plain images, by subset."""
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    if len(subsets) == 1:
        subsets = []
    matched = _matched(_by_method(rows), base)
    lines = []
    for subset in ["all", *subsets]:
        by = _by_method(row for row in rows if subset in ("all", row["subset"]))
        reference = by.pop(base, [])
        if reference:
            lines.append(_line(base, subset, reference, [], names))
        for method, own in by.items():
            lines.append(_line(method, subset, own, reference, names))
        for method, unit, count in matched:
            label = f"{base}, best of {count:.2f} ({unit} of {method})"
            lines.append(_best_line(label, count, subset, reference, names))
    return lines


def _by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    return found


def _line(method: str, subset: str, own: list[Row], reference: list[Row], names: Sequence[str]) -> Line:
    """A method, and what it changes against the reference, if there is one."""
    changes = {}
    for name in names:
        pairs = _paired(own, reference, name)
        if pairs:
            change = compare([a for a, _ in pairs.values()], [b for _, b in pairs.values()])
            if METRICS[name].lower_is_better:
                change = replace(change, wins=1 - change.wins)
            changes[name] = change
    means = {name: mean_of_known(row[name] for row in own) for name in (*names, *COLUMNS)}
    return Line(method, subset, len(own), means, changes)


def _best_line(label: str, count: float, subset: str, reference: list[Row], names: Sequence[str]) -> Line:
    """The reference's best of `count` images a prompt."""
    cases = list(_by_case(reference).values())
    means: dict[str, float | None] = {}
    changes = {}
    for name in names:
        best, single = _best(cases, name, count)
        means[name] = mean_of_known(best)
        if best:
            changes[name] = compare(best, single)
    for name in COLUMNS:
        one = mean_of_known(row[name] for row in reference)
        means[name] = None if one is None else one * count

    fewest = min((len(own) for own in cases), default=count)
    if fewest < count:
        label += f", but only {fewest:.0f} seeds"
    return Line(label, subset, len(reference), means, changes)


def _best(cases: Sequence[list[Row]], name: str, count: float) -> tuple[list[float], list[float]]:
    """Of each case the value of the best of `count` images, and the mean of all."""
    best, single = [], []
    for own in cases:
        known = [row for row in own if row[name] is not None and row[CHOSEN_BY] is not None]
        if known:
            values = [row[name] for row in known]
            scores = [row[CHOSEN_BY] for row in known]
            best.append(best_of(min(count, len(known)), scores, {"": values})[""])
            single.append(sum(values) / len(values))
    return best, single


def _matched(by: Mapping[str, list[Row]], base: str) -> list[tuple[str, str, float]]:
    """For each method that costs more than the reference, by denoiser calls and by seconds: how many times as much."""
    reference = by.get(base, [])
    if all(row[CHOSEN_BY] is None for row in reference):
        return []

    found = []
    for method, own in by.items():
        if method == "source":  # what is edited is not a rival
            continue
        for name, unit in COLUMNS.items():
            times = _ratio(own, reference, name)
            if times is not None and times > 1.01:
                found.append((method, unit, times))
    return found


def _ratio(own: Iterable[Row], reference: Iterable[Row], name: str) -> float | None:
    """How many times as much a method costs as the reference; None where that is unknown."""
    ours, one = mean_of_known(row[name] for row in own), mean_of_known(row[name] for row in reference)
    return ours / one if ours and one else None


def _paired(own: Iterable[Row], base: Iterable[Row], name: str) -> dict[str, tuple[float, float]]:
    """By case, the means of two methods over the seeds that both have."""
    theirs = {(_case(row), row["seed"]): row[name] for row in base if row[name] is not None}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in own:
        other = theirs.get((_case(row), row["seed"]))
        if other is not None and row[name] is not None:
            found.setdefault(_case(row), []).append((row[name], other))

    means = {}
    for case, pairs in found.items():
        ours, others = zip(*pairs, strict=True)
        means[case] = sum(ours) / len(pairs), sum(others) / len(pairs)
    return means


def _examples(rows: Sequence[Row], base: str, method: str, target: str) -> dict[str, list[Example]]:
    """The cases that a method helped and hurt most; of equal ones those whose CLIP similarity says so too."""
    by = _by_method(rows)
    finer = _paired(by[method], by[base], "minimum_object")
    changes = {case: a - b for case, (a, b) in _paired(by[method], by[base], target).items()}

    def rank(case: str) -> tuple[float, float]:
        a, b = finer.get(case, (0.0, 0.0))
        return changes[case], a - b

    order = sorted(changes, key=rank)
    ends = {
        "best": [case for case in reversed(order[-SHOWN:]) if rank(case) > (0, 0)],
        "worst": [case for case in order[:SHOWN] if rank(case) < (0, 0)],
    }
    rivals = {name: _by_case(by[name]) for name in (base, method)}
    found: dict[str, list[Example]] = {}
    for end, cases in ends.items():
        found[end] = [Example(case, changes[case], _strips(rivals, case)) for case in cases]
    return found


def _strips(rivals: Mapping[str, Mapping[str, list[Row]]], case: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A case by several methods: their images of the first seeds that all have."""
    own = {method: by[case] for method, by in rivals.items()}
    shared = set.intersection(*({row["seed"] for row in rows} for rows in own.values()))
    strips = []
    for method, rows in own.items():
        chosen = [row for row in rows if row["seed"] in shared][:SEEDS]
        strips.append((method, tuple(_thumbnail(Path(row["file"])) for row in chosen)))
    return tuple(strips)


def _rows(folders: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all folders, and the backbones that measured them."""
    if not folders:
        raise SettingsError("A report needs at least one scored folder.")
    parts, backbones = zip(*map(_scores, folders), strict=True)
    used = list(dict.fromkeys(backbones))
    if len(used) > 1:
        raise SettingsError(f"The folders were scored by different backbones: {'; '.join(used)}.")

    counts = Counter(method for rows in parts for method in _methods(rows))
    whole = []
    for folder, rows in zip(folders, parts, strict=True):
        for row in rows:
            if counts[row["method"]] > 1:  # several folders have it
                row = {**row, "method": f"{row['method']} ({folder.name})"}
            whole.append(row)
    return whole, used


def _scores(folder: Path) -> tuple[list[Row], str]:
    """The rows of one folder, and the names of its backbones."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingDependency("A report needs pyarrow. Install it: pip install 'limelight[eval]'.") from error
    if not (folder / "scores.parquet").is_file():
        raise FileError(f"'{folder}' has no scores; run `limelight evaluate score {folder}` first.")
    try:
        rows = parquet.read_table(folder / "scores.parquet").to_pylist()
        used = json.loads((folder / "scores.json").read_text())["backbones"]
    except (ArrowException, OSError, ValueError, KeyError) as error:
        raise FileError(f"The scores in '{folder}' cannot be read: {error}; score it again.") from error

    backbones = ", ".join(f"{name} {value}" for name, value in used.items() if name != "paper")
    if used["paper"]:
        backbones += ", texts as in the paper's script"
    return [{**row, "file": str(folder / row["file"])} for row in rows], backbones


def _markdown(lines: Sequence[Line], names: Sequence[str], base: str) -> str:
    head = ["subset", "method", "images", *(METRICS[name].title for name in names), *COLUMNS.values()]
    text = [_cells(head), _cells(["---"] * len(head))]
    for line in lines:
        values = [shown(line.means[name]) for name in (*names, *COLUMNS)]
        text.append(_cells([_text(line.subset), _text(line.method), str(line.images), *values]))
    text += ["", f"Change against {base}, 95 % interval by bootstrap over prompts, and share of prompts won:", ""]
    head = ["subset", "method", *(METRICS[name].title for name in names)]
    text += [_cells(head), _cells(["---"] * len(head))]
    for line in lines:
        if line.changes:
            text.append(
                _cells([_text(line.subset), _text(line.method), *(changed(line.changes.get(name)) for name in names)])
            )
    return "\n".join(text) + "\n"


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    """Text of a user in a cell of Markdown: on one line, and no character means anything there or in HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))


def shown(value: float | None) -> str:
    """A number as tables have it."""
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def changed(value: Difference | None) -> str:
    """A difference as tables have it."""
    if value is None:
        return ""
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}], {value.wins:.0%}"


def _page(*, lines: Sequence[Line], names: Sequence[str], **facts: Any) -> str:
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise MissingDependency("A report needs jinja2. Install it: pip install 'limelight[eval]'.") from error
    source = (importlib.resources.files("limelight.evaluate") / "templates" / "report.html.jinja").read_text(
        encoding="utf-8"
    )
    overall = [line for line in lines if line.subset == "all" and line.changes]
    charts = {name: _chart(overall, name) for name in names}
    template = Environment(autoescape=True).from_string(source)
    return template.render(
        lines=lines,
        names=names,
        labels={name: metric.title for name, metric in METRICS.items()},
        columns=COLUMNS,
        charts={name: chart for name, chart in charts.items() if chart},
        shown=shown,
        changed=changed,
        **facts,
    )


def _chart(lines: Sequence[Line], name: str) -> list[dict[str, Any]]:
    """Intervals of one score as places on a line, in percent; 50 is no change."""
    known = [(line.method, line.changes[name]) for line in lines if name in line.changes]
    reach = max((max(abs(c.low), abs(c.high)) for _, c in known), default=0.0)
    if not reach:
        return []

    def place(value: float) -> float:
        return round(50 + 48 * value / reach, 2)

    return [
        {"method": m, "low": place(c.low), "high": place(c.high), "mean": place(c.mean), "text": changed(c)}
        for m, c in known
    ]


def _thumbnail(path: Path, side: int = 128) -> str:
    """A small image as a data URI; empty where it cannot be read any more."""
    buffer = io.BytesIO()
    try:
        small = open_image(path)
    except LimelightError:
        return ""
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _case(row: Row) -> str:
    return row["prompt"] if row["source"] is None else f"{row['source']} -> {row['prompt']}"


def _by_case(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_case(row), []).append(row)
    return found
