"""CrossCert on one table of masks and bands, against every attack and its own mathematics."""

from __future__ import annotations

import numpy as np
import pytest
from defense_cases import hidden_of, random_table, robust_of
from many_cases import cases

from certmask_jax import mask_sets
from certmask_jax.defenses import ALERT, CrossCert, crosscert
from certmask_jax.defenses import derandomized_smoothing as smoothing
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.bands import column_bands
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs

SETS = [
    ((1, 4), (1, 1), 2, 2, 2),
    ((1, 5), (1, 1), 2, 2, 2),  # a stride that does not divide the width
    ((1, 6), (1, 2), 2, 2, 2),
    ((2, 4), (1, 1), (1, 2), 1, 2),
]


def _defense(image, patch, masks_per_axis, band, stride):
    grid = masks_per_axis if isinstance(masks_per_axis, tuple) else (1, masks_per_axis)
    masks = mask_sets.budgeted_grid(image, patch, masks_per_axis=grid)
    return CrossCert(masks, column_bands(image, patch, band=band, stride=stride))


@pytest.mark.parametrize("case", SETS, ids=str)
def test_verdicts_are_those_of_every_attack(case):
    rng = np.random.default_rng(0)
    defense = _defense(*case)
    table, labels = random_table(rng, defense, cases(60), 2)
    robust = robust_of(defense, table, labels, hidden_of(defense, defense.threat))
    verdicts = defense.verdicts(table, labels)
    assert (verdicts["worst_case"] == robust).all()
    assert 0 < robust.sum() < len(robust)
    for name in ("certificate", "static_certified", "unwavering_certified"):
        assert not (verdicts[name] & ~robust).any(), name
    assert verdicts["static_certified"].any()
    assert not (verdicts["unwavering_certified"] & ~verdicts["static_certified"]).any()


def test_three_classes_and_a_smaller_patch():
    rng = np.random.default_rng(1)
    masks = mask_sets.budgeted_grid((1, 6), (1, 2), masks_per_axis=(1, 2))
    bands = column_bands((1, 6), (1, 2), band=2, stride=3)
    against = Threat.of((1, 6), (1, 1))
    defense = CrossCert(masks, bands, against=against)
    table, labels = random_table(rng, defense, cases(40), 3)
    robust = robust_of(defense, table, labels, hidden_of(defense, against))
    assert (defense.worst_case(table, labels) == robust).all()
    whole = CrossCert(masks, bands)
    assert not (whole.worst_case(table, labels) & ~robust).any()


def test_answers_are_those_of_the_functions_on_arrays():
    rng = np.random.default_rng(2)
    masks = mask_sets.budgeted_grid((6, 6), 2, masks_per_axis=2)
    bands = column_bands((6, 6), 2, band=2)
    defense = CrossCert(masks, bands)
    table, labels = random_table(rng, defense, 50, 3)
    pairs, pair = distinct_unions.unions(masks, 2)
    alone, one = distinct_unions.unions(bands, 1)
    said = table.select(pairs).predictions[:, pair]
    votes = smoothing.label_votes(table.select(alone).predictions[:, one], 3)
    answers = crosscert.rule(said, votes)
    assert (defense.rule(table) == answers).all()
    assert (answers == ALERT).any()
    groups = crosscert.joint_groups(masks, bands)
    wanted = crosscert.worst_case(said, votes, labels, groups)
    assert (defense.worst_case(table, labels) == wanted).all()


def test_it_has_a_name_on_the_command_line():
    text = "crosscert:masks_per_axis=3,band=4,band_stride=2"
    defense = defense_specs.build(text, (16, 16), (3, 3))
    assert isinstance(defense, CrossCert)
    assert len(defense.bands) == 8
    assert defense.options["bands"].startswith("8 masks")
    assert defense == defense_specs.build(text, (16, 16), (3, 3))
    with pytest.raises(ValueError, match="expected bands for"):
        CrossCert(defense.masks, column_bands((16, 16), 2, band=4))
    for key, value in (("band", "16"), ("band_stride", "17"), ("band_axis", "x")):
        text = f"crosscert:{key}={value}"
        with pytest.raises(ValueError, match=f"--defense {text}: {key}: expected columns"):
            defense_specs.build(text, (16, 16), (3, 3))
