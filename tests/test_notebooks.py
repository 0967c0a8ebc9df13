"""The notebooks run from top to bottom, with fewer steps and seeds."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"


def sources(name: str) -> list[str]:
    cells = [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]
    assert cells[0].source.count('MODEL = "pocket"') == 1, "one variable chooses the model"
    short = {"STEPS = 50": "STEPS = 2", "SEEDS = [0, 1, 2, 3]": "SEEDS = [0, 1]"}
    found = []
    for cell in cells:
        for long, brief in short.items():
            cell.source = cell.source.replace(long, brief)
        found.append(cell.source)
    return found


@pytest.fixture
def shell():
    """IPython in this process, as a kernel would import everything again, with all that cells show in `shown`."""
    from IPython.core.displayhook import CapturingDisplayHook
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    shell.display_pub = CapturingDisplayPublisher()
    shell.shown = shell.display_pub.outputs
    shell.display_trap.hook = CapturingDisplayHook(shell=shell, outputs=shell.shown)
    yield shell
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("name", ["explain", "generate"])
def test_a_notebook(name, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in sources(name):
        shell.run_cell(source).raise_error()
    assert sum("image/png" in output["data"] for output in shell.shown) >= 3
    expected = {"explain": "-explain", "generate": "a-pink-bow-and-a-gray-apple-1-"}[name]
    assert any(expected in path.name for path in (tmp_path / "out").iterdir())


def test_there_are_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == ["explain", "generate"]
