"""Whether a model has a gradient that a search can follow, looked at before a search begins.

A model that rounds its pixels has a slope of 0 everywhere, and one whose slopes are NaN has none
either. A search would stay where it is, and what it leaves unbroken would read as robustness.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax._settings import Naming, SettingError
from certmask_jax.attacks.logit_tables import shown_logits
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_sources import LocalSource
from certmask_jax.inference.looked_at import LookedAt
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing

_MOST_IMAGES = 8  # of those given: one may be saturated, and so many are the model's fault
_SEEN = LookedAt()


@dataclasses.dataclass(frozen=True)
class Followed:
    """What a search differentiates; equal ones are looked at once.

    Attributes:
      apply_fn, preprocessing: the model, as of ``shown_logits``.
      local: its local logits, if the search follows these.
    """

    apply_fn: ApplyFn
    preprocessing: Preprocessing
    local: LocalLogits | None = None

    def lead(self, params: Any, pixels: Array) -> Array:
        """By how much the likeliest label of each image leads the mean of all, summed up."""
        if self.local is not None:
            evidence = LocalSource(self.local).evidence(params, pixels, self.preprocessing)
            logits = evidence.parts.mean(axis=(1, 2))
        else:
            count = pixels.shape[0]
            nothing = jnp.zeros((count, 1, 4), jnp.int32)
            image_of = jnp.arange(count, dtype=jnp.int32)
            logits = shown_logits(
                self.apply_fn, params, pixels, nothing, image_of, preprocessing=self.preprocessing
            )
        logits = logits.astype(jnp.float32)
        return (logits.max(axis=-1) - logits.mean(axis=-1)).sum()


@reproducible()
def check_slopes(
    followed: Followed,
    params: Any,
    images: Iterable[NDArray[np.uint8]],
    *,
    name: str = "model",
    seen: LookedAt = _SEEN,
) -> None:
    """Refuses a model whose pixels have no slope on any of a few images.

    Models that are equal, on images and parameters of equal shapes, are looked at once.

    Args:
      followed: what is differentiated.
      params: the model's.
      images: ``uint8[h, w, c]`` each, of one shape. Some are taken, and the next only where the
        one before has no slope; where there are none nothing is said.
      name: of the model.
      seen: what was looked at before; by default in this process.

    Raises:
      ValueError: if JAX cannot differentiate the model, or slopes are 0 or not finite at all pixels
        of these images.
    """
    program: Any = None
    known: Any = None
    looked_at, is_flat = 0, True
    for image, _ in zip(images, range(_MOST_IMAGES), strict=False):
        if program is None:
            known = seen.key(followed, image.shape, params=params)
            if known in seen:
                return
            program = _slopes_program(followed, params, image[None], name)
        slopes = np.asarray(program(params, jnp.asarray(image[None], jnp.float32)))
        looked_at += 1
        is_flat &= bool((slopes == 0).all())
        if (np.isfinite(slopes) & (slopes != 0)).any():
            seen.add(known)
            return
    if looked_at:
        of_all = "at every pixel of each image that was looked at"
        what = "a slope of 0" if is_flat else "slopes that are not finite, or 0,"
        raise SettingError(functools.partial(_said, name, f"{what} {of_all} ({looked_at})"))


def some_of(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A few images, evenly spread: ``uint8[B, h, w, c]`` -> ``uint8[b, h, w, c]``."""
    return images[spread(len(images))]


def spread(count: int) -> NDArray[np.intp]:
    """The numbers of a few of so many images."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_IMAGES)).astype(np.intp))


def _slopes_program(followed: Followed, params: Any, image: NDArray[np.uint8], name: str) -> Any:
    """``(params, float32[1, h, w, c]) -> float32[1, h, w, c]``."""
    pixels = jax.ShapeDtypeStruct(image.shape, np.float32)
    jax.eval_shape(followed.lead, params, pixels)  # what fails here is no matter of gradients
    slopes = jax.jit(jax.grad(followed.lead, argnums=1))
    try:
        slopes.lower(params, pixels)
    except Exception as error:  # any model may be given, and whatever JAX says of it
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why = f'none, as JAX cannot differentiate it ("{first}")'
        raise SettingError(functools.partial(_said, name, why)) from error
    return slopes


def _said(name: str, why: str, say: Naming) -> str:
    without = say("search_without_gradients", None)
    return (
        f"{name}: expected a model with a gradient that a search can follow, got {why}; "
        f"for patches of single images a search without gradients does without: {without}"
    )
