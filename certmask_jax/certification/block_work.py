"""Blocks of a run: their images are read and uploaded, evaluated, and become rows of a table.

Small blocks are evaluated together, a *stretch* of them that takes some seconds at most: the chunks
of a block of few images would be half empty. How images are packed depends on the stretch alone. So
whoever lacks one of its blocks, as another process does them or a run was killed, evaluates it all.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from certmask_jax.certification.finished_blocks import (
    block_of,
    rows_of,
    says_left_out,
    still_of_use,
)
from certmask_jax.certification.run_hooks import Hooks, Step
from certmask_jax.inference import early_exit
from certmask_jax.inference.early_exit import Question
from certmask_jax.inference.engine import Engine
from certmask_jax.inference.out_of_memory import Guarded
from certmask_jax.inference.preprocessing import check_images
from certmask_jax.tables.blocks import Block
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import UNKNOWN, PredictionTable, check_labels
from certmask_jax.tables.run_images import Part, RunImages
from certmask_jax.tables.table_writer import TableWriter


class Batch(NamedTuple):
    """The images of a stretch, before they are evaluated."""

    uploaded: Any  # as the engine has them; nothing of use where no image is there
    part: Part


@dataclasses.dataclass(frozen=True, eq=False)
class BlockWork:
    """What is done for each stretch of blocks, and what the hooks hear of it.

    Attributes:
      run_images: the images of the run.
      engine: evaluates them.
      guarded: the same engine, for devices that run out of memory.
      questions: what early exit decides; None to evaluate all masked images.
      writer: knows which blocks there are; it is given none here.
      hooks: are told.
      images_together: of a stretch, those of some whole blocks.
    """

    run_images: RunImages
    engine: Engine
    guarded: Guarded
    questions: Sequence[Question] | None
    writer: TableWriter
    hooks: Hooks
    images_together: int

    def missing(self) -> dict[tuple[int, ...], tuple[int, int]]:
        """The blocks that are not there yet, by stretch -> its images; tells of whole stretches."""
        missing = {}
        width = len(self.engine.masked_images)
        for first, numbers in self._stretches.items():
            blocks = {
                number: still_of_use(self.writer, number, self.run_images, self.hooks.warn)
                for number in numbers
            }
            there = [block for block in blocks.values() if block is not None]
            start, stop = self._of_stretch(first)
            lacking = tuple(number for number in numbers if blocks[number] is None)
            if lacking:  # all of it is evaluated
                missing[lacking] = start, stop
                if there:  # how much there is to do is told before images are
                    self._tell(0, 0, 0, is_new=False)
            else:
                evaluated = sum(int((b.outputs.predictions != UNKNOWN).sum()) for b in there)
                self._tell((stop - start) * width, evaluated, 0, is_new=False)
            for block in there:
                self.tell_of(block)
        return missing

    def read(self, start: int, stop: int) -> Batch:
        """Images ``start`` to ``stop``, exclusive: as uploaded, and what is known of each.

        Raises:
          ValueError: for images of another size than the masks, or labels that are no classes.
        """
        part = self.run_images.read(start, stop)
        if not len(part.images):  # all left out
            return Batch(part.images, part)
        check_images(part.images, self.engine.image_shape[:2])
        labels = check_labels(part.labels, len(part.images), self.engine.num_classes)
        return Batch(self.engine.upload(part.images), part._replace(labels=labels))

    def computed(self, batch: Batch) -> Block:
        """All rows of what ``read`` gave; tells of their passes as they are made."""
        images, part = batch
        if slots := self.engine.stem_slots(len(part.images)):
            self._tell(0, 0, 0, stems=len(part.images), stem_slots=slots)
        width = len(self.engine.masked_images)

        def outputs(engine: Engine, advance: Callable[[int, int, int], None]) -> Outputs:
            if self.questions is None:
                return engine.table(images, lambda count, slots: advance(count, count, slots))
            return early_exit.evaluate(
                engine, images, self.questions, part.labels, always=[0], progress=advance
            )

        outputs_there = self.guarded.run_told(outputs, self._tell) if len(part.present) else None
        if part.rows.left_out:
            self._tell(len(part.rows.left_out) * width, 0, 0)
            self.hooks.warn(says_left_out(part.rows))
        return block_of(outputs_there, part, width)

    def cut(self, rows: Block, numbers: Sequence[int]) -> Iterator[tuple[int, Block]]:
        """Some blocks of a stretch, with their numbers, from all rows of it."""
        for number in numbers:
            start, stop = self._spans[number]
            first = start % self.images_together
            yield number, rows_of(rows, first, first + stop - start)

    def tell_of(self, block: Block) -> None:
        """Gives the hooks the table and the labels of the images of a block that are there."""
        here = [row for row in range(len(block.labels)) if row not in block.rows.left_out]
        if here:
            present = block.outputs.map(lambda column: np.asarray(column)[here])
            masks, num_classes = self.engine.masked_images, self.engine.num_classes
            self.hooks.block(PredictionTable.of(present, masks, num_classes), block.labels[here])

    @functools.cached_property
    def _spans(self) -> dict[int, tuple[int, int]]:
        return self.writer.spans()

    @functools.cached_property
    def _stretches(self) -> dict[int, list[int]]:
        """The first image of each stretch -> those of its blocks that are the writer's."""
        stretches: dict[int, list[int]] = {}
        for number, (start, _) in self._spans.items():
            stretches.setdefault(start - start % self.images_together, []).append(number)
        return stretches

    def _of_stretch(self, start: int) -> tuple[int, int]:
        return start, min(start + self.images_together, len(self.run_images))

    @functools.cached_property
    def _total(self) -> int:
        """Masked images of all stretches with blocks of the writer."""
        images = sum(stop - start for start, stop in map(self._of_stretch, self._stretches))
        return len(self.engine.masked_images) * images

    def _tell(
        self,
        settled: int,
        evaluated: int,
        slots: int,
        *,
        is_new: bool = True,
        stems: int = 0,
        stem_slots: int = 0,
    ) -> None:
        self.hooks.progress(Step(settled, evaluated, slots, self._total, is_new, stems, stem_slots))
