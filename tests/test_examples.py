"""The example notebooks run, and were saved with what they print and draw."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def pictures(notebook):
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("EPOCHS", "1")
    monkeypatch.setenv("IMAGE_SIZE", "8")
    notebook = nbformat.read(path, as_version=4)
    shown = pictures(notebook)
    assert shown > 0
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=place).execute()  # raises what a cell raises
    assert pictures(notebook) == shown
    assert (tmp_path / "checkpoints" / "teacher_best.pth").exists()
