"""A run of five images and four masks whose table is written by hand, for tests of its page."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from certmask_jax import defenses, mask_sets
from certmask_jax.certification import report, verdicts
from certmask_jax.masks.distinct_unions import merge, unmasked
from certmask_jax.tables.outputs import UNKNOWN
from certmask_jax.tables.prediction_table import from_labels
from certmask_jax.tables.saved_table import SavedTable

MASKS = mask_sets.budgeted_grid(4, 1, masks_per_axis=2)  # 1 and 2 above, 3 and 4 below
DOUBLE = defenses.DoubleMasking(MASKS, spec="double_masking:masks_per_axis=2")
ALERTS = defenses.MinorityReports(MASKS, spec="minority_reports:masks_per_axis=2")
DOG, CAT = 0, 1
NAMES = ["dog & </script><b>bold</b>", "cat", "cow"]
IDS = ("certified", "mask 2 errs", "wrong", "neither stands", "</script><b>left & open</b>")
TRUE = [CAT, CAT, CAT, CAT, DOG]


def said() -> dict[str, dict[tuple[int, int], int]]:
    """Of each image the pairs of masks, from 0, under which it is not what it is."""
    return {
        "certified": {},
        "mask 2 errs": {(1, 1): DOG},
        "wrong": {(i, j): DOG for i in range(4) for j in range(i, 4)},
        "neither stands": {(0, 0): DOG, (1, 1): DOG},
        # Mask 4 and pairs with it were not evaluated, once mask 1 was lost.
        "</script><b>left & open</b>": {(0, 1): CAT, **dict.fromkeys([(1, 3), (2, 3)], UNKNOWN)},
    }


@functools.cache
def saved() -> SavedTable:
    """The table."""
    images, (pairs, _, (itself,)) = merge(
        [DOUBLE.masked_images, ALERTS.masked_images, unmasked((4, 4))]
    )
    pair = pairs[DOUBLE.rounds.pair]
    labels = np.repeat(np.array(TRUE)[:, None], len(images), axis=1)
    for row, image in enumerate(said().values()):
        for (i, j), label in image.items():
            labels[row, pair[i, j]] = label
    labels[IDS.index("wrong"), itself] = DOG
    table = from_labels(labels, images, num_classes=3)
    about = {
        "provenance": {
            "dataset": "pets", "split": "test", "model": "by hand", "class_names": NAMES,
            "command": "certmask certify --dataset image_folder --data-dir gone --model vit_digits",
            "versions": {"certmask_jax": "0"}, "weights_sha256": "0123",
        }
    }  # fmt: skip
    return SavedTable(table, np.array(TRUE, np.int32), IDS, about)


@functools.cache
def made() -> report.Report:
    """Its report."""
    return verdicts.certify(saved(), [DOUBLE, ALERTS])


def pixels(rows: np.ndarray) -> tuple[list[np.ndarray], str]:
    """A picture of each image."""
    return [np.full((4, 4, 1), 40 * row, np.uint8) for row in rows.tolist()], ""


def no_pixels(rows: np.ndarray) -> tuple[None, str]:
    """Images that are gone."""
    return None, "Images are not at hand: they are gone."


def written(folder: Path) -> Path:
    """The report's files in a folder."""
    folder.mkdir()
    report.write(made(), folder)
    return folder
