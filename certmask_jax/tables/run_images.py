"""The images of a run: in the order in which it began, whatever becomes of the data set since.

A run keeps its rows. The row of a file that is removed, or cannot be decoded, is left out: it is
named and counts nowhere, and the finished work on the other images stays of use. A file that was
mended is looked at again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.tables.image_sets import Batch, TestSet, listing_of, places_of
from certmask_jax.tables.prediction_table import check_labels

LEFT_OUT = -1
"""The label of a row that is left out."""

GONE = "it is no longer in the data set"
_NOTHING: Mapping[int, str] = MappingProxyType({})
_ALL_FINE: Mapping[str, str] = MappingProxyType({})
_SHOWN = 3


class Began(NamedTuple):
    """The images of a run as it began."""

    ids: tuple[str, ...]  # [T]
    labels: tuple[int, ...]  # [T]


class Rows(NamedTuple):
    """What is known of the images of a block beside their predictions."""

    ids: tuple[str, ...]  # [B]
    left_out: Mapping[int, str] = _NOTHING  # row, from 0 -> why
    sizes: tuple[int, ...] = ()  # [B], bytes; -1 for what is gone; () where there are no files


class Part(NamedTuple):
    """Some images that were read: those that are there, and the rows of all."""

    images: NDArray[np.uint8]  # [b, h, w, c]
    labels: NDArray[np.int32]  # [b]
    present: NDArray[np.intp]  # [b]: their rows, from 0
    rows: Rows  # [B]


@dataclasses.dataclass(frozen=True, eq=False)
class RunImages:
    """The images of one run; ``of_run`` makes it.

    Attributes:
      test_set: as it is now.
      began: as the run began; None for a test set without a listing.
      places: ``int[T]``, where each image is in ``test_set`` now, or -1.
      left_out: row -> why, as far as it is known before it is read.
      skip: whether an image that turns out to be unreadable is left out too.
    """

    test_set: TestSet
    began: Began | None
    places: NDArray[np.intp]
    left_out: Mapping[int, str]
    skip: bool

    def __len__(self) -> int:
        return len(self.places)

    def read(self, start: int, stop: int) -> Part:
        """Rows ``start`` to ``stop``.

        Raises:
          UnreadableImage: for an image that cannot be given, unless they are skipped.
        """
        stop = min(stop, len(self))
        left_out = {row: self.left_out[row] for row in range(start, stop) if row in self.left_out}
        wanted = [row for row in range(start, stop) if row not in left_out]
        batches = self._batches(wanted, left_out)
        present = [row for row in wanted if row not in left_out]
        id_of = dict(zip(present, (one for b in batches for one in b.ids), strict=True))
        ids = tuple(id_of[row] if row in id_of else self._id(row) for row in range(start, stop))
        sizes = self.sizes(start, stop)
        return Part(
            np.concatenate([b.images for b in batches]) if batches else np.zeros((0,), np.uint8),
            np.concatenate([b.labels for b in batches]) if batches else np.zeros(0, np.int32),
            np.array(present, np.intp) - start,
            Rows(ids, {row - start: why for row, why in left_out.items()}, sizes),
        )

    def first(self) -> NDArray[np.uint8]:
        """The first image that can be read, ``uint8[1, h, w, c]``.

        Raises:
          ValueError: when there is none.
          UnreadableImage: as ``read``.
        """
        for row in range(len(self)):
            images = self.read(row, row + 1).images
            if len(images):
                return images
        raise ValueError(f"expected at least 1 image that can be read, got none of {len(self)}")

    def check_labels(self, num_classes: int) -> None:
        """Refuses labels that are no classes, where they are known before images are read.

        Raises:
          ValueError: for a label outside ``0..num_classes - 1``; names the first offenders.
        """
        if self.began is not None:
            labels = np.array(self.began.labels, np.int64)
            labels[list(self.left_out)] = 0  # whatever they are
            check_labels(labels, len(self), num_classes)

    def sizes(self, start: int, stop: int) -> tuple[int, ...]:
        """Bytes of each file now, -1 for what is gone; () where there are no files."""
        listing = listing_of(self.test_set)
        if listing is None:
            return ()
        places = self.places[start:stop]
        return tuple(int(listing.sizes[place]) if place >= 0 else -1 for place in places)

    def changed(self, there: Rows, start: int) -> tuple[list[int], dict[int, str]]:
        """What became of the rows of a finished block that begins at image ``start``.

        Returns:
          Rows whose image is another now, or can be read now, so that the block is to be done
          again; and rows that no longer count, with why.
        """
        if self.began is None:
            return [], {}
        now = self.sizes(start, start + len(there.ids))
        out = {
            row: self.left_out[start + row]
            for row in range(len(there.ids))
            if start + row in self.left_out and row not in there.left_out
        }
        again = []
        for row, (before, size) in enumerate(zip(there.sizes, now, strict=True)):
            if start + row in self.left_out:
                continue
            if row in there.left_out:
                if before != size or self._can_be_read(start + row):
                    again.append(row)
            elif before != size:
                again.append(row)
        return again, out

    def _can_be_read(self, row: int) -> bool:
        place = int(self.places[row])
        try:
            self.test_set.read(place, place + 1)
        except UnreadableImage:
            return False
        return True

    def _batches(self, rows: Sequence[int], left_out: dict[int, str]) -> list[Batch]:
        """Reads what can be read of these rows; what cannot is added to ``left_out``, or raised."""
        places = [int(self.places[row]) for row in rows]
        if not places:
            return []
        if places == list(range(places[0], places[0] + len(places))):
            try:
                return [self.test_set.read(places[0], places[-1] + 1)]
            except UnreadableImage:
                if not self.skip:
                    raise
        batches = []
        for row, place in zip(rows, places, strict=True):
            try:
                batches.append(self.test_set.read(place, place + 1))
            except UnreadableImage as error:
                if not self.skip:
                    raise
                left_out[row] = error.why
        return batches

    def _id(self, row: int) -> str:
        return str(row) if self.began is None else self.began.ids[row]


def of_run(
    test_set: TestSet,
    began: Began | None = None,
    *,
    unreadable: Mapping[str, str] = _ALL_FINE,
    skip: bool = False,
) -> RunImages:
    """The images of a run that begins now, or that began with other files there.

    Args:
      test_set: as it is now. Of one that is a subset (``whole`` is what it was taken from) the run
        keeps the images with which it began.
      began: as the run began, if it did, of a test set with a listing.
      unreadable: id -> why, of images that are known not to be readable; they are left out.
      skip: see ``RunImages``.

    Raises:
      ValueError: for images that were not there when the run began, or have other labels now.
    """
    listing = listing_of(test_set)
    if listing is None:
        return RunImages(test_set, None, np.arange(len(test_set)), {}, skip)
    whole: TestSet | None = getattr(test_set, "whole", None)
    is_subset = False
    if began is not None and whole is not None:
        is_subset, test_set, listing = True, whole, listing_of(whole) or listing
    now = Began(tuple(listing.ids), tuple(map(int, listing.labels)))
    began = now if began is None else began
    places = places_of(test_set, began.ids)
    known = set(began.ids)
    new = [] if is_subset else [image_id for image_id in now.ids if image_id not in known]
    relabelled = [
        f"{began.ids[row]} is of class {now.labels[place]}, was of {began.labels[row]}"
        for row, place in enumerate(places)
        if place >= 0 and now.labels[place] != began.labels[row]
    ]
    if new or relabelled:
        gone = [began.ids[row] for row in np.flatnonzero(places < 0)]
        what = [_said("new", new), _said("gone", gone), _said("with another label", relabelled)]
        raise ValueError(
            f"expected the {len(began.ids)} images that the run began with, but of those that are "
            f"there now {'; '.join(filter(None, what))}"
        )
    left_out = {int(row): GONE for row in np.flatnonzero(places < 0)}
    left_out |= {
        row: unreadable[image_id]
        for row, image_id in enumerate(began.ids)
        if image_id in unreadable and places[row] >= 0
    }
    return RunImages(test_set, began, places, left_out, skip)


def _said(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} are {what} ({', '.join(names[:_SHOWN])}{more})"
