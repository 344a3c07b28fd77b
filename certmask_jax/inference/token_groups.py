"""How masks are put together by the tokens that they leave, so that little is padded.

A program takes one number of tokens from every masked image, and masks leave different numbers: a
band two or three columns of tokens, the image itself all of them. So masks are split into few
groups by what they leave, each of which has programs of its own, for as many tokens as the most of
the group. The image itself is in almost every list, so one number for all would save nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_GROUPS = 3
"""Each has programs of its own, which take long to compile."""

_LEAST_SAVED = 0.05  # of the tokens of the list, by one more group
_MOST_CHOICES = 64  # of numbers to end a group at


class TokenGroup(NamedTuple):
    """Masks that are evaluated with one number of tokens."""

    masks: NDArray[np.intp]  # [n] which, ascending
    most: int  # tokens of a program, the class token too
    padded: bool  # whether some of them leave fewer


def grouped(counts: NDArray[np.int32], *, most: int = MOST_GROUPS) -> tuple[TokenGroup, ...]:
    """The groups of masks that leave ``counts int32[V]`` tokens each, fewest tokens first.

    Of all ways to make at most ``most`` groups it is the one with the fewest tokens, padding
    counted; a group that would save but a few is not made. (Of very many different counts some
    alone are considered to end a group at.)
    """
    ends, of_each = np.unique(counts, return_counts=True)
    up_to = np.cumsum(of_each)
    inner = np.unique(np.linspace(0, len(ends) - 2, _MOST_CHOICES).astype(int))
    choices = [int(i) for i in inner] if len(ends) > 1 else []

    def tokens(cut: Sequence[int]) -> int:
        at = [*cut, len(ends) - 1]
        return int((np.diff(up_to[at], prepend=0) * ends[at]).sum())

    chosen: tuple[int, ...] = ()
    for more in range(1, min(most, len(choices) + 1)):
        best = min(itertools.combinations(choices, more), key=tokens)
        if tokens(best) <= (1 - _LEAST_SAVED) * tokens(chosen):
            chosen = best
    bounds = [0, *(int(ends[i]) for i in chosen), int(ends[-1])]
    groups = []
    for below, end in itertools.pairwise(bounds):
        of_group = np.flatnonzero((counts > below) & (counts <= end))
        groups.append(TokenGroup(of_group, end, bool((counts[of_group] < end).any())))
    return tuple(groups)


def sizes_of_group(
    sizes: Sequence[int], group: TokenGroup, *, fewest: int, devices: int
) -> tuple[int, ...]:
    """How many masked images of a group go through the devices at once, ascending.

    Args:
      sizes: the same of the group with the fewest tokens.
      group: one with as many or more, of which a chunk is to be no more work.
      fewest: tokens of the former.
      devices: of which sizes are multiples.
    """
    largest = max(1, sizes[-1] // devices * fewest // group.most) * devices
    return (*(size for size in sizes if size < largest), largest)
