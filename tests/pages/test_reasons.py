"""Which mask is to blame: by hand, of four masks and their pairs."""

from __future__ import annotations

import itertools
import re

import numpy as np
import paged_run
import pytest

from certmask_jax.defenses import DoubleMasking, MinorityReports
from certmask_jax.mask_sets import MaskSet
from certmask_jax.masks.threats import Threat
from certmask_jax.pages.answer_reasons import why_answered
from certmask_jax.pages.inspected import inspect
from certmask_jax.pages.proof_reasons import one_mask_to_blame, why_proved
from certmask_jax.programs import defense_specs
from certmask_jax.tables.outputs import UNKNOWN
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


def _all_true(defense):
    labels = np.ones((1, len(defense.masked_images)), int)
    table = from_labels(labels, defense.masked_images, num_classes=2)
    return inspect(defense, table, np.array([1], np.int32), np.array([True]))


def test_of_one_round_it_is_the_only_mask_that_is_wrong():
    for wrong, blamed in (([], None), ([2], 2), ([0, 2], None)):
        one = _all_true(paged_run.ALERTS)
        one.table.predictions[0, one.single[wrong]] = 0
        assert one_mask_to_blame(one, 0, 1) == blamed


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_a_detector_is_failed_by_one_mask_where_it_would_hold_with_that_mask_right(tau):
    """Every choice of true, wrong, unsure and not evaluated masks, against the rule itself."""
    defense = MinorityReports(paged_run.MASKS, tau=tau)
    itself = int(np.setdiff1d(np.arange(5), _all_true(defense).single)[0])
    blamed = 0
    for kinds in itertools.product(("true", "wrong", "unsure", "wrong and unsure"), repeat=4):
        for image_is_right in (True, False):
            one = _all_true(defense)
            one.table.predictions[0, itself] = int(image_is_right)
            for column, kind in zip(one.single, kinds, strict=True):
                one.table.predictions[0, column] = "wrong" not in kind
                one.table.confidences[0, column] = 0.25 if "unsure" in kind else 0.75
            wrong = [mask for mask, kind in enumerate(kinds) if "wrong" in kind]
            wanted = None
            if len(wrong) == 1 and image_is_right:
                unheard = sum(kind == "unsure" for kind in kinds) if tau == 0.5 else 0
                wanted = wrong[0] if not unheard else None  # each place has one mask alone
            assert one_mask_to_blame(one, 0, 1) == wanted, (kinds, image_is_right)
            if wanted is not None:
                blamed += 1
                table, column = one.table, one.single[wanted]
                assert not defense.worst_case(table, np.array([1], np.int32))[0]
                table.predictions[0, column], table.confidences[0, column] = 1, 0.75
                assert defense.worst_case(table, np.array([1], np.int32))[0]
    assert blamed == (64 if tau == 0 else 8)
    one = _all_true(defense)
    one.table.predictions[0, one.single[:2]] = 0, UNKNOWN  # another one could dissent, too
    one.table.known[0, one.single[1]] = False
    assert one_mask_to_blame(one, 0, 1) is None


def test_no_mask_is_blamed_for_what_is_wrong_without_it_or_lost_in_any_case():
    cure = defense_specs.build("patchcure:masks_per_axis=2", (4, 4), Threat.of(4, 1))
    one = _all_true(cure)
    one.table.predictions[0, one.single[1]] = 0
    assert one_mask_to_blame(one, 0, 1) == 1
    itself = np.setdiff1d(np.arange(len(cure.masked_images)), [*one.single, *one.pair.ravel()])
    one.table.predictions[0, itself] = 0
    assert one_mask_to_blame(one, 0, 1) is None
    # Of four masks one hides a patch: its vote alone is true in any case, and three may be wrong.
    votes = defense_specs.build("plurality:masks_per_axis=2", (8, 8), Threat.of(8, 1))
    one = _all_true(votes)
    one.table.predictions[0, one.single[1]] = 0
    assert one_mask_to_blame(one, 0, 1) is None


def test_a_mask_that_makes_the_answer_wrong_is_to_blame():
    one = _all_true(paged_run.DOUBLE)
    one.table.predictions[0, one.pair[2]] = 0  # it stands, and is the answer
    (answer,) = np.asarray(paged_run.DOUBLE.rule(one.table))
    assert answer == 0
    assert one_mask_to_blame(one, 0, 1) == 2


def test_what_masks_say_sums_up_to_all_that_were_evaluated():
    defense = defense_specs.build("plurality:masks_per_axis=3", (8, 8), Threat.of(8, 1))
    labels = np.array([[0, 0, 0, 0, 1, 2, 3, 4, 4]])
    names = ("ant", "bee", "cow", "dog", "eel")
    for evaluated, said in (
        (9, "Of 9 masks 4 say ant, 2 say eel, 1 says dog and 2 say something else; the rule"),
        (5, "Of 5 masks that were evaluated 4 say ant and 1 says bee; the rule answers ant."),
    ):
        some = np.where(np.arange(9) < evaluated, labels, UNKNOWN)
        table = from_labels(some, defense.masked_images, num_classes=5)
        one = inspect(defense, table, np.array([0], np.int32), np.array([True]))
        assert why_answered(one, 0, 0, names).startswith(said)


def test_an_image_that_only_the_margin_guard_loses_is_said_to_be_that():
    defense = paged_run.DOUBLE
    labels = np.ones((2, len(defense.masked_images)), int)
    table = from_labels(labels, defense.masked_images, num_classes=2)
    table.margins[0, 3] = 0.25
    one = inspect(defense, table, np.array([1, 1], np.int32), np.array([False, False]))
    said = [
        why_proved(one, row, 1, 1, certified=False, class_names=(), margin_guard=guard)
        for row, guard in ((0, 0.25), (1, 0.25), (0, 0.2))
    ]
    assert said[0] == (
        "Under some mask two logits are at most the margin guard of 0.25 apart, and such images "
        "are not certified."
    )
    assert said[1:] == ["Some place could not be proved."] * 2


def test_a_mask_is_said_to_stand_only_where_one_does():
    """Three masks hide the one place, so that no patch changes a label; of each a pair is wrong."""
    boxes = [[[0, 0, 5, 8]], [[3, 0, 8, 8]], [[0, 0, 8, 5]]]
    defense = DoubleMasking(MaskSet(boxes, 8, Threat.of(8, 2, region=(3, 3, 5, 5))))
    true = np.array([1], np.int32)
    said = []
    for wrong in ([], [(0, 1), (1, 2)]):
        labels = np.ones((1, len(defense.masked_images)), int)
        labels[0, [defense.rounds.pair[i, j] for i, j in wrong]] = 0
        table = from_labels(labels, defense.masked_images, num_classes=2)
        certified = defense.worst_case(table, true)
        assert certified.all()
        one = inspect(defense, table, true, certified)
        said.append(why_proved(one, 0, 1, 1, certified=True, class_names=("dog", "cat")))
    assert said[0].startswith("Wherever a patch is, a mask hides it and stands by cat")
    assert said[1] == "No patch at any place changes this; all 3 masks say cat."


def test_the_reason_of_a_pair_cover_is_a_sentence():
    defense = defense_specs.build("pair_cover", (8, 8), Threat.of(8, 1))
    said = why_answered(_all_true(defense), 0, 1, ("ant", "bee"))
    assert re.fullmatch(
        r"Masks? .* agrees? on bee, and (together )?hides? some place.*settles it.", said
    )
