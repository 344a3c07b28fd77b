"""The compiled function of one chunk: uint8 images and boxes in, labels and margins out.

It normalises uint8 images, replaces masked pixels by the fill (``where``, never a product), runs
the model, and returns the top-1 label, its margin and its confidence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from certmask_jax.inference.devices import AXIS
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.tables.outputs import Outputs
from certmask_jax.tables.prediction_table import NO_LABEL

ApplyFn = Callable[[Any, Array], Array]
"""A model: (params, normalised images float32[B, h, w, c]) -> logits [B, K], in eval mode."""

_LARGEST_MARGIN = 65504.0  # of float16


def compiled(
    apply_fn: ApplyFn,
    preprocessing: Preprocessing,
    mesh: Mesh,
    params: Any,
    images_shape: tuple[int, int, int, int],
    boxes_per_mask: int,
    items: int,
) -> Any:
    """The executable ``(params, images, boxes, image_of) -> Outputs``; built once for equal calls.

    Args:
      apply_fn: any model. Give the same function object each time: it keys the compilation.
      preprocessing: a constant of the program.
      mesh: 1-D mesh.
      params: its parameters, arrays or their shapes.
      images_shape: ``(B, h, w, c)`` of the uploaded uint8 images, whole on every device.
      boxes_per_mask: R.
      items: W, a multiple of the devices: ``boxes int32[W, R, 4]`` and ``image_of int32[W]`` are
        sharded over them.
    """
    leaves, structure = jax.tree.flatten(params)
    types = tuple(jax.typeof(leaf) for leaf in leaves)
    return _compiled(
        apply_fn, preprocessing, mesh, structure, types, images_shape, boxes_per_mask, items
    )


@functools.lru_cache(maxsize=16)
def _compiled(
    apply_fn: ApplyFn,
    preprocessing: Preprocessing,
    mesh: Mesh,
    structure: Any,
    types: tuple[Any, ...],
    images_shape: tuple[int, int, int, int],
    boxes_per_mask: int,
    items: int,
) -> Any:
    if jax.config.values["jax_disable_jit"]:
        raise ValueError(
            "expected that JAX may compile, but jax_disable_jit (JAX_DISABLE_JIT) is set; unset it"
        )
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    array: Any = jax.ShapeDtypeStruct
    leaves = [array(t.shape, t.dtype, sharding=everywhere, weak_type=t.weak_type) for t in types]
    return (
        step(apply_fn, preprocessing, mesh)
        .lower(
            jax.tree.unflatten(structure, leaves),
            array(images_shape, np.uint8, sharding=everywhere),
            array((items, boxes_per_mask, 4), np.int32, sharding=split),
            array((items,), np.int32, sharding=split),
        )
        .compile()
    )


def step(apply_fn: ApplyFn, preprocessing: Preprocessing, mesh: Mesh) -> Any:
    """The jitted function that ``compiled`` compiles for its shapes."""

    def chunk(params: Any, images: Array, boxes: Array, image_of: Array) -> Outputs:
        return read(masked_logits(apply_fn, preprocessing, params, images, boxes, image_of))

    # Each device runs its own share of the work items, so there is nothing to communicate. (Left
    # to the partitioner, top_k alone gathers all logits on every device.)
    return jax.jit(
        jax.shard_map(
            chunk,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )


def masked_logits(
    apply_fn: ApplyFn,
    preprocessing: Preprocessing,
    params: Any,
    images: Array,
    boxes: Array,
    image_of: Array,
) -> Array:
    """``float32[W, K]`` logits of W work items, to be traced.

    ``images uint8[B, h, w, c]``, ``boxes int32[W, R, 4]``, ``image_of int32[W]``.
    """
    masked = jax.vmap(lambda number, box: model_input(images[number], box, preprocessing))(
        image_of, boxes
    )
    is_bfloat16 = preprocessing.precision == "bfloat16"
    if is_bfloat16:
        params = jax.tree.map(_to_bfloat16, params)
        masked = masked.astype(jnp.bfloat16)
    precision = "default" if is_bfloat16 else preprocessing.precision
    with jax.default_matmul_precision(precision):
        return apply_fn(params, masked).astype(jnp.float32)


def read(logits: Array) -> Outputs:
    """Label, margin and confidence of ``float32[W, K]`` logits."""
    finite = jnp.isfinite(logits).all(axis=1)
    top, second = jax.lax.top_k(logits, 2)[0].T
    margin = jnp.where(finite, jnp.minimum(top - second, _LARGEST_MARGIN), jnp.nan)
    confidence = jnp.exp(top - jax.nn.logsumexp(logits, axis=1))
    return Outputs(
        jnp.where(finite, logits.argmax(axis=1), NO_LABEL).astype(jnp.int16),
        margin.astype(jnp.float16),
        jnp.where(finite, confidence, 0).astype(jnp.float16),
    )


def _to_bfloat16(leaf: Any) -> Any:
    array = jnp.asarray(leaf)
    return array.astype(jnp.bfloat16) if jnp.issubdtype(array.dtype, jnp.floating) else array


def num_classes(apply_fn: ApplyFn, params: Any, image_shape: tuple[int, int, int]) -> int:
    """K of a model of images ``(h, w, c)``; ``ValueError`` if it does not give logits [B, K]."""
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    try:
        logits = jax.eval_shape(apply_fn, params, images)
    except Exception as error:  # the model's own, of any kind
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"apply_fn: expected it to take (params, images float32{list(images.shape)}), but it "
            f"raised {type(error).__name__}: {why}; do the images have the channels and the size "
            "that the model is for?"
        ) from error
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != 2 or not 2 <= shape[1] <= 32767:
        raise ValueError(
            "apply_fn: expected (params, images float32[B, h, w, c]) -> logits [B, K] with "
            f"2 <= K <= 32767, got {shape} for images {images.shape}"
        )
    return int(shape[1])


def flops(apply_fn: ApplyFn, params: Any, image_shape: tuple[int, int, int]) -> float | None:
    """Floating-point operations of one forward pass, as the compiler counts them before it begins.

    ``image_shape`` is that of what the model sees, ``(h, w, c)``. None where the compiler does not
    say.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    found = jax.jit(apply_fn).lower(params, image).cost_analysis()
    return None if not found or "flops" not in found else float(found["flops"])
