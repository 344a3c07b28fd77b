"""What a search asks of what it attacks: answers, what masked images say, and what would be if.

One face for all sorts of defenses, and the model itself without a defense.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax.attacks.followed_slopes import Followed
from certmask_jax.attacks.logit_tables import LogitTables
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import Placement, shows
from certmask_jax.attacks.search_objectives import LabelsWanted, Objective
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing

Showing = Callable[[Placement], NDArray[np.bool_]]
"""A placement -> ``bool[V]``, which masked images show it."""


class Seen(NamedTuple):
    """What is known of B images.

    Attributes:
      answers: ``int32[B]``: labels, ``ALERT``, or ``NO_LABEL``.
      logits: ``float32[B, V, K]``; None where they are not looked at.
    """

    answers: NDArray[np.int32]
    logits: NDArray[np.float32] | None


class AskedModel(NamedTuple):
    """A model, and how it is asked; see ``attacked``."""

    apply_fn: ApplyFn
    params: Any
    image_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    mesh: Mesh


class Attacked(abc.ABC):
    """A defense of a model, or the model itself, as a search sees it.

    Attributes:
      boxes: ``int32[V, R, 4]``, what is hidden in each masked image, in pixels or in cells.
      params: the model's, as products take them.
      num_classes: K.
      may_alert: an alert is no wrong answer.
      mesh: the devices.
      defense: None for the model itself.
    """

    defense: Defense | EvidenceDefense | None = None
    boxes: NDArray[np.int32]
    params: Any
    num_classes: int
    may_alert: bool = False
    mesh: Mesh

    def __init__(self, model: AskedModel) -> None:
        self._apply_fn, self._preprocessing = model.apply_fn, model.preprocessing
        self.mesh, self._image_size = model.mesh, model.image_shape[:2]
        self.params = computed_with(model.params, model.preprocessing)
        self._itself = self._tables_of(np.zeros((1, 1, 4), np.int32))
        pixels = jax.ShapeDtypeStruct((1, *model.image_shape), np.uint8)
        self.num_classes = jax.eval_shape(self._itself.logits, self.params, pixels).shape[-1]

    def _tables_of(self, boxes: NDArray[np.int32]) -> LogitTables:
        return LogitTables(
            self._apply_fn,
            self.params,
            boxes,
            self._image_size,
            preprocessing=self._preprocessing,
            mesh=self.mesh,
        )

    def plain(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logits of the images themselves: ``float32[B, K]``."""
        return self._itself(images)[0][:, 0]

    @property
    def followed(self) -> Followed:
        """What its objectives differentiate."""
        return Followed(self._apply_fn, self._preprocessing)

    @abc.abstractmethod
    def objective(self, search: PatchSearch) -> Objective:
        """What a search lowers."""

    @abc.abstractmethod
    def answers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """What is really answered to ``uint8[B, h, w, c]``: ``int32[B]``."""

    def seen(self, images: NDArray[np.uint8]) -> Seen:
        """Answers, and all logits where they are of use."""
        return Seen(self.answers(images), None)

    def tables(self, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """All logits ``float32[B, V, K]``; None where they are not looked at."""
        del images
        return None

    def answers_if(
        self,
        logits: NDArray[np.float32],
        of: NDArray[np.intp],
        chosen: NDArray[np.bool_],
        targets: NDArray[np.intp],
    ) -> NDArray[np.int32]:
        """What would be answered if some masked images said a label.

        Args:
          logits: ``float32[B, V, K]``.
          of: ``int[R]``, whose they are in each case.
          chosen: ``bool[R, V]``, the masked images that are to say another label.
          targets: ``int[R]``, that label.

        Returns:
          ``int32[R]``.
        """
        raise NotImplementedError

    def reached(self, place: Placement) -> Placement:
        """A placement in pixels in the unit of the boxes."""
        return place

    def showing(self) -> Showing:
        """Which masked images show a placement; those of each are found once."""
        known: dict[bytes, NDArray[np.bool_]] = {}

        def of(place: Placement) -> NDArray[np.bool_]:
            key = place.tobytes()
            if key not in known:
                known[key] = shows(self.boxes, self.reached(place))
            return known[key]

        return of


class Undefended(Attacked):
    """The model itself; its one masked image hides nothing."""

    boxes = np.zeros((1, 1, 4), np.int32)

    def objective(self, search: PatchSearch) -> Objective:
        """The margin of the image itself."""
        return LabelsWanted(
            self._apply_fn, self._preprocessing, search.masks_a_step, search.surplus
        )

    def answers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The labels of the images."""
        if not len(images):
            return np.zeros(0, np.int32)
        _, said = self._itself(images)
        return np.asarray(said.predictions[:, 0], np.int32)
