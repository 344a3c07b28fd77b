"""Whether cells of a map see their fields and nothing else: by gradients, and bit by bit.

Proofs on local logits, and on maps of features, take it that a patch leaves every cell alone whose
field it does not meet. Cell (i, j) is to see the pixels from ``(i, j) * stride`` to
``(i, j) * stride + field``, exclusive. In exact arithmetic that is a matter of gradients. On a
machine a cell has also to be computed from its field alone: a convolution that transforms tiles of
an image (Winograd's, or Fourier's) mixes last bits of pixels into cells that do not see them
(soundness, 12.1). Both are cheap trials and no proofs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded

MIXES = (
    "on these devices the last bits of cells change with pixels that they do not see, as some "
    "algorithms of convolutions mix them: where rounding decides, a patch may change an answer "
    "that is proved. CPUs do not do it"
)
"""What there is to say where cells do not keep their bits."""

_LAST_BITS, _LAST_ROUGH_BITS = 2.0**-10, 2.0**-3
"""How much of the largest number of all cells may be a matter of rounding: of products in float32,
and of those that drop bits. A convolution by Fourier transform changes some millionths."""


def check_fields(
    function: Callable[[Any, Array], Array],
    params: Any,
    image_shape: tuple[int, int, int],
    *,
    field: tuple[int, int],
    stride: tuple[int, int],
    what: str,
) -> None:
    """Refuses cells, in the corners or the middle, with a gradient outside their fields.

    At one random image, of a random combination of what a cell holds; a function that is built to
    deceive may pass.

    Args:
      function: ``(params, float32[1, h, w, c]) -> [1, H, W, ...]``.
      params: its parameters.
      image_shape: ``(h, w, c)``, as the function sees images.
      field, stride: of the cells, (height, width) in pixels.
      what: whose cells they are, for the error.

    Raises:
      ValueError: naming a cell and a pixel that it is not to see.
    """
    random = np.random.default_rng(0)
    pixels = jnp.asarray(random.normal(size=(1, *image_shape)), jnp.float32)
    shape = jax.eval_shape(function, params, pixels).shape
    weights = jnp.asarray(random.normal(size=shape[3:]), jnp.float32)

    @jax.jit
    def gradient(parameters: Any, at: Array) -> Array:
        def combined(seen: Array) -> Array:
            held: Array = function(parameters, seen)[0, at[0], at[1]].astype(jnp.float32)
            return (held * weights).sum()

        return jax.grad(combined)(pixels)[0]

    rows, columns = shape[1:3]
    ends = [(row, column) for row in (0, rows - 1) for column in (0, columns - 1)]
    with unguarded():
        for row, column in dict.fromkeys([*ends, (rows // 2, columns // 2)]):
            slopes = np.asarray(gradient(params, jnp.asarray([row, column], jnp.int32)))
            seen = (np.nan_to_num(slopes, nan=1.0) != 0).any(axis=2)
            top, left = row * stride[0], column * stride[1]
            seen[top : top + field[0], left : left + field[1]] = False
            if seen.any():
                y, x = np.argwhere(seen)[0].tolist()
                raise ValueError(
                    f"{what}: expected the cell ({row}, {column}) to see the pixels from ({top}, "
                    f"{left}) to ({top + field[0]}, {left + field[1]}), exclusive, as its field of "
                    f"{field[0]}x{field[1]} and stride of {stride[0]}x{stride[1]} say, but it also "
                    f"sees ({y}, {x}); give the true field and stride"
                )


def cells_keep_bits(
    cells: Callable[[NDArray[np.uint8]], Array],
    image_shape: tuple[int, int, int],
    *,
    field: tuple[int, int],
    stride: tuple[int, int],
    images: int,
    exact: bool,
    what: str,
) -> bool:
    """Whether patches of noise or white, at many places, leave the bits of all other cells alone.

    Gradients do not see what is rounded or compared on its way to a cell. This does, as a cell then
    changes by more than its last bits.

    Args:
      cells: ``uint8[B, h, w, c] -> [B, H, W, ...]``: the program that will be used.
      image_shape: ``(height, width, channels)`` of its images.
      field, stride: of the cells, (height, width) in pixels.
      images: B, as many as are evaluated at once.
      exact: whether products have all bits of float32, so that last bits are small.
      what: whose cells they are, for the error.

    Raises:
      ValueError: for a cell that changes by more than its last bits: it sees other pixels.
    """
    height, width, _ = image_shape
    random = np.random.default_rng(0)
    clean = np.repeat(random.integers(0, 256, (1, *image_shape), np.uint8), images, axis=0)
    patched, met = clean.copy(), []
    sides = max(1, height // 4), max(1, width // 4)
    for number, image in enumerate(patched):
        top, left = (
            int(random.integers(n - s + 1)) for n, s in zip((height, width), sides, strict=True)
        )
        where = (slice(top, top + sides[0]), slice(left, left + sides[1]))
        noise = random.choice(np.array([0, 255], np.uint8), image[where].shape)
        image[where] = 255 if number % 2 else noise  # means hardly tell noise from noise
        met.append((top, left))
    with unguarded():
        before, after = (np.asarray(cells(part)) for part in (clean, patched))
    same = (before == after) | ((before != before) & (after != after))
    same = same.reshape(*same.shape[:3], -1).all(axis=-1)
    may = np.stack([_met(at, sides, same.shape[1:], field, stride) for at in met])
    changed = ~(same | may)
    if not changed.any():
        return True
    before, after = (
        part.reshape(*changed.shape, -1).astype(np.float64) for part in (before, after)
    )
    largest = np.abs(before[np.isfinite(before)]).max(initial=0)
    by = np.nan_to_num(np.abs(after - before), nan=np.inf).max(axis=-1)
    by = np.where(changed, by, 0.0)
    image_of, row, column = np.unravel_index(int(by.argmax()), by.shape)
    if by.max() > (_LAST_BITS if exact else _LAST_ROUGH_BITS) * largest:
        top, left = met[image_of]
        raise ValueError(
            f"{what}: expected the cell ({row}, {column}) to stay as it is when the pixels from "
            f"({top}, {left}) to ({top + sides[0]}, {left + sides[1]}), exclusive, change, as its "
            f"field of {field[0]}x{field[1]} and stride of {stride[0]}x{stride[1]} say, but it "
            f"changed by {by.max():.3g}, where numbers are up to {largest:.3g}; give the true "
            "field and stride"
        )
    return False


def _met(
    at: tuple[int, int],
    sides: tuple[int, int],
    grid: tuple[int, ...],
    field: tuple[int, int],
    stride: tuple[int, int],
) -> NDArray[np.bool_]:
    """``bool[H, W]``: the cells whose fields meet a box of pixels at a place."""
    on_axes = []
    for first, side, count, sees, step in zip(at, sides, grid, field, stride, strict=True):
        starts = np.arange(count) * step
        on_axes.append((starts < first + side) & (starts + sees > first))
    return on_axes[0][:, None] & on_axes[1][None, :]
