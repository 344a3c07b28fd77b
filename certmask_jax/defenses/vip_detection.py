"""ViP's detector (Li, Zhang, Xie; ECCV 2022), on labels: one mask at a time, and all must agree.

Windows of tokens are dropped at every position (``masks.visible_tokens.token_windows``). The answer
is the label of the whole image if all masked labels are the same, and an alert otherwise. It is
Minority Reports with tau = 0 on masks of tokens (soundness, 13.4).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax.defenses.defense import ALERT
from certmask_jax.defenses.plain_arrays import AnyArray, as_given, checked_classes


def detection_rule(masked: AnyArray, unmasked: AnyArray) -> AnyArray:
    """The label of the image itself if every masked label is the same, else ``ALERT``.

    Args:
      masked: ``int[T, N]``, labels under each mask.
      unmasked: ``int[T]``, of the images themselves.

    Returns:
      ``int32[T]``.
    """
    _check_labels(masked, unmasked)
    label = jnp.asarray(unmasked, jnp.int32)
    agree = (jnp.asarray(masked, jnp.int32) == label[..., None]).all(axis=-1)
    return as_given(jnp.where(agree & (label >= 0), label, ALERT), masked, unmasked)


def detection_worst_case(masked: AnyArray, unmasked: AnyArray, labels: AnyArray) -> AnyArray:
    """Whether the clean image is answered rightly, and every patched one so or by an alert; exact.

    All labels have to be the true one: that is the paper's condition. Then a mask that hides the
    patch still says so. It takes that the masks hide every placement, which a mask set promises.

    Args:
      masked, unmasked: as of ``detection_rule``, on the clean images.
      labels: ``int[T]``, the true classes.

    Returns:
      ``bool[T]``.

    Raises:
      ValueError: for shapes that do not fit, or labels that are no classes.
    """
    _check_labels(masked, unmasked)
    checked_classes(labels, np.shape(unmasked), None)
    true = jnp.asarray(labels, jnp.int32)
    agree = (jnp.asarray(masked, jnp.int32) == true[..., None]).all(axis=-1)
    return as_given(agree & (jnp.asarray(unmasked, jnp.int32) == true), masked, unmasked, labels)


def never_silently_wrong(masked: AnyArray, labels: AnyArray, affected: AnyArray) -> AnyArray:
    """Whether no patch makes the rule answer a wrong label, alerts on clean images aside; exact.

    So it is unless, at some location, all masks that hide the patch say one and the same wrong
    label, or no mask hides it: the attacker chooses all the others.

    Args:
      masked: ``int[T, N]``, on the clean images.
      labels: ``int[T]``, the true classes.
      affected: ``bool[G, N]``, the masks that show something of the patch (``MaskSet.affected``).

    Returns:
      ``bool[T]``.

    Raises:
      ValueError: as of ``detection_worst_case``, and for no group of placements.
    """
    checked_classes(labels, np.shape(masked)[:-1], None)
    groups, masks = np.shape(affected), np.shape(masked)[-1]
    if len(groups) != 2 or 0 in groups[:1] or groups[1] != masks or affected.dtype != np.bool_:
        raise ValueError(
            f"affected: expected bool[groups, {masks}] of at least 1 group, got {affected.dtype}"
            f"{list(groups)}"
        )
    said = jnp.asarray(masked, jnp.int32)[..., None, :]
    shape = (1,) * (said.ndim - 2)
    met = jnp.asarray(affected).reshape(shape + affected.shape)
    true = jnp.asarray(labels, jnp.int32)[..., None]
    least = jnp.where(met, np.iinfo(np.int32).max, said).min(axis=-1)
    most = jnp.where(met, -1, said).max(axis=-1)
    silent = (least == most) & (least != true) & (least >= 0) | met.all(axis=-1)
    return as_given(~silent.any(axis=-1), masked, labels, affected)


def _check_labels(masked: AnyArray, unmasked: AnyArray) -> None:
    (each, kind), (alone, other) = (
        (np.shape(one), (one if isinstance(one, Array) else np.asarray(one)).dtype.kind)
        for one in (masked, unmasked)
    )
    if each[:-1] != alone or each[-1:] in ((), (0,)) or not {kind, other} <= set("iu"):
        raise ValueError(
            f"masked, unmasked: expected int[..., masks] and int[...], got kinds {kind} and {other}"
            f" of the shapes {list(each)} and {list(alone)}"
        )
