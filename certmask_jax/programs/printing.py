"""Printing a report: as a table of the terminal's width, or for documents and other programs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

from certmask_jax.certification import report
from certmask_jax.certification.report.screen import WIDTH

FORMATS = ("table", "markdown", "latex", "csv")


def add(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Adds ``--format``."""
    group.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="what is printed: a table as wide as the terminal with a legend; or, with all other "
        "words on stderr, for documents: markdown, latex (a plain tabular, which needs no "
        "package), csv (as results.csv in the run folder) (default: %(default)s)",
    )


def text_of(result: report.Report, style: str) -> str:
    """A report in one of the formats, as it is printed."""
    match style:
        case "markdown":
            return report.as_markdown(result)
        case "latex":
            return report.as_latex(result)
        case "csv":
            return report.results_csv(result).replace("\r\n", "\n").removesuffix("\n")
        case _:
            return report.as_text(result, width=width_of(sys.stdout))


def words_to(style: str) -> TextIO:
    """Where all other words go: nothing but the report stands in a file such as table.tex."""
    return sys.stdout if style == FORMATS[0] else sys.stderr


def bar(total: int, unit: str, doing: str) -> Any:
    """A ``tqdm`` bar on stderr, a context manager; of nothing to do only a line that says so."""
    if not total:
        print(f"{doing}: nothing was left to do", file=sys.stderr)
    shown = {"unit": unit, "desc": doing, "mininterval": 1, "file": sys.stderr}
    return tqdm(total=total, disable=not total, **shown)


def width_of(stream: TextIO) -> int:
    """Columns of the terminal that a stream goes to; COLUMNS if that is set; 80 without either."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or WIDTH
    except (OSError, ValueError, AttributeError):  # no terminal, or no file at all
        return WIDTH
