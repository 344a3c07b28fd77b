"""The defended classifier for deployment: images in, labels and alerts out."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike, NDArray

from certmask_jax.defenses.defense import ALERT, Defense
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.defenses.masking_only import check_masking
from certmask_jax.inference import early_exit
from certmask_jax.inference.claimed_fields import check_claims
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.engine import Engine
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing, check_images, from_unit
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.inference.views import Views, passes_each
from certmask_jax.tables.prediction_table import UNKNOWN, PredictionTable

Pixels = Literal["uint8", "unit"]


class Answers(NamedTuple):
    """What the defended classifier says of B images."""

    labels: NDArray[np.int32]  # [B]; ALERT (-2), or NO_LABEL (-1) where logits were not finite
    alerts: NDArray[np.bool_]  # [B]; always false for a defense that recovers
    masked_images: NDArray[np.int32]  # [B]; how many were evaluated, in ``passes_each`` passes each


@dataclasses.dataclass(frozen=True, eq=False)
class DefendedPredictor:
    """A classifier guarded by a defense; build it with ``defended`` and call it on images.

    Attributes:
      pixels: ``"uint8"``: images are ``uint8`` in 0..255; ``"unit"``: floating numbers in [0, 1].
      engine: the model on the masked images of the defense. Little work, at most the first round
        of one image, goes through a smaller chunk: a single image, and the challenges of several.
        Its batches have another shape, so near ties may break otherwise (soundness, section 7).
    """

    defense: Defense
    engine: Engine
    pixels: Pixels = "uint8"

    @property
    def passes_each(self) -> int:
        """Forward passes that one masked image takes: as many as the model has views."""
        return passes_each(self.engine.facts())

    def __repr__(self) -> str:
        height, width, channels = self.engine.image_shape
        views = self.engine.facts().get("views")
        seen = f"; views {', '.join(views)}" if views else ""
        what = "uint8" if self.pixels == "uint8" else "floats in [0, 1]"
        return (
            f"DefendedPredictor({self.defense}; images {what} [B, {height}, {width}, {channels}]"
            f"{seen})"
        )

    def __call__(self, images: ArrayLike) -> Answers:
        """Answers for images ``[B, h, w, c]``, any B >= 1: ``uint8``, or as ``pixels`` says.

        The rule decides which masked images it needs next: of double masking's second round, only
        the rows of masks that disagree with the majority; of challenger masking's, one two-mask
        image a challenge. Work of all images is packed together.

        Raises:
          ValueError: for images of the wrong shape, channels or dtype, or pixels out of range.
        """
        array = from_unit(images) if self.pixels == "unit" else np.asarray(images)
        height, width, channels = self.engine.image_shape
        check_images(array, (height, width), channels, may_be_unit=True)
        step = self.engine.images_at_once()
        starts = range(0, len(array), step)
        parts = [self._answer(array[start : start + step]) for start in starts]
        return Answers(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _answer(self, images: NDArray[np.uint8]) -> Answers:
        defense, masks = self.defense, self.defense.masked_images
        question = early_exit.Question(defense, np.arange(len(masks)))
        outputs = early_exit.evaluate(self.engine, images, [question], labels=None)
        table = PredictionTable.of(outputs.map(np.asarray), masks, self.engine.num_classes)
        answers = defense.rule(table)
        return Answers(
            answers.astype(np.int32),
            answers == ALERT,
            (table.predictions != UNKNOWN).sum(axis=1, dtype=np.int32),
        )


def defended(
    apply_fn: ApplyFn,
    params: Any,
    defense: Defense,
    *,
    channels: int = 3,
    pixels: Pixels = "uint8",
    preprocessing: Preprocessing | None = None,
    local: LocalLogits | None = None,
    dropping: TokenDropping | None = None,
    views: Views | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> DefendedPredictor:
    """Guards a model with a defense: a function from images to labels and alerts.

    It takes images as they are before any normalisation, ``uint8[B, h, w, c]`` with pixels in
    0..255, h and w those of the masks; with ``pixels="unit"`` floating numbers in [0, 1], which are
    rounded to the nearest of these levels (what is certified for levels then holds for any pixels).
    Normalisation is part of ``preprocessing``.

    Args:
      apply_fn, params: any model, see ``ApplyFn``.
      defense: what to guard it with.
      channels: of the images, 3 or 1.
      pixels: ``"uint8"`` or ``"unit"``.
      preprocessing: as in ``predict``; the same as for
        certification.
      local: the model's local logits, if it has any: see ``local_forward``.
      dropping, views: as in ``predict``; the same as for certification.
      chunk, mesh: see ``masked_forward``.

    Raises:
      ValueError: as of ``predict``; for what is no masking defense, such as one on evidence.
    """
    check_masking(defense)
    if pixels not in ("uint8", "unit"):
        raise ValueError(f"pixels: expected 'uint8' or 'unit', got {pixels!r}")
    preprocessing = Preprocessing() if preprocessing is None else preprocessing
    engine = engine_for(
        apply_fn,
        params,
        (*kind_of(apply_fn).image_size(defense.masked_images.image_size), channels),
        defense.masked_images,
        preprocessing=preprocessing,
        local=local,
        dropping=dropping,
        views=views,
        chunk=chunk,
        mesh=mesh,
    )
    check_claims(apply_fn, local, params, channels, preprocessing=preprocessing)
    nothing = Seen.nothing(len(defense.masked_images))
    first_round = len(defense.open_columns(nothing, None))
    return DefendedPredictor(defense, engine.for_blocks(None).for_few(first_round), pixels)
