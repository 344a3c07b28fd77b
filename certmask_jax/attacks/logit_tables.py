"""What a model says of masked images of patched ones: logits with gradients, and whole tables."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.inference.devices import AXIS
from certmask_jax.inference.head_program import head_logits
from certmask_jax.inference.masked_pass import computed_with, masked_logits, outputs_of
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.tables.outputs import Outputs

_PIXELS = {"cpu": 1 << 17}  # of all masked images of a chunk, on a device
_PIXELS_ELSEWHERE = 1 << 24
_LEAST_ITEMS, _MOST_ITEMS = 8, 4096
_IMAGES = (8, 64)  # of a chunk, on a device, where there are few: each would be compiled


def shown_logits(
    apply_fn: ApplyFn,
    params: Any,
    images: Array,
    boxes: Array,
    image_of: Array,
    *,
    preprocessing: Preprocessing,
) -> Array:
    """The logits of W masked images, or of W masked maps of a model in two parts.

    The derivative with respect to a pixel goes through the stem and the head, once an image through
    the stem.

    Args:
      apply_fn, params, preprocessing: as of ``masked_logits``; or a ``TwoParts``.
      images: ``[B, h, w, c]``, levels in 0..255.
      boxes: ``int32[W, R, 4]``, in pixels, or in cells of a map.
      image_of: ``int32[W]``, whose they are.

    Returns:
      ``float32[W, K]``.
    """
    parts = kind_of(apply_fn).parts
    if parts is None:
        return masked_logits(
            apply_fn, params, images, boxes, preprocessing=preprocessing, image_of=image_of
        )
    nothing = jnp.zeros((1, 4), jnp.int32)
    seen = jax.vmap(lambda image: model_input(image, nothing, preprocessing))(images)
    params = computed_with(params, preprocessing)
    with preprocessing.products():
        features = parts.stem(params, seen.astype(preprocessing.model_dtype))
    return head_logits(parts, params, features, boxes, image_of, preprocessing=preprocessing)


class LogitTables:
    """All logits of all masked images of some images, a chunk at a time on all devices.

    Args:
      apply_fn, params, preprocessing: as of ``shown_logits``.
      boxes: ``int32[V, R, 4]``.
      image_size: ``(h, w)`` of the images, from which the size of a chunk follows.
      mesh: 1-D mesh.
    """

    def __init__(
        self,
        apply_fn: ApplyFn,
        params: Any,
        boxes: NDArray[np.int32],
        image_size: tuple[int, int],
        *,
        preprocessing: Preprocessing,
        mesh: Mesh,
    ) -> None:
        platform = mesh.devices.flat[0].platform
        pixels = _PIXELS.get(platform, _PIXELS_ELSEWHERE)
        most = int(np.clip(pixels // (image_size[0] * image_size[1]), _LEAST_ITEMS, _MOST_ITEMS))
        parts = -(-len(boxes) // most)
        self._masks = -(-len(boxes) // parts)  # even parts, so that few places stay empty
        self._images, self._devices = max(1, most // self._masks), mesh.size
        padding = self._masks * parts - len(boxes)
        self._boxes = np.concatenate([boxes, np.repeat(boxes[-1:], padding, axis=0)])
        self._count, self._params = len(boxes), params
        self._how = (apply_fn, preprocessing)
        self._program = _tables_program(apply_fn, preprocessing, mesh)
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))

    def logits(self, params: Any, images: Array) -> Array:
        """Those under the first mask, to be traced: ``[B, h, w, c]`` -> ``float32[B, K]``."""
        apply_fn, preprocessing = self._how
        boxes = jnp.repeat(jnp.asarray(self._boxes[:1]), images.shape[0], axis=0)
        image_of = jnp.arange(images.shape[0], dtype=jnp.int32)
        return shown_logits(apply_fn, params, images, boxes, image_of, preprocessing=preprocessing)

    @reproducible()
    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Outputs]:
        """``uint8[B, h, w, c]`` -> ``float32[B, V, K]``, and what tables hold: ``[B, V]`` each."""
        each_device = -(-len(images) // self._devices)
        fitting = [size for size in _IMAGES if each_device <= size <= self._images]
        at_once = (fitting[0] if fitting else self._images) * self._devices
        under_way = []  # on the devices, which are not waited for before all is sent
        for start in range(0, len(images), at_once):
            some = images[start : start + at_once]
            filled = np.pad(some, ((0, at_once - len(some)), *((0, 0),) * 3))
            there = jax.device_put(filled, self._split)
            parts = [
                self._program(self._params, there, jnp.asarray(self._boxes[at : at + self._masks]))
                for at in range(0, len(self._boxes), self._masks)
            ]
            under_way.append((len(some), parts))
        blocks = []
        for count, parts in under_way:
            each = [
                np.concatenate([np.asarray(part) for part in of], axis=1)
                for of in zip(*parts, strict=True)
            ]
            blocks.append([column[:count, : self._count] for column in each])
        logits, *columns = (np.concatenate(of) for of in zip(*blocks, strict=True))
        return logits, Outputs(*columns)


@functools.lru_cache(maxsize=16)
def _tables_program(apply_fn: ApplyFn, preprocessing: Preprocessing, mesh: Mesh) -> Any:
    def tables(params: Any, images: Array, boxes: Array) -> tuple[Array, ...]:
        many, masks = len(images), len(boxes)
        logits = shown_logits(
            apply_fn,
            params,
            images,
            jnp.tile(boxes, (many, 1, 1)),
            jnp.repeat(jnp.arange(many, dtype=jnp.int32), masks),
            preprocessing=preprocessing,
        )
        columns = (logits, *outputs_of(logits))
        return tuple(column.reshape(many, masks, *column.shape[1:]) for column in columns)

    split = PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            tables,
            mesh=mesh,
            in_specs=(PartitionSpec(), split, PartitionSpec()),
            out_specs=split,
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )
