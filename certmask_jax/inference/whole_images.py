"""The masked forward pass: work items in, labels and margins out, on all devices.

A work item is one union of boxes on one image. Work is streamed in chunks of one fixed shape,
sharded over the devices of a 1-D mesh, so memory depends on the chunk alone and one program serves
every chunk. Images stay on the device as uint8 and are uploaded once a block. Nothing here knows of
defenses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference.chunk_program import ApplyFn, compiled, flops, num_classes
from certmask_jax.inference.devices import AXIS, device_mesh, free_memory
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import Outputs

_IMAGE_BYTES_AT_ONCE = 1 << 26
_MAX_IMAGES_AT_ONCE = 512
_CHUNKS_AT_ONCE = 2  # one runs and one waits; more only adds to the peak of memory
_DEFAULT_CHUNK = {"cpu": 64, "gpu": 512, "tpu": 512}


@dataclasses.dataclass(frozen=True, eq=False)
class Uploaded:
    """Images on every device, for several calls; ``len`` is how many.

    Attributes:
      on_devices: ``uint8[N, h, w, c]``, filled up to the N of ``MaskedForward.images_at_once``.
    """

    on_devices: Array
    count: int

    def __len__(self) -> int:
        return self.count


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedForward:
    """A compiled masked forward pass, ready to stream work items through.

    Build it with ``masked_forward``.

    Attributes:
      apply_fn, preprocessing: the model and what its images go through.
      mesh: 1-D mesh over the devices.
      image_shape: ``(height, width, channels)``.
      boxes_per_mask: R; masks may have fewer boxes.
      chunk: work items at once, over all devices; a multiple of their number.
      num_classes: K of the model.
      ragged: another, smaller chunk for work of at most that many items, compiled when it is first
        needed; None to fill up the one chunk.
    """

    apply_fn: ApplyFn
    preprocessing: Preprocessing
    mesh: Mesh
    image_shape: tuple[int, int, int]
    boxes_per_mask: int
    chunk: int
    num_classes: int
    _params: Any
    ragged: int | None = None

    def __repr__(self) -> str:
        return (
            f"MaskedForward(images {list(self.image_shape)} -> {self.num_classes} classes, chunks "
            f"of {self.chunk} on {self.mesh.size} devices)"
        )

    def images_at_once(self) -> int:
        """How many images one uploaded block holds (uint8, one copy on each device)."""
        size = int(np.prod(self.image_shape))
        return int(np.clip(_IMAGE_BYTES_AT_ONCE // size, 1, _MAX_IMAGES_AT_ONCE))

    def masked_at_once(self) -> int:
        """How many masked images the devices work on together."""
        return self.chunk

    def flops_an_image(self, count: int) -> float | None:
        """Operations for ``count`` masked images; None where the compiler does not say."""
        shape = self.preprocessing.model_shape(self.image_shape)
        each = flops(self.apply_fn, self._params, shape)
        return None if each is None else each * count

    def halved(self) -> MaskedForward:
        """The same with half the chunk, for devices that ran out of memory.

        Raises:
          ValueError: when each device has but one work item at once.
        """
        each = self.chunk // self.mesh.size
        if each < 2:
            raise ValueError(
                "expected memory for one masked image on each device, but there is not even that; "
                "use a smaller model, --precision bfloat16, or a device with more memory"
            )
        return dataclasses.replace(self, chunk=each // 2 * self.mesh.size)

    def memory(self) -> int | None:
        """Bytes of temporary memory that a chunk takes on a device, where the compiler says so."""
        analysis = self.executable(self.chunk).memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)

    def upload(self, images: NDArray[np.uint8]) -> Uploaded:
        """Puts ``uint8[B, h, w, c]`` on every device, B at most ``images_at_once``."""
        spare = np.zeros((self.images_at_once() - len(images), *self.image_shape), np.uint8)
        whole = np.concatenate([images, spare])  # one shape, one compilation
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return Uploaded(jax.device_put(whole, everywhere), len(images))

    def flight(self, images: NDArray[np.uint8] | Uploaded) -> Flight:
        """A way to send work on these images, ``uint8[B, h, w, c]``, or as uploaded."""
        uploaded = images if isinstance(images, Uploaded) else self.upload(images)
        return Flight(self, self._params, uploaded.on_devices)

    def tried(self, image: NDArray[np.uint8]) -> Outputs:
        """What it says of ``uint8[1, h, w, c]`` without a mask; compiles."""
        nothing = np.zeros((1, self.boxes_per_mask, 4), np.int32)
        return self.labels(image, nothing, np.zeros(1, np.int32))

    def labels(
        self,
        images: NDArray[np.uint8] | Uploaded,
        boxes: NDArray[np.int32],
        image_of: NDArray[np.integer[Any]],
        progress: Callable[[int], None] | None = None,
    ) -> Outputs:
        """Evaluates a list of work items.

        Args:
          images: ``uint8[B, h, w, c]``, B at most ``images_at_once``; or as ``upload``
            left them.
          boxes: ``int32[W, R, 4]``, the union of boxes that each item masks.
          image_of: ``int[W]``, the image that each item masks.
          progress: called with the number of items finished since the last call.

        Returns:
          NumPy arrays ``[W]``.
        """
        return self._stream(
            images, len(image_of), lambda part: (boxes[part], image_of[part]), progress
        )

    def table_block(
        self,
        images: NDArray[np.uint8] | Uploaded,
        masks: MaskedImages,
        progress: Callable[[int], None] | None = None,
    ) -> Outputs:
        """All ``masks`` on all ``images``: NumPy arrays ``[B, V]``, image by image."""
        width, count = len(masks), len(images)

        def work(part: slice) -> tuple[NDArray[np.int32], NDArray[np.integer[Any]]]:
            image_of, mask_of = np.divmod(np.arange(part.start, part.stop), width)
            return masks.boxes[mask_of], image_of

        flat = self._stream(images, count * width, work, progress)
        shape = (count, width)
        return Outputs(*(np.asarray(a).reshape(shape) for a in flat))

    def _stream(
        self,
        images: NDArray[np.uint8] | Uploaded,
        items: int,
        work: Callable[[slice], tuple[NDArray[np.int32], NDArray[np.integer[Any]]]],
        progress: Callable[[int], None] | None,
    ) -> Outputs:
        """Sends ``items`` work items through in chunks, the next one while the last one runs."""
        results = (
            np.empty(items, np.int16),
            np.empty(items, np.float16),
            np.empty(items, np.float16),
        )
        flight = self.flight(images)
        sent, received = 0, 0
        while received < items:
            while sent < items and flight.has_room:
                part = slice(sent, min(sent + self.chunk, items))
                flight.send(*work(part))
                sent = part.stop
            outputs = flight.receive()
            count = len(outputs.predictions)
            for result, output in zip(results, outputs, strict=True):
                result[received : received + count] = output
            received += count
            if progress is not None:
                progress(count)
        return Outputs(*results)

    @unguarded()
    def executable(self, items: int) -> Any:
        """The compiled function for that many work items, see ``chunk_program.compiled``."""
        images_shape = (self.images_at_once(), *self.image_shape)
        return compiled(
            self.apply_fn,
            self.preprocessing,
            self.mesh,
            self._params,
            images_shape,
            self.boxes_per_mask,
            items,
        )


class Flight:
    """Chunks on their way through the devices: what is sent first comes back first.

    Build it with ``MaskedForward.flight``. The host waits for the devices in ``receive``
    alone, so whoever has more work sends it before.
    """

    def __init__(self, forward: MaskedForward, params: Any, images: Array) -> None:
        self._forward = forward
        self._executable = functools.cache(forward.executable)  # looked up once a flight
        self._params = params
        self._images = images
        self._split = NamedSharding(forward.mesh, PartitionSpec(AXIS))
        self._sent: deque[tuple[int, Outputs]] = deque()

    def __len__(self) -> int:
        """Chunks that were sent and not received."""
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether another chunk should be sent before one is received."""
        return len(self._sent) < _CHUNKS_AT_ONCE

    def send(self, boxes: NDArray[np.int32], image_of: NDArray[np.integer[Any]]) -> None:
        """Starts work on ``boxes int32[W, R, 4]`` and ``image_of int[W]``; W at most a chunk."""
        ragged = self._forward.ragged
        size = ragged if ragged and len(boxes) <= ragged else self._forward.chunk
        lacking = size - len(boxes)  # ragged ends: one shape, one compilation
        fewer = self._forward.boxes_per_mask - boxes.shape[1]
        chunk = (
            np.pad(boxes, ((0, lacking), (0, fewer), (0, 0))),
            np.pad(image_of.astype(np.int32), (0, lacking)),
        )
        on_devices = jax.device_put(chunk, self._split)
        executable = self._executable(size)
        with unguarded():
            outputs = executable(self._params, self._images, *on_devices)
        for output in outputs:
            output.copy_to_host_async()
        self._sent.append((len(boxes), outputs))

    def receive(self) -> Outputs:
        """Waits for the chunk that was sent first: NumPy arrays ``[W]``."""
        count, outputs = self._sent.popleft()
        return Outputs(*(found[:count] for found in jax.device_get(outputs)))


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
      boxes_per_mask: R, as many boxes as any mask has that will be given.
      chunk: work items at once, rounded up to a multiple of the devices. Chosen by default: what
        keeps the device busy, halved until its temporary memory fits the budget.
      memory_budget: bytes that a chunk may take on one device; by default most of what the device
        says is free.
      mesh: 1-D mesh; all devices of this process by default.

    Raises:
      ValueError: when the model does not map ``[B, h, w, c]`` to logits ``[B, K]``, with K >= 2.
    """
    mesh = device_mesh() if mesh is None else mesh
    devices = mesh.size
    preprocessing.check_channels(image_shape[2])
    device = mesh.devices.flat[0]
    size = _DEFAULT_CHUNK.get(device.platform, 64) if chunk is None else -(-chunk // devices)
    if size < 1:
        raise ValueError(f"chunk: expected at least 1 masked image, got {chunk}")
    forward = MaskedForward(
        apply_fn,
        preprocessing,
        mesh,
        image_shape,
        boxes_per_mask,
        size * devices,
        num_classes(apply_fn, params, preprocessing.model_shape(image_shape)),
        jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
    )
    if chunk is None:
        budget = free_memory(device) if memory_budget is None else memory_budget
        while forward.chunk > devices and (forward.memory() or 0) > budget:
            forward = forward.halved()
    return forward
