"""The engine of a model in two parts: the stem once an image, the head for every masked map.

It is the engine of whole images with features in the place of images. ``upload`` runs the stem and
keeps the features on the devices, and an item is a pass of the head. Boxes are in cells.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.inference import cell_fields, chunk_sizes
from certmask_jax.inference.devices import AXIS, device_mesh, free_memory, put_everywhere
from certmask_jax.inference.head_program import compiled_head, stem_program
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn, flops
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.two_parts import TwoParts, check_parts, check_shapes
from certmask_jax.inference.uploads import Uploaded, most_images, rooms
from certmask_jax.inference.whole_images import WholeImages
from certmask_jax.masks.distinct_unions import MaskedImages, unmasked

_FEATURE_BYTES = 1 << 28  # of the images of an upload, on each device


@dataclasses.dataclass(frozen=True, eq=False)
class StemAndHead(WholeImages):
    """The engine (see ``engine.Engine``) that runs a head on every masked map of features.

    Build it with ``parts_forward``.

    Attributes:
      apply_fn: the model, a ``TwoParts``.
      stem_sizes: images of one pass of the stem, over all devices, ascending; the last batches of
        an upload may be smaller.
      features: of one image, as ``jax.ShapeDtypeStruct``: ``[1, H, W, ...]``.
      stem_flops, head_flops: operations of one pass; None where the compiler does not say.
    """

    apply_fn: TwoParts
    stem_sizes: tuple[int, ...] = ()
    features: Any = None
    stem_flops: float | None = None
    head_flops: float | None = None

    def __repr__(self) -> str:
        rows, columns = self.masked_size
        return (
            f"StemAndHead(images {list(self.image_shape)} -> {rows}x{columns} cells -> "
            f"{self.num_classes} classes, {len(self.masked_images)} masked maps, chunks of "
            f"{self.chunk} on {self.mesh.size} devices)"
        )

    @property
    def masked_size(self) -> tuple[int, int]:
        """``(H, W)`` of what is masked: the cells."""
        return self.apply_fn.grid

    def most_images(self) -> int:
        """How many images one upload may hold: as many as have room with their features."""
        each = int(np.prod(self.features.shape)) * self.features.dtype.itemsize
        return max(1, min(most_images(self.image_shape), _FEATURE_BYTES // each))

    def room_for(self, images: int) -> int:
        """For how many images the features are that have room for so many."""
        return rooms(images, self.most_images())

    def flops_an_image(self, count: int) -> float | None:
        """Operations of the stem and of ``count`` heads; None where the compiler does not say."""
        if self.stem_flops is None or self.head_flops is None:
            return None
        return self.stem_flops + self.head_flops * count

    def facts(self) -> dict[str, Any]:
        """As of whole images, with the parts and the batches of the stem."""
        return {
            **super().facts(),
            "two_parts": self.apply_fn.facts,
            "stem_sizes": list(self.stem_sizes),
        }

    def for_few(self, items: int) -> StemAndHead:
        """As of whole images, and with a pass of the stem for an image on each device."""
        fewer = chunk_sizes.with_size(self.stem_sizes, self.mesh.size)
        sizes = dataclasses.replace(self, stem_sizes=fewer) if fewer != self.stem_sizes else self
        few = super(StemAndHead, sizes).for_few(items)
        return dataclasses.replace(sizes, chunk_sizes=few.chunk_sizes)

    def stem_slots(self, images: int) -> int:
        """Places in the batches that so many images go through the stem in."""
        return sum(size for _, size in self._stem_batches(images))

    def _stem_batches(self, images: int) -> list[tuple[int, int]]:
        """Of each batch the images, and how many it is filled up to."""
        batches, left = [], images
        while left:
            count = chunk_sizes.next_items(left, self.stem_sizes)
            batches.append((count, chunk_sizes.slots(count, self.stem_sizes)))
            left -= count
        return batches

    def upload(self, images: NDArray[np.uint8]) -> Uploaded:
        """Runs the stem on ``uint8[B, h, w, c]``, and leaves the features on every device."""
        everywhere, split = (
            NamedSharding(self.mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,))
        )
        stem = stem_program(self.apply_fn, self.preprocessing, self.mesh)
        parts, at = [], 0
        with unguarded():
            for count, size in self._stem_batches(len(images)):
                some = images[at : at + count]
                some = np.pad(some, ((0, size - count), (0, 0), (0, 0), (0, 0)))
                features = stem(self._params, jax.device_put(some, split))
                parts.append(jax.device_put(features, everywhere)[:count])
                at += count
            room = self.room_for(self.block or len(images))
            empty = (room - len(images), *self.features.shape[1:])
            parts.append(jnp.zeros(empty, self.features.dtype, device=everywhere))
            whole = jax.device_put(jnp.concatenate(parts), everywhere)
        return Uploaded(whole, len(images))

    def checked_cells(self, params: Any) -> bool:
        """Whether cells keep their bits when pixels change that they do not see, on its devices.

        Raises:
          ValueError: for cells that see other pixels than they say.
        """
        check_parts(self.apply_fn, params, self.image_shape[2])
        # A resize has weights of 0 where a cell sees nothing; the cells are of what it makes.
        unresized = dataclasses.replace(self.preprocessing, resize_to=None)
        stem = stem_program(self.apply_fn, unresized, self.mesh)
        split = NamedSharding(self.mesh, PartitionSpec(AXIS))
        return cell_fields.cells_keep_bits(
            lambda images: stem(self._params, jax.device_put(images, split)),
            (*self.apply_fn.stem_size, self.image_shape[2]),
            field=self.apply_fn.field,
            stride=self.apply_fn.stride,
            images=self.stem_sizes[-1],
            exact=self.preprocessing.precision == "highest",
            what="the stem",
        )

    @unguarded()
    def executable(self, items: int, images: int) -> Any:
        """The compiled head for that many items of so many images, see ``compiled_head``."""
        features = jax.ShapeDtypeStruct((images, *self.features.shape[1:]), self.features.dtype)
        return compiled_head(
            self.apply_fn,
            self.preprocessing,
            self.mesh,
            self._params,
            features,
            self.boxes_per_mask,
            items,
        )


def parts_forward(
    parts: TwoParts,
    params: Any,
    image_shape: tuple[int, int, int],
    masked_maps: MaskedImages | None = None,
    *,
    preprocessing: Preprocessing,
    chunk: int | Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> StemAndHead:
    """The engine of a model in two parts on masks of its map.

    Args:
      parts, params: the model.
      image_shape: ``(height, width, channels)`` of the images.
      masked_maps: V masks of the map: boxes in cells, of "images" of ``parts.grid``. By default the
        map itself alone.
      preprocessing: normalisation, precision, and the size that images are resized to, if the parts
        are for such. Nothing is filled in.
      chunk: maps that the head has at once, as of ``masked_forward``.
      mesh: 1-D mesh; all devices of this process by default.

    Raises:
      ValueError: for images or masks of another size than the parts are for; for preprocessing that
        resizes otherwise than they say; for a stem or head that gives another shape.
    """
    if tuple(image_shape[:2]) != parts.image_size:
        raise ValueError(
            f"images: expected {parts.image_size} pixels, which the parts are for, got "
            f"{tuple(image_shape[:2])}"
        )
    if preprocessing.resize_to != parts.seen_size:
        raise ValueError(
            f"resize_to: expected {parts.seen_size}, as the parts say, got "
            f"{preprocessing.resize_to}: a resize spreads a patch over more cells, so the parts "
            "have to know of it (TwoParts.for_images)"
        )
    mesh = device_mesh() if mesh is None else mesh
    devices, device = mesh.size, mesh.devices.flat[0]
    preprocessing.check_channels(image_shape[2])
    known = chunk_sizes.given(chunk, devices=devices, what="masked map")
    itself = unmasked(parts.grid)
    masks = itself if masked_maps is None else masked_maps
    held, dtype = computed_with(params, preprocessing), preprocessing.model_dtype
    seen = preprocessing.model_shape(image_shape)
    features, classes = check_shapes(parts, held, (1, *seen), dtype)
    of_stem = flops(parts.stem, held, seen, dtype)
    of_head = flops(_unmasked_head(parts), held, features.shape[1:], features.dtype)

    def sizes(most: int | None, each: float | None) -> tuple[int, ...]:
        of_one = chunk_sizes.default_items(device.platform, each) * devices
        return chunk_sizes.ladder(
            most or of_one, devices=devices, platform=device.platform, flops=each
        )

    if chunk is None or isinstance(chunk, int):
        known = sizes(known[-1] if known else None, of_head)
    engine = StemAndHead(
        parts,
        preprocessing,
        mesh,
        image_shape,
        itself,
        masks.boxes.shape[1],
        known,
        classes,
        put_everywhere(held, mesh),
        _budget=None if chunk is not None or device.platform == "cpu" else free_memory(device),
        stem_sizes=sizes(None, of_stem),
        features=features,
        stem_flops=of_stem,
        head_flops=of_head,
    )
    return dataclasses.replace(engine, masked_images=engine.for_masks(masks).masked_images)


@functools.lru_cache(maxsize=16)
def _unmasked_head(parts: TwoParts) -> ApplyFn:
    def head(params: Any, features: Any) -> Any:
        return parts.head(params, features, jnp.zeros(features.shape[:3], jnp.bool_))

    return head
