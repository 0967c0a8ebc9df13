"""The notebooks run from top to bottom, with fewer steps."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import limelight

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    source = str(Path(limelight.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, 4)
    setup = notebook.cells[1]
    assert setup.source.count('MODEL = "pocket"') == 1, "one variable chooses the model"
    setup.source = setup.source.replace("STEPS = 50", "STEPS = 2")
    ran = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]
    shown = [out.data for cell in code for out in cell.outputs if out.output_type in ("execute_result", "display_data")]
    assert sum("image/png" in data for data in shown) >= 3
    assert list((tmp_path / "out").iterdir())


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["explain", "generate"]
