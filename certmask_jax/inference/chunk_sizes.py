"""How many masked images a chunk has: a ladder of compiled sizes, and which of them comes next.

A chunk of one size alone is mostly empty where there is little work: the last of a block, the waves
of a few images. Each size is a program of its own that takes time to compile, so there are few of
them, each a quarter of the next, and none so small that it would take less than a moment anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

_RATIO = 4  # of a size to the next smaller one
_WORTH_ONE_CHUNK = 9 / 8  # of the slots of several smaller ones, which are full: each takes a call

# Operations of one device. A processor's core makes some 5e10 a second, so the largest chunk takes
# about half a second there; below the least, a smaller program saves less than it takes to compile.
# On TPUs it keeps what a chunk computes in fast memory: by the compiler's own estimate for a v5e
# a ViT-B/16 takes 395 us an image with 32 at once, and 732 us with 512.
_MOST_FLOPS = {"cpu": 2.5e10, "tpu": 1.2e12}
_LEAST_FLOPS = {"cpu": 5e8}
_LEAST_FLOPS_OF_ACCELERATORS = 1e13
# Where images ask for more and more, some of a block wait while others have ended, and a third to a
# half of large chunks stays empty. From so many operations on, some ten seconds of an accelerator
# at the speed of a small net, a quarter of the largest chunk is worth compiling all the same.
_LONG_FLOPS_OF_ACCELERATORS = 1e14
_MOST_ITEMS = {"cpu": 64}
_MOST_ITEMS_OF_ACCELERATORS = 512


def given(chunk: int | Sequence[int] | None, *, devices: int, what: str) -> tuple[int, ...]:
    """The sizes that were asked for, ascending, each rounded up to a multiple of the devices.

    Args:
      chunk: one, or all of them; None for none.
      devices: how many share a chunk.
      what: a chunk is made of, for the error.

    Raises:
      ValueError: for a size below 1.
    """
    sizes = (chunk,) if isinstance(chunk, int) else tuple(chunk or ())
    if any(size < 1 for size in sizes):
        raise ValueError(f"chunk: expected at least 1 {what}, got {chunk}")
    return tuple(sorted({-(-size // devices) * devices for size in sizes}))


def default_items(platform: str, flops: float | None) -> int:
    """Work items of the largest chunk on one device, before anything is known of its memory.

    Args:
      platform: of the device, ``"cpu"``, ``"gpu"`` or ``"tpu"``.
      flops: operations of one item, None where nobody knows.
    """
    most = _MOST_ITEMS.get(platform, _MOST_ITEMS_OF_ACCELERATORS)
    limit = _MOST_FLOPS.get(platform)
    while flops and limit and most > 1 and most * flops > limit:
        most //= 2
    return most


def ladder(
    chunk: int, *, devices: int, platform: str, flops: float | None, asked_bit_by_bit: int = 0
) -> tuple[int, ...]:
    """The sizes of chunks, ascending; the last is ``chunk``.

    Args:
      chunk: work items of the largest, over all devices; a multiple of their number.
      devices: how many there are.
      platform, flops: as of ``default_items``. Without ``flops`` there is one size.
      asked_bit_by_bit: work items of a whole run with early exit, which asks for them as it learns
        what matters; 0 for work that comes all at once.
    """
    least = _LEAST_FLOPS.get(platform, _LEAST_FLOPS_OF_ACCELERATORS)
    each = [chunk // devices]
    while flops and each[-1] > 1 and each[-1] * flops > least:
        each.append(max(1, each[-1] // _RATIO))
    is_long = asked_bit_by_bit * (flops or 0) > _LONG_FLOPS_OF_ACCELERATORS * devices
    if platform != "cpu" and is_long and len(each) == 1 and each[0] >= _RATIO:
        each.append(each[0] // _RATIO)
    return tuple(size * devices for size in reversed(each))


def with_size(sizes: Sequence[int], size: int) -> tuple[int, ...]:
    """The ladder with one more size; itself where there is none of that many or more."""
    return tuple(sizes) if size >= sizes[-1] else tuple(sorted({*sizes, size}))


def finer(sizes: Sequence[int], *, devices: int) -> tuple[int, ...]:
    """The ladder with a quarter and a sixteenth of its largest size, for chunks of several sorts.

    ``devices``: of which sizes are multiples.
    """
    each = sizes[-1] // devices
    smaller = {max(1, each // _RATIO**steps) * devices for steps in (1, 2)}
    return tuple(sorted({*sizes, *smaller}))


def next_items(waiting: int, sizes: Sequence[int]) -> int:
    """How many of the items that wait go into the next chunk, if nothing more will come.

    All of them where one chunk holds them in hardly more slots than smaller ones would; otherwise
    as many as fill the largest chunk that they fill.
    """
    fits = slots(waiting, sizes)
    if waiting <= fits <= _WORTH_ONE_CHUNK * _slots_apart(waiting, sizes):
        return waiting
    return max([size for size in sizes if size <= waiting], default=waiting)


def _slots_apart(items: int, sizes: Sequence[int]) -> int:
    """The slots of as many full chunks as there can be, the largest first, and of one more."""
    taken = 0
    for size in reversed(sizes):
        taken += items // size * size
        items %= size
    return taken + (slots(items, sizes) if items else 0)


def slots(items: int, sizes: Sequence[int]) -> int:
    """The smallest chunk that holds so many items; the largest where none does."""
    return next((size for size in sizes if size >= items), sizes[-1])
