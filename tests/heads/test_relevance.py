"""Head relevance vectors: the authors' numbers, their files, scales and intervals."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import limelight
from limelight.errors import FileError, SettingsError
from limelight.heads import guidance as guidance_module
from limelight.heads import relevance as relevance_module
from limelight.heads.relevance import Relevance, layers_of, vectors_of

# The authors' vectors: numbers of the specification.
TOP = {
    ("sd-1.4", "Color"): ["up 8/0 8.307", "up 6/4 5.128", "up 7/5 4.704", "up 7/2 4.692", "up 8/3 4.686"],
    ("sd-1.4", "Animals"): ["up 8/3 4.427", "down 5/3 4.216", "up 6/7 3.799", "up 7/5 3.551", "down 1/6 3.406"],
    ("sd-1.4", "Material"): ["up 2/0 7.549", "down 3/6 7.314", "up 5/3 4.535", "up 2/3 4.420", "up 1/7 4.397"],
    ("sd-1.4", "Image Style"): ["mid 0/3 18.169", "up 2/1 9.599", "up 5/2 7.465", "mid 0/6 6.138", "mid 0/0 5.584"],
    ("sdxl", "Color"): ["up 14/6 66.145", "down 5/17 33.086", "up 34/3 28.365", "down 0/4 27.662", "down 4/8 24.225"],
    ("sdxl", "Animals"): [
        "down 18/4 19.150",
        "up 21/18 11.596",
        "mid 4/1 11.484",
        "down 18/3 11.348",
        "up 28/8 10.965",
    ],
    ("sdxl", "Plants"): ["mid 7/4 8.704", "up 23/4 8.270", "mid 7/10 7.830", "down 7/1 7.594", "up 24/11 7.519"],
}


@pytest.mark.parametrize(("name", "concept"), TOP)
def test_most_relevant_heads_of_the_authors_vectors(name, concept):
    relevance = Relevance.load(name)
    for index, expected in zip(relevance.order(concept), TOP[name, concept], strict=False):
        head, (place, at, value) = relevance.heads[index], expected.split()
        assert (head.group, f"{head.layer}/{head.head}") == (place, at)
        assert float(relevance[concept][index]) == pytest.approx(float(value), abs=6e-4)


@pytest.mark.parametrize(
    ("name", "heads", "most", "mean", "low", "high"),
    [("sd-1.4", 128, 23.187, 0.334, 0.030, 0.804), ("sdxl", 1300, 66.145, 0.300, 0.091, 0.563)],
)
def test_facts_of_the_authors_vectors(name, heads, most, mean, low, high):
    relevance = Relevance.load(name)
    assert relevance.vectors.shape == (34, heads)
    assert (relevance.vectors.sum(dim=1) - heads).abs().max() < 3e-3
    assert float(relevance.vectors.max()) == pytest.approx(most, abs=6e-4)
    cosines = relevance.similarity()[~torch.eye(34, dtype=torch.bool)]
    found = (float(cosines.mean()), float(cosines.min()), float(cosines.max()))
    assert found == pytest.approx((mean, low, high), abs=6e-4)
    # Counts recovered from the vectors: 2100 prompts of 51 passes.
    assert (relevance.counts.sum(dim=2) == 107_100).all()
    assert torch.allclose(relevance.vectors, _scaled(relevance), atol=1e-4)


def _scaled(relevance: Relevance) -> torch.Tensor:
    counts = relevance.counts.sum(dim=0).double()
    return (counts * counts.shape[0] / counts.sum(dim=0)).T.float()


def test_recovered_counts_and_shares():
    relevance = Relevance.load("sd-1.4")
    color = relevance.index("Color")
    assert relevance.counts[0, list(relevance.order("Color")[:5]), color].tolist() == [
        59400,
        36667,
        33633,
        33547,
        33506,
    ]
    wins = relevance.counts.sum(dim=(0, 1)).double() / relevance.counts.sum()
    assert [round(100 * float(wins[relevance.index(c)]), 1) for c in ("Brand Logos", "Animals", "Color")] == [
        9.8,
        7.8,
        6.7,
    ]
    shares = relevance.shares()
    assert torch.allclose(shares.sum(dim=0), torch.ones(128, dtype=torch.float64))
    assert float(shares.amax(dim=0).mean()) == pytest.approx(0.215, abs=6e-4)


def test_import_refuses_what_does_not_fit(tmp_path):
    np.save(tmp_path / "v.npy", np.ones((2, 3), dtype=np.float32))
    np.save(
        tmp_path / "h.npy", np.array(["down, layer: 0, head: 0", "down, layer: 0, head: 1", "up, layer: 0, head: 0"])
    )
    two = {"A": ["a"], "B": ["b"]}
    relevance = Relevance.read_npy(tmp_path / "v.npy", tmp_path / "h.npy", two)
    assert relevance.layers == (("down", 2), ("up", 1))
    assert relevance.counts is None
    with pytest.raises(FileError, match=r"3 concepts and 3 heads need \[3, 3\]"):
        Relevance.read_npy(tmp_path / "v.npy", tmp_path / "h.npy", {**two, "C": ["c"]})
    with pytest.raises(FileError, match="cannot be read as head relevance vectors"):
        Relevance.load(tmp_path / "v.npy")
    with pytest.raises(FileError, match=r"none\.npy' cannot be read: No such file"):
        Relevance.read_npy(tmp_path / "none.npy", tmp_path / "h.npy", two)


def test_file_keeps_everything(tmp_path):
    counts = torch.tensor([[[3, 1], [0, 4]], [[2, 2], [1, 3]]])  # [steps, heads, concepts]
    facts = {"model": "mine", "words": {"A": ["a"], "B": ["b"]}, "seed": 5}
    counted = torch.tensor([True, True, False])
    relevance = Relevance(
        ("A", "B"), (("mid", 2),), vectors_of(counts.sum(dim=0)), counts, counts.flip(0), counted, facts
    )
    back = Relevance.load(relevance.save(tmp_path / "x.safetensors"))
    assert back.concepts == relevance.concepts
    assert back.layers == relevance.layers
    assert back.facts == facts
    for name in ("vectors", "counts", "blocks", "counted"):
        assert torch.equal(getattr(back, name), getattr(relevance, name))


def test_a_file_without_counts(tmp_path):
    relevance = Relevance(("A", "B"), (("mid", 2),), torch.ones(2, 2))
    back = Relevance.load(relevance.save(tmp_path / "x.safetensors"))
    assert (back.counts, back.blocks, back.counted) == (None, None, None)
    with pytest.raises(SettingsError, match="were imported without counts"):
        back.shares()


def test_heads_by_name_and_number():
    relevance = Relevance.load("sd-1.4")
    assert relevance.find("up, layer: 8, head: 0") == relevance.find(120) == 120
    assert relevance.named("color, animals") == ("Color", "Animals")
    assert relevance.named(None) == relevance.concepts
    assert [(head.index, round(value, 3)) for head, value in relevance.top("Color", 1)] == [(120, 8.307)]


def test_scales():
    relevance = Relevance.load("sdxl")
    assert torch.allclose(relevance.scaled().vectors, relevance.vectors, atol=1e-4)
    assert float(relevance.scaled(clamp=9).vectors.max()) == 9
    narrow = relevance.scaled(power=0.5).vectors
    assert torch.allclose(narrow.mean(dim=1), torch.ones(34), atol=1e-4)
    assert narrow.max() < 16
    level = relevance.scaled("rms").vectors
    assert torch.allclose(level.square().mean(dim=1), torch.ones(34), atol=1e-4)


def test_intervals_and_agreement_of_a_known_truth():
    # 40 blocks of a head that chooses the first concept with probability 0.2, another with 0.6.
    torch.manual_seed(0)
    wins = torch.stack([torch.distributions.Binomial(100, torch.tensor([0.2, 0.6])).sample() for _ in range(40)])
    blocks = torch.stack([wins, 100 - wins], dim=2).long()
    relevance = Relevance(("A", "B"), (("mid", 2),), torch.ones(2, 2), blocks.sum(0)[None], blocks, torch.ones(40) > 0)
    low, high = relevance.interval()
    assert float(low[0, 0]) < 2 * 0.25 < float(high[0, 0])
    # The element is 2 a / (a + b); its spread by the delta method is about 0.0051 for 40 blocks.
    assert float(high[0, 0] - low[0, 0]) == pytest.approx(2 * 1.96 * 0.0098, rel=0.35)
    prompts, cosines = zip(*relevance.agreement(), strict=True)
    assert prompts[-1] == 20
    assert cosines[0].min() < cosines[-1].min() < 1


def test_vectors_of_another_model(tiny):
    with pytest.raises(SettingsError, match="do not fit"):
        Relevance.load("sd-1.4").of(tiny)


@pytest.mark.parametrize("module", [relevance_module, guidance_module])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def _changed(**changes):
    """A sound file's contents with changes: metadata and tensors."""
    about = {"version": 1, "concepts": ["A", "B"], "layers": [["mid", 2]]}
    tensors = {"vectors": torch.ones(2, 2), "counts": torch.ones(3, 2, 2), "counted": torch.ones(3)}
    for name, value in changes.items():
        (about if name in about else tensors)[name] = value
    return about, {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": torch.tensor([[1, float("nan")], [1, 1]])}, "its vectors are negative, infinite or not a number"),
        ({"vectors": torch.tensor([[1, float("inf")], [1, 1]])}, "its vectors are negative, infinite or not a number"),
        ({"vectors": torch.tensor([[3.0, -1.0], [1, 1]])}, "its vectors are negative"),
        ({"counts": -torch.ones(3, 2, 2)}, "its counts are negative"),
        ({"concepts": ["A", "B", "C"]}, r"its vectors have the shape \[2, 2\], not \[3, 2\]"),
        ({"concepts": ["A"]}, r"not \[1, 2\]"),
        ({"concepts": ["A", "a "]}, "a concept has no name, or the name of another"),
        ({"layers": [["mid", 10**12]]}, r"not \[2, 1000000000000\]"),
        ({"layers": [["mid", 3], ["up", -1]]}, "a layer has no heads"),
        ({"counts": torch.ones(2, 2)}, r"its counts have the shape \[2, 2\], not \[any, 2, 2\]"),
        ({"vectors": None}, "cannot be read as head relevance vectors: something in it is missing .*vectors"),
        ({"layers": 5}, "layers: Input should be a valid"),
        ({"version": "new"}, "version: Input should be a valid integer; give sd-1.4, "),
    ],
)
def test_files_that_cannot_be_right_are_refused(tmp_path, changes, message):
    about, tensors = _changed(**changes)
    save_file(tensors, tmp_path / "x.safetensors", {"limelight.heads": json.dumps(about)})
    with pytest.raises(FileError, match=message):
        Relevance.load(tmp_path / "x.safetensors")


def test_the_sound_file_is_read(tmp_path):
    about, tensors = _changed()
    save_file(tensors, tmp_path / "x.safetensors", {"limelight.heads": json.dumps(about)})
    assert Relevance.load(tmp_path / "x.safetensors").fault is None


def test_vectors_in_memory_are_checked_before_use(tiny):
    heads = layers_of(tiny)
    vectors = torch.full((1, sum(count for _, count in heads)), float("nan"))
    with pytest.raises(SettingsError, match="vectors are negative, infinite or not a number"):
        limelight.edit(
            tiny, "a car", "a red car", strengthen={"red": "A"}, head_vectors=Relevance(("A",), heads, vectors)
        )


def test_imported_vectors_are_checked(tmp_path):
    np.save(tmp_path / "v.npy", np.array([[1.0, np.nan]], dtype=np.float32))
    np.save(tmp_path / "h.npy", np.array(["mid, layer: 0, head: 0", "mid, layer: 0, head: 1"]))
    with pytest.raises(FileError, match=r"v\.npy' cannot be used: its vectors are negative, infinite or not a number"):
        Relevance.read_npy(tmp_path / "v.npy", tmp_path / "h.npy", {"A": ["a"]})
