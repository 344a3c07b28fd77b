"""MRCert, literally: f is a dictionary from sets of masks to labels. Imports nothing of ours."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

Labels = dict[frozenset[int], int]
NOTHING: frozenset[int] = frozenset()


def up_to(masks: int, most: int) -> Iterator[frozenset[int]]:
    """Sets of at most that many masks."""
    for size in range(min(most, masks) + 1):
        yield from map(frozenset, itertools.combinations(range(masks), size))


def rule(f: Labels, masks: int, further: tuple[int, int, int] = (2, 2, 2)) -> int:
    """The three cases for one patch, and the image's own label.

    ``further``: how many masks are added in each case; the paper's is two, others are mutants.
    """
    every = range(masks)

    def agree(*chosen: int, more: int) -> bool:
        added = itertools.product(every, repeat=more)
        return all(f[frozenset({*chosen, *m})] == f[frozenset(chosen)] for m in added)

    if agree(more=further[0]):
        return f[NOTHING]
    for a in every:
        if agree(a, more=further[1]):
            return f[frozenset({a})]
    for a, b in itertools.product(every, repeat=2):
        if agree(a, b, more=further[2]):
            return f[frozenset({a, b})]
    return f[NOTHING]


def c_r(f: Labels, masks: int) -> int | None:
    """The label that is certified, or None."""
    every = range(masks)
    if all(f[frozenset(m)] == f[NOTHING] for m in itertools.product(every, repeat=3)):
        return f[NOTHING]
    for a in every:
        added = itertools.product(every, repeat=3)
        if all(f[frozenset({a, *m})] == f[frozenset({a})] for m in added):
            return f[frozenset({a})]
    return None


def round_trip(f: Labels, masks: int) -> int | None:
    """c_r2: the label that is certified, or None."""
    all_four = itertools.product(range(masks), repeat=4)
    return f[NOTHING] if all(f[frozenset(m)] == f[NOTHING] for m in all_four) else None


def rule_of_patches(f: Labels, masks: int, patches: int) -> int:
    """The three cases with P masks for one, 2P for two."""
    pairs = list(up_to(masks, 2 * patches))
    for most in (0, patches, 2 * patches):
        for chosen in up_to(masks, most):
            if all(f[chosen | more] == f[chosen] for more in pairs):
                return f[chosen]
    return f[NOTHING]


def c_r_of_patches(f: Labels, masks: int, patches: int) -> int | None:
    triples = list(up_to(masks, 3 * patches))
    for most in (0, patches):
        for chosen in up_to(masks, most):
            if all(f[chosen | more] == f[chosen] for more in triples):
                return f[chosen]
    return None
