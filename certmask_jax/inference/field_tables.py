"""The engine of a model with local logits: every distinct field once, then means of them.

The whole table of an image for the work of a few images (``distinct_fields``), so there is nothing
that early exit could save. Against whole masked images the logits differ by rounding alone.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference.devices import AXIS, compiler_facts, device_mesh, put_everywhere
from certmask_jax.inference.distinct_fields import LocalFields, LocalLogits, local_fields
from certmask_jax.inference.engine import Flight, Indices, Told
from certmask_jax.inference.field_program import in_chunks, table_program
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import flops
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import Outputs

_DEFAULT_FIELDS = {"cpu": 64, "gpu": 4096, "tpu": 4096}  # at once, on a device, at most
_MAX_IMAGES_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class FieldTables:
    """The engine (see ``engine.Engine``) that makes tables of a model's local logits.

    Build it with ``local_forward``. Each device has an image at a time, and all of its fields.

    Attributes:
      local, preprocessing: the model and what its images go through.
      mesh: 1-D mesh over the devices.
      image_shape: ``(height, width, channels)``.
      masked_images: the V masked images.
      fields: what has to be evaluated for them.
      chunk: fields at once, over all devices; a multiple of their number.
      num_classes: K.
    """

    local: LocalLogits
    preprocessing: Preprocessing
    mesh: Mesh
    image_shape: tuple[int, int, int]
    masked_images: MaskedImages
    fields: LocalFields
    chunk: int
    num_classes: int
    _params: Any

    def __repr__(self) -> str:
        return (
            f"FieldTables(images {list(self.image_shape)} -> {self.num_classes} classes, "
            f"{len(self.masked_images)} masked images from {len(self.fields)} fields, chunks of "
            f"{self.chunk} on {self.mesh.size} devices)"
        )

    @property
    def by_items(self) -> bool:
        """False: the masked images of an image share their fields."""
        return False

    def images_at_once(self) -> int:
        """How many images are given at once, at most."""
        return _MAX_IMAGES_AT_ONCE

    def masked_at_once(self) -> int:
        """How many masked images the devices work on together: those of an image each."""
        return self.mesh.size * len(self.masked_images)

    def flops_an_image(self, count: int) -> float | None:
        """Operations for ``count`` masked images, at the mean of all; None where nobody knows."""
        side = self.local.field
        shape = self.preprocessing.model_shape((side, side, self.image_shape[2]))
        each = flops(self.local.apply_fn, self._params, shape, self.preprocessing.model_dtype)
        return None if each is None else each * len(self.fields) * count / len(self.masked_images)

    def checked_cells(self, params: Any) -> bool | None:
        """None: images are masked, not a map."""
        del params
        return None

    def facts(self) -> dict[str, Any]:
        """Chunk, preprocessing, how many fields there are of which kind, the compiler's options."""
        return {
            "chunk": self.chunk,
            "preprocessing": self.preprocessing.facts(),
            "local_logits": {"field": self.local.field, "stride": self.local.stride},
            "fields": len(self.fields),
            "fields_as_whole_images": round(self.fields.whole_images, 2),
            **compiler_facts(self.mesh),
        }

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """One size."""
        return (self.chunk,)

    def for_few(self, items: int) -> FieldTables:
        """Itself: it has no use for less work."""
        del items
        return self

    def for_blocks(self, images: int | None) -> FieldTables:
        """Itself: images come one by one."""
        del images
        return self

    def warm_up(self) -> None:
        """Compiles its program."""
        self.table(np.zeros((1, *self.image_shape), np.uint8))

    def halved(self) -> FieldTables:
        """An engine with half the chunk, for devices that ran out of memory.

        Raises:
          ValueError: when each device has but one field at once.
        """
        each = self.chunk // self.mesh.size
        if each < 2:
            raise ValueError(
                "expected memory for one field on each device, but there is not even that; use "
                "precision bfloat16, or a device with more memory"
            )
        return dataclasses.replace(self, chunk=each // 2 * self.mesh.size)

    def tried(self, image: NDArray[np.uint8]) -> Outputs:
        """What it says of ``uint8[1, h, w, c]`` under all masks: ``[1, V]``; compiles."""
        return self.table(image)

    def stem_slots(self, images: int) -> int:
        """None: what the fields of an image take is told with its masked images."""
        return 0

    def upload(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Leaves images as they are: each goes to its device when that has room for it."""
        return images

    def flight(self, images: NDArray[np.uint8]) -> Flight:
        """Never: items cannot be sent one by one.

        Raises:
          ValueError: always, see ``by_items``.
        """
        raise ValueError(
            "expected an engine of items, but local logits give whole tables alone: use table() "
            "(by_items tells which engine it is)"
        )

    def evaluate(self, images: NDArray[np.uint8], image_of: Indices, columns: Indices) -> Outputs:
        """Any list of W items, NumPy ``[W]``, out of the whole table."""
        return Outputs(*(column[image_of, columns] for column in self.table(images)))

    def table(self, images: NDArray[np.uint8], progress: Told | None = None) -> Outputs:
        """All masked images of all images: NumPy ``[B, V]``."""
        table = table_program(self.local, self.preprocessing, self.mesh)
        everywhere, split = (NamedSharding(self.mesh, PartitionSpec(*a)) for a in ((), (AXIS,)))
        chunks = jax.device_put(in_chunks(self.fields, self.chunk // self.mesh.size), everywhere)
        devices, width = self.mesh.size, len(self.masked_images)
        sent: deque[tuple[int, Outputs]] = deque()
        received = []

        def receive() -> None:
            count, outputs = sent.popleft()
            received.append([column[:count, :width] for column in jax.device_get(outputs)])
            if progress is not None:
                progress(count * width, devices * width)

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


def fields_at_once(fields: int, platform: str) -> int:
    """On a device: as many as keep it busy, but so that the last chunk is nearly full."""
    chunks = -(-fields // _DEFAULT_FIELDS.get(platform, 64))
    return -(-fields // chunks)


def local_forward(
    local: LocalLogits,
    params: Any,
    image_shape: tuple[int, int, int],
    masked_images: MaskedImages,
    *,
    preprocessing: Preprocessing,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> FieldTables:
    """The engine of a model with local logits on ``masked_images``.

    Args:
      local, params: the model.
      image_shape: ``(height, width, channels)``.
      masked_images: V masked images.
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
        image = jax.ShapeDtypeStruct(
            (2, *preprocessing.model_shape((*size, image_shape[2]))), np.float32
        )
        shape = jax.eval_shape(local.apply_fn, params, image).shape
        if len(shape) != 4 or shape[:3] != (2, *grid):
            raise ValueError(
                f"local logits: expected [2, {grid[0]}, {grid[1]}, K] for images {image.shape}, "
                f"as fields of {side} pixels every {local.stride} make, got {list(shape)}"
            )
    devices = mesh.size
    platform = mesh.devices.flat[0].platform
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected at least 1 field, got {chunk}")
    fields = local_fields(masked_images, local)
    each = fields_at_once(len(fields), platform) if chunk is None else -(-chunk // devices)
    return FieldTables(
        local,
        preprocessing,
        mesh,
        image_shape,
        masked_images,
        fields,
        each * devices,
        shape[3],
        put_everywhere(computed_with(params, preprocessing), mesh),
    )
