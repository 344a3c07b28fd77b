"""A run of four images with a drawn table, and defenses of every sort of map."""

from __future__ import annotations

import functools

import numpy as np

from certmask_jax.certification import report, verdicts
from certmask_jax.defenses import Defense
from certmask_jax.masks.distinct_unions import merge, unmasked
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs
from certmask_jax.tables.prediction_table import from_labels
from certmask_jax.tables.saved_table import SavedTable

IDS = ("all right", "one", "two", "three")
TRUE = np.array([0, 0, 1, 2], np.int32)
SHAPES = Threat.of(4, (1, 2), (2, 1))
TWO = Threat.of(4, 1, patches=2)
ONE = Threat.of(4, 1)


@functools.cache
def defenses() -> tuple[Defense, ...]:
    """Against several shapes, against two patches at once, and CrossCert."""
    return tuple(
        defense_specs.build(spec, (4, 4), threat)
        for spec, threat in (
            ("double_masking:masks_per_axis=2", SHAPES),
            ("double_masking:masks_per_axis=2", TWO),
            ("crosscert:masks_per_axis=2,band=2", ONE),
        )
    )


@functools.cache
def saved() -> SavedTable:
    """The table: a few labels of each image but the first are wrong."""
    images, _ = merge([*(one.masked_images for one in defenses()), unmasked((4, 4))])
    rng = np.random.default_rng(4)
    labels = np.repeat(TRUE[:, None], len(images), axis=1)
    wrong = rng.random(labels.shape) < np.array([0, 0.1, 0.15, 0.3])[:, None]
    labels = np.where(wrong, rng.integers(0, 3, labels.shape), labels)
    table = from_labels(labels, images, num_classes=3)
    return SavedTable(table, TRUE, IDS, {"provenance": {"class_names": ["ant", "bee", "cow"]}})


@functools.cache
def made() -> report.Report:
    """Its report."""
    return verdicts.certify(saved(), list(defenses()))
