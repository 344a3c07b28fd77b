"""What a search for a patch lowers: losses of masked images, or of a rule on local evidence.

Both are smooth where the rule of a defense is not, and 0 or less where it errs for sure. Whether it
errs is never decided here: the rule itself is asked.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax.attacks.logit_tables import shown_logits
from certmask_jax.attacks.rule_scores import wrong_lag
from certmask_jax.defenses.local_defense import LocalDefense
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_sources import LocalSource
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing

_BEFORE = 1e3  # beyond any chance, and small enough that float32 tells chances apart
_LEAST_BOXES = 2  # of a masked image


class Goals(NamedTuple):
    """What B searches are after; a pytree of arrays.

    Attributes:
      images: ``uint8[B, h, w, c]``, without patches.
      corners: ``int32[B, K, 4]``, where the patches are.
      wanted: ``int32[B, V]``, the label wanted of each masked image; below 0 any will do.
      changed: ``bool[B, V]``: something else is wanted than the clean image has. Half of what a
        step looks at are such, or the many that are to stay as they are would hide them.
      weight: ``float32[B, V]``, above 0: how often a masked image is looked at.
      avoided: ``bool[B]``: the label named is to be left instead, whatever comes.
      label: ``int32[B]``, the true one.
      target: ``int32[B]``, the one that is to be answered.
    """

    images: Array
    corners: Array
    wanted: Array
    changed: Array
    weight: Array
    avoided: Array
    label: Array
    target: Array


class LookedAt(NamedTuple):
    """What B searches look at in one step; a pytree of arrays.

    It has the same shape for all defenses with at least as many masked images as a step looks at,
    so that they share the programs that go through the model.

    Attributes:
      boxes: ``int32[B, M, R, 4]``, what is hidden in the masked images that were drawn.
      wanted: ``int32[B, M]``, of these.
      changed, kept: ``bool[B, M]``, which are to change, which are to stay; the others count for
        nothing.
      avoided, target: as of ``Goals``.
    """

    boxes: Array
    wanted: Array
    changed: Array
    kept: Array
    avoided: Array
    target: Array


class Objective(Protocol):
    """A frozen value: equal ones share their programs."""

    def looked_at(self, boxes: Array, goals: Goals, keys: Array) -> LookedAt:
        """What is drawn for one step, of ``boxes int32[V, R, 4]``, by ``B`` keys."""
        ...

    def losses(self, params: Any, looked_at: LookedAt, patched: Array) -> Array:
        """``float32[B]`` of patched images ``float32[B, h, w, c]``, differentiable."""
        ...

    def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class LabelsWanted:
    """Margins of masked images, some of which are drawn anew each time.

    Attributes:
      apply_fn, preprocessing: the model, as of ``shown_logits``.
      masks_a_step: how many are drawn, at most.
      surplus: of one whose wanted label leads by so much nothing is lost any more.
    """

    apply_fn: ApplyFn
    preprocessing: Preprocessing
    masks_a_step: int
    surplus: float

    def looked_at(self, boxes: Array, goals: Goals, keys: Array) -> LookedAt:
        """See ``Objective``."""
        count = min(self.masks_a_step, boxes.shape[0])
        draw = jax.vmap(functools.partial(drawn, count=count))
        columns, counts = draw(keys, goals.wanted, goals.changed, goals.weight)
        wanted, changed = (
            jnp.take_along_axis(of_all, columns, axis=1) for of_all in (goals.wanted, goals.changed)
        )
        return LookedAt(
            boxes[columns],
            wanted,
            counts & changed,
            counts & ~changed,
            goals.avoided,
            goals.target,
        )

    def losses(self, params: Any, looked_at: LookedAt, patched: Array) -> Array:
        """See ``Objective``."""
        many, each = looked_at.wanted.shape
        lag = self.each(
            params,
            patched,
            looked_at.boxes.reshape(many * each, -1, 4),
            jnp.repeat(jnp.arange(many, dtype=jnp.int32), each),
            looked_at.wanted.reshape(-1),
            jnp.repeat(looked_at.avoided, each),
        ).reshape(many, each)
        return _mean(lag, looked_at.changed) + _mean(lag, looked_at.kept)

    def each(
        self,
        params: Any,
        patched: Array,
        boxes: Array,
        image_of: Array,
        wanted: Array,
        avoided: Array,
    ) -> Array:
        """The loss of each of W masked images alone, 0 or more: ``float32[W]``.

        Args:
          params: of the model.
          patched: ``float32[B, h, w, c]``.
          boxes: ``int32[W, R, 4]``.
          image_of: ``int32[W]``, whose they are.
          wanted, avoided: ``int32[W]`` and ``bool[W]``, see ``Goals``.
        """
        logits = shown_logits(
            self.apply_fn, params, patched, boxes, image_of, preprocessing=self.preprocessing
        )
        lag = margin_losses(logits, wanted, avoided)
        return jnp.maximum(lag, -self.surplus) + self.surplus


@dataclasses.dataclass(frozen=True)
class LocalEvidenceWanted:
    """By how much a rule on local evidence still fails to answer the target, see ``wrong_lag``.

    Attributes:
      local, preprocessing: the model.
      defense: the rule.
    """

    local: LocalLogits
    preprocessing: Preprocessing
    defense: LocalDefense

    def looked_at(self, boxes: Array, goals: Goals, keys: Array) -> LookedAt:
        """See ``Objective``; there is nothing to be drawn."""
        del keys
        many = len(goals.target)
        nothing = jnp.zeros((many, 1), jnp.bool_)
        hidden = jnp.zeros((many, 1, *boxes.shape[1:]), jnp.int32)
        wanted = jnp.zeros((many, 1), jnp.int32)
        return LookedAt(hidden, wanted, nothing, nothing, goals.avoided, goals.target)

    def losses(self, params: Any, looked_at: LookedAt, patched: Array) -> Array:
        """See ``Objective``."""
        evidence = LocalSource(self.local).evidence(params, patched, self.preprocessing).parts
        return jax.vmap(functools.partial(wrong_lag, self.defense))(
            evidence.astype(jnp.float32), looked_at.target
        )


def padded_boxes(boxes: NDArray[np.int32]) -> NDArray[np.int32]:
    """With boxes of no pixels, so that sets of one mask and of pairs share programs.

    ``int32[V, R, 4]`` -> ``int32[V, max(2, R), 4]``.
    """
    return np.pad(boxes, ((0, 0), (0, max(0, _LEAST_BOXES - boxes.shape[1])), (0, 0)))


def margin_losses(logits: Array, wanted: Array, avoided: Array) -> Array:
    """The margin loss of each masked image (Carlini and Wagner, 2017): ``[M, K]`` -> ``[M]``.

    By how much the wanted label still lags behind the best of the others, below 0 where it leads.

    ``wanted`` is ``int32[M]``. With ``avoided`` (``bool``, of all or of each) it is by how much
    that label leads still.
    """
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
    own = classes == wanted[:, None]
    named = jnp.where(own, logits, 0).sum(axis=-1)
    best = jnp.where(own, -jnp.inf, logits).max(axis=-1)
    return jnp.where(avoided, named - best, best - named)


def drawn(
    key: Array, wanted: Array, changed: Array, weight: Array, *, count: int
) -> tuple[Array, Array]:
    """``count`` columns of one search, half of them to be changed, and which are wanted at all.

    Drawn without replacement, each as likely as its ``weight float32[V]`` has it. Where there are
    not enough of one sort there are more of the other.
    """
    chance = jnp.log(weight) + jax.random.gumbel(key, wanted.shape, jnp.float32)
    half = (count + 1) // 2
    any_will_do = wanted < 0
    one_sort = jnp.where(changed, chance + _BEFORE, jnp.where(any_will_do, -_BEFORE, chance))
    _, first = jax.lax.top_k(one_sort, half)
    other_sort = jnp.where(any_will_do, -_BEFORE, jnp.where(changed, chance, chance + _BEFORE))
    taken = jnp.zeros(wanted.shape, jnp.bool_).at[first].set(True)
    _, second = jax.lax.top_k(jnp.where(taken, -2 * _BEFORE, other_sort), count - half)
    columns = jnp.concatenate([first, second])
    return columns, wanted[columns] >= 0


def _mean(values: Array, counts: Array) -> Array:
    """The mean of each row where it counts, 0 where nothing does: ``[B, M]`` -> ``[B]``."""
    many = jnp.maximum(counts.sum(axis=1), 1).astype(values.dtype)
    return jnp.where(counts, values, 0).sum(axis=1) / many
