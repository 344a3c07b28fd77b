"""The engine of a ViT that drops hidden tokens: groups of masks, each with programs of its own.

Which tokens a mask leaves is found on the devices, from the boxes that hide its pixels, so that the
two cannot disagree; how many, before anything is compiled. What a mask gives depends on its group
alone, and never on the others that are in its chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.engine import Indices, Told
from certmask_jax.inference.grouped_flight import GroupedFlight
from certmask_jax.inference.item_stream import evaluate_items
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.token_dropping import SeenTokens, TokenDropping
from certmask_jax.inference.token_groups import TokenGroup, grouped, sizes_of_group
from certmask_jax.inference.uploads import Uploaded
from certmask_jax.inference.whole_images import WholeImages, masked_forward
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.masks.visible_tokens import kept_counts
from certmask_jax.tables.outputs import Outputs


@dataclasses.dataclass(frozen=True, eq=False)
class DroppedTokens:
    """The engine (see ``engine.Engine``) that gives a ViT the tokens that are seen, item by item.

    Build it with ``dropped_forward``.

    Attributes:
      masked_images: the V masked images.
      groups: which of them are evaluated with how many tokens, fewest first.
      chunk_sizes: work items of the first group at once, over all devices: multiples of their
        number, ascending. Of groups with more tokens fewer are, see ``sizes_of_group``.
      dropping: the ViT.
    """

    masked_images: MaskedImages
    groups: tuple[TokenGroup, ...]
    chunk_sizes: tuple[int, ...]
    dropping: TokenDropping
    _parts: tuple[WholeImages, ...]  # of each group

    def __repr__(self) -> str:
        tokens = ", ".join(str(group.most) for group in self.groups)
        return (
            f"DroppedTokens(images {list(self.image_shape)} -> {self.num_classes} classes, "
            f"{len(self.masked_images)} masked images of {tokens} tokens, chunks of {self.chunk} "
            f"on {self.mesh.size} devices)"
        )

    @property
    def num_classes(self) -> int:
        """K of the model."""
        return self._parts[0].num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)`` of its images."""
        return self._parts[0].image_shape

    @property
    def mesh(self) -> Mesh:
        """1-D mesh over the devices that it runs on."""
        return self._parts[0].mesh

    @property
    def chunk(self) -> int:
        """Work items at once, at most."""
        return self.chunk_sizes[-1]

    @property
    def by_items(self) -> bool:
        """True: each item is a pass of its own."""
        return True

    def images_at_once(self) -> int:
        """How many images one uploaded block holds (uint8, one copy on each device)."""
        return self._parts[0].images_at_once()

    def masked_at_once(self) -> int:
        """How many masked images the devices work on together: of the largest group."""
        sizes = [len(group.masks) for group in self.groups]
        return self._parts[sizes.index(max(sizes))].chunk

    def flops_an_image(self, count: int) -> float | None:
        """Operations for ``count`` masked images, at the mean of all; None where nobody knows."""
        each = [
            part.flops_an_image(len(group.masks))
            for group, part in zip(self.groups, self._parts, strict=True)
        ]
        known = [one for one in each if one is not None]
        return sum(known) * count / len(self.masked_images) if len(known) == len(each) else None

    def checked_cells(self, params: Any) -> bool | None:
        """None: images are masked, not a map."""
        del params
        return None

    def facts(self) -> dict[str, Any]:
        """Chunks and preprocessing, and how many tokens the programs take: for last bits too."""
        return {
            **self._parts[0].facts(),
            "hidden_tokens": "dropped",
            "kept_tokens": [group.most for group in self.groups],
        }

    def for_few(self, items: int) -> DroppedTokens:
        """An engine with another program for work of at most ``items`` items, as whole images."""
        few = -(-items // self.mesh.size) * self.mesh.size
        return self._of_sizes(chunk_sizes.with_size(self.chunk_sizes, few))

    def for_blocks(self, images: int | None) -> DroppedTokens:
        """An engine that is given at most so many images at once.

        Its chunk is halved until that of each group fits the memory, if it was left to it.
        """
        engine = self
        fitting = [part.for_blocks(images).chunk for part in self._parts]
        while any(p.chunk > most for p, most in zip(engine._parts, fitting, strict=True)):
            engine = engine.halved()
        parts = (dataclasses.replace(part, _budget=None) for part in engine._parts)
        return dataclasses.replace(engine, _parts=tuple(part.for_blocks(images) for part in parts))

    def warm_up(self) -> None:
        """Compiles the programs of all groups, for a whole block of images."""
        for part in self._parts:
            part.warm_up()

    def halved(self) -> DroppedTokens:
        """An engine with half the chunk, for devices that ran out of memory.

        Raises:
          ValueError: when each device has but one work item at once.
        """
        return self._of_sizes(self._parts[0].halved().chunk_sizes)

    def _of_sizes(self, sizes: tuple[int, ...]) -> DroppedTokens:
        parts = tuple(
            dataclasses.replace(
                part,
                chunk_sizes=sizes_of_group(
                    sizes, group, fewest=self.groups[0].most, devices=self.mesh.size
                ),
            )
            for group, part in zip(self.groups, self._parts, strict=True)
        )
        return dataclasses.replace(self, chunk_sizes=sizes, _parts=parts)

    def stem_slots(self, images: int) -> int:
        """None: the model is run whole."""
        return 0

    def upload(self, images: NDArray[np.uint8]) -> Uploaded:
        """Puts ``uint8[B, h, w, c]`` on every device, B at most ``images_at_once``."""
        return self._parts[0].upload(images)

    def flight(self, images: NDArray[np.uint8] | Uploaded) -> GroupedFlight:
        """A way to send work on these images, ``uint8[B, h, w, c]``, or as uploaded."""
        uploaded = images if isinstance(images, Uploaded) else self.upload(images)
        return GroupedFlight(
            [part.flight(uploaded) for part in self._parts],
            [part.chunk_sizes for part in self._parts],
            *self._places,
        )

    @functools.cached_property
    def _places(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The group of each masked image, and its place there: ``int[V]`` each."""
        group_of, place = (np.zeros(len(self.masked_images), np.intp) for _ in range(2))
        for number, group in enumerate(self.groups):
            group_of[group.masks] = number
            place[group.masks] = np.arange(len(group.masks))
        return group_of, place

    def tried(self, image: NDArray[np.uint8]) -> Outputs:
        """What it says of ``uint8[1, h, w, c]`` without a mask: arrays ``[1]``; compiles."""
        part = self._parts[-1]
        whole = self.dropping.tokens(part.preprocessing.model_shape(self.image_shape)[:2])
        model = SeenTokens(self.dropping, whole, padded=False)
        return dataclasses.replace(part, apply_fn=model).tried(image)

    def evaluate(
        self,
        images: NDArray[np.uint8] | Uploaded,
        image_of: Indices,
        columns: Indices,
        progress: Told | None = None,
    ) -> Outputs:
        """Any list of W items: NumPy arrays ``[W]``."""
        return evaluate_items(self, images, image_of, columns, progress)

    def table(self, images: NDArray[np.uint8] | Uploaded, progress: Told | None = None) -> Outputs:
        """All masked images of all ``images``: NumPy arrays ``[B, V]``; group by group."""
        uploaded = images if isinstance(images, Uploaded) else self.upload(images)
        outputs = Outputs.unknown((len(images), len(self.masked_images)))
        for group, part in zip(self.groups, self._parts, strict=True):
            for column, said in zip(outputs, part.table(uploaded, progress), strict=True):
                column[:, group.masks] = said
        return outputs


def dropped_forward(
    dropping: TokenDropping,
    params: Any,
    image_shape: tuple[int, int, int],
    masked_images: MaskedImages,
    *,
    preprocessing: Preprocessing,
    chunk: int | Sequence[int] | None = None,
    memory_budget: int | None = None,
    mesh: Mesh | None = None,
) -> DroppedTokens:
    """The engine of a ViT that drops hidden tokens on ``masked_images``.

    Args:
      dropping, params: the model.
      image_shape: ``(height, width, channels)``.
      masked_images: V masked images.
      preprocessing, memory_budget, mesh: see ``masked_forward``.
      chunk: work items at once, of masks that leave the fewest tokens; fewer of others.
        Several are all sizes, ascending. Chosen by default.

    Raises:
      ValueError: as ``masked_forward``; for images that tokens do not divide, as the model sees
        them.
    """
    groups = grouped(_counts(dropping, masked_images, preprocessing))
    of_groups = [
        MaskedImages(masked_images.boxes[group.masks], masked_images.image_size) for group in groups
    ]
    first = masked_forward(
        SeenTokens(dropping, groups[0].most, groups[0].padded),
        params,
        image_shape,
        preprocessing=preprocessing,
        masked_images=of_groups[0],
        chunk=chunk,
        memory_budget=memory_budget,
        mesh=mesh,
    )
    parts = tuple(  # parameters are on the devices once
        dataclasses.replace(
            first, apply_fn=SeenTokens(dropping, group.most, group.padded), masked_images=masks
        )
        for group, masks in zip(groups, of_groups, strict=True)
    )
    engine = DroppedTokens(masked_images, groups, first.chunk_sizes, dropping, parts)
    sizes = first.chunk_sizes
    if len(groups) > 1 and first.mesh.devices.flat[0].platform != "cpu" and chunk is None:
        sizes = chunk_sizes.finer(sizes, devices=first.mesh.size)
    return engine._of_sizes(sizes)


def seen_under(
    dropping: TokenDropping, masked_images: MaskedImages, preprocessing: Preprocessing
) -> SeenTokens:
    """The ViT as one function for all ``masked_images``, with tokens for the most that one leaves.

    Raises:
      ValueError: as ``dropped_forward``.
    """
    counts = _counts(dropping, masked_images, preprocessing)
    return SeenTokens(dropping, int(counts.max()), bool(counts.min() < counts.max()))


def _counts(
    dropping: TokenDropping, masked_images: MaskedImages, preprocessing: Preprocessing
) -> NDArray[np.int32]:
    """How many tokens each mask leaves: ``int32[V]``."""
    size, seen = masked_images.image_size, preprocessing.resize_to
    try:
        return kept_counts(masked_images.boxes, size, token=dropping.token, seen_size=seen)
    except ValueError as error:
        raise ValueError(f"dropping: {error}") from error
