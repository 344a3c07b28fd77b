"""Every defense, every sort of threat: the one table that tests of all defenses go through.

A defense that is added to ``CASES`` gets all checks of ``defenses/test_every_defense.py``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import oracle
import oracle_threats
import oracle_votes
from covers import random_cover, with_random_promise

from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import ALERT, Defense, Guarantee
from certmask_jax.masks import pair_covers
from certmask_jax.masks.combined_sets import any_shape, for_threat, several_patches
from certmask_jax.masks.distinct_unions import merge, unions, unmasked
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import from_labels

Rule = Callable[[np.ndarray, np.ndarray], int]
"""A row of labels, and of confidences, of the defense's masked images -> its answer, literally."""


class Case(NamedTuple):
    """A defense as tests build it."""

    build: Callable[..., Defense]  # (masks, *, against=None)
    literal: Callable[[Defense, int], Rule] | None = None  # the oracle's rule, where a row suffices
    particular: bool = False  # refuses some covers
    trusts: tuple[float, ...] = (1.0,)  # confidences that the attacker may choose


def _pairs(defense: Defense, num_classes: int) -> Rule:
    pair = unions(defense.mask_set, 2)[1]
    return lambda row, trust: oracle.double_masking(row[pair], defense.options["ties"])


def _from_base(defense: Defense, num_classes: int) -> Rule:
    pairs, pair = unions(defense.mask_set, 2)
    _, (of_pair, (clean,)) = merge([pairs, unmasked(defense.mask_set.image_size)])
    columns = of_pair[pair]
    return lambda row, trust: oracle.patchcure(row[columns], row[clean])


def _challenges(defense: Defense, num_classes: int) -> Rule:
    pair = unions(defense.mask_set, 2)[1]
    return lambda row, trust: oracle.challenger_masking(row[pair])


def _k_votes(defense: Defense, num_classes: int) -> Rule:
    one, masks = unions(defense.mask_set, 1)[1], defense.mask_set
    return lambda row, trust: oracle.certmask_rule(row[one], masks.promise, defense.options["ties"])


def _tolerant(defense: Defense, num_classes: int) -> Rule:
    one = unions(defense.mask_set, 1)[1]
    return lambda row, trust: oracle.tolerant_detection(row[one], defense.options["tolerance"])


def _minority(defense: Defense, num_classes: int) -> Rule:
    masks, tau = defense.mask_set, defense.options["tau"]
    singles, one = unions(masks, 1)
    _, (of_single, (clean,)) = merge([singles, unmasked(masks.image_size)])
    columns = of_single[one]
    return lambda row, trust: oracle.minority_reports(row[clean], row[columns], trust[columns], tau)


def _scored(score: Any, defense: Defense, num_classes: int) -> Rule:
    masks, one = defense.mask_set, unions(defense.mask_set, 1)[1]
    attacked = oracle_threats.placements(
        masks.image_size, masks.threat.patches, masks.threat.region
    )
    hides = oracle_threats.hidden(masks.boxes, masks.image_size, attacked)
    ties = defense.options["ties"]
    return lambda row, trust: oracle_votes.rule(
        tuple(row[one].tolist()), hides, score, num_classes, ties
    )


def _votes(score: Any) -> Callable[[Defense, int], Rule]:
    return functools.partial(_scored, score)


def _most_tolerant(masks: Any, **options: Any) -> Defense:
    return defenses.certmask_detection(masks, tolerance=(len(masks) - 1) // 2, **options)


CASES = {
    "double_masking": Case(defenses.double_masking, _pairs),
    "double_masking smallest": Case(
        functools.partial(defenses.double_masking, ties="smallest"), _pairs
    ),
    "two_rounds": Case(  # as if they had two sets
        lambda masks, **given: defenses.double_masking(masks, masks, **given)
    ),
    "challenger_masking": Case(defenses.challenger_masking, _challenges),
    "patchcure": Case(defenses.patchcure, _from_base),
    "minority_reports": Case(
        functools.partial(defenses.minority_reports, tau=0.5), _minority, trusts=(0.0, 1.0)
    ),
    "certmask": Case(defenses.certmask, _k_votes),
    "certmask smallest": Case(functools.partial(defenses.certmask, ties="smallest"), _k_votes),
    "certmask_detection": Case(defenses.certmask_detection, _tolerant),
    "certmask_detection tolerant": Case(_most_tolerant, _tolerant),
    "plurality": Case(defenses.plurality, _votes(oracle_votes.plurality)),
    "vot": Case(defenses.vot, _votes(oracle_votes.plurality)),
    "minimum_explanation": Case(
        defenses.minimum_explanation, _votes(oracle_votes.minimum_explanation)
    ),
    "robust_masking": Case(defenses.robust_masking, _votes(oracle_votes.robust_masking)),
    "pair_cover": Case(defenses.pair_cover, particular=True),
    "mrcert": Case(defenses.mrcert, particular=True),
}


def hidden_of(defense, threat):
    """Every masked image against every placement, on pixels: ``bool[V, L]``."""
    attacked = oracle_threats.placements(threat.image_size, threat.patches, threat.region)
    return oracle_threats.hidden(defense.masked_images.boxes, threat.image_size, attacked)


def robust_of(defense, table, labels, hidden, *, choices=(1.0,)):
    """The table adversary by exhaustion, for all rows at once: ``bool[T]``."""
    picks = list(itertools.product(range(table.num_classes), choices))
    allowed = {ALERT} if defense.guarantee == Guarantee.DETECTION else set()
    robust = np.array(defense.rule(table) == labels)
    for location in np.unique(hidden.T, axis=0):
        free = np.flatnonzero(~location)
        if not len(free):
            continue
        every = np.indices((len(picks),) * len(free)).reshape(len(free), -1).T
        count = len(every)
        predictions = np.repeat(table.predictions, count, axis=0)
        trusts = np.repeat(table.confidences, count, axis=0)
        predictions[:, free] = np.tile(np.array([p[0] for p in picks])[every], (len(labels), 1))
        trusts[:, free] = np.tile(np.array([p[1] for p in picks])[every], (len(labels), 1))
        attacked = from_labels(
            predictions, table.masked_images, num_classes=table.num_classes, confidences=trusts
        )
        answers = defense.rule(attacked).reshape(len(labels), count)
        good = (answers == labels[:, None]) | np.isin(answers, list(allowed))
        robust &= good.all(axis=1)
    return robust


def random_table(rng, defense, rows, num_classes, wrong=(0, 0, 0.15, 0.4)):
    shape = (rows, len(defense.masked_images))
    labels = rng.integers(0, num_classes, rows).astype(np.int32)
    flips = rng.random(shape) < rng.choice(wrong, size=(rows, 1))
    said = np.where(flips, rng.integers(0, num_classes, shape), labels[:, None])
    trusts = rng.choice([0.25, 0.5, 0.75], size=shape)
    images = defense.masked_images
    return from_labels(said, images, num_classes=num_classes, confidences=trusts), labels


SORTS = ("one patch", "several patches", "other sizes", "region", "shapes")
"""Of threats; ``random_set`` has masks for each."""


def random_set(rng, sort):
    """A small random mask set for a sort of threat."""
    match sort:
        case "one patch":  # anywhere; masks may be listed twice, and promise whatever they keep
            masks = random_cover(rng, int(rng.integers(1, 5)), int(rng.integers(2, 5)), 1)
            times = int(rng.integers(1, 3))
            return with_random_promise(rng, mask_sets.repeated(masks, coverage=times))
        case "several patches":  # two, on 3 to 5 locations, with 2 to 4 masks
            base = random_cover(rng, int(rng.integers(2, 5)), int(rng.integers(3, 6)), 1)
            return several_patches(base, patches=2)
        case "other sizes":  # two patches of different sizes
            width = int(rng.integers(3, 6))
            return several_patches([random_cover(rng, 2, width, p) for p in (1, 2)])
        case "region":
            threat = Threat.of((3, 4), (1, 2), (2, 1), region=(0, 0, 3, int(rng.integers(2, 5))))
            return for_threat(
                threat, lambda n, p: mask_sets.budgeted_grid(n, p, masks_per_axis=(2, 1))
            )
        case _:
            sets = [random_cover(rng, int(rng.integers(1, 4)), 4, patch) for patch in (1, 2)]
            return any_shape(sets, contained=bool(rng.integers(2)))


def pair_cover_set(rng):
    """Pairs of three or four blocks in a row, where the attacker may not reach all locations."""
    patch = int(rng.integers(1, 4))
    width = int(rng.integers(patch + 4, patch + 7))
    return pair_covers.pairs_of_blocks((1, width), (1, patch), rows=[int(rng.integers(3, 5))])


def smaller(rng, threat):
    """A threat of fewer placements, or of smaller patches."""
    if len(threat) == 1 and rng.random() < 0.3:
        height, width = threat.shapes[0]
        size = (height, max(1, width - 1))
        return Threat.of(threat.image_size, size, region=threat.region or None)
    top, _, bottom, right = threat.bounding_box()
    kept = threat.patches[: int(rng.integers(1, len(threat) + 1))]
    try:
        return Threat(threat.image_size, kept, ((top, int(rng.integers(0, right)), bottom, right),))
    except ValueError:
        return Threat.of(threat.image_size, (1, 1), region=threat.region or None)
