"""How results show themselves in a notebook."""

from __future__ import annotations

import copy
import doctest
import html
import io
import pickle
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

import limelight
from limelight.generation import trace
from limelight.utils import progress
from limelight.utils.progress import notebook_bar


@pytest.fixture(scope="module")
def result(pocket):
    guidance = limelight.AttendAndExcite(scale=5.0, thresholds={}, until=1.0)
    return limelight.generate(pocket, "a cat and a dog", seeds=[0, 1], steps=2, guidance=guidance)


def opened(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        return image.convert("RGB")


def test_a_result_is_its_grid(result):
    assert opened(result._repr_png_()).tobytes() == result.grid().tobytes()


def test_a_comparison_is_its_grid(result):
    found = limelight.Comparison({"plain": result, "guided": result})
    assert opened(found._repr_png_()).tobytes() == found.grid().tobytes()


def test_maps_are_tiles_on_one_scale(result):
    shown, maps = opened(result.maps._repr_png_()), result.maps
    # Two images and four words; each tile has 128 pixels a side, with a gap of 4 and a label of 20.
    assert shown.size == (2 * 132 + 4, 4 * (132 + 20) + 4)
    most = max(float(maps[word].max()) for word in maps)
    for y, word in enumerate(maps):
        for x in (0, 1):
            left, top = 4 + x * 132, 4 + y * 152 + 20
            tile = shown.crop((left, top, left + 128, top + 128)).resize((8, 8), Image.Resampling.NEAREST)
            grey = torch.tensor(list(tile.convert("L").tobytes())).view(8, 8)
            assert torch.allclose(grey / 255, maps[word][x] / most, atol=0.5 / 255 + 1e-4)
    assert limelight.generate(limelight.load("pocket"), "a cat", steps=1, record=False).maps._repr_png_() is None


def test_a_trace_is_a_table(result):
    class Table(HTMLParser):
        def __init__(self):
            super().__init__()
            self.rows = []

        def handle_starttag(self, tag, _):
            if tag == "tr":
                self.rows.append([])

        def handle_data(self, data):
            self.rows[-1].append(data)

    table = Table()
    table.feed(result.trace._repr_html_())
    assert table.rows[0] == ["step", "image", "loss", "presence", "refinements"]
    assert len(table.rows) == 1 + 2 * 2
    row = result.trace[1]
    presence = " ".join(f"{value:.3f}" for value in row["presence"][0])
    assert table.rows[3] == ["2", "0", f"{row['loss'][0]:.3f}", presence, str(row["refinements"][0])]
    for same in (copy.deepcopy(result.trace), pickle.loads(pickle.dumps(result.trace))):
        assert same == result.trace == tuple(result.trace)
        assert type(same) is trace.Trace


def test_an_explanation_is_its_page_in_a_frame(pocket):
    found = limelight.explain(pocket, "a cat", steps=1)
    frame = found._repr_html_()
    inside = frame.removeprefix('<iframe srcdoc="').partition('" title=')[0]
    assert '"' not in inside
    assert html.unescape(inside) == found.html()


def test_a_bar_counts_the_steps(pocket, monkeypatch):
    seen = []

    class Bar:
        def __init__(self, desc, leave):
            self.n, self.total = 0, None

        def __enter__(self):
            return self

        def __exit__(self, *_):
            seen.append("closed")

        def refresh(self):
            seen.append((self.n, self.total))

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    with notebook_bar() as on_step:
        limelight.generate(pocket, "a cat", steps=3, on_step=on_step)
    assert seen == [(1, 3), (2, 3), (3, 3), "closed"]


@pytest.mark.parametrize("module", [trace, progress], ids=lambda module: module.__name__)
def test_examples(module):
    found = doctest.testmod(module, extraglobs={"limelight": limelight})
    assert found.attempted > 0
    assert found.failed == 0
