"""Mask sets: masks that hide the patches of a threat wherever they are, verified when built.

A set carries the threat that it was built for and a promise: each location of the patch is hidden
by at least ``promise`` masks (a ``promise``-fold cover), which is checked on pixels. A set that
does not keep its promise cannot be built; the error names a placement that is left open.
"""

from __future__ import annotations

import dataclasses
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from certmask_jax._text import counted
from certmask_jax.masks import geometry, placements
from certmask_jax.masks.by_content import ByContent
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.mask_drawing import svg_of
from certmask_jax.masks.threats import Threat, as_threat

_SIZES_NAMED = 6
_LARGER = "use larger masks, or a builder that covers (tight_grid, budgeted_grid, exact_k_fold)"
# Masks that leave a band hide all but that, so a patch that all bands meet asks for less of each.
_MORE_BANDS = "use narrower bands, or more of them (a smaller stride)"
_HELPS = dict.fromkeys(("column_bands", "row_bands", "row_and_column_bands"), _MORE_BANDS) | {
    "blocks": "use smaller blocks, or more of them (a smaller stride)"
}


class CoverageError(ValueError):
    """A mask set leaves a location hidden by fewer masks than it promises."""


@dataclasses.dataclass(frozen=True, eq=False)
class MaskSet(ByContent):
    """Masks that hide the patches of a threat wherever they are; equal and hashable by content.

    Attributes:
      boxes: ``int32[N, R, 4]``, top, left, bottom, right, half-open; a mask is the union of its R
        boxes, all-zero boxes are unused. A mask that is listed k times has k votes.
      image_size: ``(height, width)`` in pixels (an int is taken as a square).
      threat: what the set was built for; a bare patch size is taken as one patch anywhere.
      promise: every placement is hidden by at least this many masks; checked on pixels here.
      name: how it was built, for reports.

    Raises:
      CoverageError: naming a placement that fewer than ``promise`` masks hide.
      ValueError: for malformed boxes, sizes or threats.
    """

    boxes: NDArray[np.int32]
    image_size: tuple[int, int]
    threat: Threat
    promise: int = 1
    name: str = "custom"

    def __init__(
        self,
        boxes: ArrayLike,
        image_size: Size,
        threat: Threat | Size,
        promise: int = 1,
        name: str = "custom",
    ) -> None:
        image = geometry.as_size(image_size, "image_size")
        array = geometry.as_boxes(boxes, image).copy()
        array.setflags(write=False)
        if promise < 1:
            raise ValueError(f"promise: expected at least 1, got {promise}")
        object.__setattr__(self, "boxes", array)
        object.__setattr__(self, "image_size", image)
        object.__setattr__(self, "threat", as_threat(threat, image))
        object.__setattr__(self, "promise", promise)
        object.__setattr__(self, "name", name)
        self.check(self.threat)

    def __len__(self) -> int:
        return len(self.boxes)

    def __str__(self) -> str:
        used = (self.boxes[..., 0] < self.boxes[..., 2]) & (self.boxes[..., 1] < self.boxes[..., 3])
        most = int(used.sum(axis=1).max())
        parts = "" if most == 1 else f"up to {most} boxes of "
        return f"{counted(len(self), 'mask')} of {parts}{self._sizes()} for {self.threat}"

    def __repr__(self) -> str:
        return f"MaskSet({self})"

    def _repr_html_(self) -> str:
        """The masks as a picture, in a notebook: the first one filled, with a patch on it."""
        picture = svg_of(self.boxes, self.image_size, self.threat.shapes[0], str(self))
        return f"<figure>{picture}<figcaption>{escape(str(self))}</figcaption></figure>"

    @property
    def patch_size(self) -> tuple[int, int]:
        """``(height, width)`` of the patch, for a threat of one patch of one shape.

        Raises:
          ValueError: for any other threat, of which it would tell only a part.
        """
        if len(self.threat) > 1 or len(self.threat.shapes) > 1:
            raise ValueError(
                f"patch_size: expected a threat of one patch of one shape, got {self.threat}; use "
                "the mask set's threat"
            )
        return self.threat.shapes[0]

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the largest box, in pixels (masks at a border may be cut)."""
        top, left, bottom, right = np.moveaxis(self.boxes, -1, 0)
        return int((bottom - top).max()), int((right - left).max())

    def _sizes(self) -> str:
        """The sizes of boxes, without those that fit another (masks at a border may be cut)."""
        top, left, bottom, right = np.moveaxis(self.boxes.reshape(-1, 4), -1, 0)
        sizes = np.unique(np.column_stack([bottom - top, right - left]), axis=0)
        fits = (sizes[:, None] <= sizes[None]).all(axis=2)
        largest = [_by((h, w)) for h, w in sizes[fits.sum(axis=1) == 1]]
        if len(largest) > _SIZES_NAMED:
            return f"{len(largest)} sizes up to {_by(self.mask_size)}"
        return " or ".join(filter(None, [", ".join(largest[:-1]), largest[-1]]))

    def check(self, threat: Threat) -> None:
        """Refuses masks of which fewer than ``promise`` hide some placement of ``threat``.

        Raises:
          CoverageError: naming a placement that is not.
          ValueError: for a threat on another image size.
        """
        hiding, placement = placements.least_hidden(self.boxes, as_threat(threat, self.image_size))
        if hiding < self.promise:
            raise CoverageError(
                f"{self.name}: expected all {threat} to be hidden by at least {self.promise} of "
                f"the {len(self)} masks, but the {placements.described(placement)} is hidden by "
                f"{hiding}; {_HELPS.get(self.name, _LARGER)}"
            )

    def affected(self) -> NDArray[np.bool_]:
        """Which masks show something of the patches, ``bool[G, N]``, for groups of placements.

        Counted one by one, for whatever threat the set was built for. Placements that the same
        masks show are one group, and one whose masks are only some of another group's is left out,
        as an attacker can do no more there. Of bands: which bands a patch meets.
        """
        return ~placements.groups(self.boxes, self.threat).hidden

    def coverage(self) -> NDArray[np.int32]:
        """How many masks hide the patch at each location: ``int32[h - ph + 1, w - pw + 1]``.

        For one patch of one shape (see ``patch_size``), allowed or not.
        """
        return geometry.coverage(self.boxes, self.image_size, self.patch_size)

    def hides(self) -> NDArray[np.bool_]:
        """Which mask hides which location: ``bool[N, h - ph + 1, w - pw + 1]``."""
        return geometry.hides(self.boxes, self.image_size, self.patch_size)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
