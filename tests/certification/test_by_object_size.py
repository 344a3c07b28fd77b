"""Accuracies by object size: counted by hand on eight images."""

from __future__ import annotations

import hand_made_reports
import numpy as np
import pytest

from certmask_jax.certification.report import wilson_interval
from certmask_jax.certification.report.by_object_size import size_bins


def test_bins_hold_their_images_and_count_them():
    made = hand_made_reports.report(hand_made_reports.result(clean=5, certified=3))
    result = made.defenses[0]
    shares = [0.0, 0.05, 0.1, 0.19, np.nan, 0.95, 1.0, 0.1]
    bins = size_bins(made, shares)
    assert [(one.low, one.high) for one in bins] == [(0, 0.1), (0.1, 0.2), (0.9, 1.0)]
    assert [one.rows.tolist() for one in bins] == [[0, 1], [2, 3, 7], [5, 6]]
    label = made.per_image["label"]
    for one in bins:
        holds = [bool(result.per_image["worst_case"][i]) for i in one.rows]
        right = [int(result.per_image["answer"][i]) == int(label[i]) for i in one.rows]
        alone = [int(made.per_image["undefended"][i]) == int(label[i]) for i in one.rows]
        for share, counted in (
            (one.certified[0], holds), (one.clean[0], right), (one.undefended, alone),
        ):  # fmt: skip
            fraction = sum(counted) / len(counted)
            assert share.fraction == fraction
            assert share.interval == wilson_interval(fraction, len(counted))


def test_what_is_no_share_or_end_is_refused():
    made = hand_made_reports.report(hand_made_reports.result(clean=5, certified=3))
    with pytest.raises(ValueError, match="shares: expected one for each of 8 images"):
        size_bins(made, [0.5])
    with pytest.raises(ValueError, match="ends: expected two or more that ascend"):
        size_bins(made, np.zeros(8), ends=(0, 0.5, 0.5))
    assert size_bins(made, np.full(8, np.nan)) == ()
