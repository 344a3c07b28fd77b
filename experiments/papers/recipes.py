"""What a table of a paper is: rows with a defense, a patch, and what the paper says of them.

A figure of a paper is written down only where a source is at hand; ``None`` is "not at hand".
What a table shows of its rows is one of ``Shows``, and each of these has a module that makes it.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from certmask_jax.programs.command_line import hint

LEADERBOARD = (
    "the authors' list of defenses, github.com/inspire-group/patch-defense-leaderboard, README, "
    "commit 2d349b0"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      label: what the paper calls it.
      defense: the same here, as ``--defense`` takes it; empty for the model without any.
      data: the paper's data set: ``"ImageNet"``, ``"ImageNette"`` or ``"CIFAR-10"``.
      patch: options of the threat, such as ``"--patch 2%"``; percents fit images of any size.
      model: the paper's.
      clean, certified: the paper's figures in percent.
      source: where these were read; empty where there are none.
      x: where it is on the axis of a figure.
    """

    label: str
    defense: str
    data: str
    patch: str
    model: str = ""
    clean: float | None = None
    certified: float | None = None
    source: str = ""
    x: float | None = None


class Shows(enum.Enum):
    """What a table shows of its rows."""

    ACCURACY = "clean and certified accuracy"
    CLASSES = "the same, of each class"
    OBJECTS = "certified accuracy against the size of the object"
    TIMES = "milliseconds of an answer"
    COUNTS = "how many masks there are, without any model"


CLEAN = "clean accuracy, percent"
"""As the axis of a figure: certified accuracy is drawn against what is measured as clean."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or a figure.

    Attributes:
      name: ``"table2"``.
      title: what it shows, in a line.
      rows: in the paper's order.
      note: what to know of it, in whole sentences.
      shows: of its rows.
      axis: of a figure, what its ``x`` is; or ``CLEAN``. Empty for a table, which is not drawn.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str = ""
    shows: Shows = Shows.ACCURACY
    axis: str = ""

    def of(self, data: Sequence[str]) -> Table:
        """The rows of some data sets."""
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.data in data))


@dataclasses.dataclass(frozen=True)
class Paper:
    """A paper and its tables.

    Attributes:
      name: of its module.
      title: for people.
      reference: where it can be read.
      tables: those that there are recipes for.
      without: what of the paper has no recipe, and why.
      unknown: names that people may ask for and that have no recipe -> what to say of them.
      parts: names of figures that are parts of a table here -> the table's name.
    """

    name: str
    title: str
    reference: str
    tables: tuple[Table, ...]
    without: str = ""
    unknown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def table(self, name: str) -> Table:
        """A table by its name or by that of a figure that is in it, however it is written.

        Raises:
          ValueError: for another name: lists those that there are, or says why not.
        """
        parts = {_plain(part): _plain(whole) for part, whole in self.parts.items()}
        wanted = parts.get(_plain(name), _plain(name))
        for table in self.tables:
            if _plain(table.name) == wanted:
                return table
        for unknown, why in self.unknown.items():
            if _plain(unknown) == wanted:
                raise ValueError(f"TABLE {name}: {why}")
        known = [table.name for table in self.tables]
        raise ValueError(
            f"TABLE: expected one of {', '.join(known)} of {self.title}, got {name!r}"
            f"{hint(name, known)}"
        )


def _plain(name: str) -> str:
    """``Table_2``, ``table-2`` and ``table2`` are one."""
    return re.sub("[^a-z0-9]", "", name.lower())


class Job(NamedTuple):
    """What certify is given for the rows of one patch."""

    options: list[str]  # with the defenses
    specs: list[str]  # the defenses, in their order


PATCHES = {
    "ImageNette": ("1%", "2%", "3%"),
    "ImageNet": ("1%", "2%", "3%"),
    "CIFAR-10": ("0.4%", "2.4%"),
}
"""The patches that the papers put on each data set, in percent of the pixels."""

Figures = dict[tuple[str, str], tuple[float, float]]
"""(data set, patch) -> clean and certified accuracy in percent."""


def main_rows(label: str, defense: str, model: str, figures: Figures, source: str) -> Iterable[Row]:
    """A row for each data set and patch, with the paper's figures where they are at hand."""
    for data, patches in PATCHES.items():
        for patch in patches:
            clean, certified = figures.get((data, patch), (None, None))
            said = source if clean is not None else ""
            yield Row(label, defense, data, f"--patch {patch}", model, clean, certified, said)
