"""Methods of edits: what they generate, and the cases that they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pyarrow import parquet

import limelight
import limelight.evaluate.runs as module
from limelight import SettingsError
from limelight.evaluate.clip import Clip, image_text
from limelight.evaluate.preservation import grown, read_mask
from limelight.evaluate.report import report
from limelight.evaluate.runs import run
from limelight.evaluate.scoring import score
from limelight.evaluate.suites import Case, load
from limelight.heads.relevance import Relevance
from tests.evaluate.conftest import SMALL

EDITS = ("source", "plain", "prompt-to-prompt")


@pytest.fixture
def five(tmp_path, monkeypatch, tiny):
    """A case of each list of edits, drawn by a tiny model, and the methods that did."""
    monkeypatch.setattr(module, "load", lambda *args, **options: tiny)
    layers = tuple((layer.group, layer.heads) for layer in tiny.sites if layer.kind == "cross")
    cases = load("hrv-edit")[::50]
    concepts = tuple(dict.fromkeys(case.concept for case in cases))
    vectors = torch.rand(len(concepts), sum(heads for _, heads in layers))
    file = Relevance(concepts, layers, vectors).save(tmp_path / "vectors.safetensors")
    methods = (*EDITS, f"prompt-to-prompt-heads:head_vectors={json.dumps(str(file))}")
    run(tmp_path / "run", cases, methods, [0, 1], workers=1, **SMALL)
    return tmp_path / "run", cases, methods


def test_edits_of_all_lists(five, tiny):
    folder, cases, methods = five
    assert len({case.concept for case in cases}) == 5
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    drawn = {(row["method"], row["case"], row["seed"]): Image.open(folder / row["file"]) for row in rows}
    case = cases[0]
    same = limelight.edit(tiny, case.source, case.prompt, seeds=[0, 1], **SMALL)
    for seed in (0, 1):
        assert drawn["prompt-to-prompt", case.name, seed].tobytes() == same.target.images[seed].tobytes()
        assert drawn["source", case.name, seed].tobytes() == same.source.images[seed].tobytes()
        assert drawn[methods[3], case.name, seed].tobytes() != same.target.images[seed].tobytes()
        file = Path(drawn["source", case.name, seed].filename)
        assert read_mask(file).equal(grown(same.source.maps.mask("blue"))[seed])
    # A source and its target, each with both branches, in two steps.
    assert {row["calls"] for row in rows if row["method"].startswith("prompt")} == {8}

    score(folder, {"clip": "pocket", "captioner": "none", "detector": "pocket"}, workers=1)
    table = parquet.read_table(folder / "scores.parquet").to_pylist()
    clip = Clip()
    for row in table:
        assert (row["pixels"] is None) == (row["method"] == "source")
        assert (row["binding"] is not None) == (row["source"] == "a blue car")  # no other says a color
        picture = Image.open(folder / row["file"]).convert("RGB")
        assert row["full_text"] == pytest.approx(image_text(clip, clip.images([picture]), row["prompt"]).item())
    # Where words are everywhere, as with random weights, nothing is left to have a structure.
    assert {row["method"] for row in table if row["structure"] is not None} == set(methods[1:])
    text = report([folder], folder).with_name("report.md").read_text()
    assert "structure changed outside | pixels changed outside" in text
    assert "Change against plain" in text


def test_edits_that_cannot_be_drawn(tmp_path, quick):
    def refused(message, cases, method, **options):
        with pytest.raises(SettingsError, match=message):
            run(tmp_path / "run", cases, ["source", method], [0], workers=1, **SMALL, **options)
        assert not (tmp_path / "run" / "source").exists()

    color, heads = load("hrv-edit-color"), "prompt-to-prompt-heads"
    lacking = "Unknown concept 'Weather Conditions'. Choose one of: Animals"
    refused(lacking, load("hrv-edit-weather"), heads)
    refused("has no concept", [Case("a cat", "mine", source="a dog")], heads)
    refused("brings no new word", [replace(color[0], prompt="a car")], heads)
    refused("'a cat and a dog' has no source to be edited", [Case("a cat and a dog", "mine")], "prompt-to-prompt")
    refused("Edits have no eta", color, "prompt-to-prompt", eta=0.5)
