"""The worst case at many places in one step, for the defenses whose proofs look at each alone.

``by_placement`` asks a defense about one place after the other, which builds it anew for each.
Where a proof is a condition on *the masked images that hide the patch there*, the same condition is
asked here of all places at once. Tests hold the two against each other, and against exhaustion.
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
from certmask_jax.defenses.certmask_votes import CertMask, CertMaskDetection, certmask_attacked
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.minority_reports_detector import MinorityReports
from certmask_jax.defenses.over_tables import Row
from certmask_jax.defenses.pair_cover_recovery import PairCover, pair_cover_worst_case
from certmask_jax.defenses.patchcleanser_masking import ChallengerMasking, DoubleMasking
from certmask_jax.defenses.patchcure_masking import PatchCURE
from certmask_jax.defenses.rounds import one_round
from certmask_jax.defenses.voting import count_votes
from certmask_jax.masks import distinct_unions
from certmask_jax.tables.prediction_table import PredictionTable

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
    if not isinstance(defense, CertMask | CertMaskDetection | MinorityReports | PairCover):
        return None
    classes = table.num_classes
    cost = classes**2 if isinstance(defense, CertMask) else classes + hidden.shape[1]
    rows = max(1, _NUMBERS_AT_ONCE // cost)
    parts = []
    for start in range(0, len(table), rows):
        at = slice(start, start + rows)
        found = _all_places(
            defense,
            classes,
            jnp.asarray(table.predictions[at]).astype(jnp.int32),
            jnp.asarray(table.confidences[at]).astype(jnp.float32),
            jnp.asarray(labels[at]),
            jnp.asarray(hidden),
        )
        parts.append(np.asarray(found) & table.sure[at].all(axis=1, keepdims=True))
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
        one = functools.partial(_holds, defense, num_classes, hides)
        return jax.vmap(one)(predictions, confidences, labels)

    return jax.lax.map(of_place, hidden).T


def _holds(
    defense: Any, num_classes: int, hides: Array, labels: Array, trust: Array, true: Array
) -> Array:
    """Whether one image withstands a patch that the masked images ``hides bool[V]`` hide."""
    weights = one_round(defense.masks, None).weights
    if isinstance(defense, PairCover):
        groups = one_round(defense.masks, None).groups
        attacks: Any = hides[None]
        return pair_cover_worst_case(
            labels, true, groups, weights, attacks=attacks, num_classes=num_classes,
            ties=defense.ties,
        )  # fmt: skip
    if isinstance(defense, CertMask):
        unit = int(np.gcd.reduce(weights))
        k, units = defense.masks.promise, jnp.asarray(weights // unit)
        votes = count_votes(jnp.where(hides, labels, -1), units, num_classes)
        free = jnp.where(hides, 0, units).sum()
        k_units = k // unit if k % unit == 0 else -1
        return ~certmask_attacked(votes, free, true, k=k_units, ties=defense.ties)
    answers = defense.row_rule(Row(labels, trust), num_classes) == true
    if isinstance(defense, CertMaskDetection):
        heard = jnp.asarray(weights)
        votes = count_votes(jnp.where(hides, labels, -1), heard, num_classes)
        wrong = jnp.where(jnp.arange(num_classes) == true, -1, votes).max()
        return answers & (jnp.where(hides, heard, 0).sum() - wrong > defense.tolerance)
    images, of_mask = distinct_unions.unions(defense.masks, 1)
    single = defense.masked_images.places(images)[of_mask]
    said = labels[single]
    is_heard = hides[single] & (trust[single] > defense.tau)
    most = jnp.where(is_heard, said, -1).max()
    least = jnp.where(is_heard, said, num_classes).min()
    return answers & is_heard.any() & ((most != least) | (most == true))
