"""Scores of runs and of folders of images."""

import json

import pytest
from pyarrow import parquet

from limelight import FileError
from limelight.evaluate.scoring import score
from tests.evaluate.conftest import IMAGES
from tests.utils.test_images import bomb


def test_another_detector_measures_again(whole, tmp_path, monkeypatch, pocket):
    seen = []
    options = {"out": tmp_path, "workers": 1, "on_progress": lambda *numbers: seen.append(numbers)}
    score(whole, {"clip": "none", "captioner": "none"}, **options)
    monkeypatch.setattr("limelight.evaluate.scoring._embedded", lambda names: {"detector": "trained again"})
    seen.clear()
    score(whole, {"clip": "none", "captioner": "none"}, **options)
    assert seen[0] == (0, IMAGES)


def test_scores(whole, tmp_path, quick):
    quick(tmp_path / "run")
    folder, said, seen = tmp_path / "run", [], []
    options = {"workers": 1, "say": said.append, "on_progress": lambda *numbers: seen.append(numbers)}
    first = score(folder, **options)
    assert (said, seen[0], seen[-1]) == ([], (0, IMAGES), (IMAGES, IMAGES))
    table = parquet.read_table(folder / "scores.parquet").to_pylist()
    assert len(table) == IMAGES
    for row in table:
        assert -1 <= row["minimum_object"] <= row["full_text"] + 2 <= 3
        assert (row["image_image"] is None) == (row["method"] == "plain")
        # Two branches in each of two steps; one guided step of the two.
        assert row["calls"] == (4 if row["method"] == "plain" else 5)
    everything = first["methods"]["plain"]["all"]
    mean = sum(row["full_text"] for row in table if row["method"] == "plain") / (IMAGES / 2)
    assert everything["full_text_aggregation"] == pytest.approx(mean)
    stated = ("min_first_second_aggregation", "average_similarity", "std_similarity", "detection_success")
    assert all(isinstance(everything[name], float) for name in stated)
    assert json.loads((folder / "scores.json").read_text()) == first
    # Again: nothing is measured. One image is damaged: it alone is.
    seen.clear()
    assert score(folder, **options) == first
    assert seen == [(IMAGES, IMAGES)]
    spoilt = folder / table[-1]["file"]
    spoilt.write_bytes(spoilt.read_bytes()[:300] + b"garbage")
    seen.clear()
    left = score(folder, **options)["methods"][table[-1]["method"]]["all"]["images"]
    assert (left, seen) == (IMAGES / 2 - 1, [(IMAGES - 1, IMAGES), (IMAGES, IMAGES)])
    assert len(said) == 1
    assert f"'{spoilt}' cannot be read and is left out" in said[0]
    # Another image lies in the place of one that was generated.
    swapped = folder / table[1]["file"]
    own = swapped.read_bytes()
    swapped.write_bytes((folder / table[2]["file"]).read_bytes())
    score(folder, **options)
    assert f"'{swapped}' is not the image that was generated and is left out" in said.pop(1)
    swapped.write_bytes(own)
    del said[1:]
    # One more is gone.
    (folder / table[0]["file"]).unlink()
    score(folder, **options)
    assert f"Left out 1 image of the run: '{folder / table[0]['file']}' is missing" in said[1]
    # The paper's way of handling texts is another measurement, which does not replace this one.
    before = (folder / "scores.json").read_bytes()
    with pytest.raises(FileError, match=r"scores by other models \(paper: False there, True now\)"):
        score(folder, {"paper": True}, **options)
    assert (folder / "scores.json").read_bytes() == before
    others = score(folder, {"paper": True}, out=tmp_path / "paper", **options)
    assert others["methods"]["plain"] != first["methods"]["plain"]


def test_a_huge_image_does_not_end_a_score(whole, tmp_path):
    """It is named; the others are measured."""
    place, said = tmp_path / "a cat", []
    place.mkdir()
    for number, path in enumerate(sorted(whole.rglob("*.png"))[:2]):
        (place / f"{number}.png").write_bytes(path.read_bytes())
    (place / "2.png").write_bytes(bomb(50_000))
    backbones = {"clip": "none", "captioner": "none", "detector": "pocket"}
    scores = score(tmp_path, backbones, out=tmp_path / "scores", workers=1, say=said.append)
    assert scores["methods"][tmp_path.name]["all"]["images"] == 2
    (sentence,) = said
    assert f"'{place / '2.png'}' cannot be read and is left out" in sentence


def test_one_score_at_a_time(whole, tmp_path):
    """Two at once would measure every image twice, and the log would have two rows of each."""
    without, refused = {"clip": "none", "captioner": "none"}, []

    def second(done, total):
        with pytest.raises(FileError, match=r"scores\.jsonl' is being written by another program"):
            score(whole, without, out=tmp_path, workers=1)
        refused.append(done)

    score(whole, without, out=tmp_path, workers=1, on_progress=second)
    assert (refused[0], refused[-1]) == (0, IMAGES)
    score(whole, without, out=tmp_path, workers=1)  # the lock is free again
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len({(row["method"], row["case"], row["seed"]) for row in rows}) == len(rows) == IMAGES


def test_scores_of_the_original_layout(whole, tmp_path):
    rows = [json.loads(line) for line in (whole / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        if row["method"] == "plain":
            (tmp_path / "outputs" / row["case"]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "outputs" / row["case"] / f"{row['seed']}.png").write_bytes((whole / row["file"]).read_bytes())
    pocket = {"clip": "pocket", "captioner": "pocket", "detector": "pocket"}
    ours = score(whole, pocket, out=tmp_path / "a", workers=1)["methods"]["plain"]["all"]
    theirs = score(tmp_path / "outputs", pocket, out=tmp_path / "b", workers=1)["methods"]["outputs"]["all"]
    for name in ("full_text_aggregation", "min_first_second_aggregation", "average_similarity", "attribute_binding"):
        assert theirs[name] == pytest.approx(ours[name])
    assert theirs["seconds"] is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="is not a run, and has no images"):
        score(tmp_path / "empty", pocket, workers=1)
