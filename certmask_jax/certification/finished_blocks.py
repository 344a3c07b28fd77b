"""Blocks that are done, and what the data set is now: what of them stays of use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from certmask_jax._text import some
from certmask_jax.tables.blocks import Block
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.run_images import LEFT_OUT, Part, Rows, RunImages
from certmask_jax.tables.table_writer import TableWriter

_SHOWN = 3  # images that a warning names


def still_of_use(
    writer: TableWriter, number: int, run_images: RunImages, warn: Callable[[str], None]
) -> Block | None:
    """A finished block, brought up to what the data set is now; None if it is to be done (again).

    Rows whose image is gone, or cannot be read any more, are left out from now on, on the disk too.
    A row whose image is another one now, or was left out and can be read, voids its block alone.

    Raises:
      OSError: when the block cannot be read or written.
    """
    block = writer.read(number)
    if block is None:
        return None
    start, stop = writer.spans()[number]
    again, out = run_images.changed(block.rows, start)
    if again:
        names = some([block.rows.ids[row] for row in again], _SHOWN)
        warn(
            f"{names}: another image than before, or readable now; images {start} to {stop - 1} "
            "are computed again"
        )
        writer.discard(number)
        return None
    if out:
        rows = block.rows._replace(left_out={**block.rows.left_out, **out})
        warn(says_left_out(rows._replace(left_out=out)))
        writer.write_rows(number, rows)
        block = block._replace(rows=rows)
    return block


def block_of(outputs: Outputs | None, part: Part, num_columns: int) -> Block:
    """What the model says of the images that are there, as rows of all.

    Args:
      outputs: ``[b, V]`` of the b images of ``part``; None where b is 0.
      part: B rows.
      num_columns: V.
    """
    count = len(part.rows.ids)
    rows = Outputs.unknown((count, num_columns))
    labels = np.full(count, LEFT_OUT, np.int32)
    if outputs is not None:
        for column, values in zip(rows, outputs, strict=True):
            column[part.present] = values
        labels[part.present] = part.labels
    return Block(rows, labels, part.rows)


def rows_of(block: Block, start: int, stop: int) -> Block:
    """Rows ``start`` to ``stop``, exclusive, of a block of more."""
    ids, left_out, sizes = block.rows
    within = {row - start: why for row, why in left_out.items() if start <= row < stop}
    return Block(
        block.outputs.map(lambda column: column[start:stop]),
        block.labels[start:stop],
        Rows(ids[start:stop], within, sizes[start:stop]),
    )


def says_left_out(rows: Rows) -> str:
    """The line of a warning."""
    named = [f"{rows.ids[row]} ({why})" for row, why in sorted(rows.left_out.items())]
    return f"left out: {some(named, _SHOWN)}"
