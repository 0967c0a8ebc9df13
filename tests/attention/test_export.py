"""Maps in the formats of other programs."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight import FileError, PromptError, SettingsError
from limelight.attention import export
from limelight.attention.export import exported, run_lengths, save_maps


@pytest.fixture(scope="module")
def maps(pocket):
    return limelight.generate(pocket, "a cat and a dog", seeds=[0, 1], steps=2).maps


def decoded(segmentation) -> torch.Tensor:
    """The mask of COCO's compressed run lengths, as its C code reads them."""
    height, width = segmentation["size"]
    runs, position, text = [], 0, segmentation["counts"]
    while position < len(text):
        value, groups, more = 0, 0, True
        while more:
            code = ord(text[position]) - 48
            value |= (code & 31) << 5 * groups
            more = bool(code & 32)
            position, groups = position + 1, groups + 1
            if not more and code & 16:
                value |= -1 << 5 * groups
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    flat = np.repeat([i % 2 for i in range(len(runs))], runs)
    return torch.from_numpy(flat.reshape(width, height).T.astype(bool))


@pytest.mark.parametrize(
    ("rows", "counts"),
    [(["011", "010"], "231"), (["0000"], "4"), (["1111"], "04")],
    ids=["mixed", "empty", "full"],
)
def test_run_lengths_are_those_of_pycocotools(rows, counts):
    mask = torch.tensor([[cell == "1" for cell in row] for row in rows])
    assert run_lengths(mask) == {"size": list(mask.shape), "counts": counts}


def test_run_lengths_of_pycocotools_with_long_runs():
    """Numbers of several characters, and differences below 0; the text is what pycocotools 2.0 writes."""
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[3:30, 5:20] = True
    mask[10, 7] = False
    found = run_lengths(mask)
    assert found["counts"] == r"[6k0=00\OD<<80000000000000000000000]U1"
    assert torch.equal(decoded(found), mask)


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_lead_back(seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 70, (2,), generator=generator).tolist()
    mask = torch.rand(height, width, generator=generator) < (0.0, 0.02, 0.5, 0.98, 1.0)[seed % 5]
    assert torch.equal(decoded(run_lengths(mask)), mask)


def test_numpy(maps, tmp_path):
    save_maps(maps, tmp_path / "maps.npz", ["dog", "cat"], size=(16, 16))
    stored = np.load(tmp_path / "maps.npz")
    assert stored["words"].tolist() == ["dog", "cat"]
    assert stored["maps"].dtype == np.float32
    for word, values in zip(("dog", "cat"), stored["maps"], strict=True):
        assert np.array_equal(values, maps.map(word, (16, 16)).numpy())


@pytest.mark.parametrize("suffix", ["tif", "TIFF"])
def test_tiff_stack(maps, tmp_path, suffix):
    save_maps(maps, tmp_path / f"maps.{suffix}")
    with Image.open(tmp_path / f"maps.{suffix}") as stack:
        words = json.loads(stack.tag_v2[270])
        assert words == {"words": ["a", "cat", "and", "dog"], "images": 2}
        assert (stack.n_frames, stack.mode) == (8, "F")
        for page in range(8):
            stack.seek(page)
            expected = maps.map(words["words"][page // 2])[page % 2]
            assert np.array_equal(np.asarray(stack), expected.numpy())


def test_coco(maps):
    found = json.loads(exported(maps, "json", ["cat", "dog"], size=(128, 128), threshold=0.3))
    assert found["images"] == [{"id": i, "height": 128, "width": 128} for i in range(2)]
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(a["image_id"], a["category_id"]) for a in found["annotations"]] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    for annotation in found["annotations"]:
        word, image = ("cat", "dog")[annotation["category_id"] - 1], annotation["image_id"]
        mask = maps.mask(word, 0.3, (128, 128))[image]
        assert torch.equal(decoded(annotation["segmentation"]), mask)
        assert annotation["area"] == mask.sum()
        left, top, width, height = annotation["bbox"]
        box = torch.tensor([left, top, left + width, top + height]) / 128
        assert torch.allclose(box, maps.box(word, 0.3)[image])


def test_what_is_refused(maps, tmp_path):
    with pytest.raises(SettingsError, match=r"'maps.png' must end with .npz, .tif or .json"):
        save_maps(maps, tmp_path / "maps.png")
    with pytest.raises(PromptError, match="'bird' is not in the prompt"):
        save_maps(maps, tmp_path / "maps.npz", ["bird"])
    with pytest.raises(SettingsError, match="words is empty"):
        save_maps(maps, tmp_path / "maps.npz", [])
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written"):
        save_maps(maps, tmp_path / "file" / "maps.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_examples():
    found = doctest.testmod(export, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0
