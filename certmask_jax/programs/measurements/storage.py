"""How fast a prediction table goes onto the disk and comes back."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from certmask_jax import mask_sets
from certmask_jax.masks import distinct_unions
from certmask_jax.programs.measurements.timing import spread
from certmask_jax.tables import saved_table
from certmask_jax.tables.blocks import BYTES_A_PREDICTION, Block
from certmask_jax.tables.outputs import SCHEMA, Outputs
from certmask_jax.tables.run_images import Rows
from certmask_jax.tables.table_writer import TableWriter

_IMAGES_A_BLOCK = 200


def measure(repeat: int, folder: Path | None = None, *, images: int = 5000) -> dict[str, Any]:
    """Megabytes a second (before compression) of a table of that many images, 666 masks each."""
    masks = distinct_unions.unions(mask_sets.budgeted_grid(224, 32, masks_per_axis=6), 2)[0]
    shape = (_IMAGES_A_BLOCK, len(masks))
    rng = np.random.default_rng(0)
    outputs: Any = dataclasses.replace(
        Outputs.unknown(shape),
        predictions=rng.integers(0, 1000, shape, dtype=np.int16),
        margins=rng.random(shape).astype(np.float16),
        confidences=rng.random(shape).astype(np.float16),
    )
    block = Block(outputs, np.zeros(shape[0], np.int32), Rows(tuple(map(str, range(shape[0])))))
    megabytes = images * len(masks) * BYTES_A_PREDICTION / 1e6
    written, read = [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            started = time.perf_counter()
            with TableWriter(
                Path(name) / "tables",
                num_images=images,
                masked_images=masks,
                num_classes=1000,
                images_per_block=_IMAGES_A_BLOCK,
                run={},
                about={},
            ) as writer:
                for number in writer.spans():
                    writer.write(number, block)
            written.append(megabytes / (time.perf_counter() - started))
            started = time.perf_counter()
            table = saved_table.load(Path(name) / "tables").table
            for column in (getattr(table, name) for name in SCHEMA):
                for start in range(0, images, _IMAGES_A_BLOCK):
                    np.asarray(column[start : start + _IMAGES_A_BLOCK])
            read.append(megabytes / (time.perf_counter() - started))
    return {
        "megabytes": megabytes,
        "written_mb_per_second": spread(written),
        "read_mb_per_second": spread(read),
    }
