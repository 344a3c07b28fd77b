"""The compiled function of one chunk: uint8 images and boxes in, labels and margins out.

It normalises uint8 images, replaces masked pixels by the fill (``where``, never a product), runs
the model, and returns the top-1 label, its margin and its confidence.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from certmask_jax.inference.devices import AXIS, compiler_options
from certmask_jax.inference.masked_pass import masked_outputs
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables.outputs import Outputs


def compiled_chunk(
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


@functools.lru_cache(maxsize=24)
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
    array: Any = jax.ShapeDtypeStruct
    leaves = [array(t.shape, t.dtype, weak_type=t.weak_type) for t in types]
    params = jax.tree.unflatten(structure, leaves)
    return lowered_chunk(
        apply_fn, preprocessing, mesh, params, images_shape, boxes_per_mask, items
    ).compile()


def lowered_chunk(
    apply_fn: ApplyFn,
    preprocessing: Preprocessing,
    mesh: Mesh,
    params: Any,
    images_shape: tuple[int, int, int, int],
    boxes_per_mask: int,
    items: int,
) -> Any:
    """What ``compiled_chunk`` compiles, yet to be compiled; ``mesh`` may be of absent devices.

    Args:
      params: a pytree of ``jax.ShapeDtypeStruct``, as products take them.
      apply_fn, preprocessing, mesh, images_shape, boxes_per_mask, items: as there.
    """
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    array: Any = jax.ShapeDtypeStruct

    def held(leaf: Any) -> Any:
        return array(leaf.shape, leaf.dtype, sharding=everywhere, weak_type=leaf.weak_type)

    return chunk_step(apply_fn, preprocessing, mesh).lower(
        jax.tree.map(held, params),
        array(images_shape, np.uint8, sharding=everywhere),
        array((items, boxes_per_mask, 4), np.int32, sharding=split),
        array((items,), np.int32, sharding=split),
    )


def chunk_step(apply_fn: ApplyFn, preprocessing: Preprocessing, mesh: Mesh) -> Any:
    """The jitted function that ``compiled_chunk`` compiles for its shapes."""

    def chunk(params: Any, images: Array, boxes: Array, image_of: Array) -> Outputs:
        return masked_outputs(
            apply_fn, params, images, boxes, preprocessing=preprocessing, image_of=image_of
        )

    # Each device runs its own share of the work items, so there is nothing to communicate. (Left
    # to the partitioner, top_k alone gathers all logits on every device.)
    return jax.jit(
        jax.shard_map(
            chunk,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,  # any model may be given, whatever it carries in its loops
        ),
        compiler_options=compiler_options(mesh),
    )
