"""The compiled programs of a model in two parts: the stem on images, the head on masked maps."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from certmask_jax.inference.devices import AXIS, compiler_options
from certmask_jax.inference.masked_pass import outputs_of
from certmask_jax.inference.masking import hidden_pixels
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.tables.outputs import Outputs


def head_logits(
    parts: TwoParts,
    params: Any,
    features: Array,
    boxes: Array,
    image_of: Array,
    *,
    preprocessing: Preprocessing,
) -> Array:
    """The logits of the head on W masked maps of features.

    The derivative with respect to a hidden cell is exactly 0.

    Args:
      parts, params: the model.
      features: ``[B, H, W, ...]``, as its stem gives them.
      boxes: ``int32[W, R, 4]``, the union of boxes of cells that each one hides.
      image_of: ``int32[W]``, whose features they are.
      preprocessing: its precision.

    Returns:
      ``float32[W, K]``.
    """
    hidden = jax.vmap(lambda box: hidden_pixels(box, parts.grid))(boxes)
    with preprocessing.products():
        return parts.head(params, features[image_of], hidden).astype(jnp.float32)


@functools.lru_cache(maxsize=16)
def stem_program(parts: TwoParts, preprocessing: Preprocessing, mesh: Mesh) -> Any:
    """The jitted ``(params, images uint8[B, h, w, c]) -> features [B, H, W, ...]``.

    B is a multiple of the devices, each of which has its own share.
    """

    def features(params: Any, images: Array) -> Array:
        nothing = jnp.zeros((1, 4), jnp.int32)
        seen = jax.vmap(lambda image: model_input(image, nothing, preprocessing))(images)
        with preprocessing.products():
            return parts.stem(params, seen.astype(preprocessing.model_dtype))

    return _over_devices(features, mesh, (PartitionSpec(), PartitionSpec(AXIS)))


def compiled_head(
    parts: TwoParts,
    preprocessing: Preprocessing,
    mesh: Mesh,
    params: Any,
    features: Any,
    boxes_per_mask: int,
    items: int,
) -> Any:
    """The executable ``(params, features, boxes, image_of) -> Outputs``, built once.

    Args:
      parts: the model. Give the same functions each time: they key the compilation.
      preprocessing, mesh: constants of the program.
      params: the parameters.
      features: ``[B, H, W, ...]``, whole on every device, or its ``jax.ShapeDtypeStruct``.
      boxes_per_mask: R.
      items: W, a multiple of the devices, over which ``boxes int32[W, R, 4]`` and ``image_of
        int32[W]`` are sharded.
    """
    leaves, structure = jax.tree.flatten(params)
    types = tuple(jax.typeof(leaf) for leaf in leaves)
    shape, dtype = tuple(features.shape), jnp.dtype(features.dtype)
    return _compiled(
        parts, preprocessing, mesh, structure, types, shape, dtype, boxes_per_mask, items
    )


@functools.lru_cache(maxsize=24)
def _compiled(
    parts: TwoParts,
    preprocessing: Preprocessing,
    mesh: Mesh,
    structure: Any,
    types: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: Any,
    boxes_per_mask: int,
    items: int,
) -> Any:
    def head(params: Any, features: Array, boxes: Array, image_of: Array) -> Outputs:
        return outputs_of(
            head_logits(parts, params, features, boxes, image_of, preprocessing=preprocessing)
        )

    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    array: Any = jax.ShapeDtypeStruct
    leaves = [array(t.shape, t.dtype, sharding=everywhere, weak_type=t.weak_type) for t in types]
    specs = (PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS))
    return (
        _over_devices(head, mesh, specs)
        .lower(
            jax.tree.unflatten(structure, leaves),
            array(shape, dtype, sharding=everywhere),
            array((items, boxes_per_mask, 4), np.int32, sharding=split),
            array((items,), np.int32, sharding=split),
        )
        .compile()
    )


def _over_devices(function: Any, mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """Each device has its own share, so there is nothing to communicate."""
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(AXIS),
            check_vma=False,  # any model may be given, whatever it carries in its loops
        ),
        compiler_options=compiler_options(mesh),
    )
