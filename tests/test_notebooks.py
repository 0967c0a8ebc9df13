"""The notebooks run from top to bottom, with fewer steps and seeds."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

import limelight

FOLDER = Path(__file__).parents[1] / "notebooks"


def prepared(name: str) -> list:
    cells = nbformat.read(FOLDER / f"{name}.ipynb", 4).cells
    assert cells[1].source.count('MODEL = "pocket"') == 1, "one variable chooses the model"
    for cell in cells:
        cell.source = cell.source.replace("STEPS = 50", "STEPS = 2").replace("SEEDS = [0, 1, 2, 3]", "SEEDS = [0, 1]")
    return cells


def test_notebooks(tmp_path, monkeypatch):
    """One after the other in one process, whose names are cleared between them: imports cost more than the cells."""
    source = str(Path(limelight.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first, second = prepared("explain"), prepared("generate")
    between = new_code_cell('%reset -f\nassert "limelight" not in globals()')
    notebook = new_notebook(cells=[*first, between, *second])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    for cells in (notebook.cells[: len(first)], notebook.cells[-len(second) :]):
        outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
        assert sum("image/png" in data for data in shown) >= 3
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert any("-explain" in name for name in names)
    assert any(name.startswith("an-elephant-and-a-green-bench-1-") for name in names)


def test_there_are_notebooks():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == ["explain", "generate"]
