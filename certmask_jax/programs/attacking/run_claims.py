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
from certmask_jax.programs.attacking.attack_options import UNDEFENDED


class Claim(NamedTuple):
    """What a run said of an image under a defense."""

    number: int  # of those of the run that count
    is_right: bool
    is_certified: bool  # in the worst case
    margin: float  # the smallest that was seen; infinite where there is none
    conditions: tuple[str, ...] = ()  # of the defense's paper, those that hold

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
    """

    ids: tuple[str, ...]
    labels: tuple[int, ...]
    of: Mapping[str, tuple[Claim, ...]]

    def right_by_id(self, spec: str) -> dict[str, bool]:
        """Whether each image, by its id, was answered rightly under a defense."""
        both = zip(self.ids, self.of[spec], strict=True)
        return {image_id: claim.is_right for image_id, claim in both}

    def check_known(self, ids: Iterable[str]) -> None:
        """That the run says something of each of these images; ``ValueError`` naming others."""
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
            )
            for number, row in enumerate(rows)
        )
    return Claims(
        tuple(row["id"] for row in rows), tuple(int(row["label"]) for row in rows), claims
    )


def _margin(text: str) -> float:
    value = float(text) if text else math.inf
    return -math.inf if np.isnan(value) else value
