"""A folder of images that outlives kills, full disks and cut lines.

RUN/run.json         the cases, and what every method's images depend on
RUN/manifest.jsonl   a row per image, added when the image lies whole under its name
RUN/seconds.jsonl    how long each image took: the one thing that differs when it is generated again
RUN/METHOD/PROMPT/SEED.png, and SEED.mask.png where an edit of the image changes a known place
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, NotRequired

from ..errors import FileError, SettingsError
from ..utils.files import json_text, lock_folder, slug, write
from ..utils.jsonl import Log, Say
from ..utils.reading import Record, from_json, reading
from .preservation import mask_path
from .suites import Case, Wanted

Key = tuple[str, str, int | str]
"""Method, name of the case, seed."""


class CaseFacts(Record):
    """A case in run.json."""

    prompt: str
    subset: str
    wanted: list[tuple[str, str | None]]
    source: str | None
    concept: NotRequired[str]


class MethodFacts(Record):
    """A method in run.json."""

    settings: dict[str, Any]
    hash: str


class Facts(Record):
    """The content of run.json."""

    format: Literal[1]
    cases: dict[str, CaseFacts]
    methods: dict[str, MethodFacts]
    about: NotRequired[list[dict[str, str]]]


class ImageRow(Record):
    """A row of manifest.jsonl."""

    method: str
    case: str
    seed: int | str
    settings: str
    file: str
    bytes: int
    sha256: str
    calls: float
    mask: NotRequired[str]


class SecondsRow(Record):
    """A row of seconds.jsonl."""

    method: str
    case: str
    seed: int | str
    seconds: float


class Run:
    """A folder of images by several methods of the same cases, open for adding to it.

    Args:
        folder: made if absent.
        say: called with a sentence about what had to be repaired.

    Attributes:
        facts: the content of run.json: "cases" by name, "methods" by label with "settings" and their "hash", and
            "about", what each call that added to it was, see `note`.
        done: the manifest's rows by key.

    Raises:
        FileError: the folder cannot be written, another run writes it at this moment, or it does not hold a run.
    """

    def __init__(self, folder: str | os.PathLike[str], say: Say = lambda text: None) -> None:
        self.folder = Path(folder)
        self._lock = ExitStack()
        self._lock.enter_context(
            lock_folder(self.folder, "'{folder}' is being written by another run; wait for it to end.")
        )
        try:
            self.facts = read_facts(self.folder) or {"format": 1, "cases": {}, "methods": {}}
            self._manifest = Log(self.folder / "manifest.jsonl", ImageRow, say)
            self._seconds = Log(self.folder / "seconds.jsonl", SecondsRow, say)
            self._check(say)
        except BaseException:
            self._lock.close()
            raise

    def _check(self, say: Say) -> None:
        """Forget images that are gone or not whole: they are generated again."""
        self.done: dict[Key, dict[str, Any]] = {}
        for row in self._manifest.rows:
            path = self.folder / row["file"]
            if "mask" in row and not (self.folder / row["mask"]).is_file():
                say(f"'{self.folder / row['mask']}' is missing; its image is generated again.")
            elif not path.is_file():
                say(f"'{path}' is not there; it is generated again.")
            elif (size := path.stat().st_size) != row["bytes"]:
                say(f"'{path}' has {size} bytes instead of {row['bytes']}; it is generated again.")
            else:
                self.done[key(row)] = row
        if len(self.done) < len(self._manifest.rows):
            self._manifest.keep(list(self.done.values()))

    def expect(self, cases: Iterable[Case], settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Agree on what is generated.

        Args:
            cases: more than before are welcome.
            settings: for each method's label all that its images depend on.

        Raises:
            SettingsError: images are there that were generated with other settings, or for a case that has changed.
        """
        methods = {}
        for label, value in settings.items():
            written = json.loads(json_text(value))  # as the file will hold it: a tuple is a list there
            methods[label] = {"hash": digest(value), "settings": written}
        for label, wanted in methods.items():
            there = self.facts["methods"].get(label)
            if there is not None and there["hash"] != wanted["hash"]:
                raise SettingsError(
                    f"'{self.folder}' has images by '{label}' with other settings "
                    f"({difference(there['settings'], wanted['settings'])}); choose another folder, or those settings."
                )
        as_text = {case.name: _case_facts(case) for case in cases}
        for name, facts in as_text.items():
            if self.facts["cases"].get(name, facts) != facts:
                raise SettingsError(
                    f"'{self.folder}' has '{name}' with another subset, subjects or concept; choose another folder."
                )
        self.facts["methods"] |= methods
        self.facts["cases"] |= as_text
        write(self.folder / "run.json", json_text(self.facts, indent=1).encode() + b"\n")

    def note(self, about: Mapping[str, str]) -> None:
        """Keep once what a call was, for example {"suite": "attend-excite", "command": "limelight evaluate run ..."}.

        No image depends on it.
        """
        known = self.facts.setdefault("about", [])
        if about and dict(about) not in known:
            known.append(dict(about))
            write(self.folder / "run.json", json_text(self.facts, indent=1).encode() + b"\n")

    def add(self, of: Key, png: bytes, mask: bytes | None, calls: float, seconds: float) -> None:
        """Write an image, then its row.

        Args:
            png: the file.
            mask: the file of its mask, if it has one; it is written first.
            calls: denoiser passes that it took, a pass for one branch of one image being one.
            seconds: wall time that it took.

        Raises:
            FileError: it cannot be written; the rows before it stand.
        """
        method, case, seed = of
        file = Path(_folder(method), _folder(case), f"{seed}.png")
        if not (self.folder / file).resolve().is_relative_to(self.folder.resolve()):
            raise FileError(f"'{self.folder / file}' is a link to a place outside the run; remove the link.")
        if mask is not None:
            write(mask_path(self.folder / file), mask)
        write(self.folder / file, png)
        row = {"method": method, "case": case, "seed": seed, "settings": self.facts["methods"][method]["hash"]}
        row |= {"file": file.as_posix(), "bytes": len(png), "sha256": hashlib.sha256(png).hexdigest(), "calls": calls}
        if mask is not None:
            row["mask"] = mask_path(file).as_posix()
        self._seconds.add([{"method": method, "case": case, "seed": seed, "seconds": round(seconds, 4)}], durable=False)
        self._manifest.add([row])
        self.done[key(row)] = row

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._manifest.close()
        self._seconds.close()
        self._lock.close()


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's run.json; None where there is none.

    Raises:
        FileError: it is damaged, or of another version of limelight.
    """
    path = folder / "run.json"
    if not path.exists():
        return None
    with reading(path, "a run of this version", "choose another folder"):
        facts: dict[str, Any] = from_json(Facts, path.read_bytes())
        return facts


def read_case(name: str, facts: Mapping[str, Any]) -> Case:
    """Return a case from its facts in run.json."""
    things = tuple(starmap(Wanted, facts["wanted"]))
    return Case(facts["prompt"], facts["subset"], things, facts["source"], facts.get("concept"))


def key(row: Mapping[str, Any]) -> Key:
    return row["method"], row["case"], row["seed"]


def digest(facts: Any) -> str:
    """Twelve hexadecimal digits that change when the facts do."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _folder(name: str) -> str:
    """A harmless folder name of its own; the name itself where that is one."""
    short = slug(name, 60)
    if short == name:
        return name
    return f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _case_facts(case: Case) -> dict[str, Any]:
    things = [(thing.word, thing.color) for thing in case.wanted]
    facts: dict[str, Any] = {"prompt": case.prompt, "subset": case.subset, "wanted": things, "source": case.source}
    if case.concept is not None:
        facts["concept"] = case.concept
    return facts


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """What differs, by name: "steps: 50 there, 20 now"."""
    found = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if a != b and isinstance(a, dict) and isinstance(b, dict):
            found.append(difference(a, b, f"{prefix}{name}."))
        elif a != b:
            found.append(f"{prefix}{name}: {a} there, {b} now")
    return ", ".join(found)
