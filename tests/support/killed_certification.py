"""Certifies some digits in small blocks; run as a program of its own, to be killed.

Takes more options. Prints a line before each block that it writes, and may be told to kill itself
before one.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from unittest import mock

from certmask_jax.certification import evaluation
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.programs import certify
from certmask_jax.tables.blocks import Block
from certmask_jax.tables.table_writer import TableWriter

BLOCKS, IMAGES_PER_BLOCK = 20, 2
_BLOCK_SIZES = BlockSizes(chunks=7)  # of 8, for 27 masked images
_OPTIONS = [
    "--num-images", "40", "--chunk", "8", "--out", "run",
    "--defense", "double_masking:masks_per_axis=2", "--defense", "certmask:tiling=tight",
]  # fmt: skip


def certified(options: Sequence[str], told: Callable[[int], None]) -> int:
    """Does it in this process; ``told`` of each block before it is written."""
    real = TableWriter.write

    def write(writer: TableWriter, number: int, block: Block) -> None:
        told(number)
        real(writer, number, block)

    sized = functools.partial(evaluation.evaluate, block_sizes=_BLOCK_SIZES)
    with (
        mock.patch.object(evaluation, "evaluate", sized),
        mock.patch.object(TableWriter, "write", write),
    ):
        return certify.main([*_OPTIONS, *options])


def main() -> int:
    def told(number: int) -> None:
        os.write(1, f"block {number}\n".encode())  # at once: a kill leaves no half of a line
        if str(number) == os.environ.get("CERTMASK_JAX_KILLED_BEFORE"):
            os.kill(os.getpid(), signal.SIGKILL)

    return certified(sys.argv[1:], told)


if __name__ == "__main__":
    sys.exit(main())
