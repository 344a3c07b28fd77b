"""Defenses on tables of labels as a search sees them, of whole models and of two parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from certmask_jax.attacks.attacked_model import AskedModel, Attacked, Seen
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import Placement, cells_of_parts
from certmask_jax.attacks.remembered_tables import RememberedTables
from certmask_jax.attacks.search_objectives import LabelsWanted, Objective
from certmask_jax.defenses.defense import Defense, Guarantee
from certmask_jax.inference import early_exit
from certmask_jax.inference.early_exit import Question
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.tables.prediction_table import PredictionTable, from_labels

MOST_COLUMNS = 1024
"""Of larger tables the answers alone are asked for, unless said otherwise."""

_ROWS = (32, 1024)


class OnTable(Attacked):
    """A defense on the labels of masked images, or of masked maps of a model in two parts."""

    def __init__(
        self, defense: Defense, model: AskedModel, *, most_columns: int = MOST_COLUMNS
    ) -> None:
        super().__init__(model)
        self._most_columns = most_columns
        self._rule, self._masked = defense.rule, defense.masked_images
        self.defense, self.boxes = defense, self._masked.boxes
        self._question = Question(defense, np.arange(len(self._masked)))
        self.may_alert = defense.guarantee == Guarantee.DETECTION
        self._engine = engine_for(
            model.apply_fn,
            model.params,
            model.image_shape,
            self._masked,
            preprocessing=model.preprocessing,
            mesh=model.mesh,
        )
        self._tables = self._tables_of(self.boxes)
        self._remembered = RememberedTables(lambda images: self._tables(images)[0])

    def objective(self, search: PatchSearch) -> Objective:
        """The margins of some masked images."""
        return LabelsWanted(
            self._apply_fn, self._preprocessing, search.masks_a_step, search.surplus
        )

    def answers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """With no more passes than the answer takes."""
        step = self._engine.images_at_once()
        parts = [self._some(images[at : at + step]) for at in range(0, len(images), step)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def _some(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        outputs = early_exit.evaluate(self._engine, images, [self._question], None)
        return self._ruled(PredictionTable.of(outputs, self._masked, self.num_classes))

    def seen(self, images: NDArray[np.uint8]) -> Seen:
        """The rule on the whole table, unless it is very large."""
        if len(self._masked) > self._most_columns:
            return Seen(self.answers(images), None)
        logits, said = self._tables(images)
        table = PredictionTable.of(said, self._masked, self.num_classes)
        return Seen(self._ruled(table), logits)

    def tables(self, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Those of the whole table, unless it is very large; of the same images once."""
        return None if len(self._masked) > self._most_columns else self._remembered(images)

    def answers_if(
        self,
        logits: NDArray[np.float32],
        of: NDArray[np.intp],
        chosen: NDArray[np.bool_],
        targets: NDArray[np.intp],
    ) -> NDArray[np.int32]:
        """See ``Attacked``; all labels are taken for certain."""
        labels = logits.argmax(axis=-1)[of]
        rows = np.where(chosen, targets[:, None], labels)
        return self._ruled(from_labels(rows, self._masked, num_classes=self.num_classes))

    def _ruled(self, table: PredictionTable) -> NDArray[np.int32]:
        """What the rule answers, in few shapes: each would be compiled."""
        count = len(table)
        size = next((s for s in _ROWS if s >= count), -(-count // _ROWS[-1]) * _ROWS[-1])
        rows = np.minimum(np.arange(size), max(0, count - 1))
        filled = table.map(lambda column: np.asarray(column)[rows])
        return self._rule(PredictionTable.of(filled, self._masked, self.num_classes))[:count]

    def reached(self, place: Placement) -> Placement:
        """In cells, of a model in two parts."""
        parts = kind_of(self._apply_fn).parts
        return place if parts is None else cells_of_parts(place, parts)
