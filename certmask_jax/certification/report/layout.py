"""Tables and paragraphs of so many columns of a terminal."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence

_GAP = "  "
_WORD = re.compile(r"\[[\d.]+, [\d.]+\]\S*|\S+")  # an interval is one


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: its title, a cell for each row, and whether these are numbers."""

    title: str
    cells: tuple[str, ...]
    right: bool = False


def display_width(text: str) -> int:
    """How many columns of a terminal a text takes: two for East Asian wide characters."""
    return sum(map(_width_of, text))


def printable(text: str) -> str:
    """The text with control characters as escapes: a name of a file cannot steer a terminal."""
    return "".join(
        c if c == " " or c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def wrapped(text: str, width: int, *, indent: str = "  ") -> list[str]:
    """The lines of a paragraph, none wider than ``width`` unless a word is.

    A word that is wider than a line is broken after one of ``, : ; /`` where it has any.

    Args:
      indent: what the lines after the first begin with.
    """
    lines: list[str] = []
    line, begun = "", False
    for piece, is_word in _pieces(text, width - len(indent)):
        space = " " if begun and is_word else ""
        if begun and display_width(line + space + piece) > width:
            lines.append(line)
            line, space = indent, ""
        line, begun = line + space + piece, True
    return [*lines, line] if begun else []


def paragraphs(texts: Iterable[str], width: int) -> list[str]:
    """The lines of several paragraphs."""
    return [line for text in texts for line in wrapped(text, width)]


def table(columns: Sequence[Column], *, stacked: bool = False, titles_in: int = 1) -> list[str]:
    """The lines of a table: titles, a rule, rows.

    Args:
      stacked: brackets stand in a line of their own, below what they belong to.
      titles_in: lines that a title may take; more than one where it is wider than its column.
    """
    split = [[_lines_of(cell, stacked) for cell in _numbers_aligned(c.cells)] for c in columns]
    widths, titles = [], []
    for column, cells in zip(columns, split, strict=True):
        width = max([1, *(display_width(line) for cell in cells for line in cell)])
        title = [column.title]
        if titles_in > 1:
            longest = max(map(display_width, column.title.split()), default=0)
            width = max(width, longest)
            title = wrapped(column.title, width, indent="") or [""]
        titles.append(title)
        widths.append(max(width, *map(display_width, title)))
    right = [column.right for column in columns]
    rows = [titles, [["-" * width] for width in widths], *zip(*split, strict=True)]
    return [line for row in rows for line in _row(row, widths, right)]


def fits(lines: Sequence[str], width: int) -> bool:
    """Whether no line is wider."""
    return all(display_width(line) <= width for line in lines)


def _width_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pieces(text: str, width: int) -> list[tuple[str, bool]]:
    """Words, or parts of words that are too wide, and whether a word begins there."""
    pieces = []
    for word in _WORD.findall(text):
        parts = [word] if display_width(word) <= width else re.split(r"(?<=[,:;/])", word)
        pieces += [(part, number == 0) for number, part in enumerate(filter(None, parts))]
    return pieces


def _lines_of(cell: str, stacked: bool) -> list[str]:
    if not stacked:
        return [cell]
    value, bracket, rest = cell.partition(" [")
    return [value, bracket.strip() + rest] if bracket else [cell]


def _numbers_aligned(cells: Sequence[str]) -> list[str]:
    """Numbers before brackets end in the same place."""
    values = [re.match(r"(>=)?[\d.]+(?= \[|$)", cell) for cell in cells]
    width = max((value.end() for value in values if value), default=0)
    return [
        cell if value is None else " " * (width - value.end()) + cell
        for value, cell in zip(values, cells, strict=True)
    ]


def _row(cells: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    """The lines of one row; cells of fewer lines begin at its top."""
    lines = []
    for number in range(max(map(len, cells))):
        parts = []
        for cell, width, is_right in zip(cells, widths, right, strict=True):
            text = cell[number] if number < len(cell) else ""
            padding = " " * (width - display_width(text))
            parts.append(padding + text if is_right else text + padding)
        lines.append(_GAP.join(parts).rstrip())
    return lines
