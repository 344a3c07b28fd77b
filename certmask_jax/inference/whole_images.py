"""The engine of any model: masked images are made on the devices, and the model is run on each.

Work goes in chunks of few fixed shapes, sharded over the devices of a 1-D mesh, so memory
depends on the chunk alone and few programs serve every chunk. Images stay on the device as uint8
and are uploaded once a block. Nothing here knows of defenses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.chunk_flight import ChunkFlight
from certmask_jax.inference.chunk_program import compiled_chunk
from certmask_jax.inference.devices import (
    compiler_facts,
    device_mesh,
    free_memory,
    put_everywhere,
)
from certmask_jax.inference.engine import Indices, Told
from certmask_jax.inference.item_stream import evaluate_items, table_by_items
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn, flops, num_classes
from certmask_jax.inference.out_of_memory import is_of_memory
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.uploads import Uploaded, most_images, room_for
from certmask_jax.inference.views import check_views, names_of
from certmask_jax.masks.distinct_unions import MaskedImages, unmasked
from certmask_jax.tables.outputs import Outputs


@dataclasses.dataclass(frozen=True, eq=False)
class WholeImages:
    """The engine (see ``engine.Engine``) that runs the model on every masked image, item by item.

    Build it with ``masked_forward``.

    Attributes:
      apply_fn, preprocessing: the model and what its images go through.
      mesh: 1-D mesh over the devices.
      image_shape: ``(height, width, channels)``.
      masked_images: the V masked images, of at most ``boxes_per_mask`` boxes.
      boxes_per_mask: R of the compiled program.
      chunk_sizes: work items at once, over all devices: multiples of their number, ascending. Each
        is compiled when it is first needed.
      num_classes: K of the model.
      block: how many images it is given at once, at most; None for any number, up to what
        ``images_at_once`` says.
    """

    apply_fn: ApplyFn
    preprocessing: Preprocessing
    mesh: Mesh
    image_shape: tuple[int, int, int]
    masked_images: MaskedImages
    boxes_per_mask: int
    chunk_sizes: tuple[int, ...]
    num_classes: int
    _params: Any
    block: int | None = None
    _budget: int | None = None  # of memory, where the chunk is yet to be fitted to it

    def __repr__(self) -> str:
        return (
            f"WholeImages(images {list(self.image_shape)} -> {self.num_classes} classes, "
            f"{len(self.masked_images)} masked images, chunks of {self.chunk} on {self.mesh.size} "
            "devices)"
        )

    @property
    def chunk(self) -> int:
        """Work items at once, at most."""
        return self.chunk_sizes[-1]

    @property
    def masked_size(self) -> tuple[int, int]:
        """``(height, width)`` of what is masked: the images."""
        return self.image_shape[:2]

    @property
    def by_items(self) -> bool:
        """True: each item is a pass of its own."""
        return True

    def images_at_once(self) -> int:
        """How many images one uploaded block holds (uint8, one copy on each device)."""
        return self.most_images() if self.block is None else self.block

    def most_images(self) -> int:
        """How many images one uploaded block may hold."""
        return most_images(self.image_shape)

    def room_for(self, images: int) -> int:
        """For how many images the upload is that has room for so many."""
        return room_for(images, self.image_shape)

    def masked_at_once(self) -> int:
        """How many masked images the devices work on together."""
        return self.chunk

    def flops_an_image(self, count: int) -> float | None:
        """Operations for ``count`` masked images; None where the compiler does not say."""
        shape = self.preprocessing.model_shape(self.image_shape)
        each = flops(self.apply_fn, self._params, shape, self.preprocessing.model_dtype)
        return None if each is None else each * count

    def checked_cells(self, params: Any) -> bool | None:
        """None: images are masked, not a map."""
        del params
        return None

    def facts(self) -> dict[str, Any]:
        """What may change last bits: chunks, preprocessing, views, and the compiler's options."""
        sizes = {"chunk_sizes": list(self.chunk_sizes)} if len(self.chunk_sizes) > 1 else {}
        views = names_of(self.apply_fn)
        return {
            "chunk": self.chunk,
            **sizes,
            "preprocessing": self.preprocessing.facts(),
            **({"views": views} if views else {}),
            **compiler_facts(self.mesh),
        }

    def for_few(self, items: int) -> WholeImages:
        """An engine with another program for work of at most ``items`` items, if that is smaller.

        Its batches have another shape, so near ties may break otherwise (soundness, section 7).
        """
        few = -(-items // self.mesh.size) * self.mesh.size
        sizes = chunk_sizes.with_size(self.chunk_sizes, few)
        return self if sizes == self.chunk_sizes else dataclasses.replace(self, chunk_sizes=sizes)

    def for_blocks(self, images: int | None) -> WholeImages:
        """An engine that is given at most so many images at once; its uploads are for so many.

        Its chunk is halved until it fits the memory, if that was left to it. None: any number.
        """
        most = None if images is None else min(images, self.most_images())
        engine = dataclasses.replace(self, block=most, _budget=None)
        if self._budget is not None:
            while engine.chunk > self.mesh.size and not engine._fits(self._budget):
                engine = engine.halved()
        return engine

    def _fits(self, budget: int) -> bool:
        """Whether a chunk takes at most so many bytes; a compiler may find that it does not."""
        try:
            return (self.memory() or 0) <= budget
        except jax.errors.JaxRuntimeError as error:
            if is_of_memory(error):
                return False
            raise

    def warm_up(self) -> None:
        """Compiles the programs of all its chunks, for a whole block of images."""
        for size in self.chunk_sizes:
            self.executable(size, self.room_for(self.block or 1))

    def for_masks(self, masked_images: MaskedImages) -> WholeImages:
        """An engine for another list of masked images, with this one's compiled program.

        Raises:
          ValueError: for masks of more boxes, or of another image size, than it was compiled for.
        """
        if masked_images.image_size != self.masked_size:
            raise ValueError(
                f"masked images: expected those of images of {self.masked_size}, got "
                f"{masked_images.image_size}"
            )
        if masked_images.boxes.shape[1] > self.boxes_per_mask:
            raise ValueError(
                f"masked images: expected at most {self.boxes_per_mask} boxes a mask, as the "
                f"program was compiled for, got {masked_images.boxes.shape[1]}; build another"
            )
        return dataclasses.replace(self, masked_images=masked_images)

    def halved(self) -> WholeImages:
        """An engine with half the chunk, for devices that ran out of memory.

        Raises:
          ValueError: when each device has but one work item at once.
        """
        each = self.chunk // self.mesh.size
        if each < 2:
            raise ValueError(
                "expected memory for one masked image on each device, but there is not even that; "
                "use a smaller model, precision bfloat16, or a device with more memory"
            )
        half = each // 2 * self.mesh.size
        smaller = (size for size in self.chunk_sizes if size < half)
        return dataclasses.replace(self, chunk_sizes=(*smaller, half))

    def memory(self) -> int | None:
        """Bytes of temporary memory that a chunk takes on a device, where the compiler says so."""
        analysis = self.executable(self.chunk, self.room_for(self.block or 1)).memory_analysis()
        return None if analysis is None else int(analysis.temp_size_in_bytes)

    def stem_slots(self, images: int) -> int:
        """None: the model is run whole."""
        return 0

    def upload(self, images: NDArray[np.uint8]) -> Uploaded:
        """Puts ``uint8[B, h, w, c]`` on every device, B at most ``images_at_once``."""
        room = self.room_for(self.block or len(images))
        spare = np.zeros((room - len(images), *self.image_shape), np.uint8)
        whole = np.concatenate([images, spare])  # few shapes, few compilations
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return Uploaded(jax.device_put(whole, everywhere), len(images))

    def flight(self, images: NDArray[np.uint8] | Uploaded) -> ChunkFlight:
        """A way to send work on these images, ``uint8[B, h, w, c]``, or as uploaded."""
        uploaded = images if isinstance(images, Uploaded) else self.upload(images)
        return ChunkFlight(
            functools.partial(self.executable, images=len(uploaded.on_devices)),
            self._params,
            uploaded.on_devices,
            mesh=self.mesh,
            boxes=self.masked_images.boxes,
            boxes_per_mask=self.boxes_per_mask,
            sizes=self.chunk_sizes,
        )

    def tried(self, image: NDArray[np.uint8]) -> Outputs:
        """What it says of ``uint8[1, h, w, c]`` without a mask: arrays ``[1]``; compiles."""
        itself = dataclasses.replace(self, masked_images=unmasked(self.masked_size))
        first = np.zeros(1, np.int32)
        return itself.evaluate(image, first, first)

    def evaluate(
        self,
        images: NDArray[np.uint8] | Uploaded,
        image_of: Indices,
        columns: Indices,
        progress: Told | None = None,
    ) -> Outputs:
        """Any list of W items: NumPy arrays ``[W]``."""
        return evaluate_items(self, images, image_of, columns, progress)

    def table(
        self,
        images: NDArray[np.uint8] | Uploaded,
        progress: Told | None = None,
    ) -> Outputs:
        """All masked images of all ``images``, image by image: NumPy arrays ``[B, V]``."""
        return table_by_items(self, images, progress)

    @unguarded()
    def executable(self, items: int, images: int) -> Any:
        """The compiled function for that many items of so many images, see ``compiled_chunk``."""
        images_shape = (images, *self.image_shape)
        return compiled_chunk(
            self.apply_fn,
            self.preprocessing,
            self.mesh,
            self._params,
            images_shape,
            self.boxes_per_mask,
            items,
        )


def masked_forward(
    apply_fn: ApplyFn,
    params: Any,
    image_shape: tuple[int, int, int],
    *,
    preprocessing: Preprocessing,
    masked_images: MaskedImages | None = None,
    boxes_per_mask: int | None = None,
    chunk: int | Sequence[int] | None = None,
    memory_budget: int | None = None,
    mesh: Mesh | None = None,
    asked_bit_by_bit: int = 0,
) -> WholeImages:
    """The masked forward pass of a model: an engine for any list of masked images.

    Args:
      apply_fn: any model. Give the same function object each time: it keys the compilation.
      params: its parameters, any pytree.
      image_shape: ``(height, width, channels)``.
      preprocessing: normalisation, fill and precision.
      masked_images: V masked images; by default the image itself alone, for ``for_masks`` later.
      boxes_per_mask: R, as many boxes as any mask has that will be given; by default as many as
        ``masked_images`` have.
      chunk: work items at once, rounded up to a multiple of the devices; smaller chunks for what
        is left are chosen (``chunk_sizes``). Several are all sizes, ascending. Chosen by
        default: what keeps the device busy; on an accelerator ``for_blocks`` halves it until it
        fits the memory.
      memory_budget: bytes that a chunk may take on one device; by default most of what the device
        says is free, and no limit on a CPU.
      mesh: 1-D mesh; all devices of this process by default.
      asked_bit_by_bit: work items of a whole run with early exit, see ``chunk_sizes.ladder``.

    Raises:
      ValueError: when the model does not map ``[B, h, w, c]`` to logits ``[B, K]``, with K >= 2;
        for masked images of another size, or of more boxes than ``boxes_per_mask``.
    """
    mesh = device_mesh() if mesh is None else mesh
    devices = mesh.size
    preprocessing.check_channels(image_shape[2])
    device = mesh.devices.flat[0]
    known = chunk_sizes.given(chunk, devices=devices, what="masked image")
    check_views(apply_fn, preprocessing.model_shape(image_shape))
    itself = unmasked(image_shape[:2])
    masks = itself if masked_images is None else masked_images
    width = masks.boxes.shape[1] if boxes_per_mask is None else boxes_per_mask
    budget = memory_budget
    if budget is None and device.platform != "cpu":  # a chunk of half a second is small there
        budget = free_memory(device)
    model_shape = preprocessing.model_shape(image_shape)
    held, dtype = computed_with(params, preprocessing), preprocessing.model_dtype
    classes = num_classes(apply_fn, held, model_shape, dtype)
    if chunk is None or isinstance(chunk, int):
        each = flops(apply_fn, held, model_shape, dtype)
        most = known or (chunk_sizes.default_items(device.platform, each) * devices,)
        known = chunk_sizes.ladder(
            most[-1],
            devices=devices,
            platform=device.platform,
            flops=each,
            asked_bit_by_bit=asked_bit_by_bit,
        )
    return WholeImages(
        apply_fn,
        preprocessing,
        mesh,
        image_shape,
        itself,
        width,
        known,
        classes,
        put_everywhere(held, mesh),
        _budget=budget if chunk is None else None,
    ).for_masks(masks)
