"""What the documents show must run."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

import limelight
from examples.images import COMMANDS, STEERED, mistakes, right, rows_of
from limelight.guidance.names import NAMES
from limelight.models.base import FEATURES
from limelight.models.families import features

ROOT = Path(__file__).parents[1]
DOCUMENTED = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/guides/*.md")]
LOAD = cache(limelight.load)  # many documents open the same model


def blocks(document: str, language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.S))


# The functions of the cluster's example must be in an importable module; the web page serves until it is stopped.
APART = ("cluster.md", "web.md")
DOCUMENTS = ["README.md", "docs/quickstart.md"] + [
    f"docs/guides/{path.name}" for path in sorted(ROOT.glob("docs/guides/*.md")) if path.name not in APART
]


def in_two_steps(function):
    return lambda *args, **options: function(*args, **{**options, "steps": 2})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_in_the_documents_runs(document, monkeypatch, tmp_path, pocket):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.effect_noise((128, 128), 50).convert("RGB").save(tmp_path / "photos/photo.png")
    for name in ("generate", "compare", "edit", "calibrate"):
        monkeypatch.setattr(limelight, name, in_two_steps(getattr(limelight, name)))

    monkeypatch.setattr(limelight, "load", LOAD)
    names = {"model": pocket}
    exec(compile(blocks(document, "python"), document, "exec"), names)
    if document == "README.md":
        assert len(names["result"].images) == 4
        assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_loggers_in_the_guide(monkeypatch, pocket):
    """Against stand-ins that take what wandb and TensorBoard take."""
    seen: dict[str, object] = {}

    class Writer:
        def __init__(self, folder):
            seen["folder"] = folder

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_image(self, tag, values, dataformats):
            seen["tensorboard"] = (tag, values.shape, values.dtype.name, dataformats)

    run = SimpleNamespace(log=lambda values: seen.update(wandb=values))
    init = {"init": lambda project, config: seen.update(config=config) or run, "Image": lambda image: image.size}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**init))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    result = limelight.generate(pocket, "a cat", seeds=[3, 5], steps=1)
    exec(blocks("docs/guides/explain.md", "py"), {"result": result, "np": np})
    assert seen["wandb"] == {"seed 3": (128, 128), "seed 5": (128, 128)}
    assert seen["config"] == result.settings
    assert seen["tensorboard"] == ("images", (304, 524, 3), "uint8", "HWC")


@pytest.mark.parametrize("logger", ["wandb", "tensorboard"])
def test_loggers_themselves_take_a_result(logger, monkeypatch, tmp_path, pocket):
    pytest.importorskip(logger, reason=f"{logger} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    guide = (ROOT / "docs/guides/explain.md").read_text()
    (code,) = [code for code in re.findall(r"```py\n(.*?)```", guide, flags=re.S) if logger in code]
    names = {"result": limelight.generate(pocket, "a cat", seeds=[3, 5], steps=1), "np": np}
    exec(code, names)
    if logger == "wandb":
        names["run"].finish()
    written = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert max(written, default=0) > 10_000, "the images are in the log"


@pytest.mark.parametrize("name", [*STEERED, *COMMANDS])
def test_the_images_show_what_they_should(name):
    """The embedded detector finds every subject in its color; of leading images most plain ones lack something."""
    assert mistakes(name) == []
    shown = [path for path in DOCUMENTED if f"images/{name})" in path.read_text()]
    assert shown, f"{name} is shown nowhere"


def test_the_detector_sees_what_is_wrong():
    """The plain row of the first image fails the check that the guided one passes."""
    rows = rows_of("demo.png")
    prompt, images = rows["plain"]
    assert right(prompt, images) <= len(images) // 2
    assert right("a frog and a purple crown", rows_of("steer-crown.png")["guided"][1]) == 4
    assert right("a frog and a red crown", rows_of("steer-crown.png")["guided"][1]) == 0


def test_the_objective_of_the_guide_raises_its_words(monkeypatch, pocket):
    """The code of CONTRIBUTING.md: with seed 2 the monkey has almost none of the attention without guidance.

    With the example it has several times as much.
    """
    monkeypatch.setattr(limelight, "generate", partial(limelight.generate, steps=8, seeds=[2]))
    names = {"model": pocket}
    exec(compile(blocks("CONTRIBUTING.md", "python"), "CONTRIBUTING.md", "exec"), names)
    (guided,) = names["result"].trace[-1]["presence"]
    watching = replace(names["guidance"], scale=0.0)
    (plain,) = limelight.generate(pocket, "a cat and a monkey and a chair", guidance=watching).trace[-1]["presence"]
    weakest = plain.index(min(plain))
    assert guided[weakest] > 2 * plain[weakest]
    assert min(guided) > min(plain)


def test_the_readme_fits_a_screen_or_two():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_table_of_families_is_the_codes_own():
    rows = [["family", *FEATURES], ["---"] * (1 + len(FEATURES))]
    for title, works in features().items():
        rows.append([title, *("yes" if works[feature] else "" for feature in FEATURES)])
    for row in rows:
        assert f"|{'|'.join(row)}|" in (ROOT / "docs/models.md").read_text().replace(" |", "|").replace("| ", "|")


def test_the_guide_to_objectives_names_every_guidance():
    page = (ROOT / "docs/guides/objectives.md").read_text()
    missing = {name for name in NAMES if not re.search(rf"`{name}`", page)}
    assert missing <= {"attend-and-excite-fast"}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == limelight.__version__
    assert f"## [{limelight.__version__}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_reference_has_a_page_for_every_public_name(monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs")
    pages = "".join(import_module("hooks").reference_pages().values())
    for name, module in limelight._PUBLIC.items():
        assert f"::: limelight.{module}.{name}\n" in pages


def test_links_lead_somewhere():
    for document in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("src/**/*.md"),
        *ROOT.glob("recipes/**/*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#\s]+)\)", document.read_text()):
            generated = "reference/" in link  # by docs/hooks.py
            if "://" not in link and not generated:
                assert (document.parent / link).exists(), f"{document.name} points to {link}"


@pytest.mark.parametrize(("folder", "page"), [("pocket", "pocket"), ("pocket_dit", "pocket-dit")])
def test_the_model_cards_are_in_the_documents(folder, page):
    """`sed 's#../../../docs/##' src/limelight/FOLDER/README.md > docs/PAGE.md` makes them."""
    card = (ROOT / "src/limelight" / folder / "README.md").read_text()
    assert (ROOT / "docs" / f"{page}.md").read_text() == card.replace("../../../docs/", "")
