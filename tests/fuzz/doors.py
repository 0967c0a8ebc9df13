"""The doors of files: a sound file of each kind, and what must hold of whatever a reader takes.

Accepting a file means: the reader's invariants hold (shapes, finite numbers, text where there must be text). Where bits
flip in the numbers of a file without a checksum, the numbers are others; no reader can tell.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

import limelight
from limelight import LearnedWord
from limelight.cli.options import read_lines
from limelight.errors import LimelightError
from limelight.evaluate import scoring, suites
from limelight.evaluate.preservation import mask_png, read_mask
from limelight.evaluate.report import report
from limelight.evaluate.store import Run
from limelight.evaluate.suites import Case, Wanted
from limelight.evaluate.weakening import _known, _Row
from limelight.generation.result import _may_write
from limelight.heads.relevance import Relevance
from limelight.heads.vocabulary import Concepts
from limelight.models import loading
from limelight.textual_inversion.config import TrainingConfig
from limelight.textual_inversion.folder import Row as Losses
from limelight.textual_inversion.folder import losses, read_losses
from limelight.textual_inversion.state import TrainState
from limelight.utils.images import MOST_PIXELS, open_image
from limelight.utils.jsonl import Log
from tests.conftest import POCKET
from tests.fuzz.mutations import retyped, spoiled

PLACES = ("missing", "folder", "fifo", "device", "loop")
"""What else may lie where a file should be."""
CONCEPTS = {"Animals": ["cat", "dog"], "Color": ["red", "blue"]}
NOTHING = {"clip": "none", "captioner": "none", "detector": "none"}


@dataclass(frozen=True)
class Door:
    """A kind of file.

    Attributes:
        make: lays a sound file, and what it needs beside it, into an empty folder; returns its path.
        read: reads it, and checks what it takes.
        texts: JSON values of which the file is made, and how: value -> content.
        most: how many spoiled files are tried, at most.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], None]
    value: Any = None
    build: Callable[[str], bytes] = str.encode
    most: int = 100

    def kinds(self, name: str) -> list[str]:
        """The ways in which the file is spoiled."""
        return [*self._spoiled(name, bytes(100)), *PLACES]

    def spoil(self, name: str, kind: str, content: bytes) -> bytes:
        return self._spoiled(name, content)[kind]

    def _spoiled(self, name: str, content: bytes) -> dict[str, bytes]:
        found = dict(list(spoiled(content, name))[: self.most])
        if self.value is not None:
            found |= {kind: self.build(text) for kind, text in retyped(self.value, name)}
        return found


def _file(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
        return folder / name

    return make


# Texts


def _suite(path: Path) -> None:
    cases = suites.load(path)
    names = [case.name for case in cases]
    assert cases
    assert len(set(names)) == len(names)
    for case in cases:
        texts = [case.prompt, case.subset, *(thing.word for thing in case.wanted)]
        assert all(isinstance(text, str) and text.strip() for text in texts)
        assert isinstance(case.source, str | None)
        assert isinstance(case.concept, str | None)


def _concepts(path: Path) -> None:
    words = Concepts.read(path).words
    assert len(words) > 1
    assert len({len(own) for own in words.values()}) == 1
    assert all(isinstance(word, str) and word.strip() for own in words.values() for word in own)


def _lines(path: Path) -> None:
    assert all(line.strip() for line in read_lines(path, "prompts"))


_ROWS = [
    {"prompt": "a red car", "subset": "x", "subjects": "red car", "include": [{"class": "car", "count": 1}]},
    "a dog",
]
_PAPER = b"Animals\n1. cat\n2. dog\nColor\n1. red\n2. blue\n"

# Tensors


def _safetensors(tensors: dict[str, torch.Tensor], key: str) -> Callable[[str], bytes]:
    return lambda text: save(tensors, {key: text})


def _word(path: Path) -> None:
    for word in LearnedWord.load_all(path):
        assert word.token.startswith("<")
        assert all(vectors.ndim == 2 and vectors.isfinite().all() for vectors in word.vectors)


def _pickled(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        LearnedWord("<cat>", (torch.ones(2, 32),)).save(folder / name)
        return folder / name

    return make


def _word_folder(folder: Path) -> Path:
    LearnedWord("<cat>", (torch.ones(2, 32),)).save(folder / "word")
    return folder / "word" / "token_identifier.txt"


def _vectors(path: Path) -> None:
    assert Relevance.load(path).fault is None


def _npy(value: Any) -> bytes:
    held = io.BytesIO()
    np.save(held, np.array(value))
    return held.getvalue()


def _authors(folder: Path) -> Path:
    (folder / "v.npy").write_bytes(_npy([[1.0, 1.0], [0.5, 1.5]]))
    (folder / "h.npy").write_bytes(_npy(["mid, layer: 0, head: 0", "mid, layer: 0, head: 1"]))
    return folder / "v.npy"


def _imported(path: Path) -> None:
    folder = path.parent
    assert Relevance.read_npy(folder / "v.npy", folder / "h.npy", CONCEPTS).fault is None


ABOUT = {"version": 1, "concepts": ["A", "B"], "layers": [["mid", 2]], "model": "m", "words": {"A": ["a"]}}
TENSORS = {"vectors": torch.ones(2, 2), "counts": torch.ones(3, 2, 2), "counted": torch.ones(3)}
CONFIG = {
    "token": "<cat>",
    "vectors": 2,
    "steps": 5,
    "lr": 0.1,
    "templates": ["a {}"],
    "seed": 0,
    "init": "cat",
    "flip": 0.5,
}
STATE = {"config": CONFIG, "about": {"model": "m", "weights": "w", "pictures": "p", "packages": {"a": "1"}}}


TRAINED = {name: torch.ones(2, 4) for name in ("vectors.0", "begun.0", "moment1.0", "moment2.0")}


def _earlier_state(folder: Path) -> Path:
    """Of the versions that kept settings in a file beside the tensors."""
    (folder / "state.safetensors").write_bytes(save(TRAINED, {"step": "3"}))
    (folder / "state.json").write_text(json.dumps(STATE))
    return folder / "state.json"


def _trained(path: Path) -> None:
    state = TrainState.load(path.parent / "state.safetensors")
    assert isinstance(state.config, TrainingConfig)
    assert state.step >= 0
    assert all(tensor.isfinite().all() for tensor in (*state.vectors, *state.begun, *sum(state.moments, ())))
    assert all(isinstance(state.about[key], str) for key in ("model", "weights", "pictures"))
    assert state.word.token == state.config.token


def _losses(path: Path) -> None:
    for row in read_losses(path):
        assert isinstance(row.step, int)
        assert isinstance(row.held, float | None)


# Runs


def _run(folder: Path) -> Path:
    case = Case("a red car", "x", (Wanted("car", "red"),))
    held = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(held, "PNG")
    with Run(folder / "run") as run:
        run.expect([case], {"plain": {"model": "pocket"}})
        for seed in (0, 1):
            run.add(("plain", case.name, seed), held.getvalue(), None, 2.0, 0.5)
    return folder / "run" / "run.json"


def _in_run(name: str) -> Callable[[Path], Path]:
    return lambda folder: _run(folder).with_name(name)


def _scored(path: Path) -> None:
    with Run(path.parent) as run:
        assert all(isinstance(key[0], str) for key in run.done)
    scores = scoring.score(path.parent, NOTHING, workers=1, device="cpu")
    assert scores["methods"]
    json.dumps(scores, allow_nan=False)


def _scores(folder: Path) -> Path:
    scoring.score(_run(folder).parent, NOTHING, workers=1, device="cpu")
    return folder / "run" / "scores.jsonl"


def _reported(folder: Path) -> Path:
    rows = []
    for method, value in (("plain", 0.5), ("other", 0.75)):
        row = {name: value for name in scoring.SCORES.__annotations__ if name in scoring.METRICS}
        head = {
            "method": method,
            "subset": "x",
            "prompt": "a",
            "seed": "0",
            "file": "a.png",
            "source": None,
            "caption": "c",
        }
        rows.append({**head, "calls": 1.0, "seconds": None, **row})
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    scoring._write_parquet(folder / "scores.parquet", rows)
    (folder / "scores.json").write_text(json.dumps(SUMMARY))
    return folder / "scores.parquet"


def _report(path: Path) -> None:
    page = report([path.parent], path.parent / "out").read_text()
    assert "<script" not in page


SUMMARY = {"backbones": {"clip": "pocket", "captioner": "none", "paper": False}, "methods": {}}
CASE = {"prompt": "a red car", "subset": "x", "wanted": [["car", "red"]], "source": None}
RUN = {
    "format": 1,
    "cases": {"a red car": CASE},
    "methods": {"plain": {"settings": {"model": "x"}, "hash": "h"}},
}
OF_IMAGE = {"method": "plain", "case": "a red car", "seed": 0}
IMAGE = {**OF_IMAGE, "settings": "h", "file": "plain/a-red-car/0.png", "bytes": 73, "sha256": "0", "calls": 2.0}
SCORE = {**OF_IMAGE, "scoring": "s", "stamp": "t", "caption": "c", "full_text": 0.5, "success": 1.0}
WEAKENED = {"order": "MoRHF", "heads": [1], "prompt": "a", "word": "a", "seed": 0, "score": 0.5, "model": "m"}


def _retold(path: Path) -> None:
    log = Log(path, _Row, lambda text: None)
    log.close()
    assert all(isinstance(score, float) for score in _known(log, {"model": "m"}, {}).values())


# Models


def _model(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(POCKET, folder / "model", copy_function=os.link)
        for path in (folder / "model").rglob(Path(name).name):
            content = path.read_bytes()
            path.unlink()  # a copy, not the package's own
            path.write_bytes(content)
        return folder / "model" / name

    return make


def _loaded(path: Path) -> None:
    model = limelight.load(next(p for p in path.parents if p.name == "model"), device="cpu")
    limelight.generate(model, "a cat", subjects=["cat"], steps=1, height=32, width=32, record=False)


def _settings(path: Path) -> None:
    model = loading.load("pocket", device="cpu")
    own = replace_about(model, loading.about_of(path, model.about))
    for name in ("recommended", "attend-and-excite", "focus"):
        assert limelight.preset(name, own).scale >= 0
    TrainingConfig.suited(own)
    assert own.guidance_scale < float("inf")
    own.unknown(own.prompt("a cat"))


def replace_about(model: Any, about: Any) -> Any:
    own = model.for_one_run()
    own.about = about
    return own


FACTS = {
    "words": ["a", "cat"],
    "attend_and_excite": {"scale": 7.0, "thresholds": {"0": 0.1, "0.2": 0.3}, "until": 0.5},
    "guidance": {"decay": [1.0, 0.5], "resolution": 16},
    "recommended": {"preset": "focus", "scale": 0.2},
    "textual_inversion": {"lr": 0.1, "norm": "keep", "steps": 7},
    "generate": {"guidance_scale": 5.0},
}


# Images


def _image(kind: str) -> Callable[[], bytes]:
    def content() -> bytes:
        held = io.BytesIO()
        colors = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(colors).save(held, kind)
        return held.getvalue()

    return content


def _opened(path: Path) -> None:
    image = open_image(path)
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MOST_PIXELS


def _mask(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    (folder / "0.mask.png").write_bytes(mask_png(torch.ones(8, 8, dtype=torch.bool)))
    return folder / "0.mask.png"


def _masked(path: Path) -> None:
    mask = read_mask(path.with_name("0.png"))
    assert mask is None or (mask.dtype == torch.bool and mask.ndim == 2)


def _result(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(save({"latents": torch.ones(4, 2, 2)}))
    return folder / "a.safetensors"


def _kept(path: Path) -> None:
    assert _may_write(path.with_suffix(".png"), torch.zeros(4, 2, 2)) is not os.path.exists(path)  # another's


def _of_pocket(name: str) -> Any:
    return json.loads((POCKET / name).read_text())


def _lines_of(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def _json_line(text: str) -> bytes:
    return text.replace("\n", " ").encode() + b"\n"


DOORS = {
    "suite.txt": Door(_file("s.txt", b"a cat\na dog\n"), _suite),
    "suite.csv": Door(_file("s.csv", b"prompt,subset,subjects\na red car,x,red car\na dog,y,\n"), _suite),
    "suite.tsv": Door(_file("s.tsv", b"Prompt\tCategory\na red car\tx\n"), _suite),
    "suite.json": Door(_file("s.json", json.dumps(_ROWS).encode()), _suite, _ROWS),
    "suite.jsonl": Door(_file("s.jsonl", _lines_of(*_ROWS).encode()), _suite, _ROWS[0], _json_line),
    "prompts": Door(_file("p.txt", b"a cat\na dog\n"), _lines),
    "concepts.csv": Door(_file("c.csv", _PAPER), _concepts),
    "concepts.yaml": Door(_file("c.yaml", b"Animals: [cat, dog]\nColor: [red, blue]\n"), _concepts),
    "concepts.json": Door(_file("c.json", json.dumps(CONCEPTS).encode()), _concepts, CONCEPTS),
    "word.safetensors": Door(
        _pickled("w.safetensors"), _word, {"step": 5, "model": "m"}, _safetensors({"<cat>": torch.ones(2, 32)}, "about")
    ),
    "word.pt": Door(_pickled("w.pt"), _word),
    "word.png": Door(_file("w.png", _image("PNG")), _word),
    "word folder": Door(_word_folder, lambda path: _word(path.parent)),
    "vectors": Door(
        _file("v.safetensors", lambda: save(TENSORS, {"limelight.heads": json.dumps(ABOUT)})),
        _vectors,
        ABOUT,
        _safetensors(TENSORS, "limelight.heads"),
    ),
    "vectors.npy": Door(_authors, _imported),
    "heads.npy": Door(lambda folder: _authors(folder).with_name("h.npy"), _imported),
    "training": Door(
        _file("state.safetensors", lambda: save(TRAINED, {"limelight.training": json.dumps({**STATE, "step": 3})})),
        _trained,
        {**STATE, "step": 3},
        _safetensors(TRAINED, "limelight.training"),
    ),
    "earlier training settings": Door(_earlier_state, _trained, STATE),
    "earlier training tensors": Door(lambda folder: _earlier_state(folder).with_name("state.safetensors"), _trained),
    "losses": Door(_file("loss.csv", losses([Losses(0, 1.0, None, None, None, 1.0, 1.0)])), _losses),
    "run.json": Door(_run, _scored, RUN),
    "manifest": Door(_in_run("manifest.jsonl"), _scored, IMAGE, _json_line),
    "seconds": Door(_in_run("seconds.jsonl"), _scored, {**OF_IMAGE, "seconds": 0.5}, _json_line),
    "scores.jsonl": Door(_scores, _scored, SCORE, _json_line),
    "scores.parquet": Door(_reported, _report),
    "scores.json": Door(lambda folder: _reported(folder).with_name("scores.json"), _report, SUMMARY),
    "weakening": Door(_file("scores.jsonl", _lines_of(WEAKENED).encode()), _retold, WEAKENED, _json_line),
    "limelight.json": Door(_file("limelight.json", json.dumps(FACTS).encode()), _settings, FACTS),
    "model_index.json": Door(_model("model_index.json"), _loaded, _of_pocket("model_index.json")),
    "unet config": Door(_model("unet/config.json"), _loaded, _of_pocket("unet/config.json")),
    "scheduler config": Door(
        _model("scheduler/scheduler_config.json"),
        _loaded,
        _of_pocket("scheduler/scheduler_config.json"),
    ),
    "tokenizer config": Door(_model("tokenizer/tokenizer_config.json"), _loaded, most=16),
    "text encoder": Door(_model("text_encoder/model.safetensors"), _loaded, most=16),
    **{
        f"image {kind}": Door(_file(f"i.{kind.lower()}", _image(kind)), _opened)
        for kind in ("PNG", "JPEG", "GIF", "TIFF")
    },
    "mask": Door(_mask, _masked),
    "earlier result": Door(_result, _kept),
}


def place(path: Path, kind: str) -> None:
    """Put something else where a file is."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)


def knock(door: Door, path: Path) -> str:
    """Read a file: "accepted", or the one sentence that refuses it.

    Raises:
        Exception: a fault of limelight's.
    """
    try:
        door.read(path)
    except LimelightError as error:
        message = str(error)
        assert message.endswith("."), message
        assert "\n" not in message, message
        assert len(message) < 1500
        return message
    return "accepted"
