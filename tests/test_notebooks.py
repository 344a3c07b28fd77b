"""The notebooks of ``examples`` run from top to bottom, on the embedded data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))


def test_there_are_notebooks_and_they_are_kept_without_output():
    assert len(NOTEBOOKS) == 3
    for file in NOTEBOOKS:
        for cell in json.loads(file.read_text())["cells"]:
            assert not cell.get("outputs"), file.name
            assert cell.get("execution_count") is None


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda one: one.stem)
def test_a_notebook_runs(file, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel", reason="needs ipykernel (pip install '.[test]')")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat (pip install '.[test]')")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (pip install '.[test]')")
    root = str(file.parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    # What one of them compiles the others find.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ["CERTMASK_JAX_COMPILED"])
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(file, as_version=4)
    client = nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": tmp_path}})
    client.execute()
    drawn = [
        output
        for cell in book.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", ()) or "image/png" in output.get("data", ())
    ]
    assert drawn, "a notebook shows something"
