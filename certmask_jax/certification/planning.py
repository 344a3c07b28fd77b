"""What a run will take, before it is begun: counts, and some seconds of it as calibration."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.certification.evaluation import merged
from certmask_jax.defenses.defense import Defense
from certmask_jax.inference import early_exit
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.inference.views import passes_each
from certmask_jax.tables.blocks import BYTES_A_PREDICTION, Blocks
from certmask_jax.tables.image_sets import TestSet
from certmask_jax.tables.prediction_table import UNKNOWN, check_labels
from certmask_jax.tables.table_writer import share_of


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is, and what it will take.

    Attributes:
      num_images: T, of the share.
      masked_images: V, distinct ones of an image: with the passes of each, those of an image at
        most.
      chunk: masked images at once, at most.
      images_per_block: what is lost at most when the run is killed.
      passes_most, passes_expected: forward passes of the whole run; expected is what the images of
        the calibration took.
      slots_expected: the same, with the places of chunks that are left empty.
      flops_a_pass: floating-point operations, None if unknown; a masked image's share of those for
        the distinct fields of a model with local logits.
      table_bytes: on the disk, before compression.
      passes_per_second: measured.
      seconds_expected: of the evaluation, without start-up and compilation.
      calibrated_on: how many images the calibration finished.
      stem_passes: of a model in two parts, beside the passes of its head; 0 for others.
      flops_a_stem: operations of one of these; 0 where there are none or nobody knows.
    """

    num_images: int
    masked_images: int
    chunk: int
    images_per_block: int
    passes_most: int
    passes_expected: float
    slots_expected: float
    flops_a_pass: float | None
    table_bytes: int
    passes_per_second: float
    seconds_expected: float
    calibrated_on: int
    stem_passes: int = 0
    flops_a_stem: float = 0.0


def plan(
    test_set: TestSet,
    apply_fn: ApplyFn,
    params: Any,
    defenses: Sequence[Defense],
    *,
    preprocessing: Preprocessing,
    decide: bool = False,
    local: LocalLogits | None = None,
    dropping: TokenDropping | None = None,
    share: tuple[int, int] = (0, 1),
    chunk: int | None = None,
    mesh: Mesh | None = None,
    block_sizes: BlockSizes | None = None,
    seconds: float = 10.0,
    images_a_turn: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Plan:
    """Counts, compiles, and evaluates images from all over the test set for some seconds.

    Args:
      test_set, apply_fn, params, defenses, preprocessing, decide, local, dropping, share, chunk,
        mesh, block_sizes: as for ``evaluate``.
      seconds: of the calibration, which ends with the turn of images that it is in.
      images_a_turn: images that are evaluated together there, at most; by default those of a block,
        or as many as take a few seconds.
      clock: what the seconds are read from.

    Raises:
      ValueError: as ``evaluate``, for what cannot be.
    """
    columns, questions = merged(defenses)
    first = test_set.read(0, 1).images
    check_images(first, kind_of(apply_fn).image_size(columns.image_size))
    engine = engine_for(
        apply_fn,
        params,
        first.shape[1:],
        columns,
        preprocessing=preprocessing,
        local=local,
        dropping=dropping,
        chunk=chunk,
        mesh=mesh,
        asked_bit_by_bit=len(test_set) * len(columns) if decide else 0,
    )
    sizes = BlockSizes() if block_sizes is None else block_sizes
    images_per_block = sizes.images_per_block(len(test_set), engine, decide=decide)
    together = min(len(test_set), sizes.images_together(images_per_block, engine, decide=decide))
    engine = engine.for_blocks(together)
    blocks = Blocks(Path(), (len(test_set), len(columns)), images_per_block)
    num_images = sum(map(blocks.length, share_of(len(blocks), share, len(test_set))))
    engine.warm_up()
    quick = sizes.images_in_seconds(len(columns), engine)
    some = together if quick is None else quick // 8  # an eighth of "some seconds"
    turn = max(1, min(together, some, images_a_turn or together))
    order = np.random.default_rng(0).permutation(len(test_set))
    each = passes_each(engine.facts())
    finished, passes, slots, spent = 0, 0, 0, 0.0

    def tell(settled: int, evaluated: int, taken: int) -> None:
        nonlocal slots
        slots += each * taken

    while finished < len(test_set) and spent < seconds:
        batches = [test_set.read(int(i), int(i) + 1) for i in order[finished : finished + turn]]
        images = np.concatenate([batch.images for batch in batches])
        labels = np.concatenate([batch.labels for batch in batches])
        started = clock()
        if decide:
            true = check_labels(labels, len(images), engine.num_classes)
            outputs = early_exit.evaluate(
                engine, images, questions, true, always=[0], progress=tell
            )
        else:
            outputs = engine.table(images, lambda count, taken: tell(count, count, taken))
        spent += clock() - started
        passes += each * int((np.asarray(outputs.predictions) != UNKNOWN).sum())
        finished += len(images)
    expected = num_images * passes / finished
    none, one = engine.flops_an_image(0), engine.flops_an_image(1)
    return Plan(
        num_images=num_images,
        masked_images=len(columns),
        chunk=engine.chunk,
        images_per_block=images_per_block,
        passes_most=each * num_images * len(columns),
        passes_expected=expected,
        slots_expected=num_images * slots / finished,
        flops_a_pass=None if none is None or one is None else (one - none) / each,
        table_bytes=num_images * len(columns) * BYTES_A_PREDICTION,
        passes_per_second=passes / spent,
        seconds_expected=expected / (passes / spent),
        calibrated_on=finished,
        stem_passes=num_images if engine.stem_slots(1) else 0,
        flops_a_stem=none or 0.0,
    )
