"""The folder and the images of a run: begun now, or resumed as they were recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from certmask_jax.files import processes, storage
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.preprocessing import check_images
from certmask_jax.tables import saved_table
from certmask_jax.tables.image_sets import TestSet
from certmask_jax.tables.run_images import RunImages, of_run


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run before its first block.

    Attributes:
      folder: where its table is, or will be.
      is_new: whether there is nothing of it yet.
      chunk_sizes: masked images at once when it was begun (today others may be chosen); None for a
        new one.
      images_per_block: of its blocks; None for a new one.
      images_together: of the blocks whose images share chunks when it was begun: of one block, in
        older versions; None for a new one.
      run_images: its images, those that are left out among them.
      first: the first that can be read, ``uint8[1, h, w, c]``.
    """

    folder: storage.AnyPath
    is_new: bool
    chunk_sizes: tuple[int, ...] | None
    images_per_block: int | None
    images_together: int | None
    run_images: RunImages
    first: NDArray[np.uint8]

    def began_with(self, chunk: int, mesh: Mesh | None) -> bool:
        """Whether it was begun with this chunk, rounded up to a multiple of the devices.

        Then its other sizes are those that it had: older versions had none.
        """
        devices = (device_mesh() if mesh is None else mesh).size
        return (
            self.chunk_sizes is not None and self.chunk_sizes[-1] == -(-chunk // devices) * devices
        )


def open_run(
    test_set: TestSet,
    folder: str | storage.AnyPath,
    image_size: tuple[int, int],
    *,
    unreadable: Mapping[str, str],
    skip_unreadable: bool,
) -> OpenedRun:
    """Looks at the folder and the images, and writes nothing that stays.

    Args:
      test_set, folder, unreadable, skip_unreadable: see ``evaluate``.
      image_size: ``(height, width)`` that the masks were built for.

    Raises:
      ValueError: for an empty test set, or images of another size.
      UnreadableImage: when the first image cannot be read, unless such are skipped.
      FileExistsError: for a folder that holds other files, or a run of other images.
      OSError: for a folder that cannot be written to.
    """
    if len(test_set) < 1:
        raise ValueError("expected a test set with at least 1 image, got an empty one")
    folder = storage.any_path(folder)
    there = saved_table.recorded(folder)
    began = None if there is None else saved_table.read_images(folder)
    try:
        run_images = of_run(test_set, began, unreadable=unreadable, skip=skip_unreadable)
    except ValueError as error:
        raise FileExistsError(
            f"{folder}: {error}. Choose another folder for the results, or give the command and "
            "the images of that run"
        ) from error
    first = run_images.first()
    check_images(first, image_size)
    if there is None and processes.is_first():
        storage.check_writable(folder)
    facts = {} if there is None else there["fingerprint"]
    sizes = facts.get("chunk_sizes", [facts["chunk"]] if "chunk" in facts else None)
    return OpenedRun(
        folder,
        there is None,
        None if sizes is None else tuple(sizes),
        facts.get("images_per_block"),
        facts.get("images_together", facts.get("images_per_block")),
        run_images,
        first,
    )
