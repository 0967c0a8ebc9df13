"""Measure images: values per image in Parquet, means in JSON."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NotRequired

import torch

from ..errors import FileError, LimelightError, MissingDependency, ModelError, SettingsError
from ..models.embedded import EMBEDDED, POCKET
from ..utils.files import json_text, lock_file, write
from ..utils.images import open_image
from ..utils.jsonl import Log, Say, read_rows
from ..utils.numbers import amount
from ..utils.parallel import Executor, device_of, open_executor
from ..utils.reading import Record, first_line, from_json, reading, record
from .clip import Captioner, Clip
from .detectors import Detector, OpenVocabulary, PocketDetector
from .metrics import METRICS, Before, Instruments, Sample
from .preservation import read_mask
from .rows import Row, by_subset, column, grouped, mean
from .store import ImageRow, Key, SecondsRow, digest, key, read_case, read_facts
from .suites import Case, wanted

REAL = {
    "clip": "openai/clip-vit-base-patch16",
    "captioner": "Salesforce/blip-image-captioning-base",
    "detector": "google/owlv2-base-patch16-ensemble",
}
CHUNK = 32
_VALUES = {"caption": str | None, **dict.fromkeys(METRICS, float | None)}
_LOGGED = record(
    "_LOGGED",
    {
        "method": str,
        "case": str,
        "seed": int | str,
        "scoring": str,
        "stamp": str,
        "error": NotRequired[str],
        **{name: NotRequired[kind] for name, kind in _VALUES.items()},
    },
)
"""A row of scores.jsonl."""


class _Summary(Record):
    """The content of scores.json."""

    backbones: dict[str, Any]
    methods: dict[str, Any]


SCORES = record(
    "SCORES",
    {
        **dict.fromkeys(("method", "subset", "prompt", "seed", "file"), str),
        "source": str | None,
        "calls": float | None,
        "seconds": float | None,
        **_VALUES,
    },
)
"""A row of scores.parquet."""


@dataclass(frozen=True)
class Backbones:
    """The models that measure, each "pocket", a folder, a hub id, or "none" to leave it out.

    Attributes:
        clip, captioner: see `limelight.evaluate.clip`.
        detector: see `detectors.OpenVocabulary`; "pocket" is the embedded detector.
        paper: handle texts as the authors' script does, see `limelight.evaluate.clip.in_templates`.
    """

    clip: str = "pocket"
    captioner: str = "pocket"
    detector: str = "pocket"
    paper: bool = False


@dataclass(frozen=True)
class Batch:
    """Images of one case by one method, as files, and those before them (of the reference), where there are any."""

    case: Case
    keys: tuple[Key, ...]
    files: tuple[bytes, ...] = field(repr=False)
    before: tuple[Before | None, ...] = field(repr=False)


class Scorer:
    """Opened backbones: what a worker keeps.

    Args:
        slot: which of this machine's GPUs to take.
    """

    def __init__(self, names: Backbones, device: str | None = None, slot: int = 0) -> None:
        device = device_of(slot, device) or "cpu"
        if device == "cpu":
            torch.set_num_threads(1)  # sums depend in their last digits on the number of threads
        clip = _opened("clip", names.clip, lambda: Clip(names.clip, device))
        captioner = _opened("captioner", names.captioner, lambda: Captioner(names.captioner, device))
        self.instruments = Instruments(clip, captioner, _detector(names.detector, clip, device), names.paper)

    def score(self, batch: Batch) -> list[Row]:
        """A row per image; with "error" where the image cannot be read."""
        rows: list[Row] = []
        images, places = [], []
        for i, content in enumerate(batch.files):
            try:
                images.append(open_image(content))
                places.append(i)
                rows.append({})
            except LimelightError as error:
                rows.append({"error": str(error)})
        if not images:
            return rows

        sample = Sample(batch.case, images, [batch.before[i] for i in places], self.instruments)
        columns: dict[str, Sequence[Any]] = {name: metric(sample) for name, metric in METRICS.items()}
        columns["caption"] = sample.captions or [None] * len(images)
        for n, i in enumerate(places):
            rows[i] = {name: column[n] for name, column in columns.items()}
        return rows


def _detector(name: str, clip: Clip | None, device: str) -> Detector | None:
    if name == "none":
        return None
    if name == "pocket":
        return PocketDetector.load()
    if clip is None:
        raise SettingsError(f"The detector '{name}' needs a CLIP to name colors; give --clip.")
    detector: Detector = _opened("detector", name, lambda: OpenVocabulary(name, clip, device))
    return detector


def score(
    folder: str | os.PathLike[str],
    backbones: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus_per_worker: float = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure every image of a folder, and write scores.parquet and scores.json.

    Run again, it measures what is new. Scores by other backbones are not replaced: they need another `out`. An image
    that cannot be read is named and left out.

    Args:
        folder: a run's, or one in the layout of the authors' scripts: FOLDER/<prompt>/<seed>.png (or .jpg).
        backbones: what differs from the default: the embedded ones for the embedded model's images, else `REAL`.
        out: where the scores are written; by default into the folder.
        device: of the backbones; by default CUDA where it is there.
        engine, workers, address, gpus_per_worker: see `limelight.utils.parallel.open_executor`.
        on_progress: called with how many images are measured and how many there are.
        say: called with a sentence about images that are left out.

    Returns:
        The content of scores.json.

    Raises:
        SettingsError: a setting is out of range.
        FileError: the folder has no images, or the scores cannot be written, or another program writes them, or other
            backbones' scores are there.
        ModelError: a backbone cannot be read.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a cat").mkdir()
        >>> Image.new("RGB", (64, 64)).save(folder / "a cat" / "0.png")
        >>> scores = score(folder, {"clip": "none", "captioner": "none", "detector": "pocket"}, workers=1)
        >>> scores["methods"][folder.name]["all"]["detection_success"]
        0.0
    """
    folder = Path(folder)
    if out is None:
        out = folder
    out = Path(out)
    work = _work(folder, backbones or {}, say)
    _check_free(out / "scores.json", asdict(work.names))
    path = out / "scores.jsonl"
    start = partial(Scorer, work.names, device)
    with (
        lock_file(path),  # two at once would measure every image twice
        closing(Log(path, _LOGGED, say)) as log,
        open_executor(
            start, engine=engine, workers=workers, address=address, gpus_per_worker=gpus_per_worker
        ) as executor,
    ):
        known = _measured(work, log, executor, on_progress)
        whole = _table(work, known, out, say)
        if not whole:
            raise FileError(f"None of the images in '{folder}' can be read.")
        summary = {"backbones": asdict(work.names), "methods": aggregate(whole)}
        _write_parquet(out / "scores.parquet", whole)
        write(out / "scores.json", json_text(summary, indent=1).encode() + b"\n")
    return summary


@dataclass(frozen=True)
class Entry:
    """An image to be measured.

    Attributes:
        cost: its denoiser calls and seconds, if known.
        sha256: of the file when it was generated, if known.
        changed: whether it is another file now.
        before: the image that it began with, if that is in the folder, too.
        stamp: changes with the file and with the one before.
    """

    case: Case
    path: Path
    cost: Row
    sha256: str | None = None
    changed: bool = False
    before: Path | None = None
    stamp: str = ""


@dataclass(frozen=True)
class _Work:
    """The images of a folder, and what measures them.

    Attributes:
        scoring: changes with the backbones.
    """

    entries: dict[Key, Entry]
    names: Backbones
    scoring: str

    def known(self, rows: Iterable[Row]) -> dict[Key, Row]:
        """The rows of an earlier run that are still true."""
        found = {}
        for row in rows:
            entry = self.entries.get(key(row))
            if entry is not None and (row["scoring"], row["stamp"]) == (self.scoring, entry.stamp):
                found[key(row)] = row
        return found

    def row(self, k: Key, values: Row) -> Row:
        """What the log keeps of a measured image."""
        stamp = self.entries[k].stamp
        return {"method": k[0], "case": k[1], "seed": k[2], "scoring": self.scoring, "stamp": stamp, **values}

    def batches(self, known: Mapping[Key, Row]) -> Iterator[Batch]:
        """What is left: images of one method and case at a time, read only when it is their turn."""
        left = [k for k in self.entries if k not in known]
        for own in grouped(left, itemgetter(0, 1)).values():
            for i in range(0, len(own), CHUNK):
                yield self._batch(tuple(own[i : i + CHUNK]))

    def _batch(self, keys: tuple[Key, ...]) -> Batch:
        """Read the files of some images of one method and case."""
        entries = [self.entries[k] for k in keys]
        files = tuple(_read(entry.path) for entry in entries)
        return Batch(entries[0].case, keys, files, tuple(_before(entry.before) for entry in entries))


def _work(folder: Path, backbones: Mapping[str, Any], say: Say) -> _Work:
    facts, embedded = read_facts(folder), False
    if facts is None:
        entries = _foreign_entries(folder)
    else:
        entries = _run_entries(folder, facts, say)
        embedded = all(method["settings"].get("model") in EMBEDDED for method in facts["methods"].values())
    if not embedded:
        backbones = {**REAL, **backbones}
    names = Backbones(**backbones)
    return _Work(_stamped(entries), names, digest({**asdict(names), "embedded": _embedded(names)}))


def _measured(work: _Work, log: Log, executor: Executor, on_progress: Callable[[int, int], None]) -> dict[Key, Row]:
    """The rows of all images: those that the log has, and those that are measured now and added to it."""
    known = work.known(log.rows)
    on_progress(len(known), len(work.entries))
    for batch, rows in executor.map(Scorer.score, work.batches(known)):
        added = [work.row(k, row) for k, row in zip(batch.keys, rows, strict=True)]
        log.add(added)
        known |= {key(row): row for row in added}
        on_progress(len(known), len(work.entries))
    return known


def _check_free(path: Path, backbones: Mapping[str, Any]) -> None:
    """Refuse to replace the scores of other backbones."""
    if not path.exists():
        return
    with reading(path, "scores", "choose another folder with out, on the command line --out"):
        there = from_json(_Summary, path.read_bytes())["backbones"]
    others = []
    for name, value in backbones.items():
        if there.get(name) != value:
            others.append(f"{name}: {there.get(name)} there, {value} now")
    if others:
        raise FileError(
            f"'{path}' has scores by other models ({', '.join(others)}). Choose another folder with out, on the "
            "command line --out, or those models."
        )


def _foreign_entries(folder: Path) -> dict[Key, Entry]:
    """The images of a folder in the layout of the authors' scripts."""
    found: dict[Key, Entry] = {}
    for path in sorted(filter(Path.is_dir, folder.glob("*"))):
        case = Case(path.name, folder.name, wanted(path.name))
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in (".png", ".jpg", ".jpeg") and not file.name.endswith(".mask.png"):
                name = file.relative_to(path).with_suffix("").as_posix()
                found[folder.name, case.name, name] = Entry(case, file, {"calls": None, "seconds": None})
    if not found:
        raise FileError(f"'{folder}' is not a run, and has no images as <prompt>/<seed>.png.")
    return found


def _run_entries(folder: Path, facts: Mapping[str, Any], say: Say) -> dict[Key, Entry]:
    """The images of a run."""
    cases = {name: read_case(name, value) for name, value in facts["cases"].items()}
    seconds = {key(row): row["seconds"] for row in read_rows(folder / "seconds.jsonl", SecondsRow)}
    found, lost = {}, list[Path]()
    for row in read_rows(folder / "manifest.jsonl", ImageRow):
        if row["case"] not in cases:
            raise FileError(f"The run '{folder}' has no case '{row['case']}' in run.json; run it again elsewhere.")
        path = folder / row["file"]
        if path.is_file():
            cost = {"calls": row["calls"], "seconds": seconds.get(key(row))}
            found[key(row)] = Entry(cases[row["case"]], path, cost, row["sha256"])
        else:
            lost.append(path)

    if lost:
        say(f"Left out {amount(len(lost), 'image')} of the run: '{lost[0]}' is missing; run again to generate it.")
    if not found:
        raise FileError(f"The run '{folder}' has no images yet.")
    return found


def _stamped(entries: Mapping[Key, Entry]) -> dict[Key, Entry]:
    """Entries with their stamps, and with the images before: of the source, or plain, with the same seed."""
    hashes = {k: _sha256(entry.path) for k, entry in entries.items()}
    found = {}
    for k, entry in entries.items():
        other = ("plain" if entry.case.source is None else "source", *k[1:])
        entry = replace(entry, stamp=hashes[k], changed=entry.sha256 not in (None, hashes[k]))
        if other in entries and other != k:
            entry = replace(entry, before=entries[other].path, stamp=hashes[k] + hashes[other])
        found[k] = entry
    return found


def _table(work: _Work, known: Mapping[Key, Row], out: Path, say: Say) -> list[Row]:
    """The rows of scores.parquet: every image that can be read."""
    rows = []
    for k, entry in work.entries.items():
        row, case = known[k], entry.case
        if "error" in row:
            say(f"'{entry.path}' cannot be read and is left out: {row['error']}; delete it, and run again.")
            continue
        if entry.changed:
            say(f"'{entry.path}' is not the image that was generated and is left out; delete it, and run again.")
            continue
        values = {name: row.get(name) for name in ("caption", *METRICS)}
        head = {"method": k[0], "subset": case.subset, "prompt": case.prompt, "source": case.source, "seed": str(k[2])}
        rows.append({**head, "file": os.path.relpath(entry.path, out), **entry.cost, **values})
    return rows


def aggregate(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Means by method and subset ("all" is the whole), under the names of `Metric.mean`, and std_similarity, the
    deviation of the captions' similarity, as the authors' scripts have it."""
    found = {}
    for method, own in grouped(rows, itemgetter("method")).items():
        found[method] = {subset: _means(part) for subset, part in by_subset(own).items()}
    return found


def _means(rows: Sequence[Row]) -> dict[str, float | int | None]:
    means: dict[str, float | int | None] = {"images": len(rows)}
    for metric in METRICS.values():
        means[metric.mean] = mean(rows, metric.name)
        if metric.name == "text_text":
            means["std_similarity"] = _deviation(column(rows, metric.name))
    means["denoiser_calls"] = mean(rows, "calls")
    means["seconds"] = mean(rows, "seconds")
    return means


def _deviation(values: Sequence[float]) -> float | None:
    if not values:
        return None
    return torch.tensor(values, dtype=torch.float64).std(correction=0).item()


def _embedded(names: Backbones) -> dict[str, str]:
    """What tells the embedded models that measure from those of another version of this package."""
    files = {
        "clip": "clip/model.safetensors",
        "captioner": "captioner/model.safetensors",
        "detector": "detector.safetensors",
    }
    return {kind: _sha256(POCKET / file) for kind, file in files.items() if getattr(names, kind) == "pocket"}


def _sha256(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()


def _before(path: Path | None) -> Before | None:
    """The image that another one began with; None if it cannot be read."""
    if path is None:
        return None
    try:
        return Before(open_image(_read(path)), read_mask(path))
    except LimelightError:
        return None


def _opened(kind: str, name: str, make: Callable[[], Any]) -> Any:
    """A backbone; None where its name is "none"."""
    if name == "none":
        return None
    try:
        return make()
    except LimelightError:
        raise
    except UnpicklingError as error:
        raise ModelError(
            f"The {kind} '{name}' cannot be opened: its weight file holds more than weights, which could be a program; "
            "get its safetensors."
        ) from error
    except Exception as error:  # of others' files
        raise ModelError(f"The {kind} '{name}' cannot be opened: {first_line(error)}") from error


def _write_parquet(path: Path, rows: list[Row]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("Scores need pyarrow. Install it: pip install 'limelight[eval]'.") from error
    kinds = dict.fromkeys(rows[0], pa.string()) | dict.fromkeys(("calls", "seconds", *METRICS), pa.float64())
    schema = pa.schema(kinds)
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    write(path, sink.getvalue().to_pybytes())
