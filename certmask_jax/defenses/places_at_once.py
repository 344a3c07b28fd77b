"""The worst case at many places in one step, for the defenses whose proofs look at each alone.

``by_placement`` asks a defense about one place after the other, which builds it anew for each.
Where a proof is a condition on *the masked images that hide the patch there*, the defense has it as
a method, ``row_worst_case_at``, which is asked here of all places at once.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.defenses.certmask_votes import CertMask, CertMaskDetection
from certmask_jax.defenses.crosscert_detection import CrossCert
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.minority_reports_detector import MinorityReports
from certmask_jax.defenses.over_tables import Row
from certmask_jax.defenses.pair_cover_recovery import PairCover
from certmask_jax.defenses.patchcleanser_masking import ChallengerMasking, DoubleMasking
from certmask_jax.defenses.patchcure_masking import PatchCURE
from certmask_jax.masks import distinct_unions
from certmask_jax.tables.prediction_table import PredictionTable

_ASKED_AT_ONCE = CertMask | CertMaskDetection | CrossCert | MinorityReports | PairCover

# Images are looked at in blocks whose intermediate arrays hold about this many numbers.
_NUMBERS_AT_ONCE = 1 << 25


def rows_of(defense: Defense) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where masks alone, ``int[N]``, and pairs, ``int[N, M]``, are among the masked images."""
    masks = defense.mask_set
    singles, of_mask = distinct_unions.unions(masks, 1)
    pairs, of_pair = distinct_unions.unions_of([masks, defense.second_set or masks])
    images = defense.masked_images
    return images.places(singles)[of_mask], images.places(pairs)[of_pair]


def by_good_rows(defense: Defense, hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """At which places the worst case holds iff a mask that hides the patch has a good row.

    A good row is one of true labels only, of a mask with every second mask. Challenger masking's
    lower bound and PatchCURE's exact worst case are that everywhere; double masking's where fewer
    than half of the masks hide the patch, and both rounds have one set.

    Args:
      defense: any.
      hidden: ``bool[S, V]``, which masked images hide the patch at each of S places.

    Returns:
      ``bool[S]``.
    """
    if isinstance(defense, ChallengerMasking | PatchCURE):
        return np.ones(len(hidden), np.bool_)
    if isinstance(defense, DoubleMasking) and defense.second_set is None:
        hiding = hidden[:, rows_of(defense)[0]].sum(axis=1)
        return np.asarray(2 * hiding < len(defense.mask_set))
    return np.zeros(len(hidden), np.bool_)


def asked_alone(defense: Defense, hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """About which places a defense has to be asked one by one: ``bool[S]``.

    Args:
      defense, hidden: as of ``by_good_rows``.
    """
    if isinstance(defense, _ASKED_AT_ONCE):
        return np.zeros(len(hidden), np.bool_)
    return ~by_good_rows(defense, hidden)


@reproducible()
def all_places(
    defense: Defense,
    table: PredictionTable,
    labels: NDArray[np.int32],
    hidden: NDArray[np.bool_],
) -> NDArray[np.bool_] | None:
    """The worst case of T images at each of S places alone: ``bool[T, S]``.

    Args:
      defense: any.
      table: of the V masked images of the defense, in its order, all of them known.
      labels: true labels, ``int32[T]``.
      hidden: ``bool[S, V]``, which masked images hide the patch at each place.

    Returns:
      None for a defense that has to be asked about each place.
    """
    if not isinstance(defense, _ASKED_AT_ONCE):
        return None
    classes = table.num_classes
    cost = classes**2 if isinstance(defense, CertMask) else classes + hidden.shape[1]
    if isinstance(defense, CrossCert):
        cost = 8 * hidden.shape[1]
    rows = max(1, _NUMBERS_AT_ONCE // cost)
    parts = []
    for start in range(0, len(table), rows):
        at = slice(start, start + rows)
        holds = _all_places(
            defense,
            classes,
            jnp.asarray(table.predictions[at]).astype(jnp.int32),
            jnp.asarray(table.confidences[at]).astype(jnp.float32),
            jnp.asarray(labels[at]),
            jnp.asarray(hidden),
        )
        parts.append(np.asarray(holds) & table.sure[at].all(axis=1, keepdims=True))
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _all_places(
    defense: Any,
    num_classes: int,
    predictions: Array,
    confidences: Array,
    labels: Array,
    hidden: Array,
) -> Array:
    def of_place(hides: Array) -> Array:
        def of_image(labels_of_masks: Array, trust: Array, true: Array) -> Array:
            row = Row(labels_of_masks, trust)
            return defense.row_worst_case_at(row, true, num_classes, hides[None])

        return jax.vmap(of_image)(predictions, confidences, labels)

    return jax.lax.map(of_place, hidden).T
