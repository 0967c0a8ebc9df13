"""Heads: vectors that fit pass, vectors of other heads fail, and models without a reference are only counted."""

import json
from dataclasses import replace

import pytest
import torch

import limelight
from limelight.heads.relevance import Relevance
from limelight.heads.vocabulary import Concepts
from limelight.validate import heads
from limelight.validate.context import Context
from limelight.validate.outcome import judged
from tests import transformers as families

POCKETS = {"clip": "pocket", "captioner": "none", "detector": "none"}
OPTIONS = {"backbones": POCKETS, "height": None, "width": None}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(heads, "PROMPTS", 2)
    monkeypatch.setattr(heads, "SHARES", ())


def test_counted_vectors_beside_shipped_ones(check, pocket, tmp_path, monkeypatch):
    monkeypatch.setattr(Context, "left", 0.0)  # time for one prompt
    outcome = check(pocket, "heads", **OPTIONS)["heads"]
    assert outcome.verdict == "passed"
    assert outcome.summary.startswith("2 prompts counted. Cosine with the vectors of pocket ")
    assert outcome.numbers["cosine, own concept"] > outcome.numbers["cosine, other concepts"] + 0.1
    assert outcome.numbers["prompts weakened"] == 1
    rows = (tmp_path / "out/weakened/scores.jsonl").read_text().splitlines()
    assert {json.loads(row)["word"] for row in rows} == {"cat"}


def test_vectors_of_other_heads_do_not_pass():
    """Those that are alike for all heads tell nothing apart; those that name the wrong heads fail."""
    known = Relevance.load("pocket")
    alike, wrong = torch.ones_like(known.vectors), -known.vectors
    found = [heads._compared(known, replace(known, vectors=vectors)) for vectors in (known.vectors, alike, wrong)]
    assert [judged([gain]) for _, gain, _, _ in found] == ["passed", "measured", "failed"]
    assert [text.endswith("That is too little to tell them apart.") for text, *_ in found] == [False, True, False]
    assert found[0][3]["cosine, own concept"] == pytest.approx(1)


def test_other_models_are_counted_alone(check, monkeypatch):
    few = Concepts({"Animals": ("cat", "dog"), "Color": ("red", "blue")})
    monkeypatch.setattr(Concepts, "suited", lambda name: few)
    outcome = check(limelight.load(families.sd3()), "heads", backbones={**POCKETS, "clip": "none"})["heads"]
    assert outcome.verdict == "measured"
    assert outcome.summary.endswith("nothing to compare with. No weakening: No CLIP: --clip none.")


def test_families_without_heads_skip(check):
    outcome = check(limelight.load(families.z_image()), "heads")["heads"]
    assert (outcome.verdict, outcome.summary) == ("skipped", "Heads cannot be counted on ZImage yet.")
