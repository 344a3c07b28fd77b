"""Evidence itself, kept on request beside what defenses found in it, for each block of images.

What is kept are the numbers that the model gave and the defenses saw, in float32, before any of
them clips and rounds: which integers evidence becomes depends on a defense and its clip. A file is
whole or not there, and begins with the SHA-256 of what follows.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax.files import whole_files
from certmask_jax.files.storage import AnyPath, any_path
from certmask_jax.tables import evidence_store
from certmask_jax.tables.evidence_store import EvidenceStore, SavedEvidence


class KeptEvidence(NamedTuple):
    """The evidence of the T images that count, as ``defenses.patchguard`` and its kin take it."""

    evidence: NDArray[np.float32]  # [T, H, W, K] local logits, or [T, B, K] logits of bands
    labels: NDArray[np.int32]  # [T]
    ids: tuple[str, ...]


class KeptFiles:
    """The files of one run.

    Args:
      folder: of the evidence.
      sources: what was kept, in the record's words: of each the ``shape`` of an image's.
    """

    def __init__(self, folder: AnyPath, sources: Sequence[Mapping[str, Any]]) -> None:
        self._folder = folder
        self._shapes = [tuple(int(n) for n in source["shape"]) for source in sources]

    @property
    def bytes_an_image(self) -> int:
        """The bytes of an image of all sources, without the names of files and the like."""
        return sum(4 * math.prod(shape) for shape in self._shapes)

    def nothing(self, images: int) -> list[NDArray[np.float32]]:
        """What is kept of images that are all left out: zeros of each source."""
        return [np.zeros((images, *shape), np.float32) for shape in self._shapes]

    def write(self, block: int, arrays: Sequence[ArrayLike]) -> None:
        """Writes ``float32[B, *shape]`` of each source, each file as a whole or not at all."""
        for source, array in enumerate(arrays):
            held = io.BytesIO()
            np.save(held, np.asarray(array, np.float32))
            digest = hashlib.sha256(held.getvalue()).hexdigest().encode() + b"\n"
            whole_files.write(self._file(block, source), digest + held.getvalue())

    def read(self, block: int, images: int, source: int) -> NDArray[np.float32]:
        """``float32[images, *shape]`` of a source.

        Raises:
          ValueError: for a file that is missing, damaged, or of other images.
        """
        file = self._file(block, source)
        try:
            digest, _, rest = file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            raise ValueError(f"{file}: missing") from None
        if hashlib.sha256(rest).hexdigest().encode() != digest:
            raise ValueError(f"{file}: damaged, another checksum than it was written with")
        array: NDArray[np.float32] = np.load(io.BytesIO(rest), allow_pickle=False)
        if array.shape != (images, *self._shapes[source]):
            raise ValueError(f"{file}: of another shape, {list(array.shape)}")
        return array

    def read_all(self, block: int, images: int) -> list[NDArray[np.float32]]:
        """What is kept of a block, of each source; raises as ``read``."""
        return [self.read(block, images, source) for source in range(len(self._shapes))]

    def is_there(self, block: int) -> bool:
        """Whether all files of a block are, damaged or not."""
        return all(self._file(block, one).is_file() for one in range(len(self._shapes)))

    def is_whole(self, block: int, images: int, warn: Callable[[str], None]) -> bool:
        """Whether all of a block can be read; ``warn`` is told why not."""
        try:
            for source in range(len(self._shapes)):
                self.read(block, images, source)
        except ValueError as error:
            warn(f"{error}; the images of this block are computed again")
            return False
        return True

    def _file(self, block: int, source: int) -> AnyPath:
        return self._folder / f"kept-{source}-{block:06d}.npy.sha256"


def of_run(saved: SavedEvidence, source: int) -> KeptEvidence:
    """What a finished run kept of a source, by its number in the record.

    Raises:
      ValueError: for a file that is missing or damaged; names it.
    """
    files = KeptFiles(saved.folder, saved.about["kept"]["sources"])
    facts = saved.fingerprint
    store = EvidenceStore(saved.folder, facts["num_images"], facts["images_per_block"])
    counted = saved.counted
    try:
        blocks = [
            files.read(number, stop - start, source)[counted[start:stop]]
            for number, (start, stop) in store.spans().items()
        ]
    except ValueError as error:
        raise ValueError(f"{error}; give the command of the run again") from error
    ids = tuple(one for one, counts in zip(saved.rows.rows.ids, counted, strict=True) if counts)
    return KeptEvidence(np.concatenate(blocks), saved.rows.labels[counted], ids)


def some_of_run(
    saved: SavedEvidence, number: int, rows: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """What a finished run kept of some of its images, a block at a time.

    Args:
      saved: the run.
      number: of a defense among those of the run on evidence.
      rows: of the run's images, those that are left out among them.

    Yields:
      Which of ``rows`` are in a block that has some, and their evidence.

    Raises:
      ValueError: for a file that is missing or damaged; names it.
    """
    kept = saved.about["kept"]
    files = KeptFiles(saved.folder, kept["sources"])
    facts = saved.fingerprint
    store = EvidenceStore(saved.folder, facts["num_images"], facts["images_per_block"])
    for block, (start, stop) in store.spans().items():
        own = np.flatnonzero((rows >= start) & (rows < stop))
        if len(own):
            array = files.read(block, stop - start, kept["of"][number])
            yield own, array[rows[own] - start]


def kept_evidence(folder: str | AnyPath, number: int = 0) -> KeptEvidence:
    """The evidence that a run kept, of all its images that count.

    Local logits go as they are into the functions of ``defenses.patchguard``,
    ``defenses.clipped_bagnet`` and ``defenses.bagcert``; logits of bands become votes by those of
    ``defenses.derandomized_smoothing``.

    Args:
      folder: of a finished run, local or in a bucket.
      number: of a defense among those of the run on evidence, in their order: what it saw.

    Raises:
      FileNotFoundError: for a folder without evidence.
      ValueError: for a run that kept none or is not finished, a number that it does not have, or
        a damaged file.
    """
    where = any_path(folder)
    if (where / evidence_store.FOLDER).is_dir():
        where = where / evidence_store.FOLDER
    saved = evidence_store.load_evidence(where)
    kept = saved.about.get("kept")
    if kept is None:
        raise ValueError(
            f"{where}: expected evidence that was kept, but the run was not asked to keep any"
        )
    if not 0 <= number < len(kept["of"]):
        raise ValueError(
            f"number: expected one of the {len(kept['of'])} defenses on evidence, from 0 on, got "
            f"{number}"
        )
    return of_run(saved, kept["of"][number])
