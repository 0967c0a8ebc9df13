"""Reports of scored folders."""

import json

import diffusers
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from limelight import FileError, SettingsError, __version__
from limelight.evaluate.metrics import METRICS
from limelight.evaluate.report import Line, _markdown, report
from limelight.evaluate.runs import run
from limelight.evaluate.scoring import score
from limelight.evaluate.store import read_facts
from limelight.evaluate.suites import Case, wanted


def scored(folder, values, right=None):
    """A scored folder, by hand: method -> prompt -> the score of each seed, and whether all is there and colored."""
    rows = []
    for method, prompts in values.items():
        for prompt, column in prompts.items():
            for seed, value in enumerate(column):
                file = folder / method / prompt / f"{seed}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (200, 100), "red").save(file)
                row = dict.fromkeys(("source", "caption", *METRICS))
                row |= {"method": method, "subset": "mine", "prompt": prompt, "seed": str(seed), "full_text": value}
                if right is not None:
                    row["success"], row["binding"] = right[method][prompt][seed]
                calls = {"plain": 100.0, "guided": 150.0}[method]
                rows.append({**row, "file": str(file.relative_to(folder)), "calls": calls, "seconds": calls / 100})
    parquet.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    used = {"clip": "c", "captioner": "b", "detector": "d", "paper": False}
    (folder / "scores.json").write_text(json.dumps({"backbones": used}))
    return folder


def test_a_report(tmp_path):
    values = {"plain": {"<b>": [0.1, 0.3], "c|d": [0.2, 0.4], "e": [0.5, 0.5]}}
    values["guided"] = {"<b>": [0.2, 0.4], "c|d": [0.1, 0.3], "e": [0.7, 0.7]}
    folder = scored(tmp_path / "run", values)
    page = report([folder], tmp_path / "out")
    assert "Content-Security-Policy" in page.read_text()
    html, text = page.read_text(), (tmp_path / "out" / "report.md").read_text()
    # Two cases of three got better, one worse; of each two images of both methods.
    assert html.count("data:image/jpeg;base64,") == 3 * 2 * 2
    assert "&lt;b&gt;" in html
    assert "<b>" not in html.replace('<b style="left', "")
    assert "src=" not in html.replace('src="data:', "")
    cells = {line.split(" | ")[1]: line.split(" | ") for line in text.splitlines() if line.startswith("| all | ")}
    means = [line for line in text.splitlines() if line.startswith("| all | ")][:3]
    assert "| all | plain | 6 | 0.333 | 100.0 | 1.000 |" in means
    assert "| all | guided | 6 | 0.400 | 150.0 | 1.500 |" in means
    # Between one image (0.333) and the better of two (0.4), in the middle.
    assert "| all | plain, best of 1.50 (denoiser calls of guided) | 6 | 0.367 | 150.0 | 1.500 |" in means
    assert cells["guided"][2].startswith("+0.067 [-0.100, +0.200], 67%")
    with pytest.raises(SettingsError, match="No image is by 'magic'"):
        report([folder], tmp_path, reference="magic")
    with pytest.raises(FileError, match="has no scores"):
        report([tmp_path], tmp_path)
    (folder / "scores.parquet").write_bytes(b"PAR1")
    with pytest.raises(FileError, match="cannot be read"):
        report([folder], tmp_path)


def test_fixed_and_broken_images(tmp_path):
    """Per image: two become right (a subject comes, a color comes), one loses its color, one stays wrong."""
    values = {method: {"a": [0.1] * 3, "b": [0.2] * 2} for method in ("plain", "guided")}
    plain = {"a": [(0.0, None), (1.0, 0.5), (1.0, 1.0)], "b": [(0.0, 0.0), (1.0, None)]}
    guided = {"a": [(1.0, None), (1.0, 1.0), (1.0, 0.5)], "b": [(1.0, 0.0), (1.0, None)]}
    page = report([scored(tmp_path / "run", values, {"plain": plain, "guided": guided})], tmp_path)
    changes = [line for line in page.with_suffix(".md").read_text().splitlines() if line.startswith("| all | guided")][
        -1
    ]
    assert changes.endswith("| 2 | 1 |")
    assert "<td>2</td><td>1</td></tr>" in page.read_text()


def test_one_prompt_has_no_interval(tmp_path):
    values = {"plain": {"a cat": [0.1, 0.3]}, "guided": {"a cat": [0.2, 0.4]}}
    page = report([scored(tmp_path / "run", values)], tmp_path)
    assert "| all | guided | +0.100 |" in page.with_suffix(".md").read_text()
    html = page.read_text()
    assert "<i style" not in html, "no bar"
    assert html.count('<b style="left') == 3, "points"
    assert ">+0.100</span></span>" in html, "the end of the axis"


def test_a_report_says_what_the_images_were_generated_with(tiny_run, tmp_path):
    """Suite, prompts, seeds, model, steps, versions and command, of the run's own run.json."""
    html = report([tiny_run], tmp_path).read_text()
    versions = {"limelight": __version__, "diffusers": diffusers.__version__, "torch": torch.__version__}
    facts = {"suite": "mine", "prompts": "1", "seeds": "0, 3", "model": "pocket", "steps": "1"}
    for name, value in facts.items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in html
    for name, version in versions.items():
        assert f"{name} {version}" in html
    assert "<code>limelight evaluate run --suite mine</code>" in html


@pytest.fixture
def tiny_run(tmp_path):
    """A run, called twice, and its scores."""
    folder = tmp_path / "tiny"
    about = {"suite": "mine", "command": "limelight evaluate run --suite mine"}
    for _ in range(2):
        run(
            folder,
            [Case("a cat and a dog", "mine", wanted("a cat and a dog"))],
            ["plain"],
            [0, 3],
            steps=1,
            workers=1,
            about=about,
        )
    assert len(read_facts(folder)["about"]) == 1, "said once"
    score(folder, {"clip": "none", "captioner": "none", "detector": "pocket"}, workers=1)
    return folder


def test_a_report_of_other_folders_is_not_replaced(tmp_path):
    one = scored(tmp_path / "one", {"plain": {"a cat": [0.1]}})
    two = scored(tmp_path / "two", {"plain": {"a cat": [0.1]}, "guided": {"a cat": [0.2]}})
    report([one], tmp_path)
    scored(one, {"plain": {"a cat": [0.3]}})
    assert "0.300" in report([one], tmp_path).with_suffix(".md").read_text()
    for folders, reference in (([two], None), ([one, two], None)):
        with pytest.raises(FileError, match=r"report.md' is of other folders, or compares with another method"):
            report(folders, tmp_path, reference=reference)
    assert "0.300" in (tmp_path / "report.md").read_text()

    report([two], tmp_path / "two")
    with pytest.raises(FileError, match="compares with another method"):
        report([two], tmp_path / "two", reference="guided")


@pytest.mark.parametrize("lacking", ["prompt", "seconds"])
def test_a_table_that_lacks_a_column(tmp_path, lacking):
    folder = scored(tmp_path, {"plain": {"a cat": [0.1]}})
    table = parquet.read_table(folder / "scores.parquet")
    parquet.write_table(table.drop_columns([lacking]), folder / "scores.parquet")
    why = rf"scores\.parquet' cannot be read as scores: .*{lacking}.*; score the folder again"
    with pytest.raises(FileError, match=why) as error:
        report([folder], tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("report.*"))


def test_names_mean_nothing_in_markdown():
    line = Line("*[x](http://y)*<script>|`", "a\nb", 1, dict.fromkeys(("full_text", "calls", "seconds"), 0.1), {})
    row = _markdown([line], ["full_text"], "plain").splitlines()[2]
    assert row == r"| a b | \*\[x\](http://y)\*\<script\>\|\` | 1 | 0.100 | 0.100 | 0.100 |"
