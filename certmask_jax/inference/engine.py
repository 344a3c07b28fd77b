"""What every way of running a model on masked images offers: the protocol ``Engine``.

An engine is built for one model and one list of V masked images. Its work items are pairs (which
image, which column of the list), not boxes: how a masked image comes about is the engine's own
affair. Whoever asks for work (a whole table, early exit, the guard of a classifier, a run on the
disk) knows nothing else of it.

There are several. ``whole_images`` masks pixels and runs the model once for each item.
``dropped_tokens`` does so too, and gives a ViT the tokens alone that a mask leaves.
``field_tables`` evaluates the distinct fields of a model with local logits and makes the whole
table of an image from them (``by_items`` is false: there is nothing that a shorter list would
save). ``stem_and_head`` runs the stem of a model in two parts once an image, in ``upload``, keeps
its features on the devices (``images_at_once`` says how many images of these fit), and the head on
the features that are not hidden for each item. Its masks are those of the map of features, so the
size of its images is not that of its masked images.

Others fit the same members. Ablated bands are V masked images of which each leaves a band to be
seen: whole images run them unchanged, and an engine that cuts the band out (items grouped by
column, one program a shape) only differs in what ``flight`` sends. Such a one names in ``facts``
what changes numbers, and takes ``table`` and ``evaluate`` from ``item_stream``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.outputs import Outputs

Indices = NDArray[np.integer[Any]]

Told = Callable[[int, int], None]
"""Called with the masked images finished since the last call, and the slots that these took."""


class Flight(Protocol):
    """Chunks of work on their way through the devices: what is sent first comes back first.

    The host waits for the devices in ``receive`` alone, so whoever has more work sends it before.
    """

    def __len__(self) -> int:
        """Chunks that were sent and not received."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another chunk should be sent before one is received."""
        ...

    def send(self, image_of: Indices, columns: Indices) -> int:
        """Starts work on W items, at most a chunk.

        Args:
          image_of: ``int[W]``, which of the images of the flight.
          columns: ``int[W]``, which masked image of the engine's list.

        Returns:
          How many slots it takes: W, and those that are left empty.
        """
        ...

    def receive(self) -> Outputs:
        """Waits for the chunk that was sent first: NumPy arrays ``[W]``."""
        ...


class Engine(Protocol):
    """A model on one list of masked images, compiled, with its parameters on the devices.

    Wherever it takes ``images`` these are ``uint8[B, h, w, c]``, B at most ``images_at_once()``, or
    what its own ``upload`` made of such; that serves several calls, and ``halved()`` too.
    """

    @property
    def masked_images(self) -> MaskedImages:
        """The V masked images, which the columns of its work count."""
        ...

    @property
    def num_classes(self) -> int:
        """K of the model."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)`` of its images, which may be larger than what is masked."""
        ...

    @property
    def mesh(self) -> Mesh:
        """1-D mesh over the devices that it runs on."""
        ...

    @property
    def chunk(self) -> int:
        """Work at once, over all devices: items, or what else the engine is halved by."""
        ...

    @property
    def chunk_sizes(self) -> tuple[int, ...]:
        """The sizes that chunks come in, ascending; the last is ``chunk``."""
        ...

    @property
    def by_items(self) -> bool:
        """Whether fewer items are less work, and ``flight`` may be used."""
        ...

    def images_at_once(self) -> int:
        """How many images are given at once, at most."""
        ...

    def masked_at_once(self) -> int:
        """How many masked images the devices work on together."""
        ...

    def flops_an_image(self, count: int) -> float | None:
        """Operations for ``count`` masked images of an image; None where nobody knows."""
        ...

    def halved(self) -> Engine:
        """An engine with half the chunk, for devices that ran out of memory.

        Raises:
          ValueError: when there is no smaller one.
        """
        ...

    def for_few(self, items: int) -> Engine:
        """One that has a smaller program for work of at most ``items`` items; or itself."""
        ...

    def for_blocks(self, images: int | None) -> Engine:
        """One that is given at most so many images at once, None for any number; or itself.

        Its chunk fits the memory of the devices, if choosing it was left to the engine.
        """
        ...

    def warm_up(self) -> None:
        """Compiles every program that it may use."""
        ...

    def facts(self) -> dict[str, Any]:
        """What of it decides the numbers, JSON-able: for the fingerprint of a run and its results.

        ``chunk`` and ``preprocessing`` are among them, and the names of ``views`` where the model
        has any: each masked image takes as many passes (``views.passes_each``).
        """
        ...

    def checked_cells(self, params: Any) -> bool | None:
        """Whether the cells of a map keep their bits when pixels change that they do not see.

        ``params`` are those of the model, as they were given. None where nothing is masked on a
        map.

        Raises:
          ValueError: for cells that see other pixels than they say.
        """
        ...

    def tried(self, image: NDArray[np.uint8]) -> Outputs:
        """What the model says of one image ``uint8[1, h, w, c]``; compiles what is needed."""
        ...

    def stem_slots(self, images: int) -> int:
        """Passes of a stem that ``upload`` makes of so many, with those left empty; 0 without one.

        They come beside the items that are asked for, so what is ``Told`` does not count them.
        """
        ...

    def upload(self, images: NDArray[np.uint8]) -> Any:
        """Puts images where the devices need them; ``len`` of what it gives is B."""
        ...

    def flight(self, images: Any) -> Flight:
        """A way to send items on these images; ``by_items`` has to be true."""
        ...

    def table(self, images: Any, progress: Told | None = None) -> Outputs:
        """All masked images of all images: NumPy arrays ``[B, V]``."""
        ...

    def evaluate(self, images: Any, image_of: Indices, columns: Indices) -> Outputs:
        """Any list of W items, in the order given: NumPy arrays ``[W]``."""
        ...
