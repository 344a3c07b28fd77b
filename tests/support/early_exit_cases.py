"""Random tables, and what early exit evaluates of them, for tests of several defenses."""

from __future__ import annotations

import numpy as np

from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.tables.prediction_table import NO_LABEL, from_labels

CLASSES = 3


def random_table(rng, defense, count):
    """Rows that are mostly right, with ties, NaN and the unanimous wrong among them; labels."""
    shape = (count, len(defense.masked_images))
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    said = np.where(rng.random(count) < 0.1, rng.integers(0, CLASSES, count), labels)
    wrong = rng.random(shape) < rng.choice([0, 0.05, 0.3, 1], count)[:, None]
    predictions = np.where(wrong, rng.integers(0, CLASSES, shape), said[:, None])
    predictions = np.where(rng.random(shape) < 0.01, NO_LABEL, predictions)
    table = from_labels(
        predictions,
        defense.masked_images,
        num_classes=CLASSES,
        margins=np.where(rng.random(shape) < 0.01, 0, rng.random(shape)),
        confidences=rng.random(shape),
    )
    return table, labels


def evaluated(rng, defense, table, labels, ask=None):
    """``bool[T, V]``: what is evaluated until nothing matters, a few random first ones a time."""
    known = np.zeros(table.predictions.shape, bool)
    for i, label in enumerate(labels):
        while True:
            hidden = np.where(known[i], table.predictions[i], 77).astype(np.int32)
            margins = np.where(known[i], table.margins[i], np.float16(7))
            trust = np.where(known[i], table.confidences[i], np.float16(7))
            seen = Seen(hidden, margins, known[i], trust)
            columns = (ask or defense.open_columns)(seen, label)
            assert not known[i][columns].any()
            assert len(set(columns.tolist())) == len(columns)
            if not len(columns):
                break
            known[i, columns[: rng.integers(1, len(columns) + 1)]] = True
    return known


def facts(defense, table, labels):
    return {"answer": defense.rule(table), **defense.verdicts(table, labels)}


def filled_in(table, known, predictions, margins, confidences):
    return from_labels(
        np.where(known, table.predictions, predictions),
        table.masked_images,
        num_classes=table.num_classes,
        margins=np.where(known, table.margins, margins),
        confidences=np.where(known, table.confidences, confidences),
    )
