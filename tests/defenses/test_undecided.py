"""What is still undecided, by exhaustion: every table that agrees with what is known.

``undecided`` is held against its definition: whatever stands in the entries that are neither known
nor named by it, answer and verdicts are the same. Certificates of tables that were not evaluated
whole rest on it.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from early_exit_cases import facts

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import Seen
from certmask_jax.masks import pair_covers
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.tables.prediction_table import from_labels

LINE = mask_sets.budgeted_grid((1, 6), (1, 1), masks_per_axis=(1, 3))  # V = 6 with pairs


def _cover(hidden, width):
    """Masks of single pixels of a row: ``hidden`` lists those of each mask."""
    boxes = np.zeros((len(hidden), max(map(len, hidden)), 4), int)
    for mask, pixels in zip(boxes, hidden, strict=True):
        mask[: len(pixels)] = [[0, pixel, 1, pixel + 1] for pixel in pixels]
    return MaskSet(boxes, (1, width), (1, 1))


TRIANGLE = _cover([[0, 1], [1, 2], [0, 2]], 3)  # every two pixels together, V = 3
REDUNDANT = _cover([[0, 2], [0, 3], [1, 2, 3]], 4)
LARGE = _cover([[0, 1, 2], [1, 2, 3], [0, 3]], 4)  # votes prove something
CASES = {
    "double_masking": (defenses.DoubleMasking(LINE), 3),
    "double_masking smallest": (defenses.DoubleMasking(REDUNDANT, ties="smallest"), 2),
    "double_masking two sets": (
        defenses.DoubleMasking(_cover([[0, 1], [2]], 3), _cover([[0], [1, 2]], 3)), 2,
    ),
    "challenger_masking": (defenses.ChallengerMasking(LINE), 2),
    "challenger_masking redundant": (defenses.ChallengerMasking(REDUNDANT), 2),
    "patchcure": (defenses.PatchCURE(LINE), 2),
    "patchcure redundant": (defenses.PatchCURE(REDUNDANT), 2),
    "minority_reports": (defenses.MinorityReports(LINE), 3),
    "certmask": (defenses.CertMask(TRIANGLE), 3),
    "certmask_detection": (defenses.CertMaskDetection(LARGE), 3),
    "pair_cover": (defenses.PairCover(TRIANGLE), 3),
    "pair_cover pairs": (
        defenses.PairCover(pair_covers.pairs_of_blocks((1, 4), (1, 1), rows=(4,))), 2,
    ),
    "pair_cover redundant": (
        defenses.PairCover(_cover([sorted({0, 1, 2, 3, 4} - {i}) for i in range(5)], 5)), 2,
    ),
    "mrcert": (defenses.MRCert(_cover([[0], [1], [2]], 3)), 2),
    "mrcert redundant": (defenses.MRCert(_cover([[0, 1], [1, 2], [2, 3]], 4)), 2),
    "plurality": (defenses.Plurality(LARGE), 3),
    "minimum_explanation": (defenses.MinimumExplanation(TRIANGLE), 3),
}  # fmt: skip


@functools.cache
def _every_table(defense, classes):
    """All rows, and each fact of them for each label; the answer once."""
    rows = np.array(list(itertools.product(range(classes), repeat=len(defense.masked_images))))
    table = from_labels(rows, defense.masked_images, num_classes=classes)
    every = {}
    for label in range(classes):
        of_label = facts(defense, table, np.full(len(rows), label))
        every[label] = np.stack([np.asarray(v).astype(np.int64) for v in of_label.values()])
    every[None] = np.asarray(defense.rule(table)).astype(np.int64)[None]
    return rows, every


def _depends_on_what_is_left(rows, values, known, undecided):
    """Whether an entry that is neither known nor undecided changes any value, over all tables."""
    told = np.flatnonzero(known | undecided)
    base = int(rows.max()) + 1
    keys = rows[:, told] @ base ** np.arange(len(told))
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    sorted_values = values[:, order]
    return bool((same[None, :] & (sorted_values[:, 1:] != sorted_values[:, :-1])).any())


def _seen(row, known):
    margins, trust = np.where(known, [[1], [1]], [[7], [0]]).astype(np.float16)
    return Seen(np.where(known, row, 77), margins, known, trust)


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_what_is_undecided_changes_an_answer_or_a_verdict(name):
    defense, classes = CASES[name]
    rows, every = _every_table(*CASES[name])
    left_out = 0
    rng = np.random.default_rng(0)
    subsets = np.array(list(itertools.product((False, True), repeat=rows.shape[1])))
    for known in subsets if len(subsets) <= 256 else rng.permutation(subsets)[:256]:
        said = np.unique(rows[:, known], axis=0)
        for part in said if len(said) <= 64 else rng.permutation(said)[:64]:
            row = np.full(rows.shape[1], 77)
            row[known] = part
            agree = (rows[:, known] == part).all(axis=1)
            for label in (None, *range(classes)):
                undecided = defense.undecided(_seen(row, known), label)
                assert undecided.dtype == bool
                assert not (undecided & known).any()
                left_out += (~known & ~undecided).sum()
                assert not _depends_on_what_is_left(
                    rows[agree], every[label][:, agree], known, undecided
                ), (known, part, label, undecided)
                wanted = defense.open_columns(_seen(row, known), label)
                assert undecided[wanted].all()
                assert (len(wanted) > 0) == undecided.any()
                assert len(set(wanted.tolist())) == len(wanted)
    one_round = {"certmask", "plurality", "minimum_explanation"}
    assert (left_out > 0) == (name not in one_round)


def test_unions_of_four_masks_too():
    """What is known is drawn, as these tables are too many; the rest is everything there is."""
    defense = defenses.MRCert(_cover([[0], [1], [2], [3]], 4))
    rows, every = _every_table(defense, 2)
    rng = np.random.default_rng(0)
    for _ in range(120):
        row = np.where(rng.random(16) < 0.15, 1, 0)
        known = rng.random(16) < rng.choice([0.3, 0.7])
        known[:5] = True  # the first round
        agree = (rows[:, known] == row[known]).all(axis=1)
        for label in (None, 0, 1):
            undecided = defense.undecided(_seen(row, known), label)
            assert not _depends_on_what_is_left(
                rows[agree], every[label][:, agree], known, undecided
            ), (known, row, label, undecided)


def test_a_mutant_that_names_too_few_is_caught():
    """The check itself can fail: of every defense with something to leave out, one entry less."""
    for name in ("double_masking", "challenger_masking", "mrcert", "pair_cover"):
        defense, _ = CASES[name]
        rows, every = _every_table(*CASES[name])
        known = np.zeros(rows.shape[1], bool)
        undecided = defense.undecided(_seen(rows[0], known), 0)
        caught = 0
        for left_out in np.flatnonzero(undecided):
            fewer = undecided.copy()
            fewer[left_out] = False
            caught += _depends_on_what_is_left(rows, every[0], known, fewer)
        assert caught == undecided.sum(), name
