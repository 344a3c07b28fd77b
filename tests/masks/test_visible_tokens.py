"""Tokens that are kept under masks: golden index arrays, painting by hand, windows that cover."""

from __future__ import annotations

import numpy as np
import pytest

from certmask_jax.masks import visible_tokens as tokens
from certmask_jax.masks.bands import blocks, column_bands, row_bands
from certmask_jax.masks.mask_set import CoverageError, MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs


def _golden(shared, name):
    return np.load(shared / "golden" / "small_fields" / f"{name}.npz")


def test_golden_of_smoothed_vits(shared):
    golden = _golden(shared, "svit_tokens")
    enlarged = tokens.kept_tokens(column_bands(32, 5, band=4), token=16, enlarged=7)
    np.testing.assert_array_equal(enlarged, golden["i0_kept_tokens"])
    kept = tokens.kept_tokens(column_bands(224, 32, band=19, stride=10), token=16)
    np.testing.assert_array_equal(kept, golden["i1_kept_tokens"])
    masks = blocks(32, 1, band=int(golden["block_size"]))
    wanted = [row * 32 + column for row, column in golden["block_positions"]]
    kept = tokens.kept_tokens(masks.boxes[wanted], 32, token=int(golden["block_token"]))
    np.testing.assert_array_equal(kept, golden["block_kept_tokens"])


def test_golden_of_vip(shared):
    golden = _golden(shared, "vip")
    for case in range(3):
        count, side = (int(golden[f"p{case}_{n}"]) for n in ("tokens_per_axis", "mask_tokens"))
        for window, name in ((side, "kept"), ((count, side), "kept_linear")):
            masks = tokens.token_windows(count * 16, 1, token=16, window=window)
            kept = tokens.kept_tokens(masks, token=16)
            np.testing.assert_array_equal(kept, golden[f"p{case}_{name}"])
    dual = tokens.wrapped_token_windows(224, token=16, window=int(golden["dual_mask_tokens"]))
    np.testing.assert_array_equal(tokens.kept_tokens(dual, 224, token=16), golden["dual_kept"])
    masks = column_bands(224, 32, band=19)
    of_bands = tokens.kept_tokens(masks, token=16)
    np.testing.assert_array_equal(of_bands[golden["r0_positions"]], golden["r0_kept_tokens"])


def test_a_token_is_kept_if_any_pixel_of_it_is_seen():
    masks = row_bands((6, 4), (1, 1), band=3, stride=2)  # rows 0-2, 2-4, and 4, 5 and 0
    kept = tokens.kept_tokens(masks, token=2)  # 3 x 2 tokens
    assert kept.tolist() == [[0, 1, 2, 3, 4], [0, 3, 4, 5, 6], [0, 1, 2, 5, 6]]
    mixed = tokens.kept_tokens(
        np.array([[[0, 0, 6, 4]], [[0, 0, 2, 3]], [[0, 0, 6, 3]]]), (6, 4), token=2
    )
    assert mixed.tolist() == [[0, -1, -1, -1, -1, -1], [0, 2, 3, 4, 5, 6], [0, 2, 4, 6, -1, -1]]
    alone, some, most = tokens.by_count(mixed)
    assert (alone.masks.tolist(), alone.tokens.tolist()) == ([0], [[0]])
    assert (some.masks.tolist(), some.tokens.tolist()) == ([2], [[0, 2, 4, 6]])
    assert (most.masks.tolist(), most.tokens.shape) == ([1], (1, 6))


def test_windows_hold_the_patches_of_the_paper():
    sides = {23: 3, 32: 3, 39: 4, 40: 4}
    for patch, side in sides.items():
        assert tokens.window_for(patch, token=16) == (side, side)
        tokens.token_windows(224, patch, token=16, window=side)
        with pytest.raises(CoverageError):
            tokens.token_windows(224, patch, token=16, window=side - 1)


def test_windows_round_the_border_hide_two_patches():
    """Windows of n/2 + a of n tokens hide any two patches of a tokens (here n = 4, a = 1)."""
    threat = Threat.of(8, 1, patches=2)
    MaskSet(tokens.wrapped_token_windows(8, token=2, window=3), 8, threat)
    with pytest.raises(CoverageError):
        MaskSet(tokens.wrapped_token_windows(8, token=2, window=2), 8, threat)


def test_bad_input_is_named():
    boxes = np.zeros((1, 1, 4), np.int32)
    for wrong, why in (
        (lambda: tokens.kept_tokens(boxes, token=2), "image_size: expected"),
        (lambda: tokens.kept_tokens(boxes, 9, token=2), "token: expected a side that divides"),
        (lambda: tokens.kept_tokens(boxes, 8, token=0), "token: expected an int"),
        (lambda: tokens.kept_tokens(boxes, 8, token=2, enlarged=1.5), "enlarged: expected an int"),
        (lambda: tokens.token_windows(9, 1, token=2, window=1), "token: expected a side that"),
        (lambda: tokens.token_windows(8, 1, token=2, window=5), "window: expected at most 4x4"),
    ):
        with pytest.raises(ValueError, match=why):
            wrong()


def test_vips_windows_by_name():
    defense = defense_specs.build("minority_reports:token_windows=3,token=14", (224, 224), (28, 28))
    assert (len(defense.mask_set), defense.mask_set.name) == (14 * 14, "token_windows")
    assert defense.mask_set.mask_size == (42, 42)
    usual = defense_specs.build("minority_reports:token_windows=3", (224, 224), (33, 33))
    assert len(usual.mask_set) == 12 * 12
    with pytest.raises(ValueError, match="token_windows: expected at most 14x14 tokens"):
        defense_specs.build("minority_reports:token_windows=15", (224, 224), (32, 32))
    with pytest.raises(ValueError, match="token_windows: expected all 34x34 patches"):
        defense_specs.build("minority_reports:token_windows=3", (224, 224), (34, 34))
