"""A run of ten images and a linear model in four blocks, for tests of its table on disk."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import certmask_jax as cm
from certmask_jax import models
from certmask_jax.certification import evaluation, planning
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.data import Batch
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs import certification_job, from_tables, run_defenses
from certmask_jax.tables.outputs import SCHEMA
from certmask_jax.tables.table_writer import TableWriter

DEFENSE = cm.defenses.double_masking(cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2))


COUNT = 10


BLOCKS = [(0, 3), (3, 6), (6, 9), (9, 10)]  # 5 chunks of 8: 3 images of 11 columns
BLOCK_SIZES = BlockSizes(chunks=5, least_blocks=1, moment=0, stretch=0)


PARTS = (*SCHEMA, "labels", "ids")


class SmallTestSet:
    """Ten random images; notes which blocks are read, and can stop a run before one of them."""

    def __init__(self, *, stop_before=None, count=COUNT):
        rng = np.random.default_rng(5)
        self.images = rng.integers(0, 256, (count, 8, 8, 1), np.uint8)
        self.labels = rng.integers(0, 4, count).astype(np.int32)
        self.blocks, self.stop_before = [], stop_before

    def __len__(self):
        return len(self.images)

    def read(self, start, stop):
        if stop - start > 1 or start > 0:  # more than the look at the first image
            if self.stop_before == len(self.blocks):
                raise KeyboardInterrupt
            self.blocks.append((start, stop))
        ids = tuple(f"Bild {i}\n\u00e4" for i in range(start, stop))
        return Batch(self.images[start:stop], self.labels[start:stop], ids)


def linear(params, x):
    return jnp.tanh(x.reshape(len(x), -1)) @ params


PARAMS = np.random.default_rng(6).normal(size=(64, 4)).astype(np.float32)


def evaluate(folder, test_set=None, *, params=PARAMS, defense=DEFENSE, **options):
    options = {
        "preprocessing": Preprocessing(), "chunk": 8, "block_sizes": BLOCK_SIZES, **options,
    }  # fmt: skip
    test_set = SmallTestSet() if test_set is None else test_set
    return evaluation.evaluate(test_set, linear, params, [defense], folder, **options)


def compile_once(patched):
    """Lets programs that are called one after the other look at, and compile, equal things once."""
    real = run_defenses.build_defenses
    built = functools.cache(lambda *given: real(*given))

    def build(specs, attacks):
        return built(tuple(specs), tuple(attacks))

    patched.setattr(models, "create", functools.cache(models.create))
    patched.setattr(models, "check_field", functools.cache(models.check_field))
    patched.setattr(certification_job, "build_defenses", build)
    patched.setattr(from_tables, "build_defenses", build)


def blocks_of(patched, sizes):
    """Lets programs evaluate and plan in blocks of other sizes."""
    for module, name in ((evaluation, "evaluate"), (planning, "plan")):
        sized = functools.partial(getattr(module, name), block_sizes=sizes)
        patched.setattr(module, name, sized)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def file_of(folder: Path, part: str, number: int) -> Path:
    if part == "ids":
        return folder / "ids" / f"{number:06d}.json"
    return folder / part / "c" / str(number) / ("" if part == "labels" else "0")


def writer_of(folder, *, num_images=COUNT, **options):
    masks = cm.distinct_unions.merge([cm.distinct_unions.unmasked((8, 8)), DEFENSE.masked_images])[
        0
    ]
    options = {"run": {}, "about": {}, "num_classes": 4, **options}
    return TableWriter(
        folder, num_images=num_images, masked_images=masks, images_per_block=3, **options
    )


def results_of(run):
    """``results.json`` without the facts of sessions, in which a merged run differs."""
    results = json.loads((run / "results.json").read_text())
    for name in ("command", "started", "seconds", "masked_images_settled", "passes", "shares"):
        results["provenance"].pop(name, None)
    return results
