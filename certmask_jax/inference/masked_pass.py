"""What a model says of masked images: logits, and of logits the label, margin and confidence.

Pure functions of arrays, for ``jit``, ``vmap`` and ``grad``; every engine is made of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.tables.outputs import LARGEST_MARGIN, Outputs
from certmask_jax.tables.prediction_table import NO_LABEL


def masked_logits(
    apply_fn: ApplyFn,
    params: Any,
    images: ArrayLike,
    boxes: ArrayLike,
    *,
    preprocessing: Preprocessing | None = None,
    image_of: ArrayLike | None = None,
) -> Array:
    """The logits of W masked images.

    The derivative with respect to a pixel that is seen is that of the model and its preprocessing;
    with respect to one that is hidden it is exactly 0.

    Args:
      apply_fn: any model, ``(params, float32[W, h, w, c]) -> logits [W, K]``; or
        ``SeenTokens(model.dropping)``, a ViT without the tokens that a mask hides.
      params: its parameters, any pytree.
      images: ``[B, h, w, c]``, ``uint8`` levels, or floating numbers of the same unit (0..255).
      boxes: ``int32[W, R, 4]``, the union of boxes that each masked image hides.
      preprocessing: normalisation, fill and precision, constants of the program; by default pixels
        scaled to [0, 1], hidden ones black, in float32.
      image_of: ``int32[W]``, which image each one masks; by default each its own, B = W.

    Returns:
      ``float32[W, K]``.

    Raises:
      ValueError: for arrays of other shapes.
    """
    pixels, corners = jnp.asarray(images), jnp.asarray(boxes)
    if pixels.ndim != 4:
        raise ValueError(f"images: expected shape [B, h, w, c], got {list(pixels.shape)}")
    if corners.ndim != 3 or corners.shape[2] != 4:
        raise ValueError(f"boxes: expected shape [W, R, 4], got {list(corners.shape)}")
    count = len(pixels) if image_of is None else len(jnp.asarray(image_of))
    if count != len(corners):
        whose = "images" if image_of is None else "image_of"
        raise ValueError(f"{whose}: expected {len(corners)}, one for each mask, got {count}")
    chosen = Preprocessing() if preprocessing is None else preprocessing
    seen_tokens = kind_of(apply_fn).seen_tokens
    if image_of is None:
        masked = jax.vmap(lambda image, box: model_input(image, box, chosen))(pixels, corners)
    else:
        masked = jax.vmap(lambda number, box: model_input(pixels[number], box, chosen))(
            jnp.asarray(image_of), corners
        )
    params = computed_with(params, chosen)
    masked = masked.astype(chosen.model_dtype)
    with chosen.products():
        if seen_tokens is not None:
            size = pixels.shape[1], pixels.shape[2]
            return seen_tokens(params, masked, corners, size).astype(jnp.float32)
        return apply_fn(params, masked).astype(jnp.float32)


def masked_outputs(
    apply_fn: ApplyFn,
    params: Any,
    images: Array,
    boxes: Array,
    *,
    preprocessing: Preprocessing,
    image_of: Array,
) -> Outputs:
    """What a model says of W masked images, as tables hold it: ``[W]`` each.

    Arguments are those of ``masked_logits``; of a ``BoundedModel`` they are bounds that speak.
    """
    bounded = kind_of(apply_fn).bounded
    if bounded is not None:
        return bounded.outputs(params, images, boxes, image_of, preprocessing)
    logits = masked_logits(
        apply_fn, params, images, boxes, preprocessing=preprocessing, image_of=image_of
    )
    return outputs_of(logits)


def computed_with(params: Any, preprocessing: Preprocessing) -> Any:
    """Parameters as products take them: bfloat16 where the precision is, else as they are.

    Engines keep these on the devices, so that a chunk has nothing to convert.
    """
    return jax.tree.map(_to_bfloat16, params) if preprocessing.precision == "bfloat16" else params


def outputs_of(logits: Array) -> Outputs:
    """Label, margin and confidence of ``float32[W, K]`` logits, as tables hold them: ``[W]`` each.

    Of logits that are not all finite there is no label (``NO_LABEL``, margin NaN, confidence 0).
    """
    finite = jnp.isfinite(logits).all(axis=1)
    top, second = jax.lax.top_k(logits, 2)[0].T
    margin = jnp.where(finite, jnp.minimum(top - second, LARGEST_MARGIN), jnp.nan)
    confidence = jnp.exp(top - jax.nn.logsumexp(logits, axis=1))
    return Outputs(
        jnp.where(finite, logits.argmax(axis=1), NO_LABEL).astype(jnp.int16),
        margin.astype(jnp.float16),
        jnp.where(finite, confidence, 0).astype(jnp.float16),
    )


def _to_bfloat16(leaf: Any) -> Any:
    array = jnp.asarray(leaf)
    return array.astype(jnp.bfloat16) if jnp.issubdtype(array.dtype, jnp.floating) else array
