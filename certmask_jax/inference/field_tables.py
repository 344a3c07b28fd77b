"""The masked forward pass of a model with local logits: every distinct field once, then means.

The whole table of an image for the work of a few images (``local_fields``), so
there is nothing that early exit could save. Sums over fields are made in the same order for all
masked images. Against the whole forward pass the logits differ by rounding alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference import chunk_program
from certmask_jax.inference.chunk_program import ApplyFn
from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.distinct_fields import LocalFields, LocalLogits, local_fields
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.whole_images import MaskedForward, masked_forward
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import Outputs

_DEFAULT_FIELDS = {"cpu": 64, "gpu": 4096, "tpu": 4096}  # at once, on a device
_MASKS_AT_ONCE = 8  # whose fields are gathered together
_MAX_IMAGES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class LocalForward:
    """The compiled tables of a model with local logits; build it with ``local_forward``.

    Each device has an image at a time, and all of its fields.

    Attributes:
      local, preprocessing: the model and what its images go through.
      mesh: 1-D mesh over the devices.
      image_shape: ``(height, width, channels)``.
      masks: the V masked images.
      fields: what has to be evaluated for them.
      chunk: fields at once, over all devices; a multiple of their number.
      num_classes: K.
    """

    local: LocalLogits
    preprocessing: Preprocessing
    mesh: Mesh
    image_shape: tuple[int, int, int]
    masks: MaskedImages
    fields: LocalFields
    chunk: int
    num_classes: int
    _params: Any

    def __repr__(self) -> str:
        return (
            f"LocalForward(images {list(self.image_shape)} -> {self.num_classes} classes, "
            f"{len(self.masks)} masked images from {len(self.fields)} fields, chunks of "
            f"{self.chunk} on {self.mesh.size} devices)"
        )

    def images_at_once(self) -> int:
        """How many images are given at once, at most."""
        return _MAX_IMAGES_AT_ONCE

    def masked_at_once(self) -> int:
        """How many masked images the devices work on together: those of an image each."""
        return self.mesh.size * len(self.masks)

    def flops_an_image(self, count: int) -> float | None:
        """Operations for ``count`` masked images, at the mean of all; None where nobody knows."""
        shape = (self.local.field, self.local.field, self.image_shape[2])
        each = chunk_program.flops(self.local.apply_fn, self._params, shape)
        return None if each is None else each * len(self.fields) * count / len(self.masks)

    def halved(self) -> LocalForward:
        """The same with half the chunk, for devices that ran out of memory.

        Raises:
          ValueError: when each device has but one field at once.
        """
        each = self.chunk // self.mesh.size
        if each < 2:
            raise ValueError(
                "expected memory for one field on each device, but there is not even that; use "
                "--precision bfloat16, or a device with more memory"
            )
        return dataclasses.replace(self, chunk=each // 2 * self.mesh.size)

    def tried(self, image: NDArray[np.uint8]) -> Outputs:
        """What it says of ``uint8[1, h, w, c]`` under all masks; compiles."""
        return self.table_block(image, self.masks)

    def upload(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """As they are: each goes to its device when that has room for it."""
        return images

    def table_block(
        self,
        images: NDArray[np.uint8],
        masks: MaskedImages,
        progress: Callable[[int], None] | None = None,
    ) -> Outputs:
        """All ``masks``, which have to be ``masks``, on all images: NumPy ``[B, V]``."""
        if masks is not self.masks:
            raise ValueError("masks: expected those that the forward pass was built for")
        table = _compiled(self.local, self.preprocessing, self.mesh)
        everywhere, split = (NamedSharding(self.mesh, PartitionSpec(*a)) for a in ((), (AXIS,)))
        chunks = jax.device_put(_in_chunks(self.fields, self.chunk // self.mesh.size), everywhere)
        devices, width = self.mesh.size, len(self.masks)
        sent: deque[tuple[int, Outputs]] = deque()
        received = []

        def receive() -> None:
            count, outputs = sent.popleft()
            received.append([found[:count, :width] for found in jax.device_get(outputs)])
            if progress is not None:
                progress(count * width)

        for start in range(0, len(images), devices):
            some = images[start : start + devices]
            spare = np.zeros((devices - len(some), *self.image_shape), np.uint8)
            turn = jax.device_put(np.concatenate([some, spare]), split)
            with unguarded():
                sent.append((len(some), table(self._params, turn, chunks)))
            if len(sent) > 1:  # one runs and one waits
                receive()
        while sent:
            receive()
        parts = zip(*received, strict=True)
        return Outputs(*map(np.concatenate, parts))


def local_forward(
    local: LocalLogits,
    params: Any,
    image_shape: tuple[int, int, int],
    masks: MaskedImages,
    *,
    preprocessing: Preprocessing,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> LocalForward:
    """The tables of ``masks`` for a model with local logits.

    Args:
      local, params: the model.
      image_shape: ``(height, width, channels)``.
      masks: V masked images.
      preprocessing: normalisation, fill and precision.
      chunk: fields at once, rounded up to a multiple of the devices; chosen by default.
      mesh: 1-D mesh; all devices of this process by default.

    Raises:
      ValueError: for preprocessing that resizes masked images, which spreads a mask's pixels; for
        images smaller than a field; when the model does not give one local logit a field.
    """
    if preprocessing.resize_to is not None:
        raise ValueError(
            "local logits: expected masks in the pixels that the model sees, got masked images "
            "that are resized; evaluate them whole"
        )
    mesh = device_mesh() if mesh is None else mesh
    preprocessing.check_channels(image_shape[2])
    side = local.field
    for size, grid in (((side, side), (1, 1)), (image_shape[:2], local.grid(image_shape[:2]))):
        image = jax.ShapeDtypeStruct((2, *size, image_shape[2]), np.float32)
        shape = jax.eval_shape(local.apply_fn, params, image).shape
        if len(shape) != 4 or shape[:3] != (2, *grid):
            raise ValueError(
                f"local logits: expected [2, {grid[0]}, {grid[1]}, K] for images {image.shape}, "
                f"as fields of {side} pixels every {local.stride} make, got {list(shape)}"
            )
    devices = mesh.size
    platform = mesh.devices.flat[0].platform
    each = _DEFAULT_FIELDS.get(platform, 64) if chunk is None else -(-chunk // devices)
    if each < 1:
        raise ValueError(f"chunk: expected at least 1 field, got {chunk}")
    return LocalForward(
        local,
        preprocessing,
        mesh,
        image_shape,
        masks,
        local_fields(masks, local),
        each * devices,
        shape[3],
        jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
    )


AnyForward = MaskedForward | LocalForward


def any_forward(
    apply_fn: ApplyFn,
    params: Any,
    image_shape: tuple[int, int, int],
    masks: MaskedImages,
    *,
    preprocessing: Preprocessing,
    local: LocalLogits | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> AnyForward:
    """``local_forward`` where ``local`` is given, ``masked_forward`` where it is None."""
    given: dict[str, Any] = {"preprocessing": preprocessing, "chunk": chunk, "mesh": mesh}
    if local is not None:
        return local_forward(local, params, image_shape, masks, **given)
    width = masks.boxes.shape[1]
    return masked_forward(apply_fn, params, image_shape, boxes_per_mask=width, **given)


def _in_chunks(
    fields: LocalFields, chunk: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Origins ``[n, C, 2]`` and boxes ``[n, C, R, 4]`` of fields; index ``[m, M, F]``.

    Filled up with the first ones.
    """

    def split(array: NDArray[np.int32], size: int) -> NDArray[np.int32]:
        lacking = -len(array) % size
        whole = np.concatenate([array, np.repeat(array[:1], lacking, axis=0)])
        return whole.reshape(-1, size, *array.shape[1:])

    return (
        split(fields.origins, chunk),
        split(fields.boxes, chunk),
        split(fields.index, _MASKS_AT_ONCE),
    )


@functools.lru_cache(maxsize=16)
def _compiled(local: LocalLogits, preprocessing: Preprocessing, mesh: Mesh) -> Any:
    """The jitted ``(params, images [devices, h, w, c], chunks) -> Outputs [devices, V]``."""
    side = local.field

    def table(params: Any, images: Array, work: tuple[Array, Array, Array]) -> Outputs:
        image, (origins, boxes, index) = images[0], work  # an image a device

        def seen(origin: Array) -> Array:
            return jax.lax.dynamic_slice(image, (*origin, 0), (side, side, image.shape[2]))

        def evaluated(some: tuple[Array, Array]) -> Array:
            pixels = jax.vmap(seen)(some[0])
            numbers = jnp.arange(len(pixels), dtype=jnp.int32)
            found = chunk_program.masked_logits(
                local.apply_fn, preprocessing, params, pixels, some[1], numbers
            )
            return found.reshape(len(pixels), -1)

        logits = jax.lax.map(evaluated, (origins, boxes))
        logits = logits.reshape(-1, logits.shape[-1])
        means = jax.lax.map(lambda some: logits[some].mean(axis=1), index)
        read = chunk_program.read(means.reshape(-1, logits.shape[-1]))
        return Outputs(*(output[None] for output in read))

    return jax.jit(
        jax.shard_map(
            table,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )
