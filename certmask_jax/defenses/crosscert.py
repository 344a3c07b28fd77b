"""CrossCert (Zhou et al., FSE 2024): two recovering defenses that check each other.

PatchCleanser's masks give one label, bands of columns by majority (``derandomized_smoothing``)
another; of bands with equally many votes the largest label wins, as in its program. The answer is
the label of the masks, and an alert where the two differ.

The masking is *revised*: case 1, all one-mask labels agree; case 2, some mask stands, that is all
its two-mask labels are its own, whether it disagrees with the majority or not; case 3, none does,
and the majority is the answer. In case 3 the attacker can have whatever majority it likes, so this
rule raises an alert there, as the version of the program that was under review does. Without it,
what the paper certifies by location is no proof (soundness, 13.5).

Tables are ``int[T, N, N]``, labels under every two masks, symmetric; votes ``bool[T, B, K]``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.defenses.defense import ALERT
from certmask_jax.defenses.plain_arrays import AnyArray, as_given, check_tables, checked_classes
from certmask_jax.defenses.voting import majority_label
from certmask_jax.masks import placements
from certmask_jax.masks.mask_set import MaskSet

# No label is as large.
_ABOVE = np.iinfo(np.int32).max


class JointGroups(NamedTuple):
    """What one patch leaves of both defenses, for every group of placements."""

    hidden: NDArray[np.bool_]  # [G, N, N] two masks together hide the patch
    affected: NDArray[np.bool_]  # [G, B] the patch meets the band


def joint_groups(masks: MaskSet, bands: MaskSet) -> JointGroups:
    """The groups of placements of one threat under pairs of ``masks`` and under ``bands`` at once.

    Raises:
      ValueError: for sets that were built for different threats.
    """
    if masks.threat != bands.threat:
        raise ValueError(
            f"bands: expected bands for {masks.threat}, as the masks, got some for {bands.threat}; "
            "build both for the same threat"
        )
    count, slots, _ = masks.boxes.shape
    first, second = np.triu_indices(count)
    pairs = np.concatenate([masks.boxes[first], masks.boxes[second]], axis=1)
    width = max(2 * slots, bands.boxes.shape[1])
    boxes = [np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0))) for b in (pairs, bands.boxes)]
    hide = placements.groups(np.concatenate(boxes), masks.threat).hidden
    hidden = np.zeros((len(hide), count, count), np.bool_)
    hidden[:, first, second] = hidden[:, second, first] = hide[:, : len(pairs)]
    return JointGroups(hidden, ~hide[:, len(pairs) :])


def masking(tables: AnyArray, *, revised: bool = True) -> tuple[AnyArray, AnyArray]:
    """The label of the masking defense, and the case that it comes from: ``int32[T]`` each.

    Args:
      tables: ``int[T, N, N]``.
      revised: a mask may stand that agrees with the majority. If false it is PatchCleanser's double
        masking, which looks at masks that disagree alone.
    """
    given = jnp.asarray(tables, jnp.int32)
    labels, cases = jax.vmap(lambda table: _masking(table, revised))(given)
    return as_given(labels, tables), as_given(cases, tables)


def rule(
    tables: AnyArray, votes: AnyArray, *, revised: bool = True, case_3_alerts: bool = True
) -> AnyArray:
    """The label of the masks, or ``ALERT`` where the bands say another one, or in case 3.

    Args:
      tables, votes: see the module.
      revised: as of ``masking``.
      case_3_alerts: if false, the published rule, whose certificates by location are no proofs.

    Returns:
      ``int32[T]``.
    """
    check_tables(tables, votes)
    label, case = masking(tables, revised=revised)
    alert = (label != smoothing.rule(votes, ties="largest")) | (label < 0)
    alert = alert | (case_3_alerts & (case == 3))
    return as_given(jnp.where(alert, ALERT, label), tables, votes)


def worst_case(
    tables: AnyArray, votes: AnyArray, labels: AnyArray, groups: JointGroups
) -> AnyArray:
    """Whether ``rule`` answers the true label, and under attack that or an alert; exact.

    The attacker picks one location, the labels of all pairs of masks that do not hide the patch
    there, and the votes of all bands that it meets. To have z answered it can do no better than to
    let all of them say z (soundness, 13.5).

    Args:
      tables, votes: of the clean images.
      labels: ``int[T]``, the true classes.
      groups: ``joint_groups`` of the masks and the bands.

    Returns:
      ``bool[T]``.

    Raises:
      ValueError: for shapes that do not fit, or labels that are no classes.
    """
    count, num_classes = np.shape(tables)[0], np.shape(votes)[-1]
    wanted = (count, *groups.hidden.shape[1:])
    if np.shape(tables) != wanted or np.shape(votes)[:-1] != (count, groups.affected.shape[1]):
        raise ValueError(
            f"tables, votes: expected int{list(wanted)} and bool[{count}, "
            f"{groups.affected.shape[1]}, K], got shapes {np.shape(tables)} and {np.shape(votes)}"
        )
    checked_classes(labels, (count,), num_classes)
    true = jnp.asarray(labels, jnp.int32)
    each = (jnp.asarray(tables, jnp.int32), jnp.asarray(votes), true)
    silent = jax.lax.map(lambda one: _silently_wrong(one[0], one[1], one[2], groups), each)
    answers = jnp.asarray(rule(tables, votes))
    return as_given(~silent & (answers == true), tables, votes, labels)


def unwavering_certified(
    tables: AnyArray, votes: AnyArray, labels: AnyArray, affected: AnyArray
) -> AnyArray:
    """Whether no patch changes the answer, not even to an alert: ``bool[T]``, a certificate.

    All two-mask labels are true and the bands withstand every patch, by
    ``derandomized_smoothing.certificate``. The paper asks for a lead of more than 2 (b + p - 1).

    Args:
      tables, votes, labels: as of ``worst_case``.
      affected: ``bool[G, B]``, of the bands alone.
    """
    masks, bands = _certified_alone(tables, votes, labels, affected)
    return as_given(masks & bands, tables, votes, labels)


def static_certified(
    tables: AnyArray, votes: AnyArray, labels: AnyArray, affected: AnyArray
) -> AnyArray:
    """Whether one of the two defenses alone keeps the answer from being wrong: ``bool[T]``.

    The clean answer is true and all two-mask labels are, or the bands withstand every patch. It is
    a certificate, and implies ``worst_case``.

    Args:
      tables, votes, labels, affected: as of ``unwavering_certified``.
    """
    masks, bands = _certified_alone(tables, votes, labels, affected)
    answered = jnp.asarray(rule(tables, votes)) == jnp.asarray(labels, jnp.int32)
    return as_given(answered & (masks | bands), tables, votes, labels)


def location_certified(
    tables: NDArray[np.integer],
    votes: NDArray[np.bool_],
    labels: NDArray[np.integer],
    masks: MaskSet,
    affected: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """What the paper certifies by location, ``bool[T]``, for a rule that alerts in case 3.

    Both labels are true, and for no wrong label z in the table, of masks i and j, can bands say z
    that a patch meets which is somewhere in the columns of i or j. With an alert in case 3 it
    implies ``worst_case`` but for the alert on a clean image of case 3; without, it is no proof.

    Args:
      tables, votes, labels: on the clean images.
      masks: those of the table, for one patch of one shape.
      affected: ``bool[w - pw + 1, B]``, the bands that the patch meets at each column.
    """
    check_tables(tables, votes)
    checked_classes(labels, np.shape(tables)[:1], np.shape(votes)[-1])
    places = masks.image_size[1] - masks.patch_size[1] + 1
    if np.shape(affected) != (places, np.shape(votes)[1]):
        raise ValueError(
            f"affected: expected bool[{places}, {np.shape(votes)[1]}], the bands met at each "
            f"column, got the shape {list(np.shape(affected))}"
        )
    lefts = np.arange(len(affected))
    used = (masks.boxes[..., 1] < masks.boxes[..., 3])[..., None]
    meets = (lefts < masks.boxes[..., 3, None]) & (
        lefts + masks.patch_size[1] > masks.boxes[..., 1, None]
    )
    columns = np.asarray((used & meets).any(axis=1))  # [N, locations]
    single, _ = masking(tables)
    right = (np.asarray(single) == labels) & (smoothing.rule(votes, ties="largest") == labels)
    certified = np.zeros(len(labels), np.bool_)
    for image in np.flatnonzero(right):
        possible = np.asarray(_can_win(jnp.asarray(votes[image]), jnp.asarray(affected)))
        wrong: NDArray[np.int64] = np.where(tables[image] == labels[image], -1, tables[image])
        suspects = {int(z): columns[(wrong == z).any(axis=0)] for z in np.unique(wrong[wrong >= 0])}
        certified[image] = not any(
            possible[meeting.any(axis=0), z].any() for z, meeting in suspects.items()
        )
    return certified


def _masking(table: Array, revised: bool) -> tuple[Array, Array]:
    single = jnp.diagonal(table)
    most = majority_label(single, "largest")
    unanimous = (single == single[0]).all()
    stands = (table == single[:, None]).all(axis=1) & (revised | (single != most))
    label = jnp.where(stands.any(), single[stands.argmax()], most)
    case = jnp.where(unanimous, 1, jnp.where(stands.any(), 2, 3))
    return jnp.where(unanimous, single[0], label), case.astype(jnp.int32)


def _certified_alone(
    tables: AnyArray, votes: AnyArray, labels: AnyArray, affected: AnyArray
) -> tuple[Array, Array]:
    """``bool[T]`` twice: all two-mask labels are true, and the bands withstand every patch."""
    check_tables(tables, votes)
    bands = jnp.asarray(smoothing.certificate(votes, labels, affected))
    true = jnp.asarray(labels, jnp.int32)[:, None, None]
    return (jnp.asarray(tables, jnp.int32) == true).all(axis=(1, 2)), bands


def _silently_wrong(table: Array, votes: Array, label: Array, groups: JointGroups) -> Array:
    """Whether, in some group, all entries out of hand of a row or of the masks alone are a z.

    Or there is no such entry, which is where no two of the masks hide the patch.
    """
    hidden = jnp.asarray(groups.hidden)
    alone = jnp.diagonal(hidden, axis1=1, axis2=2)[:, None]  # one more row: the one-mask labels
    fixed = jnp.concatenate([hidden, alone], axis=1)
    said = jnp.concatenate([table, jnp.diagonal(table)[None]])[None]
    least = jnp.where(fixed, said, _ABOVE).min(axis=2)
    most = jnp.where(fixed, said, -1).max(axis=2)
    wrong = (least == most) & (least >= 0) & (least != label)  # [G, N + 1]
    can = _can_win(votes, jnp.asarray(groups.affected))
    says = jnp.take_along_axis(can, jnp.clip(least, 0, votes.shape[1] - 1), axis=1)
    others = can & (jnp.arange(votes.shape[1]) != label)[None, :]
    free = ~fixed.any(axis=2) & others.any(axis=1, keepdims=True)
    return (wrong & says & (least < votes.shape[1]) | free).any()


def _can_win(votes: Array, affected: Array) -> Array:
    """``bool[G, K]``: whether the bands say a class if all that a patch meets do."""
    outside = jnp.dot(
        (~affected).astype(jnp.float32),
        votes.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,  # counts, exact below 2**24
    ).astype(jnp.int32)
    num_classes = votes.shape[1]
    key = outside * num_classes + jnp.arange(num_classes, dtype=jnp.int32)[None, :]
    own = key + affected.sum(axis=1, dtype=jnp.int32)[:, None] * num_classes
    is_best = jnp.arange(num_classes)[None, :] == key.argmax(axis=1)[:, None]
    second = jnp.where(is_best, -1, key).max(axis=1, keepdims=True)
    return own > jnp.where(is_best, second, key.max(axis=1, keepdims=True))
