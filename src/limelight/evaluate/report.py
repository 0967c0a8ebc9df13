"""Methods side by side: one HTML page that needs nothing else, and a Markdown table."""

from __future__ import annotations

import importlib.resources
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..errors import FileError, LimelightError, MissingDependency, SettingsError
from ..utils.files import write
from ..utils.html import data_url, rendered
from ..utils.images import open_image
from ..utils.reading import Record, from_json, from_python, reading
from ..utils.statistics import Difference, best_of, compare
from .metrics import METRICS
from .rows import Row, by_subset, column, grouped, mean
from .scoring import SCORES
from .store import digest, read_facts

CHOSEN_BY = "full_text"  # how the best of several images is chosen: what a person without a detector has
SHOWN, SEEDS = 4, 4  # cases at either end, and images of each
PAGE = importlib.resources.files("limelight.evaluate") / "templates" / "report.html.jinja"
REPORTS = ("report.md", "report.html")
COLUMNS = {"calls": "denoiser calls", "seconds": "seconds"}
TITLES = {name: metric.title for name, metric in METRICS.items()}


@dataclass(frozen=True)
class Line:
    """A row of the table: a method on a subset.

    Attributes:
        means: by name, over its images; those of `COLUMNS` come last.
        changes: by name, against the reference; empty for the reference itself.
        fixed: how many of its images are right where the reference's of the same seed is not; None where no detector
            looked, or there is nothing to compare with.
        broken: how many are not where the reference's is.
    """

    method: str
    subset: str
    images: int
    means: Mapping[str, float | None]
    changes: Mapping[str, Difference]
    fixed: int | None = None
    broken: int | None = None


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
    """Write report.html and report.md. Written again, they take the place of a report of the same folders alone.

    Args:
        folders: that were scored. A method that two of them have is named after its folder too.
        out: folder to write into.
        reference: what the methods are compared with; by default "plain" or else the first that is not "source".

    Returns:
        The page's path.

    Raises:
        SettingsError: a folder has no images of the reference.
        FileError: a folder was not scored, nothing can be written, or a report of other folders is there.
        MissingDependency: pyarrow or jinja2 is not installed.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> from limelight.evaluate.scoring import score
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a cat").mkdir()
        >>> Image.new("RGB", (64, 64)).save(folder / "a cat" / "0.png")
        >>> _ = score(folder, {"clip": "none", "captioner": "none", "detector": "pocket"}, workers=1)
        >>> report([folder], folder).name
        'report.html'
    """
    out = Path(out)
    rows, backbones = scored_rows(list(map(Path, folders)))
    base = _reference(rows, reference)
    about = digest([[os.path.relpath(folder, out) for folder in folders], base])
    for file in REPORTS:
        _check_free(out / file, about)

    names = [name for name in METRICS if column(rows, name)]
    lines = table(rows, base, names)
    target = _target(names)
    facts = {str(folder): _facts(Path(folder), rows) for folder in folders}
    page = _page(
        lines=lines,
        names=names,
        base=base,
        examples=_examples(rows, base, target),
        target=TITLES[target],
        backbones=backbones,
        facts=facts,
        about=about,
    )
    text = f"{_facts_markdown(facts)}\n{_markdown(lines, names, base)}\n<!-- {about} -->\n"

    write(out / "report.md", text.encode())
    write(out / "report.html", page.encode())
    return out / "report.html"


def _check_free(path: Path, about: str) -> None:
    """Refuse to replace a report of other folders, or another file of this name."""
    if not path.exists():
        return
    with reading(path, "a report", "remove it"):
        there = about in path.read_text(encoding="utf-8")
    if not there:
        raise FileError(
            f"'{path}' is of other folders, or compares with another method. Choose another folder with out, on the "
            "command line --out, or remove it."
        )


_method = itemgetter("method")


def _case(row: Row) -> str:
    return row["prompt"] if row["source"] is None else f"{row['source']} -> {row['prompt']}"


def _target(names: Sequence[str]) -> str:
    """The score by which the examples are chosen."""
    for name in ("present", "minimum_object"):
        if name in names:
            return name
    return names[0]


def _reference(rows: Sequence[Row], wanted: str | None) -> str:
    """The method that the others are compared with."""
    methods = list(grouped(rows, _method))
    if wanted is None and "plain" in methods:
        return "plain"
    if wanted is None:
        return next((method for method in methods if method != "source"), methods[0])
    if wanted not in methods:
        raise SettingsError(f"No image is by '{wanted}'. Choose one of: {', '.join(methods)}.")
    return wanted


def table(rows: Sequence[Row], base: str, names: Sequence[str]) -> list[Line]:
    """All methods, and for each that costs more than the reference the best of as many plain images, by subset."""
    subsets = by_subset(rows)
    if len(subsets) == 2:  # the one subset is the whole
        subsets = {"all": rows}
    matched = _matched(grouped(rows, _method), base)
    lines = []
    for subset, part in subsets.items():
        by = grouped(part, _method)
        reference = by.pop(base, [])
        if reference:
            lines.append(_line(base, subset, reference, [], names))
        for method, own in by.items():
            lines.append(_line(method, subset, own, reference, names))
        for method, unit, count in matched:
            label = f"{base}, best of {count:.2f} ({unit} of {method})"
            lines.append(_best_line(label, count, subset, reference, names))
    return lines


def _line(method: str, subset: str, own: list[Row], reference: list[Row], names: Sequence[str]) -> Line:
    """A method, and what it changes against the reference, if there is one."""
    changes = {}
    for name in names:
        pairs = _paired(own, reference, name)
        if pairs:
            ours, theirs = zip(*pairs.values(), strict=True)
            change = compare(ours, theirs)
            if METRICS[name].lower_is_better:
                change = replace(change, wins=1 - change.wins)
            changes[name] = change
    means = {name: mean(own, name) for name in (*names, *COLUMNS)}
    return Line(method, subset, len(own), means, changes, *_turned(own, reference))


def _right(row: Row) -> bool | None:
    """Whether an image shows all that is wanted, each in its color; None where no detector looked."""
    if row["success"] is None:
        return None
    return row["success"] == 1 and row["binding"] in (None, 1)


def _turned(own: Iterable[Row], reference: Iterable[Row]) -> tuple[int | None, int | None]:
    """How many images a method fixed, and how many it broke."""
    before = {(_case(row), row["seed"]): _right(row) for row in reference}
    pairs = [(before.get((_case(row), row["seed"])), _right(row)) for row in own]
    known = [pair for pair in pairs if None not in pair]
    if not known:
        return None, None
    return known.count((False, True)), known.count((True, False))


def _best_line(label: str, count: float, subset: str, reference: list[Row], names: Sequence[str]) -> Line:
    """The reference's best of `count` images a prompt."""
    cases = list(grouped(reference, _case).values())
    means: dict[str, float | None] = {}
    changes = {}
    for name in names:
        best, single = _best(cases, name, count)
        means[name] = None
        if best:
            means[name] = sum(best) / len(best)
            changes[name] = compare(best, single)
    for name in COLUMNS:
        one = mean(reference, name)
        if one is not None:
            one *= count
        means[name] = one

    fewest = min(map(len, cases), default=count)
    if fewest < count:
        label += f", but only {fewest:.0f} seeds"
    return Line(label, subset, len(reference), means, changes)


def _best(cases: Sequence[list[Row]], name: str, count: float) -> tuple[list[float], list[float]]:
    """Of each case the value of the best of `count` images, and the mean of all."""
    best, single = [], []
    for own in cases:
        own = [row for row in own if row[CHOSEN_BY] is not None and row[name] is not None]
        if own:
            values = column(own, name)
            best.append(best_of(min(count, len(own)), column(own, CHOSEN_BY), {"": values})[""])
            single.append(sum(values) / len(values))
    return best, single


def _matched(by: Mapping[str, list[Row]], base: str) -> list[tuple[str, str, float]]:
    """For each method that costs more than the reference, by denoiser calls and by seconds: how many times as much."""
    reference = by.get(base, [])
    if not column(reference, CHOSEN_BY):
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
    ours, one = mean(own, name), mean(reference, name)
    if not ours or not one:
        return None
    return ours / one


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


def _examples(rows: Sequence[Row], base: str, target: str) -> dict[str, dict[str, list[Example]]]:
    """For each method the cases that it helped ("best") and hurt ("worst") most."""
    by = grouped(rows, _method)
    reference = by.pop(base)
    return {method: _ends({base: reference, method: own}, target) for method, own in by.items()}


def _ends(rivals: Mapping[str, list[Row]], target: str) -> dict[str, list[Example]]:
    """The cases that the second of two methods helped and hurt most; of equal ones those where CLIP says so too."""
    base, own = rivals.values()
    finer = _paired(own, base, "minimum_object")
    changes = {case: a - b for case, (a, b) in _paired(own, base, target).items()}

    def rank(case: str) -> tuple[float, float]:
        a, b = finer.get(case, (0.0, 0.0))
        return changes[case], a - b

    order = sorted(changes, key=rank)
    base_cases, own_cases = grouped(base, _case), grouped(own, _case)

    def example(case: str) -> Example:
        strips = _strips(base_cases[case], own_cases[case])
        return Example(case, changes[case], tuple(zip(rivals, strips, strict=True)))

    return {
        "best": [example(case) for case in reversed(order[-SHOWN:]) if rank(case) > (0, 0)],
        "worst": [example(case) for case in order[:SHOWN] if rank(case) < (0, 0)],
    }


def _strips(*rivals: Sequence[Row]) -> list[tuple[str, ...]]:
    """A case by several methods: their images of the first seeds that all have."""
    shared = set.intersection(*(set(column(rows, "seed")) for rows in rivals))
    strips = []
    for rows in rivals:
        files = [row["file"] for row in rows if row["seed"] in shared]
        strips.append(tuple(map(_thumbnail, map(Path, files[:SEEDS]))))
    return strips


def scored_rows(folders: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of all folders, and the backbones that measured them."""
    if not folders:
        raise SettingsError("A report needs at least one scored folder.")
    parts, backbones = zip(*map(_scores, folders), strict=True)
    used = list(dict.fromkeys(backbones))
    if len(used) > 1:
        raise SettingsError(f"The folders were scored by different backbones: {'; '.join(used)}.")

    counts = Counter[str]()
    for rows in parts:
        counts.update(set(map(_method, rows)))
    whole = []
    for folder, rows in zip(folders, parts, strict=True):
        for row in rows:
            if counts[row["method"]] > 1:  # several folders have it
                row = {**row, "method": f"{row['method']} ({folder.name})"}
            whole.append(row)
    return whole, used


def _facts(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    """What the images of a folder were generated with, as far as it says so, by name."""
    own = [row for row in rows if Path(row["file"]).is_relative_to(folder)]
    there = read_facts(folder) or {"methods": {}}
    settings = [method["settings"] for method in there["methods"].values()]
    calls = there.get("about", [])

    found = {
        "suite": _unique(calls, "suite"),
        "prompts": str(len(set(map(_case, own)))),
        "seeds": _unique(own, "seed"),
        "model": _unique(settings, "model"),
        "steps": _unique(settings, "steps"),
        "scheduler": _unique([method["scheduler"] for method in settings], "class"),
        "guidance scale": _unique(settings, "guidance_scale"),
        "versions": _unique([{"versions": text} for text in _versions(settings)], "versions"),
        "command": _unique(calls, "command", "; "),
    }
    return {name: text for name, text in found.items() if text}


def _versions(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    texts = []
    for method in settings:
        texts += [f"{name} {value}" for name, value in method["versions"].items()]
    return texts


def _unique(rows: Iterable[Mapping[str, Any]], name: str, between: str = ", ") -> str:
    """The values of a column, each once, in their order, as text."""
    values = [str(row[name]) for row in rows if row.get(name) is not None]
    return between.join(dict.fromkeys(values))


def _facts_markdown(facts: Mapping[str, Mapping[str, str]]) -> str:
    lines = []
    for folder, values in facts.items():
        lines.append(f"- {_text(folder)}: " + "; ".join(f"{name} {_text(value)}" for name, value in values.items()))
    return "\n".join(lines) + "\n"


class _Backbones(Record):
    paper: bool


class _Summary(Record):
    """What is used of scores.json."""

    backbones: _Backbones


def _scores(folder: Path) -> tuple[list[Row], str]:
    """The rows of one folder, and the names of its backbones."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("A report needs pyarrow. Install it: pip install 'limelight[eval]'.") from error
    if not (folder / "scores.parquet").is_file():
        raise FileError(f"'{folder}' has no scores; run `limelight evaluate score {folder}` first.")
    with reading(folder / "scores.parquet", "scores", "score the folder again"):
        rows = from_python(list[SCORES], parquet.read_table(folder / "scores.parquet").to_pylist())
    with reading(folder / "scores.json", "scores", "score the folder again"):
        used = from_json(_Summary, (folder / "scores.json").read_bytes())["backbones"]

    backbones = ", ".join(f"{name} {value}" for name, value in used.items() if name != "paper")
    if used["paper"]:
        backbones += ", texts as in the paper's script"
    return [{**row, "file": str(folder / row["file"])} for row in rows], backbones


def _markdown(lines: Sequence[Line], names: Sequence[str], base: str) -> str:
    titles = list(map(TITLES.__getitem__, names))
    means = [["subset", "method", "images", *titles, *COLUMNS.values()]]
    changes = [["subset", "method", *titles, "fixed", "broken"]]
    for line in lines:
        head = [_text(line.subset), _text(line.method)]
        means.append([*head, str(line.images), *map(shown, line.means.values())])
        if line.changes:
            turned = ["" if count is None else str(count) for count in (line.fixed, line.broken)]
            changes.append([*head, *map(changed, map(line.changes.get, names)), *turned])

    between = (
        f"Change against {base}; from two prompts on with the 95 % interval by bootstrap over prompts and the share of "
        "prompts won. Fixed images show all that is wanted in its colors where the same seed's did not, broken ones "
        "the other way round:"
    )
    return f"{_markdown_table(means)}\n{between}\n\n{_markdown_table(changes)}"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def _text(text: str) -> str:
    """Text of a user in a cell of Markdown: on one line, and no character means anything there or in HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))


def shown(value: float | None) -> str:
    """A number as tables have it."""
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def changed(value: Difference | None) -> str:
    """A difference as tables have it."""
    if value is None:
        return ""
    return value.shown() if value.prompts < 2 else f"{value.shown()}, {value.wins:.0%}"


def _page(*, lines: Sequence[Line], names: Sequence[str], **facts: Any) -> str:
    overall = [line for line in lines if line.subset == "all" and line.changes]
    charts = {}
    for name in names:
        chart = _chart(overall, name)
        if chart:
            charts[name] = chart
    values = {
        "lines": lines,
        "names": names,
        "labels": TITLES,
        "columns": COLUMNS,
        "charts": charts,
        "shown": shown,
        "changed": changed,
        **facts,
    }
    return rendered(PAGE, values, what="A report", extra="eval", trim=False)


def _chart(lines: Sequence[Line], name: str) -> dict[str, Any]:
    """Changes of one score as places on an axis, in percent; 50 is no change. Empty where there is none to show.

    An interval is there from two prompts on.
    """
    changes = {line.method: line.changes[name] for line in lines if name in line.changes}
    reach = max((max(abs(c.low), abs(c.high)) for c in changes.values()), default=0.0)
    if not reach:
        return {}

    def place(value: float) -> float:
        return round(50 + 48 * value / reach, 2)

    bars = []
    for method, c in changes.items():
        places = {"low": place(c.low), "high": place(c.high), "mean": place(c.mean), "interval": c.prompts > 1}
        bars.append({"method": method, **places, "text": changed(c)})
    ticks = [(place(share * reach), f"{share * reach:+.3f}" if share else "0") for share in (-1, -0.5, 0, 0.5, 1)]
    return {"bars": bars, "ticks": ticks}


def _thumbnail(path: Path, side: int = 128) -> str:
    """A small image as a data URI; empty where it cannot be read any more."""
    buffer = io.BytesIO()
    try:
        small = open_image(path)
    except LimelightError:
        return ""
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=88)
    return data_url(buffer.getvalue(), "jpeg")
