"""The engine of a model that is a NumPy function: JAX masks, and the function is given batches.

Each batch has the same size. What is masked is made by the same code as for models of JAX, so a
function that computes the same has the same table but for rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference import function_trial
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.engine import Indices, Told
from certmask_jax.inference.item_stream import evaluate_items, table_by_items
from certmask_jax.inference.masked_pass import outputs_of
from certmask_jax.inference.masking import masked_images as with_fill
from certmask_jax.inference.numpy_function import NumpyFunction
from certmask_jax.inference.preprocessing import Preprocessing, model_input
from certmask_jax.inference.uploads import most_images
from certmask_jax.masks.distinct_unions import MaskedImages, unmasked
from certmask_jax.tables.outputs import Outputs

_DEFAULT_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class HostBatches:
    """The engine (see ``engine.Engine``) of a ``NumpyFunction``; build it with ``host_forward``."""

    function: NumpyFunction
    preprocessing: Preprocessing
    mesh: Mesh
    image_shape: tuple[int, int, int]
    masked_images: MaskedImages
    chunk: int

    @property
    def num_classes(self) -> int:
        """K of what is looked at."""
        outputs = self.function.outputs
        return self.function.num_classes if outputs is None else len(outputs)

    @property
    def by_items(self) -> bool:
        """True: each item is a pass of its own."""
        return True

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """One alone: the function sees no batch of another size."""
        return (self.chunk,)

    def images_at_once(self) -> int:
        """How many images are given at once, at most."""
        return most_images(self.image_shape)

    def masked_at_once(self) -> int:
        """How many masked images are in a batch."""
        return self.chunk

    def flops_an_image(self, count: int) -> float | None:
        """None: nobody knows."""
        del count
        return None

    def checked_cells(self, params: Any) -> bool | None:
        """None: images are masked, not a map."""
        del params
        return None

    def facts(self) -> dict[str, Any]:
        """Batch and preprocessing, and what tells the function from others."""
        return {
            "chunk": self.chunk,
            "preprocessing": self.preprocessing.facts(),
            "numpy_function": {
                "sha256": self.function.sha256,
                "dtype": self.function.dtype,
                "outputs": self.function.outputs and list(self.function.outputs),
            },
        }

    def halved(self) -> HostBatches:
        """An engine with half the batch.

        Raises:
          ValueError: for batches of one image, or of a size that the function asks for.
        """
        if self.chunk < 2 or self.function.batch is not None:
            raise ValueError(f"chunk: expected memory for a batch of {self.chunk} masked images")
        return dataclasses.replace(self, chunk=self.chunk // 2)

    def for_few(self, items: int) -> HostBatches:
        """Itself: batches have one size."""
        del items
        return self

    def for_blocks(self, images: int | None) -> HostBatches:
        """Itself: images stay where they are."""
        del images
        return self

    def warm_up(self) -> None:
        """Runs one batch."""
        self.tried(np.zeros((1, *self.image_shape), np.uint8))

    def tried(self, image: NDArray[np.uint8]) -> Outputs:
        """What the function says of ``uint8[1, h, w, c]`` without a mask: arrays ``[1]``."""
        itself = dataclasses.replace(self, masked_images=unmasked(self.image_shape[:2]))
        first = np.zeros(1, np.int32)
        return itself.evaluate(image, first, first)

    def stem_slots(self, images: int) -> int:
        """None: the model is run whole."""
        return 0

    def upload(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Leaves images as they are."""
        return images

    def flight(self, images: NDArray[np.uint8]) -> _Flight:
        """A way to send items on ``uint8[B, h, w, c]``."""
        return _Flight(self, images)

    def table(self, images: NDArray[np.uint8], progress: Told | None = None) -> Outputs:
        """All masked images of all images: NumPy ``[B, V]``."""
        return table_by_items(self, images, progress)

    def evaluate(self, images: NDArray[np.uint8], image_of: Indices, columns: Indices) -> Outputs:
        """Any list of W items: NumPy ``[W]``."""
        return evaluate_items(self, images, image_of, columns)

    def outputs(self, images: NDArray[np.uint8], boxes: NDArray[np.int32]) -> Outputs:
        """``[chunk]`` outputs of a batch ``uint8[chunk, h, w, c]`` under ``int32[chunk, R, 4]``."""
        with unguarded():
            on_host: Outputs = jax.device_get(_outputs_of(self.logits(images, boxes)))
        return on_host

    def logits(self, images: NDArray[np.uint8], boxes: NDArray[np.int32]) -> NDArray[np.float32]:
        """``[chunk, K]`` of such a batch."""
        with unguarded():
            masked = _program(self.preprocessing, self.function.dtype)(images, boxes)
            return self.function.checked(np.array(masked))  # its own, which it may write to


class _Flight:
    """One batch at a time: the function holds the host."""

    def __init__(self, engine: HostBatches, images: NDArray[np.uint8]) -> None:
        self._engine, self._images = engine, images
        self._sent: list[tuple[Indices, Indices]] = []

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        return not self._sent

    def send(self, image_of: Indices, columns: Indices) -> int:
        self._sent.append((image_of, columns))
        return self._engine.chunk

    def receive(self) -> Outputs:
        engine, (image_of, columns) = self._engine, self._sent.pop(0)
        spare = (0, engine.chunk - len(columns))
        images = self._images[np.pad(image_of, spare, mode="edge")]
        boxes = engine.masked_images.boxes[np.pad(columns, spare, mode="edge")]
        return engine.outputs(images, boxes).map(lambda column: column[: len(columns)])


def host_forward(
    function: NumpyFunction,
    image_shape: tuple[int, int, int],
    masked_images: MaskedImages,
    *,
    preprocessing: Preprocessing,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> HostBatches:
    """The engine of a NumPy function, which is tried on noise first, see ``function_trial``.

    Args:
      function: the model.
      image_shape: ``(height, width, channels)``.
      masked_images: V masked images.
      preprocessing: fill, and for images of ``float32`` mean and std.
      chunk: B of every batch; by default what the function asks for, or 32.
      mesh: of one device, which masks; by default the first of this process.

    Raises:
      ValueError: for a precision, several devices, or another batch than the function takes; for
        images of ``uint8`` that are resized or encoded; when the function fails, gives no
        ``[B, K]``, or says something else of an image beside other images.

    Warns:
      RuntimeWarning: when the function says of one batch once this and once that.
    """
    if preprocessing.precision != "highest":
        raise ValueError(
            "precision: expected highest, as a NumPy function computes in its own, got "
            f"{preprocessing.precision}"
        )
    if function.dtype == "uint8" and preprocessing.resize_to is not None:
        raise ValueError(
            "resize_to: expected None for a NumPy function of uint8 images, as masked images are "
            f"resized in float32, got {preprocessing.resize_to}"
        )
    if function.dtype == "uint8" and preprocessing.encoding != "fill":
        raise ValueError(
            "encoding: expected fill for a NumPy function of uint8 images, as others are in "
            f"float32, got {preprocessing.encoding}"
        )
    if mesh is not None and mesh.size > 1:
        raise ValueError(f"mesh: expected 1 device for a NumPy function, got {mesh.size}")
    if function.batch is not None and chunk not in (None, function.batch):
        raise ValueError(f"chunk: expected {function.batch}, the function's batch, got {chunk}")
    size = function.batch or (_DEFAULT_BATCH if chunk is None else chunk)
    if size < 1:
        raise ValueError(f"chunk: expected at least 1 masked image, got {chunk}")
    preprocessing.check_channels(image_shape[2])
    if masked_images.image_size != image_shape[:2]:
        raise ValueError(
            f"masked images: expected those of images of {image_shape[:2]}, got "
            f"{masked_images.image_size}"
        )
    mesh = device_mesh(jax.local_devices()[:1]) if mesh is None else mesh
    engine = HostBatches(function, preprocessing, mesh, image_shape, masked_images, size)
    unhidden = np.zeros((size, *masked_images.boxes.shape[1:]), np.int32)
    says_the_same = function_trial.says_the_same_again(
        lambda images: engine.logits(images, unhidden), (size, *image_shape)
    )
    if not says_the_same:
        warnings.warn(
            "logits: the function gave two answers for one batch; is it in its evaluation mode? "
            "What is certified holds for a function that always says the same",
            RuntimeWarning,
            stacklevel=2,
        )
    return engine


_outputs_of = jax.jit(outputs_of)


@functools.lru_cache(maxsize=16)
def _program(preprocessing: Preprocessing, dtype: str) -> Any:
    """Images and boxes -> what the function is given; one for equal arguments, to compile once."""
    if dtype == "float32":
        return jax.jit(jax.vmap(lambda image, boxes: model_input(image, boxes, preprocessing)))
    colour = preprocessing.fill
    if colour is None:
        colour = tuple(255 * value for value in preprocessing.mean)
    levels = np.rint(colour).astype(np.uint8)

    def masked(image: Array, boxes: Array) -> Array:
        return with_fill(image, boxes, levels)

    return jax.jit(jax.vmap(masked))
