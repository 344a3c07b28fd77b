"""The masked forward pass: work items in, labels and margins out.

A work item is one union of boxes on one image. The compiled function normalises uint8 images,
replaces masked pixels by the fill (``where``, never a product), runs the model, and returns the
top-1 label, its margin and its confidence. It knows nothing of defenses.

Work is streamed in chunks of one fixed shape, sharded over all devices of a 1-D mesh, so memory
depends on the chunk alone and one program serves every chunk. Images stay on the device as uint8
and are uploaded once a block.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax.devices import AXIS, device_mesh, free_memory
from certmask_jax.masked_images import MaskedImages
from certmask_jax.prediction_table import NO_LABEL, PredictionTable
from certmask_jax.preprocessing import Preprocessing, check_images, model_input

ApplyFn = Callable[[Any, Array], Array]
"""A model: (params, normalised images float32[B, h, w, c]) -> logits [B, K], in eval mode."""

_IMAGE_BYTES_AT_ONCE = 1 << 26
_MAX_IMAGES_AT_ONCE = 512
_CHUNKS_WAITING = 1  # one runs and one waits; more only adds to the peak of memory
_LARGEST_MARGIN = 65504.0  # of float16
_DEFAULT_CHUNK = {"cpu": 64, "gpu": 512, "tpu": 512}


class Outputs(NamedTuple):
    """What the forward pass says of W work items."""

    predictions: Array  # int16[W]; NO_LABEL where a logit is NaN or infinite
    margins: Array  # float16[W]; top-1 minus top-2 logit, NaN where a logit is not finite
    confidences: Array  # float16[W]; softmax of the top-1 label


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedForward:
    """A compiled masked forward pass, ready to stream work items through.

    Build it with :func:`masked_forward`.

    Attributes:
      mesh: 1-D mesh over the devices.
      chunk: work items at once, over all devices; a multiple of their number.
      num_classes: K of the model.
    """

    mesh: Mesh
    chunk: int
    num_classes: int
    image_shape: tuple[int, int, int]
    _params: Any
    _step: Callable[[Any, Array, Array, Array], Outputs]

    def images_at_once(self) -> int:
        """How many images one uploaded block holds (uint8, one copy on each device)."""
        size = int(np.prod(self.image_shape))
        return int(np.clip(_IMAGE_BYTES_AT_ONCE // size, 1, _MAX_IMAGES_AT_ONCE))

    def upload(self, images: NDArray[np.uint8]) -> Array:
        """Images ``uint8[B, h, w, c]`` on every device, for several calls; B as for those."""
        spare = np.zeros((self.images_at_once() - len(images), *self.image_shape), np.uint8)
        whole = np.concatenate([images, spare])  # one shape, one compilation
        return jax.device_put(whole, NamedSharding(self.mesh, PartitionSpec()))

    def labels(
        self,
        images: NDArray[np.uint8] | Array,
        boxes: NDArray[np.int32],
        image_of: NDArray[np.integer[Any]],
        progress: Callable[[int], None] | None = None,
    ) -> Outputs:
        """Evaluates a list of work items.

        Args:
          images: ``uint8[B, h, w, c]``, B at most :meth:`images_at_once`; or as :meth:`upload`
            left them.
          boxes: ``int32[W, R, 4]``, the union of boxes that each item masks.
          image_of: ``int[W]``, the image that each item masks.
          progress: called with the number of items finished since the last call.

        Returns:
          NumPy arrays ``[W]``.
        """
        return self._stream(
            images if isinstance(images, Array) else self.upload(images),
            len(image_of),
            lambda part: (boxes[part], image_of[part]),
            progress,
        )

    def table_block(
        self,
        images: NDArray[np.uint8],
        masks: MaskedImages,
        progress: Callable[[int], None] | None = None,
    ) -> Outputs:
        """All ``masks`` on all ``images``: NumPy arrays ``[B, V]``, image by image."""
        width = len(masks)

        def work(part: slice) -> tuple[NDArray[np.int32], NDArray[np.integer[Any]]]:
            image_of, mask_of = np.divmod(np.arange(part.start, part.stop), width)
            return masks.boxes[mask_of], image_of

        flat = self._stream(self.upload(images), len(images) * width, work, progress)
        shape = (len(images), width)
        return Outputs(*(np.asarray(a).reshape(shape) for a in flat))  # type: ignore[arg-type]

    def _stream(
        self,
        on_device: Array,
        items: int,
        work: Callable[[slice], tuple[NDArray[np.int32], NDArray[np.integer[Any]]]],
        progress: Callable[[int], None] | None,
    ) -> Outputs:
        """Sends ``items`` work items through in chunks, the next one while the last one runs."""
        split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        results = (
            np.empty(items, np.int16),
            np.empty(items, np.float16),
            np.empty(items, np.float16),
        )
        in_flight: deque[tuple[slice, Outputs]] = deque()

        def collect() -> None:
            part, outputs = in_flight.popleft()
            count = part.stop - part.start
            for result, output in zip(results, outputs, strict=True):
                result[part] = np.asarray(output)[:count]
            if progress is not None:
                progress(count)

        for start in range(0, items, self.chunk):
            part = slice(start, min(start + self.chunk, items))
            boxes, image_of = work(part)
            pad = (0, self.chunk - len(boxes))  # ragged ends: one shape, one compilation
            chunk = (
                np.pad(boxes, (pad, (0, 0), (0, 0))),
                np.pad(image_of.astype(np.int32), pad),
            )
            outputs = self._step(self._params, on_device, *jax.device_put(chunk, split))
            in_flight.append((part, outputs))
            if len(in_flight) > _CHUNKS_WAITING:
                collect()
        while in_flight:
            collect()
        return Outputs(*results)  # type: ignore[arg-type]


def masked_forward(
    apply_fn: ApplyFn,
    params: Any,
    image_shape: tuple[int, int, int],
    *,
    preprocessing: Preprocessing,
    boxes_per_mask: int,
    chunk: int | None = None,
    memory_budget: int | None = None,
    mesh: Mesh | None = None,
) -> MaskedForward:
    """Compiles the masked forward pass of a model.

    Args:
      apply_fn: any model. Give the same function object each time: it keys the compilation.
      params: its parameters, any pytree.
      image_shape: ``(height, width, channels)``.
      preprocessing: normalisation, fill and precision.
      boxes_per_mask: R of the boxes that will be given.
      chunk: work items at once, rounded up to a multiple of the devices. Chosen by default: what
        keeps the device busy, halved until its temporary memory fits the budget.
      memory_budget: bytes that a chunk may take on one device; by default most of what the device
        says is free.
      mesh: 1-D mesh; all devices of all processes by default.

    Raises:
      ValueError: when the model does not map ``[B, h, w, c]`` to logits ``[B, K]``, with K >= 2.
    """
    mesh = device_mesh() if mesh is None else mesh
    devices = mesh.size
    preprocessing.check_channels(image_shape[2])
    num_classes = _num_classes(apply_fn, params, preprocessing.model_shape(image_shape))
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    step = _step(apply_fn, preprocessing, mesh)
    on_device = jax.device_put(params, everywhere)

    def built(size: int) -> MaskedForward:
        return MaskedForward(mesh, size, num_classes, image_shape, on_device, step)

    if chunk is not None:
        if chunk < 1:
            raise ValueError(f"chunk: expected at least 1 masked image, got {chunk}")
        return built(-(-chunk // devices) * devices)
    device = mesh.devices.flat[0]
    budget = free_memory(device) if memory_budget is None else memory_budget
    size = _DEFAULT_CHUNK.get(device.platform, 64)
    blocks = jax.ShapeDtypeStruct(
        (built(devices).images_at_once(), *image_shape), np.uint8, sharding=everywhere
    )
    while size > 1:
        work = (
            jax.ShapeDtypeStruct((size * devices, boxes_per_mask, 4), np.int32, sharding=split),
            jax.ShapeDtypeStruct((size * devices,), np.int32, sharding=split),
        )
        memory = step.lower(on_device, blocks, *work).compile().memory_analysis()
        if memory is None or memory.temp_size_in_bytes <= budget:
            break
        size //= 2
    return built(size * devices)


def predict(
    apply_fn: ApplyFn,
    params: Any,
    images: NDArray[np.uint8],
    masks: MaskedImages,
    *,
    preprocessing: Preprocessing | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> PredictionTable:
    """The whole prediction table of a model: every masked image of every image.

    Args:
      apply_fn, params: any model, see :data:`ApplyFn`.
      images: ``uint8[T, h, w, c]`` of the size that ``masks`` were built for.
      masks: V masked images, as ``defense.masked_images``.
      preprocessing: by default pixels scaled to [0, 1], masked ones black.
      chunk, mesh: see :func:`masked_forward`.
      progress: called with the number of masked images finished since the last call.

    Raises:
      ValueError: for images of the wrong shape or dtype.

    Warns:
      RuntimeWarning: naming images whose logits are NaN or infinite; they are never certified.
    """
    preprocessing = Preprocessing() if preprocessing is None else preprocessing
    check_images(images, masks.image_size)
    forward = masked_forward(
        apply_fn,
        params,
        images.shape[1:],
        preprocessing=preprocessing,
        boxes_per_mask=masks.boxes.shape[1],
        chunk=chunk,
        mesh=mesh,
    )
    blocks = [
        forward.table_block(images[start : start + forward.images_at_once()], masks, progress)
        for start in range(0, len(images), forward.images_at_once())
    ]
    predictions, margins, confidences = (
        np.concatenate([np.asarray(a) for a in column]) for column in zip(*blocks, strict=True)
    )
    table = PredictionTable(predictions, margins, confidences, masks, forward.num_classes)
    broken = table.non_finite_images()
    if len(broken):
        warnings.warn(
            f"the model gives NaN or infinite logits for {len(broken)} image(s): "
            f"{', '.join(map(str, broken[:10]))}{', ...' if len(broken) > 10 else ''}; they are "
            "never certified",
            RuntimeWarning,
            stacklevel=2,
        )
    return table


@functools.lru_cache(maxsize=16)
def _step(apply_fn: ApplyFn, preprocessing: Preprocessing, mesh: Mesh) -> Any:
    """The jitted function of one chunk; cached, so that equal calls share their compilation."""
    is_bfloat16 = preprocessing.precision == "bfloat16"

    def step(params: Any, images: Array, boxes: Array, image_of: Array) -> Outputs:
        masked = jax.vmap(lambda number, box: model_input(images[number], box, preprocessing))(
            image_of, boxes
        )
        if is_bfloat16:
            params = jax.tree.map(_to_bfloat16, params)
            masked = masked.astype(jnp.bfloat16)
        precision = "default" if is_bfloat16 else preprocessing.precision
        with jax.default_matmul_precision(precision):
            logits = apply_fn(params, masked).astype(jnp.float32)
        return _read(logits)

    # Each device runs its own share of the work items, so there is nothing to communicate. (Left
    # to the partitioner, top_k alone gathers all logits on every device.)
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,  # any model may be given, whatever it carries in its loops
        )
    )


def _read(logits: Array) -> Outputs:
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


def _num_classes(apply_fn: ApplyFn, params: Any, image_shape: tuple[int, int, int]) -> int:
    images = jax.ShapeDtypeStruct((2, *image_shape), np.float32)
    logits = jax.eval_shape(apply_fn, params, images)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != 2 or not 2 <= shape[1] <= 32767:
        raise ValueError(
            "apply_fn: expected (params, images float32[B, h, w, c]) -> logits [B, K] with "
            f"2 <= K <= 32767, got {shape} for images {images.shape}"
        )
    return int(shape[1])
