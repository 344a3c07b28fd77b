"""Threats: which patches an attacker may put into an image, how many at once, and where.

A *placement* is what the attacker picks: for each patch one of its shapes, and a location inside
the region. Patches may overlap, coincide, or be left out, as a patch that changes no pixel is no
patch: a threat of K patches contains that of fewer. A masked image hides a placement if it hides
every one of its patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import geometry
from certmask_jax.masks.geometry import Size

Shape = tuple[int, int]
"""``(height, width)`` of a patch in pixels."""

Box = tuple[int, int, int, int]
"""``(top, left, bottom, right)`` in pixels, half-open."""


@dataclasses.dataclass(frozen=True)
class Threat:
    """What an attacker may do; ``of`` builds the usual ones. Equal threats compare equal.

    Attributes:
      image_size: ``(height, width)`` in pixels.
      patches: for each patch that may be there at once, the shapes of which the attacker picks one.
        A shape is left out where another shape of that patch contains all that it can reach.
      region: boxes; every patch lies wholly inside their union, decided on pixels. Empty: anywhere.

    Raises:
      ValueError: for no patch or shape, a shape that does not fit the image or the region, or a
        box that is empty or not inside the image.
    """

    image_size: tuple[int, int]
    patches: tuple[tuple[Shape, ...], ...]
    region: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        image = geometry.as_size(self.image_size, "image_size")
        object.__setattr__(self, "image_size", image)
        object.__setattr__(self, "region", _as_region(self.region, image))
        if not self.patches or not all(self.patches):
            raise ValueError(
                f"threat: expected at least 1 patch with at least 1 shape, got {self.patches!r}"
            )
        ordered = sorted(self._kept(shapes) for shapes in self.patches)
        object.__setattr__(self, "patches", tuple(ordered))

    @classmethod
    def of(
        cls,
        image_size: Size,
        *shapes: Size,
        patches: int = 1,
        region: Box | Sequence[Box] | None = None,
    ) -> Threat:
        """``patches`` patches at once, each of any of ``shapes``, inside ``region``.

        Args:
          image_size: pixels (an int is a square).
          shapes: one or more, ``(height, width)`` or a side.
          patches: K, how many at once.
          region: a box, or several; None: anywhere in the image.

        Raises:
          ValueError: as for the record.
        """
        if not isinstance(patches, int | np.integer) or patches < 1:
            raise ValueError(f"patches: expected an int of at least 1, got {patches!r}")
        one = tuple(geometry.as_size(shape, "patch_size") for shape in shapes)
        boxes = () if region is None else region
        if len(boxes) and not isinstance(boxes[0], Sequence | np.ndarray):
            boxes = (boxes,)  # type: ignore[assignment]
        image = geometry.as_size(image_size, "image_size")
        return cls(image, (one,) * int(patches), tuple(boxes))  # type: ignore[arg-type]

    def __str__(self) -> str:
        alike = len(set(self.patches)) == 1
        each = [_joined([_by(s) for s in shapes], "or") for shapes in self.patches]
        if len(each) == 1:
            patches = f"{each[0]} patches"
        elif alike:
            patches = f"{len(each)} patches of {each[0]}"
        else:
            patches = f"{len(each)} patches of {_joined(each, 'and of')}"
        boxes = _joined([",".join(map(str, box)) for box in self.region], "and")
        where = f" within {boxes}" if boxes else ""
        return f"{patches}{where} on {_by(self.image_size)}"

    def __len__(self) -> int:
        """How many patches there may be at once."""
        return len(self.patches)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All shapes of all patches, each once."""
        return tuple(sorted({shape for shapes in self.patches for shape in shapes}))

    def allowed(self, shape: Shape) -> NDArray[np.bool_]:
        """Where a patch of ``shape`` may be: ``bool[h - ph + 1, w - pw + 1]``."""
        if not self.region:
            return np.ones(geometry.num_locations(self.image_size, shape), dtype=np.bool_)
        return geometry.hides(np.array([self.region]), self.image_size, shape)[0]

    def bounding_box(self) -> Box:
        """The smallest box that contains the region."""
        if not self.region:
            return (0, 0, *self.image_size)
        top, left, bottom, right = zip(*self.region, strict=True)
        return min(top), min(left), max(bottom), max(right)

    def _kept(self, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
        """Checks the shapes of one patch; those that another one makes needless are left out."""
        distinct = sorted({geometry.as_size(shape, "patch_size") for shape in shapes})
        for shape in distinct:
            geometry.check_patch_fits(self.image_size, shape)
            if not self.allowed(shape).any():
                raise ValueError(
                    f"region: expected one that holds every patch, but no {_by(shape)} patch lies "
                    f"inside {list(self.region)}; choose a larger region or a smaller patch"
                )
        return tuple(
            s for s in distinct if not any(s != t and self._reaches(t, s) for t in distinct)
        )

    def _reaches(self, large: Shape, small: Shape) -> bool:
        """Whether every ``small`` patch that is allowed lies inside an allowed ``large`` one.

        It does if it fits and the region is one box. In several, the larger may have no place
        where the smaller one has.
        """
        down, across = large[0] - small[0], large[1] - small[1]
        if down < 0 or across < 0:
            return False
        if len(self.region) < 2:
            return True
        larger = np.pad(self.allowed(large), ((down, down), (across, across)))
        around = np.lib.stride_tricks.sliding_window_view(larger, (down + 1, across + 1))
        return bool((around.any(axis=(2, 3)) | ~self.allowed(small)).all())


def as_threat(threat: Threat | Size, image_size: Size) -> Threat:
    """``threat`` itself, or for a bare patch size that of one such patch anywhere.

    Raises:
      ValueError: for a threat on another image size.
    """
    image = geometry.as_size(image_size, "image_size")
    if not isinstance(threat, Threat):
        return Threat.of(image, threat)
    if threat.image_size != image:
        raise ValueError(
            f"threat: expected one on the image of {_by(image)} pixels, got one on "
            f"{_by(threat.image_size)}: {threat}"
        )
    return threat


def _as_region(region: Sequence[Box], image: tuple[int, int]) -> tuple[Box, ...]:
    boxes = []
    for box in region:
        edges = tuple(box)
        good = len(edges) == 4 and all(isinstance(n, int | np.integer) for n in edges)
        if not (good and 0 <= edges[0] < edges[2] <= image[0]) or not (
            0 <= edges[1] < edges[3] <= image[1]
        ):
            raise ValueError(
                "region: expected top, left, bottom, right in pixels with 0 <= top < bottom <= "
                f"{image[0]} and 0 <= left < right <= {image[1]}, got {box!r}"
            )
        boxes.append((int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3])))
    whole = any(box == (0, 0, *image) for box in boxes)
    return () if whole else tuple(sorted(set(boxes)))


def _joined(parts: Sequence[str], word: str) -> str:
    """``"a, b or c"``."""
    return f" {word} ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
