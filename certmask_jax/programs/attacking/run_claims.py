"""What a run said of its images, from its rows of images.

A claim is what it said of an image under a defense: what was answered, and whether it is certified,
by the worst case or by a paper alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from certmask_jax._text import some
from certmask_jax.certification.report import MARGINS
from certmask_jax.certification.report.files import label_of
from certmask_jax.defenses import ALERT
from certmask_jax.programs.attacking.attack_folder import Line
from certmask_jax.programs.attacking.attack_options import UNDEFENDED


class Claim(NamedTuple):
    """What a run said of an image under a defense."""

    number: int  # of those of the run that count
    is_right: bool
    is_certified: bool  # in the worst case
    margin: float  # the smallest that was seen; infinite where there is none
    conditions: tuple[str, ...] = ()  # of the defense's paper, those that hold
    answer: int | None = None  # a label, ``ALERT`` or ``NO_LABEL``

    @property
    def is_wrong(self) -> bool:
        """Whether a wrong label was answered, which no alert is."""
        return not self.is_right and self.answer != ALERT

    def is_of_paper_alone(self, condition: str | None = None) -> bool:
        """Whether the paper calls it certified by that condition, or any, and we do not."""
        holds = bool(self.conditions) if condition is None else condition in self.conditions
        return holds and not self.is_certified

    @property
    def rank(self) -> int:
        """Which is attacked first: worst cases (0), what a paper alone certifies (1), others."""
        return 0 if self.is_certified else 1 if self.is_of_paper_alone() else 2


class Claims(NamedTuple):
    """What a run said of its images.

    Attributes:
      ids, labels: of the images that count.
      of: of each defense, by its spec, and of the model without one what was said of each image.
      tie: a margin below which another device or chunk may round an answer otherwise.
      is_guarded: whether a margin guard took certificates away that the table gives.
    """

    ids: tuple[str, ...]
    labels: tuple[int, ...]
    of: Mapping[str, tuple[Claim, ...]]
    tie: float = MARGINS[0]
    is_guarded: bool = False

    def by_id(self, spec: str) -> dict[str, Claim]:
        """What was said of each image, by its id, under a defense."""
        return dict(zip(self.ids, self.of[spec], strict=True))

    def agree(self, line: Line) -> bool:
        """Whether what a line says of an image without a patch is what was said of it.

        The answer, the worst case and the conditions of the paper are compared. Of an image that
        is not known nothing was said.
        """
        claim = self._of(line)
        if claim is None or "before" not in line:
            return True
        is_certified, was_certified = bool(line["certified"]), claim.is_certified
        holds = {name for name, does in line.get("conditions", {}).items() if does}
        return (
            line["before"] == claim.answer
            and (is_certified == was_certified or (self.is_guarded and is_certified))
            and ("conditions" not in line or holds == set(claim.conditions))
        )

    def is_tie(self, line: Line) -> bool:
        """Whether rounding may decide what is said of the image of a line."""
        claim = self._of(line)
        return claim is not None and claim.margin < self.tie

    def _of(self, line: Line) -> Claim | None:
        claims = self.of.get(line["defense"])
        number = self._row_of(line)
        return None if claims is None or number is None else claims[number]

    def _row_of(self, line: Line) -> int | None:
        number = int(line["number"])
        if number < len(self.ids) and self.ids[number] == line["image"]:
            return number
        return self.ids.index(line["image"]) if line["image"] in self.ids else None

    def check_known(self, ids: Iterable[str]) -> None:
        """Refuses images of which the run says nothing; ``ValueError`` that names them."""
        known = set(self.ids)
        unknown = [image_id for image_id in ids if image_id not in known]
        if unknown:
            raise ValueError(
                f"expected the images of the run, got {some(unknown)}, of which it says nothing; "
                "take as many as it had, from the data that it had"
            )


def read_claims(path: Path, conditions: Mapping[str, Sequence[str]]) -> Claims:
    """What the rows of images of a run say.

    Args:
      path: of its ``per_image.csv``.
      conditions: of each defense, by its spec, the names of its paper's conditions.

    Raises:
      ValueError, KeyError, TypeError, StopIteration: for rows that are none of such a run.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path.name} holds no images")
    claims = {
        UNDEFENDED: tuple(
            Claim(
                number,
                row["undefended"] == row["label"],
                is_certified=False,
                margin=_margin(row["smallest_margin"]),
                answer=label_of(row["undefended"]),
            )
            for number, row in enumerate(rows)
        )
    }
    for spec, names in conditions.items():
        prefix = next(
            name.removesuffix(" worst_case")
            for name in rows[0]
            if name.startswith(f"{spec} ") and name.endswith(" worst_case")
        )
        claims[spec] = tuple(
            Claim(
                number,
                row[f"{prefix} answer"] == row["label"],
                row[f"{prefix} worst_case"] == "1",
                _margin(row.get(f"{prefix} smallest_margin", "")),
                tuple(name for name in names if row.get(f"{prefix} {name}") == "1"),
                label_of(row[f"{prefix} answer"]),
            )
            for number, row in enumerate(rows)
        )
    return Claims(
        tuple(row["id"] for row in rows), tuple(int(row["label"]) for row in rows), claims
    )


def _margin(text: str) -> float:
    value = float(text) if text else math.inf
    return -math.inf if np.isnan(value) else value
