"""How many forward passes an image takes: the whole table, certified with early exit, answered."""

from __future__ import annotations

from typing import Any

import numpy as np

from certmask_jax.certification.evaluation import merged
from certmask_jax.inference import early_exit
from certmask_jax.inference.views import passes_each
from certmask_jax.programs.measurements.subjects import Subject
from certmask_jax.tables.prediction_table import UNKNOWN, check_labels


def measure(subject: Subject, images: int, chunk: int | None) -> dict[str, Any]:
    """Mean passes an image for each defense alone, and for all of them together.

    Of a model with views a masked image takes several.
    """
    forward = subject.forward(chunk=chunk)
    each = passes_each(forward.facts())
    count = min(images, len(subject.test_set), forward.images_at_once())
    batch = subject.test_set.read(0, count)
    labels = check_labels(batch.labels, count, forward.num_classes)
    record: dict[str, Any] = {"subject": subject.name, "images": count}
    for defenses in [*([d] for d in subject.defenses), list(subject.defenses)]:
        columns, questions = merged(defenses)
        engine = forward.for_masks(columns)

        def mean(true: Any, always: Any, engine: Any = engine, asked: Any = questions) -> float:
            outputs = early_exit.evaluate(engine, batch.images, asked, true, always=always)
            return float(each * (np.asarray(outputs.predictions) != UNKNOWN).sum() / count)

        name = str(defenses[0]) if len(defenses) == 1 else "all defenses together"
        record[name] = {
            "full_table": each * len(columns),
            "early_exit": mean(labels, [0]),
            "answers_alone": mean(None, ()),
        }
    return record
