"""Evidence as integers: the bound on sums, numbers that are not finite, and sums over windows."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import oracle_small_fields as oracle
import pytest

from certmask_jax.defenses import quantised_evidence as module
from certmask_jax.defenses.band_defense import SmoothedViT
from certmask_jax.defenses.clipped_bagnet_defense import ClippedBagNet
from certmask_jax.defenses.evidence_windows import (
    kept_of_windows,
    meeting,
    most_kept,
    window_sums,
)
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.defenses.patchguard_defense import PatchGuard
from certmask_jax.defenses.patchguard_detection_defense import PatchGuardDetection
from certmask_jax.defenses.quantised_evidence import Grid, evidence_grid, image_by_image, quantised
from certmask_jax.defenses.robust_masking_game import game_on
from certmask_jax.masks.threats import Threat


@pytest.mark.parametrize("cells", [1, 3, 32, 196, 676, 50176, 2_000_000])
@pytest.mark.parametrize("ceiling", [1e-3, 0.3, 1.0, 15.0, 1000.3, math.inf])
def test_no_sum_leaves_32_bits_and_no_finer_grid_would_do(cells, ceiling):
    grid = evidence_grid(cells, ceiling=ceiling)
    assert cells * grid.high < 2**31
    assert grid.high == max(1, round(min(ceiling, module.CEILING) * 2.0**grid.bits))
    assert grid.bits == 20 or 2 * cells * (grid.high + 1) >= 2**31
    assert evidence_grid(cells, ceiling=ceiling, signed=True).low == -grid.high


@pytest.mark.parametrize("ceiling", [1e-12, 1e-300, 1e-310, 5e-324])
def test_a_ceiling_that_is_next_to_nothing_is_one_unit(ceiling):
    grid = evidence_grid(36, ceiling=ceiling)
    assert (grid.bits, grid.low, grid.high) == (20, 0, 1)


def test_too_many_cells_are_named():
    with pytest.raises(ValueError, match="evidence: 4294967296 cells are too many"):
        evidence_grid(2**32)


@pytest.mark.parametrize("signed", [False, True])
def test_both_sides_read_every_number_alike(signed):
    grid = evidence_grid(676, ceiling=15.0, signed=signed)
    numbers = [0.0, -0.0, 1.0, 0.30, -2.5, 15.0, 15.1, -15.1, 1e8, -1e8, 3e38, -3e38, 1e-40, 1e-45]
    by_hand = [round(min(max(x, grid.low / 2**grid.bits), 15.0) * 2**grid.bits) for x in numbers]
    expected = [*by_hand, grid.high, grid.low, grid.low]
    values = np.array([*numbers, math.inf, -math.inf, math.nan], np.float32)
    for evidence in (values, values.astype(np.float64), jnp.asarray(values)):
        units = quantised(evidence, grid)
        assert units.dtype == np.int32
        assert isinstance(units, type(evidence)) or not isinstance(evidence, np.ndarray)
        np.testing.assert_array_equal(units, expected)
    whole = quantised(np.arange(-2, 20), grid)
    np.testing.assert_array_equal(whole, quantised(np.arange(-2.0, 20.0), grid))
    few = jnp.asarray([0.5, -1, 3], jnp.bfloat16)
    np.testing.assert_array_equal(quantised(few, grid), quantised(np.float32(few), grid))


@pytest.mark.parametrize(
    ("cells", "window", "wrap"),
    [((4, 5), (2, 3), False), ((4, 5), (3, 4), True), ((5, 1), (5, 1), True)],
)
def test_window_sums_one_by_one(cells, window, wrap):
    units = np.random.default_rng(0).integers(0, 2**26, cells).astype(np.int32)
    boxes = oracle.windows(cells, window, wrap)
    flat = units.ravel().astype(np.int64)
    sums = window_sums(jnp.asarray(units), window, wrap=wrap)
    np.testing.assert_array_equal(np.ravel(sums), [flat[box].sum() for box in boxes])
    kept = kept_of_windows(jnp.asarray(units), window, wrap=wrap)
    expected = [[flat[sorted(set(v) - set(w))].sum() for v in boxes] for w in boxes]
    np.testing.assert_array_equal(kept, expected)
    common = [[bool(set(v) & set(w)) for v in boxes] for w in boxes]
    np.testing.assert_array_equal(meeting(cells, window, wrap=wrap), common)


@pytest.mark.parametrize(
    ("cells", "window"),
    [((4, 5), (2, 3)), ((6, 7), (4, 2)), ((5, 4), (1, 1)), ((3, 4), (3, 4)), ((1, 20), (1, 12)),
     ((9, 6), (5, 6))],
)  # fmt: skip
@pytest.mark.parametrize("high", [2, 2**26])
def test_the_most_that_is_left_pair_by_pair(cells, window, high):
    units = np.random.default_rng(0).integers(0, high, cells).astype(np.int32)
    boxes, flat = oracle.windows(cells, window, False), units.ravel().astype(np.int64)
    near, apart = most_kept(jnp.asarray(units), window)
    for w, meeting_most, apart_most in zip(boxes, near.tolist(), apart.tolist(), strict=True):
        kept = {bool(set(v) & set(w)): [] for v in boxes}
        for v in boxes:
            kept[bool(set(v) & set(w))].append(flat[sorted(set(v) - set(w))].sum())
        assert meeting_most == max(kept[True])
        assert apart_most == max(kept.get(False, [np.iinfo(np.int32).min]))


def test_images_that_do_not_fit_at_once_come_in_turn():
    images = jnp.arange(10.0).reshape(5, 2)
    summed = image_by_image(lambda image: image.sum(), module._ENTRIES_AT_ONCE // 2, images)
    np.testing.assert_array_equal(summed, [1, 5, 9, 13, 17])


def test_a_grid_in_words_is_the_one_that_the_functions_round_to():
    cells, threat = (26, 26), Threat.of(224, 32)
    local = {"field": 17, "stride": 8}
    how = {"window": 6, "clip": math.inf, "threshold": 0.0, "wrap": False}
    assert str(Grid(11, 0, 1024 << 11)) == "whole numbers of 2^-11 from 0 to 1,024"
    assert str(Grid(3, -12, 12)) == "whole numbers of 2^-3 from -1.5 to 1.5"
    assert PatchGuard(threat, **local).quantisation == str(game_on(cells, **how).grid)
    assert PatchGuard(threat, **local).cells == cells
    signed = evidence_grid(2 * 26 * 26, signed=True)
    assert PatchGuardDetection(threat, **local).quantisation == str(signed)
    assert ClippedBagNet(threat, **local, clip=15).quantisation == str(
        evidence_grid(676, ceiling=15)
    )
    assert " from -1 to 1" in ClippedBagNet(threat, **local).quantisation
    bands = MaskDS(threat, band=25)
    assert bands.quantisation == str(evidence_grid(len(bands.masks), ceiling=1.0))
    assert SmoothedViT(threat, band=25).quantisation is None
