"""Methods side by side: one HTML page that needs nothing else, and a Markdown table."""

from __future__ import annotations

import base64
import importlib.resources
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import SettingsError
from ..utils.files import write
from ..utils.statistics import Difference, best_of, compare
from .scoring import LESS_IS_BETTER, VALUES, Row

CHOSEN_BY = "full_text"  # how the best of several pictures is chosen: what a person without a detector has
SHOWN, SEEDS = 4, 4  # cases at either end, and pictures of each
COLUMNS = {"calls": "denoiser calls", "seconds": "seconds"}


@dataclass(frozen=True)
class Line:
    """A row of the table: a method on a subset.

    Attributes:
        means: by name, over its pictures.
        changes: by name, against the reference; empty for the reference itself.
    """

    method: str
    subset: str
    pictures: int
    means: Mapping[str, float | None]
    changes: Mapping[str, Difference]


@dataclass(frozen=True)
class Example:
    """A case on which a method changed much.

    Attributes:
        change: of the score that the page names.
        rows: label and pictures (data URIs) of the reference and of the method.
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
        SettingsError: a folder was not scored or has nothing of the reference, or nothing can be written.
    """
    rows, backbones = _rows([Path(folder) for folder in folders])
    methods = list(dict.fromkeys(row["method"] for row in rows))
    drawn = [method for method in methods if method != "source"] or methods
    base = reference or ("plain" if "plain" in methods else drawn[0])
    if base not in methods:
        raise SettingsError(f"No picture is by '{base}'; the methods are {', '.join(methods)}.")
    names = [name for name in VALUES if any(row[name] is not None for row in rows)]
    lines = table(rows, base, names)
    target = next((name for name in ("present", "minimum_object") if name in names), names[0])
    examples = {m: _examples(rows, base, m, target) for m in methods if m != base}
    out = Path(out)
    text = _markdown(lines, names, base)
    page = _page(
        lines=lines,
        names=names,
        base=base,
        examples=examples,
        target=VALUES[target],
        backbones=backbones,
        folders=[str(folder) for folder in folders],
    )
    write(out / "report.md", text.encode())
    write(out / "report.html", page.encode())
    return out / "report.html"


def table(rows: Sequence[Row], base: str, names: Sequence[str]) -> list[Line]:
    """All methods, and for each that costs more than the reference the best of as many plain pictures, by subset."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    matched = _matched({m: [row for row in rows if row["method"] == m] for m in methods}, base)
    lines = []
    for subset in ["all", *subsets] if len(subsets) > 1 else ["all"]:
        own = [row for row in rows if subset in ("all", row["subset"])]
        by = {m: [row for row in own if row["method"] == m] for m in methods}
        for method in [base, *(m for m in methods if m != base)]:
            if by[method]:
                lines.append(_line(method, subset, by[method], by[base], names, is_base=method == base))
        for method, unit, count in matched:
            label = f"{base}, best of {count:.2f} ({unit} of {method})"
            lines.append(_best_line(label, count, subset, by[base], names))
    return lines


def _line(method: str, subset: str, own: list[Row], base: list[Row], names: Sequence[str], is_base: bool) -> Line:
    means = {name: _mean(row[name] for row in own) for name in (*names, *COLUMNS)}
    changes = {}
    for name in () if is_base else names:
        pairs = _paired(own, base, name)
        if pairs:
            change = compare([a for a, _ in pairs.values()], [b for _, b in pairs.values()])
            changes[name] = replace(change, wins=1 - change.wins) if name in LESS_IS_BETTER else change
    return Line(method, subset, len(own), means, changes)


def _best_line(label: str, count: float, subset: str, base: list[Row], names: Sequence[str]) -> Line:
    """The reference's best of `count` pictures a prompt."""
    best: dict[str, list[float]] = {name: [] for name in names}
    single: dict[str, list[float]] = {name: [] for name in names}
    fewest = count
    for own in _by_case(base).values():
        fewest = min(fewest, len(own))
        for name in names:
            known = [row for row in own if row[name] is not None and row[CHOSEN_BY] is not None]
            if known:
                scores, values = [row[CHOSEN_BY] for row in known], [row[name] for row in known]
                best[name].append(best_of(min(count, len(known)), scores, {"": values})[""])
                single[name].append(sum(values) / len(values))
    means: dict[str, float | None] = {name: _mean(best[name]) for name in names}
    for name in COLUMNS:
        one = _mean(row[name] for row in base)
        means[name] = None if one is None else one * count
    if fewest < count:
        label += f", but only {fewest:.0f} seeds"
    changes = {name: compare(best[name], single[name]) for name in names if best[name]}
    return Line(label, subset, len(base), means, changes)


def _matched(by: Mapping[str, list[Row]], base: str) -> list[tuple[str, str, float]]:
    """For each method that costs more than the reference, by denoiser calls and by seconds: how many times as much."""
    found = []
    if any(row[CHOSEN_BY] is not None for row in by.get(base, ())):
        for method in (m for m in by if m != "source"):  # what is edited competes with nobody
            for name, unit in COLUMNS.items():
                ours, one = (_mean(row[name] for row in by[m]) for m in (method, base))
                if ours and one and ours > 1.01 * one:
                    found.append((method, unit, ours / one))
    return found


def _paired(own: Iterable[Row], base: Iterable[Row], name: str) -> dict[str, tuple[float, float]]:
    """By case, the means of two methods over the seeds that both have."""
    theirs = {(_case(row), row["seed"]): row[name] for row in base if row[name] is not None}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in own:
        other = theirs.get((_case(row), row["seed"]))
        if other is not None and row[name] is not None:
            found.setdefault(_case(row), []).append((row[name], other))
    return {
        case: (sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs))
        for case, pairs in found.items()
    }


def _examples(rows: Sequence[Row], base: str, method: str, target: str) -> dict[str, list[Example]]:
    """The cases that a method helped and hurt most; of equal ones those whose CLIP similarity says so too."""
    own, theirs = ([row for row in rows if row["method"] == m] for m in (method, base))
    finer = _paired(own, theirs, "minimum_object")
    changes = {case: a - b for case, (a, b) in _paired(own, theirs, target).items()}

    def rank(case: str) -> tuple[float, float]:
        a, b = finer.get(case, (0.0, 0.0))
        return changes[case], a - b

    order = sorted(changes, key=rank)
    ends = {
        "best": [case for case in reversed(order[-SHOWN:]) if rank(case) > (0, 0)],
        "worst": [case for case in order[:SHOWN] if rank(case) < (0, 0)],
    }
    cases = {m: _by_case(part) for m, part in ((base, theirs), (method, own))}
    found: dict[str, list[Example]] = {}
    for end, names in ends.items():
        found[end] = []
        for case in names:
            shared = {row["seed"] for row in cases[base][case]} & {row["seed"] for row in cases[method][case]}
            strips = []
            for m in (base, method):
                chosen = [row for row in cases[m][case] if row["seed"] in shared][:SEEDS]
                strips.append((m, tuple(_thumbnail(Path(row["file"])) for row in chosen)))
            found[end].append(Example(case, changes[case], tuple(strips)))
    return found


def _rows(folders: Sequence[Path]) -> tuple[list[Row], list[str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise SettingsError("A report needs the extra 'eval'; run pip install 'limelight[eval]'.") from error
    if not folders:
        raise SettingsError("A report needs at least one scored folder.")
    parts, backbones = [], []
    for folder in folders:
        if not (folder / "scores.parquet").is_file():
            raise SettingsError(f"'{folder}' has no scores; run `limelight evaluate score {folder}` first.")
        try:
            own = parquet.read_table(folder / "scores.parquet").to_pylist()
            used = json.loads((folder / "scores.json").read_text())["backbones"]
        except (ArrowException, OSError, ValueError, KeyError) as error:
            raise SettingsError(f"The scores in '{folder}' cannot be read: {error}; score it again.") from error
        parts.append([{**row, "file": str(folder / row["file"])} for row in own])
        backbones.append(", ".join(f"{name} {value}" for name, value in used.items() if name != "paper"))
        backbones[-1] += ", texts as in the paper's script" if used["paper"] else ""
    seen: dict[str, int] = {}
    for own in parts:
        for method in {row["method"] for row in own}:
            seen[method] = seen.get(method, 0) + 1
    for folder, own in zip(folders, parts, strict=True):
        for row in own:
            row["method"] += f" ({folder.name})" if seen[row["method"]] > 1 else ""
    if len(set(backbones)) > 1:
        raise SettingsError(f"The folders were scored by different backbones: {'; '.join(dict.fromkeys(backbones))}.")
    return [row for own in parts for row in own], list(dict.fromkeys(backbones))


def _markdown(lines: Sequence[Line], names: Sequence[str], base: str) -> str:
    head = ["subset", "method", "pictures", *(VALUES[name] for name in names), *COLUMNS.values()]
    text = [_cells(head), _cells(["---"] * len(head))]
    for line in lines:
        values = [shown(line.means[name]) for name in (*names, *COLUMNS)]
        text.append(_cells([line.subset, line.method, str(line.pictures), *values]))
    text += ["", f"Change against {base}, 95 % interval by bootstrap over prompts, and share of prompts won:", ""]
    head = ["subset", "method", *(VALUES[name] for name in names)]
    text += [_cells(head), _cells(["---"] * len(head))]
    for line in lines:
        if line.changes:
            text.append(_cells([line.subset, line.method, *(changed(line.changes.get(name)) for name in names)]))
    return "\n".join(text) + "\n"


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


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
        raise SettingsError("A report needs the extra 'eval'; run pip install 'limelight[eval]'.") from error
    source = (importlib.resources.files("limelight.evaluate") / "templates" / "report.html.jinja").read_text(
        encoding="utf-8"
    )
    overall = [line for line in lines if line.subset == "all" and line.changes]
    charts = {name: _chart(overall, name) for name in names}
    template = Environment(autoescape=True).from_string(source)
    return template.render(
        lines=lines,
        names=names,
        labels=VALUES,
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
    """A small picture as a data URI; empty where it is not there any more."""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, SyntaxError, ValueError):
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


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
