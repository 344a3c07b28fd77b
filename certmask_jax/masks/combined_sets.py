"""Mask sets made of mask sets: for patches of any shape, several patches, and placed patches.

A proof over a mask set needs only that the masks hide every placement of the threat, and that it
looks at the unions of these very masks. So masks may be put together, united and dropped at will,
as long as what remains still hides every placement; that is verified on pixels in the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.masks import distinct_unions, edge_grids, fewest_unions, placements
from certmask_jax.masks.geometry import Size
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.masks.threats import Shape, Threat

# What contains what is looked at in blocks of about this many bytes.
_BYTES_AT_ONCE = 1 << 26


def for_threat(
    threat: Threat,
    one_shape: Callable[[tuple[int, int], Shape], MaskSet],
    *,
    rounds: int = 0,
) -> MaskSet:
    """The mask set for any threat, from a builder for one patch of one shape.

    Every shape gets a set of its own, over the region alone (its bounding box), so that masks are
    no larger than the region needs; the shapes of a patch are put together (``any_shape``), the
    patches united (``several_patches``). For one patch of one shape anywhere it is the
    builder's own set.

    Args:
      threat: what the set has to hide.
      one_shape: ``(image_size, patch_size) -> MaskSet``.
      rounds: see ``several_patches``.

    Raises:
      ValueError: what the builder raises; for unions that would not fit memory.
    """
    top, left, bottom, right = threat.bounding_box()
    region = (bottom - top, right - left)

    def of_shapes(shapes: tuple[Shape, ...]) -> MaskSet:
        sets = []
        for shape in shapes:
            masks = one_shape(region, shape)
            if threat.region:
                boxes = _shifted(masks.boxes, top, left)
                placed = Threat.of(threat.image_size, shape, region=threat.bounding_box())
                masks = MaskSet(boxes, threat.image_size, placed, masks.promise, masks.name)
                masks = restricted(masks, Threat(threat.image_size, ((shape,),), threat.region))
            sets.append(masks)
        return sets[0] if len(sets) == 1 else any_shape(sets)

    each = {shapes: of_shapes(shapes) for shapes in threat.patches}
    if len(threat) == 1:
        return each[threat.patches[0]]
    return several_patches([each[shapes] for shapes in threat.patches], rounds=rounds)


def any_shape(mask_sets: Sequence[MaskSet], *, contained: bool = False) -> MaskSet:
    """One set for a patch that may have the shape of any of several sets (PatchCleanser, 5.1).

    The union of the sets, without masks that hide the same pixels as another and, unless
    ``contained``, without masks that lie inside another one. That is sound: where the smaller mask
    hides a patch the larger one does, so what remains still covers, and its certificate is over its
    own pairs. They are some of the pairs of the whole union, so two-mask correctness of the whole
    implies that of the rest: dropping costs no image that it certifies, and fewer passes. (The
    worst case on covers that stay redundant may differ either way.) Sets that promise to hide every
    placement more than once keep all their masks, each as often as the set that has it most often.

    Args:
      mask_sets: for one patch each, in the same region of one image size.
      contained: keep masks that lie inside another one.

    Raises:
      ValueError: for no set, several patches, or different image sizes or regions.
    """
    threats = [masks.threat for masks in mask_sets]
    if not threats or any(len(t) > 1 for t in threats) or len({_place(t) for t in threats}) > 1:
        raise ValueError(
            "any_shape: expected mask sets for one patch each, in one region of one image size, "
            f"got {'; '.join(map(str, threats)) or 'none'}"
        )
    first = threats[0]
    shapes = tuple(shape for t in threats for shape in t.patches[0])
    promise = min(masks.promise for masks in mask_sets)
    every = _stacked([masks.boxes for masks in mask_sets])
    images, index = distinct_unions.distinct(every, first.image_size)
    boxes = images.boxes
    if promise == 1:
        if not contained:
            boxes = boxes[_not_contained(boxes, first.image_size)]
    else:
        stops = np.cumsum([len(masks) for masks in mask_sets])[:-1]
        counts = [np.bincount(part, minlength=len(boxes)) for part in np.split(index, stops)]
        boxes = np.repeat(boxes, np.max(counts, axis=0), axis=0)
    threat = Threat(first.image_size, (shapes,), first.region)
    return MaskSet(boxes, first.image_size, threat, promise, _names(mask_sets))


def several_patches(
    masks: MaskSet | Sequence[MaskSet], *, patches: int | None = None, rounds: int = 0
) -> MaskSet:
    """One set for several patches at once: all unions of one mask for each (PatchCleanser, B).

    If every patch is hidden by a mask of its set, their union hides them all. Unions are told apart
    by the pixels that they hide: K patches and n masks give all unions of 1 to K masks, 325 of
    25 masks for two patches; two of these hide up to 2K masks, so that the table of two rounds has
    all unions of at most 2K masks, 15,275 and not 195,625.

    Args:
      masks: a set for one patch, whose masks all patches share, or one set for each patch, in one
        region of one image size.
      patches: K, with one set.
      rounds: how many masks of the set are then united, for proofs against all placements. What
        cannot be of these is refused before the set is made, as far as that can be counted. 0: it
        is not known.

    Raises:
      ValueError: for no set, ``patches`` beside several sets, different image sizes or regions, or
        more unions than fit memory, with the estimate.
    """
    if isinstance(masks, MaskSet):
        if not isinstance(patches, int | np.integer) or patches < 1:
            raise ValueError(f"patches: expected an int of at least 1, got {patches!r}")
        masks = [masks] * int(patches)
    elif patches is not None and patches != len(masks):
        raise ValueError(f"patches: expected one mask set for each of {patches}, got {len(masks)}")
    threats = [one.threat for one in masks]
    if len({_place(t) for t in threats}) != 1:
        raise ValueError(
            "several_patches: expected at least 1 mask set, all in one region of one image size, "
            f"got {'; '.join(map(str, threats)) or 'none'}"
        )
    distinct_unions.check_choices(list(map(len, masks)))
    if rounds and len(masks) > 1 and all(one is masks[0] for one in masks):
        fewest_unions.check_rounds(masks[0], len(masks), rounds)
    first = threats[0]
    images, _ = distinct_unions.unions_of(masks)
    threat = Threat(first.image_size, tuple(p for t in threats for p in t.patches), first.region)
    hiding, _ = placements.least_hidden(images.boxes, threat)
    return MaskSet(images.boxes, first.image_size, threat, max(1, hiding), _names(masks))


def restricted(masks: MaskSet, threat: Threat) -> MaskSet:
    """Builds a set for a threat that it hides as well, without masks that hide none of it.

    For smaller patches, or patches inside a region. (A defense that keeps all masks and only
    proves less: ``against``.)

    Raises:
      CoverageError: where the masks do not hide a placement of ``threat``.
      ValueError: for a threat on another image size.
    """
    masks.check(threat)
    useful = placements.any_hidden(masks.boxes, threat)
    return dataclasses.replace(masks, boxes=masks.boxes[useful], threat=threat)


def _place(threat: Threat) -> tuple[Size, object]:
    return threat.image_size, threat.region


def _names(mask_sets: Sequence[MaskSet]) -> str:
    return " + ".join(dict.fromkeys(masks.name for masks in mask_sets))


def _shifted(boxes: NDArray[np.int32], top: int, left: int) -> NDArray[np.int32]:
    """Moves boxes ``int32[N, R, 4]``; unused ones stay zero."""
    used = (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])
    return np.where(used[..., None], boxes + np.array([top, left, top, left], np.int32), 0)


def _stacked(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    widest = max(boxes.shape[1] for boxes in parts)
    return np.concatenate([np.pad(b, ((0, 0), (0, widest - b.shape[1]), (0, 0))) for b in parts])


def _not_contained(boxes: NDArray[np.int32], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """``bool[N]``: distinct masks that lie inside no other one."""
    grid = edge_grids.edge_grid(boxes, image_size)
    cells = edge_grids.paint(boxes, grid).reshape(len(boxes), -1).astype(np.float32)
    sizes = cells.sum(axis=1)
    keep = np.ones(len(boxes), dtype=np.bool_)
    block = max(1, _BYTES_AT_ONCE // (4 * len(boxes)))
    for start in range(0, len(boxes), block):
        part = slice(start, start + block)
        inside = cells[part] @ cells.T == sizes[part, None]  # exact: counts below 2**24
        inside[np.arange(len(inside)), np.arange(start, start + len(inside))] = False
        keep[part] = ~inside.any(axis=1)
    return keep
