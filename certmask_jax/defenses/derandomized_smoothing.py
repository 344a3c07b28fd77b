"""(De)Randomized Smoothing (Levine and Feizi, NeurIPS 2020): votes of bands, and their worst case.

A model sees one band or block of an image at a time. Of B bands, each votes for some classes: for
those with a softmax of at least theta (several, or none), for the best one, or for all that are
best. The class with most votes is the answer; of equals the smallest, as in the paper's program.

A patch at location l meets the bands A(l) (``affected``); the votes of all others are out of its
reach. The worst that the bands of A(l) can do for a wrong z is to vote for z and not for y, so
(soundness, 13.1) the image is robust if and only if for all l and z != y

    N_y(outside A(l)) - N_z(outside A(l)) > |A(l)|,

where equality is enough if y wins a tie against z. That is exact for every stride, with or without
wrap-around, and for every way to vote. The same rule with the same proof is that of smoothed ViTs
(Salman et al., CVPR 2022), of ViP's recovery (Li et al., ECCV 2022) and, as its paper describes it,
of ECViT (Chen et al., CVPR 2022). What these call certified is in ``vote_gaps``.

All functions take NumPy arrays and give NumPy arrays, or are traced by JAX. Counts are exact, for
fewer than 2**24 bands.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.defenses.evidence_places import PlaceVerdicts, told_apart
from certmask_jax.defenses.plain_arrays import AnyArray, as_given, checked_classes
from certmask_jax.defenses.voting import Ties, check_ties, preference

_MOST_BANDS = 1 << 24


def threshold_votes(logits: AnyArray, threshold: float) -> AnyArray:
    """A vote for every class whose softmax is at least ``threshold`` (Levine and Feizi).

    Args:
      logits: ``float[T, B, K]`` of each band, or with any axes before K.
      threshold: theta, in (0, 1]; below 1/2 a band can vote for several classes. The paper has 0.2.

    Returns:
      ``bool`` of the same shape. A band with NaN or +inf among its logits votes for no class.

    Raises:
      ValueError: for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a share in (0, 1], got {threshold!r}")
    return as_given(_over_threshold(jnp.asarray(logits), float(threshold)), logits)


def top_one_votes(logits: AnyArray) -> AnyArray:
    """A vote for the class of the highest logit, of equals the smallest (Levine and Feizi).

    ``float[..., K]`` -> ``bool[..., K]``. A band with NaN or +inf among its logits votes for none.
    """
    return as_given(_first_best(jnp.asarray(logits)), logits)


def shared_top_votes(logits: AnyArray) -> AnyArray:
    """A vote for every class whose logit is the highest (smoothed ViTs' program).

    ``float[..., K]`` -> ``bool[..., K]``. A band with NaN or +inf among its logits votes for none.
    """
    return as_given(_all_best(jnp.asarray(logits)), logits)


def label_votes(labels: AnyArray, num_classes: int) -> AnyArray:
    """A vote for the label of each band: ``int[..., B]`` -> ``bool[..., B, K]``; -1 for none.

    ``ValueError`` for labels that are no integers, or K or more, where the numbers are known.
    """
    array = labels if isinstance(labels, Array) else np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise ValueError(f"labels: expected integers, got {array.dtype}")
    known = not isinstance(array, jax.core.Tracer)
    if known and array.size and int(array.max()) >= num_classes:
        raise ValueError(f"labels: expected classes below {num_classes}, got {int(array.max())}")
    given = jnp.asarray(array)
    classes = jnp.arange(num_classes, dtype=jnp.int32).reshape((1,) * given.ndim + (-1,))
    return as_given(given.astype(jnp.int32)[..., None] == classes, labels)


def vote_counts(votes: AnyArray) -> AnyArray:
    """How many bands vote for each class: ``bool[..., B, K]`` -> ``int32[..., K]``."""
    return as_given(_checked(votes).sum(axis=-2, dtype=jnp.int32), votes)


def rule(votes: AnyArray, *, ties: Ties = "smallest") -> AnyArray:
    """The class with most votes.

    Args:
      votes: ``bool[T, B, K]``, or with other axes before B.
      ties: which class wins when several have most; where no band votes, all have.

    Returns:
      ``int32[T]``.
    """
    check_ties(ties)
    return as_given(_most_votes(_checked(votes), ties), votes)


def worst_case(
    votes: AnyArray,
    labels: AnyArray,
    affected: AnyArray | Sequence[AnyArray],
    *,
    ties: Ties = "smallest",
) -> AnyArray:
    """Whether ``rule`` answers the true label whatever an attacker does; exact (soundness, 13.1).

    The default is the order of the papers' programs, because with it this is the exact verdict on
    the rule that they run. ``certificate`` holds in any order.

    Args:
      votes: ``bool[T, B, K]`` on the clean images, or with other axes before B.
      labels: ``int[T]``, the true classes.
      affected: ``bool[G, B]``, the bands that each group of placements meets, as of
        ``MaskSet.affected``. Several are ``bool[G_i, B_i]`` each, whose bands follow one
        another, where an attacker picks a group of each (``masks.bands.affected_parts``).
      ties: as of ``rule``.

    Returns:
      ``bool[T]``.

    Raises:
      ValueError: for shapes that do not fit, or labels that are no classes.
    """
    check_ties(ties)
    return as_given(_withstand(*_checked_all(votes, labels, affected), ties), votes, labels)


def certificate(
    votes: AnyArray, labels: AnyArray, affected: AnyArray | Sequence[AnyArray]
) -> AnyArray:
    """As ``worst_case``, where a tie is lost: a proof in whatever order equals are broken."""
    return as_given(_withstand(*_checked_all(votes, labels, affected), None), votes, labels)


def by_place(
    votes: Array, labels: Array, met: NDArray[np.bool_], *, ties: Ties = "smallest"
) -> PlaceVerdicts:
    """What ``worst_case`` says of each set of bands that a patch may meet.

    Args:
      votes: ``bool[T, B, K]``, which may be traced.
      labels: ``int32[T]``.
      met: ``bool[S, B]``, the sets; none is left out because another one contains it.
      ties: as of ``rule``.

    Returns:
      ``[T, S]``. Leads are in votes: how many more the true class has in the worst case than are
      needed to win.
    """
    check_ties(ties)
    given = _checked(votes)
    sets = jnp.asarray(met)
    rank = jnp.asarray(preference(given.shape[-1], ties))
    classes = jnp.arange(given.shape[-1], dtype=jnp.int32)

    def one(of: tuple[Array, Array]) -> Array:
        image, label = of
        wins = (rank[label] > rank).astype(jnp.float32)[None, :]
        leads = _leads_at_each(image, label, sets) + wins
        return jnp.where((classes != label)[None, :], leads, jnp.inf).min(axis=1)

    leads = jax.lax.map(one, (given, jnp.asarray(labels, jnp.int32)))
    return told_apart(leads > 0, leads)


def worst_leads(
    votes: AnyArray, labels: AnyArray, affected: AnyArray | Sequence[AnyArray]
) -> AnyArray:
    """By how many votes the true class still leads each other one in the worst case.

    Arguments as of ``worst_case``; ``int32[T, K]``, 0 or less where it does not lead, and nothing
    meant for the true class itself.
    """
    return as_given(_worst_leads(*_checked_all(votes, labels, affected)), votes, labels)


# Each is one program: asked of NumPy, they would be compiled operation by operation.


@functools.partial(jax.jit, static_argnames="threshold")
def _over_threshold(logits: Array, threshold: float) -> Array:
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1) >= threshold


@jax.jit
def _first_best(logits: Array) -> Array:
    best = jax.nn.one_hot(logits.argmax(axis=-1), logits.shape[-1], dtype=jnp.bool_)
    return best & _usable(logits)


@jax.jit
def _all_best(logits: Array) -> Array:
    return (logits == logits.max(axis=-1, keepdims=True)) & _usable(logits)


@functools.partial(jax.jit, static_argnames="ties")
def _most_votes(votes: Array, ties: Ties) -> Array:
    counts = votes.sum(axis=-2, dtype=jnp.int32)
    ordered = counts if ties == "smallest" else counts[..., ::-1]
    first = ordered.argmax(axis=-1).astype(jnp.int32)
    return first if ties == "smallest" else counts.shape[-1] - 1 - first


@functools.partial(jax.jit, static_argnames="ties")
def _withstand(votes: Array, true: Array, parts: tuple[Array, ...], ties: Ties | None) -> Array:
    """``bool[T]``; without ``ties`` a tie is lost."""
    leads = _worst_leads(votes, true, parts)
    others = jnp.arange(leads.shape[-1], dtype=jnp.int32).reshape((1,) * true.ndim + (-1,))
    least: Array | int = 1
    if ties is not None:
        rank = jnp.asarray(preference(leads.shape[-1], ties))
        least = jnp.where(rank[true[..., None]] > rank[others], 0, 1)
    return ((leads >= least) | (others == true[..., None])).all(axis=-1)


@jax.jit
def _worst_leads(votes: Array, true: Array, parts: tuple[Array, ...]) -> Array:
    *axes, bands, classes = votes.shape
    flat = votes.reshape((-1, bands, classes))
    leads = jax.lax.map(lambda one: _leads_of_one(one[0], one[1], parts), (flat, true.reshape(-1)))
    return leads.reshape((*axes, classes))


def _checked_all(
    votes: AnyArray, labels: AnyArray, affected: AnyArray | Sequence[AnyArray]
) -> tuple[Array, Array, tuple[Array, ...]]:
    given = _checked(votes)
    *axes, bands, classes = given.shape
    parts = _checked_parts(affected, bands)
    checked_classes(labels, tuple(axes), classes)
    return given, jnp.asarray(labels, jnp.int32), parts


def _leads_of_one(votes: Array, label: Array, parts: tuple[Array, ...]) -> Array:
    """``int32[K]`` of one image: in each part at its worst location, added up."""
    total, start = jnp.zeros(votes.shape[-1], jnp.int32), 0
    for met in parts:
        least = _leads_at_each(votes[start : start + met.shape[1]], label, met)
        total += least.min(axis=0).astype(jnp.int32)
        start += met.shape[1]
    return total


def _leads_at_each(votes: Array, label: Array, met: Array) -> Array:
    """``float32[G, K]`` of one image, whole numbers: the leads that are left at each location."""
    part = votes.astype(jnp.float32)
    outside = jnp.dot((~met).astype(jnp.float32), part, precision=jax.lax.Precision.HIGHEST)
    return outside[:, label][:, None] - outside - met.sum(axis=1, dtype=jnp.float32)[:, None]


def _usable(logits: Array) -> Array:
    return (logits < jnp.inf).all(axis=-1, keepdims=True)  # neither NaN nor +inf


def _checked(given: AnyArray) -> Array:
    votes = given if isinstance(given, Array) else np.asarray(given)
    if np.ndim(votes) < 2 or votes.dtype != np.bool_ or 0 in votes.shape[-2:]:
        raise ValueError(
            "votes: expected bool[..., bands, classes] with at least 1 band and class, got "
            f"{votes.dtype}{list(np.shape(votes))}; top_one_votes, threshold_votes and label_votes "
            "make them"
        )
    if votes.shape[-2] >= _MOST_BANDS:
        raise ValueError(f"votes: expected fewer than {_MOST_BANDS} bands, got {votes.shape[-2]}")
    return jnp.asarray(votes)


def _checked_parts(affected: AnyArray | Sequence[AnyArray], bands: int) -> tuple[Array, ...]:
    parts = (affected,) if isinstance(affected, np.ndarray | Array) else tuple(affected)
    shapes = [np.shape(part) for part in parts]
    good = all(len(shape) == 2 and shape[0] > 0 for shape in shapes)
    if not good or sum(shape[1] for shape in shapes) != bands:
        raise ValueError(
            f"affected: expected bool[groups, {bands}], or several whose bands are {bands} "
            f"together, got shapes {shapes}"
        )
    if any(part.dtype != np.bool_ for part in parts):
        raise ValueError(f"affected: expected bool, got {[str(part.dtype) for part in parts]}")
    return tuple(map(jnp.asarray, parts))
