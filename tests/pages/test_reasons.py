"""Which mask is to blame: by hand, of four masks and their pairs."""

from __future__ import annotations

import numpy as np
import paged_run
import pytest

from certmask_jax.pages.inspected import inspect
from certmask_jax.pages.reasons import one_mask_to_blame
from certmask_jax.tables.prediction_table import from_labels


@pytest.mark.parametrize(
    ("wrong", "blamed"),
    [
        ([], None),
        ([(1, 1)], 1),
        ([(0, 1), (1, 2), (1, 3)], 1),  # mask 2 alone is right, and with any other it is not
        ([(1, 1), (0, 2)], None),
        ([(0, 1)], None),  # either of the two
        ([(0, 1), (1, 1)], 1),
        ([(0, 0), (1, 1)], None),
    ],
)
def test_the_mask_that_all_wrong_labels_have_in_common(wrong, blamed):
    defense = paged_run.DOUBLE
    labels = np.ones((1, len(defense.masked_images)), int)
    labels[0, [defense.rounds.pair[i, j] for i, j in wrong]] = 0
    table = from_labels(labels, defense.masked_images, num_classes=2)
    one = inspect(defense, table, np.array([1], np.int32), np.array([True]))
    assert one_mask_to_blame(one, 0, 1) == blamed


def test_of_one_round_it_is_the_only_mask_that_is_wrong():
    defense = paged_run.ALERTS
    for wrong, blamed in (([], None), ([2], 2), ([0, 2], None)):
        labels = np.ones((1, len(defense.masked_images)), int)
        one = inspect(
            defense,
            from_labels(labels, defense.masked_images, num_classes=2),
            np.array([1], np.int32),
            np.array([True]),
        )
        one.table.predictions[0, one.single[wrong]] = 0
        assert one_mask_to_blame(one, 0, 1) == blamed
