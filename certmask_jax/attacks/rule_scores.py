"""Rules on local evidence as smooth scores: by how much another label still fails to be answered.

In floating point, and with slopes where a rule clips, so that a search finds its way out of what is
clipped away. The rules themselves are exact, and decide (``defenses.patchguard`` and its kin).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from certmask_jax.defenses.bagcert import region_scores
from certmask_jax.defenses.bagcert_defense import BagCert
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.defenses.quantised_evidence import CEILING
from certmask_jax.inference.masking import hidden_pixels

_LEAK = 0.1  # of the slope that is left where evidence is clipped


def wrong_lag(defense: LocalDefense, evidence: Array, target: Array) -> Array:
    """How far a rule is from answering a label: a scalar, 0 or less where it does.

    Args:
      defense: PatchGuard, PatchGuard++, Clipped BagNet or BagCert.
      evidence: ``float32[H, W, K]``.
      target: scalar ``int``, a label.

    Raises:
      ValueError: for a defense that is not known here.
    """
    return _lag_of(defense, evidence, lambda scores: _lag(scores, target))


def wrong_lags(defense: LocalDefense, evidence: Array) -> Array:
    """``wrong_lag`` of every label, ``float32[H, W, K]`` -> ``float32[K]``."""
    return _lag_of(defense, evidence, _lags)


def _lag_of(defense: LocalDefense, evidence: Array, lag: Callable[[Array], Array]) -> Array:
    """The lag of one label or of each, as ``lag`` has it of scores ``[K]``."""
    cells = evidence.shape[0] * evidence.shape[1]
    if isinstance(defense, PatchGuard):
        kept = _leaky(evidence, 0.0, min(defense.clip, CEILING))
        total, inside = kept.sum(axis=(0, 1)), _window_sums(kept, defense.window)
        most = inside.max(axis=0)
        masked = jnp.where(most > defense.threshold * total, most, 0)
        return lag((total - masked) / cells)
    if isinstance(defense, PatchGuardDetection):
        kept = jnp.clip(evidence, -CEILING, CEILING)
        total, inside = kept.sum(axis=(0, 1)), _window_sums(kept, defense.window)
        of_windows = jax.vmap(lambda left: lag(left / cells))(total[None] - inside)
        # An alert is no wrong answer, so the masked means have to follow, or be unsure.
        return lag(total / cells) + jnp.maximum(of_windows, 0).mean(axis=0)
    if isinstance(defense, ClippedBagNet):
        if defense.clip is None:
            kept = jnp.tanh(0.05 * evidence - 1)
        else:
            kept = _leaky(evidence, 0.0, defense.clip)
        return lag(kept.mean(axis=(0, 1)))
    if isinstance(defense, BagCert):
        scores = region_scores(evidence[None], threshold=defense.threshold)[0]
        soft = jax.nn.sigmoid(evidence - defense.threshold)  # its slope, as BagCert is trained
        sloped = scores.astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))
        later = jnp.arange(evidence.shape[-1], dtype=soft.dtype) / (2 * evidence.shape[-1])
        return lag((sloped.sum(axis=(0, 1)) - later) / cells)  # of equals the smallest
    raise ValueError(f"defense: expected one on local logits, got {defense}")


def strongest_evidence(evidence: Array, cells: Array, target: Array) -> Array:
    """Evidence in which some cells say nothing but the target, as loud as can be.

    Where a rule has no limit, that is what an attacker can do best (soundness, 12.2, 12.5, 12.10).

    Args:
      evidence: ``float32[H, W, K]``.
      cells: ``int32[4]``, height, width, row and column of a window.
      target: scalar ``int32``, a label.
    """
    loud = jnp.where(jnp.arange(evidence.shape[-1], dtype=jnp.int32) == target, CEILING, -CEILING)
    height, width, row, column = cells
    box = jnp.stack([row, column, row + height, column + width])[None]
    inside = hidden_pixels(box, (evidence.shape[0], evidence.shape[1]))
    return jnp.where(inside[..., None], loud.astype(evidence.dtype), evidence)


def _lag(scores: Array, target: Array) -> Array:
    """By how much the target's score lags behind the best of the others: ``[K]`` -> scalar."""
    own = jnp.arange(scores.shape[-1], dtype=jnp.int32) == target
    return jnp.where(own, -jnp.inf, scores).max() - jnp.where(own, scores, 0).sum()


def _lags(scores: Array) -> Array:
    """``_lag`` of every label: ``[K]`` -> ``[K]``."""
    (best, second), (first, _) = jax.lax.top_k(scores, 2)
    own = jnp.arange(scores.shape[-1], dtype=jnp.int32) == first
    return jnp.where(own, second, best) - scores


def _leaky(values: Array, low: float, high: float) -> Array:
    """What is clipped, with a little slope beyond the ends."""
    clipped = jnp.clip(values, low, high)
    return clipped + _LEAK * (values - jax.lax.stop_gradient(values))


def _window_sums(values: Array, window: tuple[int, int]) -> Array:
    """``[H, W, K]`` -> ``[windows, K]``."""
    sums = jax.lax.reduce_window(values, 0.0, jax.lax.add, (*window, 1), (1, 1, 1), padding="VALID")
    return sums.reshape(-1, values.shape[-1])
