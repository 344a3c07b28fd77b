"""One block of a run on evidence: whether it is there still, how it is read, and what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax._text import some
from certmask_jax.certification.finished_blocks import says_left_out
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.evidence_program import in_batches
from certmask_jax.inference.preprocessing import check_images
from certmask_jax.tables.evidence_store import EvidenceBlock, EvidenceStore
from certmask_jax.tables.prediction_table import check_labels
from certmask_jax.tables.run_images import LEFT_OUT, Part, RunImages


def is_of_use(
    store: EvidenceStore,
    number: int,
    span: tuple[int, int],
    run_images: RunImages,
    warn: Callable[[str], None],
) -> bool:
    """Whether a block is there; rows that are gone since are left out on the disk too."""
    block = store.read(number, warn)
    if block is None:
        return False
    start, stop = span
    again, out = run_images.changed(block.rows, start)
    if again:
        names = some([block.rows.ids[row] for row in again])
        warn(
            f"{names}: another image than before, or readable now; images {start} to {stop - 1} "
            "are computed again"
        )
        return False
    if out:
        rows = block.rows._replace(left_out={**block.rows.left_out, **out})
        warn(says_left_out(rows._replace(left_out=out)))
        store.write(number, block._replace(rows=rows))
    return True


def read_part(
    run_images: RunImages, image_size: tuple[int, int], classes: int, start: int, stop: int
) -> Part:
    """Images ``start`` to ``stop``, exclusive.

    Raises:
      ValueError: for images of another size, or labels that are no classes.
    """
    part = run_images.read(start, stop)
    if not len(part.images):
        return part
    check_images(part.images, image_size)
    return part._replace(labels=check_labels(part.labels, len(part.images), classes))


def block_of_part(
    program: Any,
    params: Any,
    part: Part,
    batch: int,
    defenses: Sequence[EvidenceDefense],
    kept: Sequence[Sequence[int]],
    *,
    guarded: bool = False,
) -> tuple[EvidenceBlock, list[NDArray[np.float32]]]:
    """A block, and what is kept of it; of what is left out that is 0.

    ``guarded``: whether the program has one more verdict of each defense, within a margin guard.
    """
    count = len(part.rows.ids)
    width = sum(1 + len(defense.condition_names) + guarded for defense in defenses)

    def rows(shape: tuple[int, ...], kind: Any, values: Any, fill: int = 0) -> NDArray[Any]:
        array = np.full((count, *shape), fill, kind)
        if len(part.present):
            array[part.present] = values
        return array

    outputs: Any = (*[None] * 6, ())
    if len(part.present):
        outputs = in_batches(program, params, part.images, part.labels, batch)
    answers, verdicts, undefended, margins, holds, leads, evidence = outputs
    places, with_leads = (sum(each[which] for each in kept) for which in (0, 1))
    block = EvidenceBlock(
        rows((len(defenses),), np.int32, answers),
        rows((width,), np.bool_, verdicts),
        rows((), np.int32, undefended),
        rows((), np.float32, margins),
        rows((), np.int32, part.labels, LEFT_OUT),
        np.packbits(rows((places,), np.bool_, holds), axis=1),
        rows((with_leads,), np.float16, leads),
        part.rows,
    )
    return block, [rows(one.shape[1:], np.float32, one) for one in evidence]
