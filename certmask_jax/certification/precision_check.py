"""What a lower precision changes: labels of some masked images again, in float32."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from certmask_jax.certification.report.notices import LabelFlips
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.out_of_memory import Guarded
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.tables.image_sets import TestSet, places_of
from certmask_jax.tables.prediction_table import UNKNOWN
from certmask_jax.tables.saved_table import SavedTable


def label_flips(
    saved: SavedTable,
    test_set: TestSet,
    apply_fn: ApplyFn,
    params: Any,
    *,
    preprocessing: Preprocessing,
    dropping: TokenDropping | None = None,
    count: int = 4096,
    most_images: int = 64,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> LabelFlips:
    """Compares a table with float32 on a random sample of what it holds, the same every time.

    Args:
      saved: the table of ``test_set`` in ``preprocessing.precision``.
      test_set, apply_fn, params, preprocessing, dropping, chunk, mesh: those that it was evaluated
        with.
      count: masked images to compare, at most.
      most_images: how many images these are of, at most.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(saved.table))
    places = places_of(test_set, saved.ids)
    images = np.sort(order[(saved.counted & (places >= 0))[order]][:most_images])
    rows = [np.asarray(saved.table.predictions[int(i)]) for i in images]
    margins = [np.asarray(saved.table.margins[int(i)]) for i in images]
    known = np.argwhere(np.stack(rows) != UNKNOWN)
    chosen = known[np.sort(rng.permutation(len(known))[:count])]
    pixels = np.concatenate([test_set.read(int(i), int(i) + 1).images for i in places[images]])
    engine = engine_for(
        apply_fn,
        params,
        pixels.shape[1:],
        saved.table.masked_images,
        preprocessing=dataclasses.replace(preprocessing, precision="highest"),
        dropping=dropping,
        chunk=chunk,
        mesh=mesh,
    )
    engine = engine.for_blocks(len(images))
    guarded = Guarded(engine, lambda line: None)  # float32 takes more memory
    step = engine.images_at_once()
    flipped = []
    for start in range(0, len(images), step):
        part = chosen[(chosen[:, 0] >= start) & (chosen[:, 0] < start + step)]
        work = pixels[start : start + step], part[:, 0] - start, part[:, 1]
        again = guarded.run(operator.methodcaller("evaluate", *work))
        there = np.stack(rows)[part[:, 0], part[:, 1]]
        other = np.asarray(again.predictions) != there
        flipped.append(np.stack(margins)[part[other, 0], part[other, 1]])
    flips = np.concatenate(flipped).astype(np.float64)
    return LabelFlips(len(chosen), len(flips), float(np.nan_to_num(flips).max(initial=0.0)))
