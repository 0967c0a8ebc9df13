from __future__ import annotations

import base64
import doctest
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import limelight
from limelight import MissingDependency, PromptError, SettingsError
from limelight.attention.export import run_lengths
from limelight.viz.explain import explain
from tests.conftest import BROWSER, unhashed


class Page(HTMLParser):
    """The elements of a page, and what is wrong with its nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def explanation(pocket):
    guidance = limelight.AttendAndExcite(scale=5.0, thresholds={0.5: 0.9}, max_refinements=2)
    return explain(
        pocket,
        "a cat and a dog",
        guidance=guidance,
        compare=True,
        over_steps=True,
        seeds=[0, 7],
        steps=4,
        subjects=["cat", "dog"],
    )


def test_runs(explanation, pocket):
    assert list(explanation.runs) == ["plain", "guided"]
    assert explanation.words == ("cat", "dog", "a", "and", "a#2"), "those with a content first"
    # Watched by a guidance of scale 0, the plain image is the image without guidance.
    plain = limelight.generate(pocket, "a cat and a dog", seeds=[0, 7], steps=4)
    assert torch.equal(explanation.runs["plain"].latents, plain.latents)
    assert explanation.runs["plain"].images[1].tobytes() == plain.images[1].tobytes()
    assert not torch.equal(explanation.runs["guided"].latents, plain.latents)
    assert len(explanation.runs["plain"].trace) == 2


def test_explanations_of_one_prompt_are_all_kept(pocket, tmp_path):
    counts = []
    for words in (["cat"], ["dog"], ["cat"]):
        explain(pocket, "a cat and a dog", words=words, steps=2).save(tmp_path, html=True)
        counts.append(len(list(tmp_path.iterdir())))
    assert counts == [2, 4, 4]


def test_an_image_that_exists(pocket):
    image = limelight.generate(pocket, "a cat and a dog", seeds=3, steps=4).images[0]
    found = explain(pocket, "a cat and a dog", words=["cat"], image=image, steps=2, over_steps=True)
    assert [figure.name for figure in found.figures[0]] == ["words", "places", "steps", "animation"]
    assert found.last.images[0].tobytes() == image.tobytes()
    # Inside the mask the image keeps its colors, outside it is grey.
    with Image.open(io.BytesIO(found.figures[0][1].content)) as sheet:
        tile = sheet.convert("RGB").crop((252, 53, 476, 277))
    mask = found.last.maps.mask("cat", size=(224, 224))[0]
    spread = torch.tensor([[max(p) - min(p) for p in row] for row in np.asarray(tile).tolist()])
    left, top, right, bottom = (found.last.maps.box("cat")[0] * 224).round().int().tolist()
    inside = torch.zeros_like(mask)
    inside[top + 2 : bottom - 2, left + 2 : right - 2] = True
    assert (spread[mask & inside] > 0).float().mean() > 0.9
    assert (spread[~mask & inside] == 0).all()
    page = " ".join(Page(found.html()).text)
    assert "look in an image that existed before" in page
    assert "Seed" not in page


@pytest.mark.parametrize(
    "options", [{"compare": True}, {"guidance": "jedi"}, {"negative": "blurry"}, {"seeds": [0, 1]}, {"eta": 0.5}]
)
def test_options_of_generated_images_beside_an_image(pocket, options):
    with pytest.raises(SettingsError, match=f"{next(iter(options))} is for images that are generated"):
        explain(pocket, "a cat", image=Image.new("RGB", (64, 64)), **options)
    with pytest.raises(SettingsError, match="exact is for an image that exists"):
        explain(pocket, "a cat", exact=True)


def test_numbers_for_other_programs(explanation, tmp_path):
    facts = json.loads(json.dumps(explanation.facts(), allow_nan=False))
    maps = explanation.last.maps
    assert [image["seed"] for image in facts["images"]] == [0, 7]
    for index, image in enumerate(facts["images"]):
        assert list(image["words"]) == ["cat", "dog", "a", "and", "a#2"]
        assert image["words"]["dog"]["box"] == maps.box("dog")[index].tolist()
        assert image["words"]["dog"]["highest"] == pytest.approx(maps["dog"][index].max().item())
        mask = maps.mask("dog", size=(128, 128))[index]
        assert image["words"]["dog"]["mask"] == run_lengths(mask)
        assert len(image["pairs"]) == 10
        pair = image["pairs"][0]
        assert pair["words"] == ["cat", "dog"]
        assert pair["iou"] == pytest.approx(maps.iou("cat", "dog")[index].item())
        assert pair["ioa"][1] == pytest.approx(maps.ioa("dog", "cat")[index].item())
    written = explanation.save(tmp_path, export=["npz", "json"])
    names = [unhashed(path) for path in written[-2:]]
    assert names == ["a-cat-and-a-dog-maps.npz", "a-cat-and-a-dog-maps.json"]
    assert np.load(written[-2])["words"].tolist() == ["cat", "dog", "a", "and", "a#2"]
    assert json.loads(written[-1].read_text())["images"][0]["height"] == 128


def test_compound_nouns_have_maps_of_their_own(pocket):
    found = explain(pocket, "a cat and a car horse", steps=1)
    assert found.words == ("cat", "car", "horse", "car horse", "a", "and", "a#2")
    both = found.last.maps["car"] + found.last.maps["horse"]
    assert torch.allclose(found.last.maps["car horse"], both)


def test_files(explanation, tmp_path):
    written = explanation.save(tmp_path / "new", html=True)
    kinds = ("words-{}.png", "compare-{}.png", "trace-{}.png", "steps-{}.png", "animation-{}.webp")
    names = [f"a-cat-and-a-dog-{kind.format(seed)}" for seed in (0, 7) for kind in kinds]
    assert [unhashed(path) for path in written] == [*names, "a-cat-and-a-dog-explain.html"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in written)
    with Image.open(written[0]) as image:
        assert '"seed": 0' in image.text["limelight"]


def test_the_page_holds_everything(explanation):
    page = Page(explanation.html())
    tags = page.all("img")
    # For each seed: an image and five words; three times an image and two subjects; four steps of them; two scales more
    # than sheets; the trace and the animation.
    assert len(tags) == 2 * (6 + 9 + 8 + 4 + 2)
    assert [a["type"] for a in page.all("input")] == ["checkbox"] * 2 * (6 + 9 + 8 + 2), "all can be shown larger"
    assert len(page.all("source")) == 2, "the trace for narrow screens"
    for tag in tags:
        kind, data = re.fullmatch(r"data:image/(png|webp);base64,(.+)", tag["src"]).groups()
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            assert image.format == kind.upper()
            assert (str(image.width), str(image.height)) == (tag["width"], tag["height"])
        assert tag["alt"]
    # Nothing comes from elsewhere, and nothing runs.
    assert not [a for tag, a in page.elements if tag in ("script", "link", "iframe")]
    assert not [a for _, a in page.elements if "href" in a or any(name.startswith("on") for name in a)]
    assert [a["lang"] for a in page.all("html")] == ["en"]
    text = " ".join(page.text)
    for expected in (
        "“a cat and a dog”",
        "Seed 0",
        "Seed 7",
        "guidance scale",
        "7.5",
        "DDIMScheduler",
        "tries",
        "8 x 8 maps",
    ):
        assert expected in text, expected
    for row in explanation.runs["guided"].trace:
        for image in (0, 1):
            assert f"{row['loss'][image]:.3f}" in text
    assert "2" in {cell.strip() for cell in page.text}, "tries of refinement"


@pytest.mark.filterwarnings("ignore::limelight.UnknownWords")
def test_a_prompt_is_text_and_no_html(pocket):
    prompt = 'a <b>cat</b> & a "dog" <script>alert(1)</script>'
    page = Page(explain(pocket, prompt, words=["cat", "dog"], steps=1).html())
    assert not page.all("script")
    assert not page.all("b")
    assert "<script>alert(1)</script>" in "".join(page.text)


@pytest.mark.filterwarnings("ignore::limelight.UnknownWords")
def test_a_plain_explanation_without_subjects(pocket):
    plain = explain(pocket, "sunset over there", steps=1, over_steps=True)
    assert [figure.name for figure in plain.figures[0]] == ["words", "steps", "animation"]
    assert "tries" not in plain.html()


def test_bad_input_says_what_to_do(pocket):
    generated = []
    for options, error, message in [
        ({"words": ["dig"]}, PromptError, "'dig' is not in the prompt; its words are: a, cat"),
        ({"words": []}, SettingsError, "words is empty"),
        ({"compare": True}, SettingsError, "nothing to compare without guidance"),
    ]:
        with pytest.raises(error, match=message):
            explain(pocket, "a cat", run=lambda *a, **k: generated.append(a), **options)
    with pytest.raises(SettingsError, match="the prompt is empty"):
        explain(pocket, "")
    assert not generated, "it is found out before the images are generated"


def test_without_jinja2(explanation, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependency, match=r"page needs jinja2. Install it: pip install 'limelight\[plots\]'"):
        explanation.html()


@pytest.mark.parametrize("name", ["explain", "sheets", "trace"])
def test_examples(name):
    found = doctest.testmod(import_module(f"limelight.viz.{name}"))
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.browser
def test_the_page_in_a_browser(explanation, tmp_path):
    page = explanation.save(tmp_path, html=True)[-1]
    # Facts that only a browser knows, written where a dump of the page shows them. The page itself forbids scripts.
    probe = """<script>addEventListener('load', () => { document.title = JSON.stringify([
        [...document.images].every(i => i.complete && i.naturalWidth),
        document.documentElement.scrollWidth <= innerWidth,
        innerWidth]) })</script>"""
    text = page.read_text().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    (tmp_path / "probe.html").write_text(text.replace("</head>", probe + "</head>"))
    quiet = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}"]
    command = [*quiet, "--window-size=500,900", "--dump-dom", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    loaded, fits, width = re.search(r"<title>\[(true|false),(true|false),(\d+)\]", done.stdout).groups()
    assert (loaded, fits) == ("true", "true"), f"a window {width} wide"
    shot = tmp_path / "page.png"
    command = [*quiet, "--window-size=1240,2400", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    with Image.open(shot) as image:
        assert image.size == (1240, 2400)
        colors = image.convert("RGB").resize((310, 600)).getcolors(1 << 24)
    assert len(colors) > 2000, "the images are on the page"
