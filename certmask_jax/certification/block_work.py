"""One block of a run: its images are read and uploaded, evaluated, and become rows of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.finished_blocks import block_of
from certmask_jax.inference import early_exit
from certmask_jax.inference.early_exit import Question
from certmask_jax.inference.engine import Engine
from certmask_jax.inference.out_of_memory import Guarded
from certmask_jax.inference.preprocessing import check_images
from certmask_jax.tables.blocks import Block
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import PredictionTable, check_labels
from certmask_jax.tables.run_images import Part, RunImages


@dataclasses.dataclass(frozen=True, eq=False)
class BlockWork:
    """What is done for each block.

    Attributes:
      run_images: the images of the run.
      engine: evaluates them.
      guarded: the same engine, for devices that run out of memory.
      questions: what early exit decides; None to evaluate all masked images.
    """

    run_images: RunImages
    engine: Engine
    guarded: Guarded
    questions: Sequence[Question] | None

    def read(self, start: int, stop: int) -> tuple[Any, Part]:
        """Images ``start`` to ``stop``, exclusive: as uploaded, and what is known of each.

        Raises:
          ValueError: for images of another size than the masks, or labels that are no classes.
        """
        part = self.run_images.read(start, stop)
        if not len(part.images):  # all left out
            return part.images, part
        check_images(part.images, self.engine.image_shape[:2])
        labels = check_labels(part.labels, len(part.images), self.engine.num_classes)
        return self.engine.upload(part.images), part._replace(labels=labels)

    def computed(self, images: Any, part: Part, tell: Callable[[int, int, int], None]) -> Block:
        """The block of what ``read`` gave; ``tell`` hears of it as ``Step`` counts it."""
        width = len(self.engine.masked_images)

        def outputs(engine: Engine, advance: Callable[[int, int, int], None]) -> Outputs:
            if self.questions is None:
                return engine.table(images, lambda count, slots: advance(count, count, slots))
            return early_exit.evaluate(
                engine, images, self.questions, part.labels, always=[0], progress=advance
            )

        outputs_there = self.guarded.run_told(outputs, tell) if len(part.present) else None
        if part.rows.left_out:
            tell(len(part.rows.left_out) * width, 0, 0)
        return block_of(outputs_there, part, width)

    def table_of(self, block: Block) -> tuple[PredictionTable, NDArray[np.int32]]:
        """The table and the labels of the images of a block that are not left out; may be none."""
        here = [row for row in range(len(block.labels)) if row not in block.rows.left_out]
        present = block.outputs.map(lambda column: np.asarray(column)[here])
        masks, num_classes = self.engine.masked_images, self.engine.num_classes
        return PredictionTable.of(present, masks, num_classes), block.labels[here]
