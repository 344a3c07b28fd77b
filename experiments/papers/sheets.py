"""A finished table: Markdown to read, CSV and JSON to compute with, SVG where it is drawn."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from certmask_jax._text import json_of
from certmask_jax.files import whole_files
from certmask_jax.programs.program import one_line
from experiments.papers.recipes import Paper, Table

NOT_AT_HAND = "not at hand"
_FILES = ("table.md", "table.csv", "table.json", "figure.svg")


@dataclasses.dataclass(frozen=True)
class Sheet:
    """What was made for a table.

    Attributes:
      measured: on what, in a sentence.
      titles: of the columns to read.
      rows: their cells.
      numbers: one record a row of the CSV file, all with the same keys; fractions, not percents.
      record: what ``table.json`` has beside the paper and the table.
      below: sentences after the table: sources, and what is left out.
      svg: the figure, if it is one.
    """

    measured: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any]
    below: Sequence[str] = ()
    svg: str = ""


def as_markdown(paper: Paper, table: Table, sheet: Sheet) -> str:
    """What is printed and stands in ``table.md``."""
    top = f"{paper.title}, {table.name}: {table.title}. {table.note}".strip()
    lines = [_line(sheet.titles), f"|{'---|' * len(sheet.titles)}", *map(_line, sheet.rows)]
    below = [part for sentence in sheet.below for part in ("", sentence)]
    return "\n".join([top, "", sheet.measured, "", *lines, *below])


def check_folder(paper: Paper, table: Table, folder: Path) -> None:
    """``FileExistsError`` for a folder that holds something else than this table and its runs."""
    if not folder.exists():
        return
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else None
    known = {*_FILES, *(f"{name}{whole_files.UNFINISHED}" for name in _FILES)}
    if names is None or any(name not in known and not name.startswith("patch-") for name in names):
        raise FileExistsError(
            f"--out {folder}: expected a new or empty folder, or this same table to go on with, "
            "but it holds other files; choose another name"
        )
    if (folder / "table.json").exists():
        try:
            there = json_of((folder / "table.json").read_bytes())
            is_this = (there["paper"], there["table"]) == (paper.title, table.name)
        except (ValueError, KeyError, TypeError):
            return  # damaged: it is written anew
        if not is_this:
            raise FileExistsError(
                f"--out {folder}: expected this same table to go on with, but it holds "
                f"{there['table']} of {there['paper']}; choose another name"
            )


def write(paper: Paper, table: Table, sheet: Sheet, folder: Path) -> list[str]:
    """Writes ``table.md``, ``.csv``, ``.json`` and, of a figure, ``figure.svg``; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "paper": paper.title,
        "reference": paper.reference,
        "table": table.name,
        "title": table.title,
        "note": table.note,
        **sheet.record,
    }
    files = {
        "table.md": as_markdown(paper, table, sheet) + "\n",
        "table.csv": _csv(sheet.numbers),
        "table.json": json.dumps(facts, indent=1),
    }
    if sheet.svg:
        files["figure.svg"] = sheet.svg
    for name, text in files.items():
        whole_files.write_text(folder / name, text)
    return list(files)


def by_source(sources: list[str], source: str) -> str:
    """The mark of a source, which is added to those that there are; empty for none."""
    if not source:
        return ""
    if source not in sources:
        sources.append(source)
    return f" ({sources.index(source) + 1})"


def numbered(sources: Sequence[str]) -> list[str]:
    """The sources as they stand below a table."""
    return [f"({number}) {source}" for number, source in enumerate(sources, 1)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(one_line(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def _csv(numbers: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(numbers[0]) if numbers else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(numbers)
    return text.getvalue()
