"""Measure pictures: values per picture in Parquet, means in JSON."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..errors import ModelError, SettingsError
from ..models.loading import POCKET
from ..utils.files import write
from ..utils.jsonl import Log, Say
from ..utils.parallel import device_of, open_executor
from .clip import Captioner, Clip, image_image, image_text, minimum_object, parts, text_text
from .detectors import Detector, OpenVocabulary, PocketDetector, check_scene
from .preservation import pixel_change, read, structure_change
from .store import Key, digest, key, read_case, read_facts
from .suites import Case, wanted

Row = dict[str, Any]
# The columns that hold a value, in -1..1 or 0..1, and what people call them.
VALUES = {
    "full_text": "CLIP, full prompt",
    "minimum_object": "CLIP, minimum object",
    "text_text": "caption to prompt",
    "success": "all there",
    "present": "things there",
    "binding": "right color",
    "image_image": "CLIP, to the picture before",
    "structure": "structure changed outside",
    "pixels": "pixels changed outside",
}
LESS_IS_BETTER = ("structure", "pixels")
REAL = {
    "clip": "openai/clip-vit-base-patch16",
    "captioner": "Salesforce/blip-image-captioning-base",
    "detector": "google/owlv2-base-patch16-ensemble",
}
CHUNK = 32


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
    """Pictures of one case by one method, as files, and those before them (of the reference), where there are any."""

    case: Case
    keys: tuple[Key, ...]
    files: tuple[bytes, ...] = field(repr=False)
    before: tuple[bytes | None, ...] = field(repr=False)


class Scorer:
    """Backbones at work: what a worker keeps.

    Args:
        slot: which of this machine's GPUs to take.
    """

    def __init__(self, names: Backbones, device: str | None = None, slot: int = 0) -> None:
        device = device_of(slot, device) or "cpu"
        if device == "cpu":
            torch.set_num_threads(1)  # sums depend in their last digits on the number of threads
        clip, captioner, detector = names.clip, names.captioner, names.detector
        self.paper = names.paper
        self.clip = None if clip == "none" else _opened("clip", clip, lambda: Clip(clip, device))
        self.captioner = (
            None if captioner == "none" else _opened("captioner", captioner, lambda: Captioner(captioner, device))
        )
        self.detector: Detector | None = None
        if detector == "pocket":
            self.detector = PocketDetector.load()
        elif detector != "none":
            if self.clip is None:
                raise SettingsError(f"The detector '{detector}' needs a CLIP to name colors; give --clip.")
            seen = self.clip
            self.detector = _opened("detector", detector, lambda: OpenVocabulary(detector, seen, device))

    def score(self, batch: Batch) -> list[Row]:
        """A row per picture; "error" in it where the picture cannot be read."""
        rows: list[Row] = []
        images, places = [], []
        for i, content in enumerate(batch.files):
            try:
                images.append(_opened_image(content))
                places.append(i)
                rows.append({})
            except (OSError, SyntaxError, ValueError) as error:
                rows.append({"error": str(error) or type(error).__name__})
        if not images:
            return rows
        values: dict[str, Sequence[Any]] = {}
        prompt = batch.case.prompt
        if self.clip is not None:
            features = self.clip.images(images)
            if parts(prompt, self.paper):
                values["full_text"] = image_text(self.clip, features, prompt, self.paper).tolist()
                values["minimum_object"] = minimum_object(self.clip, features, prompt, self.paper).tolist()
            if self.captioner is not None:
                values["caption"] = said = self.captioner.captions(images, self.paper)
                values["text_text"] = text_text(self.clip, said, prompt, self.paper).tolist()
            values |= self._to_before(images, features, [batch.before[i] for i in places])
        things = batch.case.wanted
        if self.detector is not None and things and all(self.detector.knows(thing.word) for thing in things):
            values |= _detected(self.detector, images, batch.case)
        for n, i in enumerate(places):
            rows[i] = {name: column[n] for name, column in values.items()}
        return rows

    def _to_before(
        self, images: Sequence[Image.Image], features: torch.Tensor, before: Sequence[bytes | None]
    ) -> dict[str, list[float | None]]:
        """Against the picture before: similarity, and what changed outside the words that an edit is about."""
        names = ("image_image", "structure", "pixels")
        values: dict[str, list[float | None]] = {name: [None] * len(before) for name in names}
        there = [i for i, content in enumerate(before) if content is not None]
        if not there or self.clip is None:
            return values
        others = [_opened_image(content) for content in before if content is not None]
        similar = image_image(features[there], self.clip.images(others)).tolist()
        masks = [read(content) for content in before if content is not None]
        marked = any(mask is not None for mask in masks)
        keys = [self.clip.patches(some) for some in ([images[i] for i in there], others)] if marked else []
        for n, (i, mask) in enumerate(zip(there, masks, strict=True)):
            values["image_image"][i] = similar[n]
            if mask is not None:
                values["structure"][i] = structure_change(keys[1][n], keys[0][n], mask)
                values["pixels"][i] = pixel_change(others[n], images[i], mask)
        return values


def score(
    folder: str | os.PathLike[str],
    backbones: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    share: float = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure every picture of a folder, and write scores.parquet and scores.json.

    Run again, it measures what is new or was measured by other backbones. A picture that cannot be read is named and
    left out.

    Args:
        folder: a run's, or one in the layout of the authors' scripts: FOLDER/<prompt>/<seed>.png (or .jpg).
        backbones: what differs from the default: the embedded ones for the embedded model's pictures, else `REAL`.
        out: where the scores are written; by default into the folder.
        device: of the backbones; by default CUDA where it is there.
        engine, workers, address, share: see `limelight.utils.parallel.open_executor`.
        on_progress: told how many pictures are measured and how many there are.
        say: told in a sentence of pictures that are left out.

    Returns:
        The content of scores.json.

    Raises:
        SettingsError: the folder has no pictures, or the scores cannot be written.
        ModelError: a backbone cannot be read.
    """
    folder = Path(folder)
    out = folder if out is None else Path(out)
    pictures, embedded = _pictures(folder, say)
    defaults = {} if embedded else REAL
    names = Backbones(**{**defaults, **(backbones or {})})
    facts = {"clip": names.clip, "captioner": names.captioner, "detector": names.detector, "paper": names.paper}
    mark = digest({**facts, "embedded": _embedded(names)})
    log = Log(out / "scores.jsonl", say)
    known = {key(row): row for row in log.rows if row["scoring"] == mark}
    before = _before(pictures)
    shas = {k: hashlib.sha256(_read(path)).hexdigest() for k, (_, path, _) in pictures.items()}
    stamp = {k: sha if k not in before else sha + shas[before[k]] for k, sha in shas.items()}
    known = {k: row for k, row in known.items() if k in pictures and row["stamp"] == stamp[k]}
    left = [k for k in pictures if k not in known]
    on_progress(len(known), len(pictures))
    start = partial(Scorer, names, device)
    with open_executor(start, engine=engine, workers=workers, address=address, gpus_per_worker=share) as executor:
        for batch, rows in executor.map(Scorer.score, _batches(left, pictures, before)):
            added = [
                {"method": k[0], "case": k[1], "seed": k[2], "scoring": mark, "stamp": stamp[k], **row}
                for k, row in zip(batch.keys, rows, strict=True)
            ]
            log.add(added)
            known |= {key(row): row for row in added}
            on_progress(len(known), len(pictures))
    log.close()
    whole = []
    for k, (case, path, cost) in pictures.items():
        row = known[k]
        if "error" in row:
            say(f"'{path}' cannot be read and is left out: {row['error']}; delete it, and run again to draw it.")
            continue
        values = {name: row.get(name) for name in ("caption", *VALUES)}
        head = {"method": k[0], "subset": case.subset, "prompt": case.prompt, "source": case.source, "seed": str(k[2])}
        whole.append({**head, "file": os.path.relpath(path, out), **cost, **values})
    if not whole:
        raise SettingsError(f"None of the pictures in '{folder}' can be read.")
    summary = {"backbones": facts, "methods": aggregate(whole)}
    _write_parquet(out / "scores.parquet", whole)
    write(out / "scores.json", json.dumps(summary, indent=1, ensure_ascii=False).encode() + b"\n")
    return summary


def aggregate(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Means by method and subset ("all" is the whole), under the names that the authors' scripts gave them where they
    did: full_text_aggregation, min_first_second_aggregation, average_similarity, std_similarity."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        for subset in ("all", row["subset"]):
            groups.setdefault((row["method"], subset), []).append(row)
    found: dict[str, dict[str, dict[str, float | int | None]]] = {}
    for (method, subset), own in groups.items():
        found.setdefault(method, {})[subset] = {
            "pictures": len(own),
            "full_text_aggregation": _mean(own, "full_text"),
            "min_first_second_aggregation": _mean(own, "minimum_object"),
            "average_similarity": _mean(own, "text_text"),
            "std_similarity": _deviation(own, "text_text"),
            "detection_success": _mean(own, "success"),
            "things_present": _mean(own, "present"),
            "attribute_binding": _mean(own, "binding"),
            "image_similarity": _mean(own, "image_image"),
            "structure_change": _mean(own, "structure"),
            "pixel_change": _mean(own, "pixels"),
            "denoiser_calls": _mean(own, "calls"),
            "seconds": _mean(own, "seconds"),
        }
    return found


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return sum(values) / len(values) if values else None


def _deviation(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return torch.tensor(values, dtype=torch.float64).std(correction=0).item() if values else None


def _detected(detector: Detector, images: Sequence[Image.Image], case: Case) -> dict[str, list[Any]]:
    seen = [check_scene(found, case.wanted) for found in detector.find(images, case.wanted)]
    colors = [[right for right in one.colored if right is not None] for one in seen]
    return {
        "success": [float(not one.missing) for one in seen],
        "present": [sum(one.present) / len(one.present) for one in seen],
        "binding": [sum(right) / len(right) if right else None for right in colors],
    }


def _embedded(names: Backbones) -> dict[str, str]:
    """What tells the embedded models that measure from those of another version of this package."""
    files = {
        "clip": "clip/model.safetensors",
        "captioner": "captioner/model.safetensors",
        "detector": "detector.safetensors",
    }
    used = {kind: POCKET / file for kind, file in files.items() if getattr(names, kind) == "pocket"}
    return {kind: hashlib.sha256(_read(path)).hexdigest() for kind, path in used.items()}


def _pictures(folder: Path, say: Say) -> tuple[dict[Key, tuple[Case, Path, Row]], bool]:
    """The pictures of a folder with their cases, files and costs; and whether they are the embedded model's."""
    facts = read_facts(folder) if folder.is_dir() else None
    found: dict[Key, tuple[Case, Path, Row]] = {}
    if facts is None:
        folders = sorted(path for path in folder.glob("*") if path.is_dir())
        for path in folders:
            case = Case(path.name, folder.name, wanted(path.name))
            for file in sorted(path.rglob("*")):
                if file.suffix.lower() in (".png", ".jpg", ".jpeg"):
                    name = file.relative_to(path).with_suffix("").as_posix()
                    found[folder.name, case.name, name] = (case, file, {"calls": None, "seconds": None})
        if not found:
            raise SettingsError(f"'{folder}' is no run, and has no pictures as <prompt>/<seed>.png.")
        return found, False
    cases = {name: read_case(name, value) for name, value in facts["cases"].items()}
    seconds = {key(row): row["seconds"] for row in _rows(folder / "seconds.jsonl")}
    lost: list[Path] = []
    for row in _rows(folder / "manifest.jsonl"):
        path = folder / row["file"]
        if path.is_file():
            found[key(row)] = cases[row["case"]], path, {"calls": row["calls"], "seconds": seconds.get(key(row))}
        else:
            lost.append(path)
    if lost:
        say(f"{len(lost)} pictures of the run are left out, '{lost[0]}' is not there; run again to draw it.")
    if not found:
        raise SettingsError(f"The run '{folder}' has no pictures yet.")
    return found, all(method["settings"].get("model") == "pocket" for method in facts["methods"].values())


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a log that another process may be writing: lines that cannot be read are passed over."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _before(pictures: Mapping[Key, tuple[Case, Path, Row]]) -> dict[Key, Key]:
    """For each picture the one that an edit or a guidance began with: of the source, or plain, with the same seed."""
    found = {}
    for k, (case, _, _) in pictures.items():
        other = ("plain" if case.source is None else "source", *k[1:])
        if other in pictures and other != k:
            found[k] = other
    return found


def _batches(
    keys: Sequence[Key], pictures: Mapping[Key, tuple[Case, Path, Row]], before: Mapping[Key, Key]
) -> Iterator[Batch]:
    """Pictures of one method and case at a time, read only when it is their turn."""
    groups: dict[tuple[str, str], list[Key]] = {}
    for k in keys:
        groups.setdefault(k[:2], []).append(k)
    for own in groups.values():
        for i in range(0, len(own), CHUNK):
            chunk = own[i : i + CHUNK]
            files = tuple(_read(pictures[k][1]) for k in chunk)
            others = tuple(_whole(pictures[before[k]][1]) if k in before else None for k in chunk)
            yield Batch(pictures[chunk[0]][0], tuple(chunk), files, others)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def _whole(path: Path) -> bytes | None:
    """A file, if it is a picture."""
    content = _read(path)
    try:
        _opened_image(content)
    except (OSError, SyntaxError, ValueError):
        return None
    return content


def _opened_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def _opened(kind: str, name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"The {kind} '{name}' cannot be opened: {reason}") from error


def _write_parquet(path: Path, rows: list[Row]) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise SettingsError("Scores need the extra 'eval'; run pip install 'limelight[eval]'.") from error
    numbers = {"calls", "seconds", *VALUES}
    schema = pa.schema([(name, pa.float64() if name in numbers else pa.string()) for name in rows[0]])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    write(path, sink.getvalue().to_pybytes())
