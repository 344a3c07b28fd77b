"""Claims of fields, looked at where a model is first used from Python.

Whoever gives local logits or a model in two parts says which pixels each cell sees, and every proof
about it stands on that. Runs look at it before any work, and programs at every model of a user's
own; ``predict`` and ``defended`` look here, once for each model in a process.
"""

from __future__ import annotations

from typing import Any

from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_program import check_local
from certmask_jax.inference.looked_at import LookedAt
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing, encoded_channels
from certmask_jax.inference.two_parts import check_parts

_SEEN = LookedAt()


def check_claims(
    apply_fn: ApplyFn,
    local: LocalLogits | None,
    params: Any,
    channels: int,
    *,
    preprocessing: Preprocessing,
) -> None:
    """Refuses cells that see more than the field claimed for them; models that claim none pass.

    Parts and local logits that are equal, on parameters of equal shapes, are looked at once.

    Args:
      apply_fn, local, params, preprocessing: as of ``predict``.
      channels: of the images, before preprocessing.

    Raises:
      ValueError: as ``check_parts``, and of local logits as ``check_local``.
    """
    parts = kind_of(apply_fn).parts
    claim = parts if local is None else local
    if claim is None:
        return
    seen_channels = encoded_channels(preprocessing.encoding, channels)
    known = _SEEN.key(claim, seen_channels, params=params)
    if known in _SEEN:
        return
    if local is not None:
        side = local.field + local.stride
        check_local(local, params, (side, side, seen_channels))
    elif parts is not None:
        check_parts(parts, params, seen_channels)
    _SEEN.add(known)
