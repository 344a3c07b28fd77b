"""The notebooks of ``examples`` run from top to bottom, on the embedded data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import badges
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))


def test_there_are_notebooks_and_they_are_kept_without_output():
    assert len(NOTEBOOKS) == 3
    for file in NOTEBOOKS:
        for cell in json.loads(file.read_text())["cells"]:
            assert not cell.get("outputs"), file.name
            assert cell.get("execution_count") is None


def test_badges_and_notebooks_are_those_of_one_address():
    at = badges.address()
    text = badges.PAGE.read_text()
    assert text == badges.page(text, at), (
        "the badges are not those of examples/address.txt; PYTHONPATH=. python tests/badges.py"
    )
    for file in NOTEBOOKS:
        assert file.read_text() == badges.notebook(file.read_text(), at)
        assert f"git+https://github.com/{at}\\n" in file.read_text()


def test_a_badge_can_be_clicked_on_once_there_is_an_address():
    text = badges.PAGE.read_text()
    nowhere = badges.page(text, "OWNER/certmask_jax")
    assert "](http" not in nowhere
    assert nowhere.count("`https://") == 6
    there = badges.page(text, "me/patches")
    assert there.count("[![Open in ") == 6
    assert "(https://colab.research.google.com/github/me/patches/blob/main/examples/" in there
    assert "OWNER" not in there
    assert badges.page(there, "OWNER/certmask_jax") == nowhere
    book = badges.notebook(NOTEBOOKS[0].read_text(), "me/patches")
    assert book.count("git+https://github.com/me/patches") == 1
    assert "OWNER" not in book


def test_every_notebook_runs_and_shows_something(tmp_path, monkeypatch):
    """One after another in one process, each without the names of those before it."""
    pytest.importorskip("ipykernel", reason="needs ipykernel (pip install '.[test]')")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat (pip install '.[test]')")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (pip install '.[test]')")
    root = str(NOTEBOOKS[0].parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    cells, ends = [], []
    for file in NOTEBOOKS:
        cells += nbformat.read(file, as_version=4).cells
        ends.append(len(cells))
        cells.append(nbformat.v4.new_code_cell("%reset -f"))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    book = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for file, begin, end in zip(NOTEBOOKS, [0, *ends], ends, strict=False):
        shown = [
            kind
            for cell in book.cells[begin:end]
            for output in cell.get("outputs", ())
            for kind in output.get("data", ())
        ]
        assert {"text/html", "image/png"} & set(shown), file.name
