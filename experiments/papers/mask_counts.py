"""How many masks there are: exact counts, which need no model and no images."""

from __future__ import annotations

import argparse
from typing import Any

from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs
from certmask_jax.programs.certification_config import read_config
from certmask_jax.programs.certification_options import parser
from certmask_jax.programs.threat_options import threats
from experiments.papers.recipes import Row, Table
from experiments.papers.sheets import Sheet

_SIDES = {"ImageNet": 224, "ImageNette": 224, "CIFAR-10": 32}
"""Images of each data set, in pixels a side."""


def sheet_of(table: Table) -> Sheet:
    """A row for each row of the table: masks that are listed, and masked images that differ."""
    counts = [_counted(row) for row in table.rows]
    return Sheet(
        measured="Counted here, of no model and no images.",
        titles=("", "image", "patch", "mask", "`--defense`", "masks", "masked images"),
        rows=[
            [
                row.label, f"{one['image']}x{one['image']}", _by(one["patch"]), _by(one["mask"]),
                f"`{row.defense}`", f"{one['masks']:,}", f"{one['masked_images']:,}",
            ]
            for row, one in zip(table.rows, counts, strict=True)
        ],
        numbers=[{**one, "patch": _by(one["patch"]), "mask": _by(one["mask"])} for one in counts],
        record={"rows": counts},
        below=[
            "Masks are as often as they are listed: each has a vote. Masked images are those that "
            "differ, which is what an image costs; PatchCleanser's are of both rounds."
        ],
    )  # fmt: skip


def _counted(row: Row) -> dict[str, Any]:
    side = _SIDES[row.data]
    options: argparse.Namespace = parser().parse_args(row.patch.split())
    threat: Threat = threats(read_config(options).threat, (side, side))[0]
    defense = defense_specs.build(row.defense, (side, side), threat)
    boxes = defense.mask_set.boxes
    sides = (boxes[..., 2:] - boxes[..., :2]).max(axis=(0, 1))
    return {
        "label": row.label,
        "data": row.data,
        "image": side,
        "patch": list(threat.shapes[0]),
        "mask": sides.tolist(),
        "defense": row.defense,
        "masks": len(defense.mask_set),
        "masked_images": len(defense.masked_images),
    }


def _by(size: list[int]) -> str:
    return "x".join(map(str, size))
