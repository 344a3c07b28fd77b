"""VOT: CrossCert's votes by themselves, by exhaustion and against what its program counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import defenses
from certmask_jax.defenses import vote_gaps
from certmask_jax.masks.bands import column_bands
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import defense_specs, run_defenses
from certmask_jax.tables.prediction_table import from_labels


def _says(said):
    """The label of most bands, of equals the largest, as the program's sort has it."""
    labels, counts = np.unique(said, return_counts=True)
    return labels[counts == counts.max()].max()


def _program_certifies(said, reached):
    """A lead of more than ``2 reached`` over whichever class is second, if any is."""
    counts = np.sort(np.unique(said, return_counts=True)[1])
    gap = counts[-1] - counts[-2] if len(counts) > 1 else counts[-1]
    return gap > 2 * reached


def _withstands(said, met, label, classes):
    """Every place, and every vote of all bands that a patch meets there."""
    for reached in met:
        places = np.flatnonzero(reached)
        for votes in itertools.product(range(classes), repeat=len(places)):
            attacked = said.copy()
            attacked[places] = votes
            if _says(attacked) != label:
                return False
    return True


@pytest.mark.parametrize(
    ("width", "band", "stride", "classes"), [(9, 1, 1, 2), (7, 2, 1, 2), (6, 1, 1, 3), (9, 2, 2, 3)]
)
def test_it_answers_and_withstands_what_exhaustion_says(width, band, stride, classes):
    bands = column_bands((1, width), (1, 1), band=band, stride=stride)
    defense = defenses.VOT(bands)
    starts = range(0, width, stride)
    met = [[(place - start) % width < band for start in starts] for place in range(width)]
    reached = max(map(sum, met))
    rows = np.array(list(itertools.product(range(classes), repeat=len(starts))))
    table = from_labels(rows, defense.masked_images, num_classes=classes)
    answers = defense.rule(table)
    assert answers.tolist() == [_says(row) for row in rows]
    some = 0
    for label in range(classes):
        labels = np.full(len(rows), label)
        worst, paper = defense.worst_case(table, labels), defense.conditions(table, labels)
        assert set(paper) == {"published_gap"}
        literal = [_withstands(row, met, label, classes) for row in rows]
        assert worst.tolist() == literal
        certified = [_says(row) == label and _program_certifies(row, reached) for row in rows]
        assert paper["published_gap"].tolist() == certified
        assert (worst | ~paper["published_gap"]).all()
        some += int(paper["published_gap"].sum())
    assert some > 0


def test_its_label_is_the_one_that_crosscert_checks():
    masks = cm.mask_sets.budgeted_grid(8, 2, masks_per_axis=2)
    crosscert = defense_specs.build("crosscert:masks_per_axis=2,band=2", (8, 8), (2, 2))
    vot = defense_specs.build("vot:bands=2", (8, 8), (2, 2))
    np.testing.assert_array_equal(crosscert.bands.boxes, vot.masks.boxes)
    rng = np.random.default_rng(0)
    images = crosscert.masked_images
    rows = rng.integers(0, 3, (400, len(images)))
    rows[:, : len(images) - 8][rng.random(400) < 0.7] = 1  # else masks hardly ever agree
    table = from_labels(rows, images, num_classes=3)
    masked = defenses.double_masking(masks).rule(table)
    answers, votes = crosscert.rule(table), vot.rule(table.select(vot.masked_images))
    answered = answers != defenses.ALERT
    assert 20 < answered.sum() < 380
    np.testing.assert_array_equal(answers[answered], votes[answered])
    assert (votes != masked)[~answered].any()


def test_no_stride_makes_it_count_one_short():
    """Where the closed form does, an image that it certifies is lost, and not by ours."""
    bands = column_bands((1, 10), (1, 2), band=2, stride=3)  # 0, 3, 6 and 9, which goes on at 0
    defense = defenses.VOT(bands)
    closed = vote_gaps.published_reach(2, 2, stride=3)
    assert (closed, defense.most_reached) == (1, 2)
    said = np.array([[0, 0, 0, 0], [1, 1, 1, 1]])
    table = from_labels(said, defense.masked_images, num_classes=2)
    assert [_program_certifies(row, closed) for row in said] == [True, True]
    # Two of four votes for 1 are a tie, and the largest wins it.
    assert defense.worst_case(table, [0, 1]).tolist() == [False, True]
    assert defense.conditions(table, [0, 1])["published_gap"].tolist() == [False, False]


def test_by_name_with_the_bands_that_papers_take():
    for side, band in ((32, 4), (64, 4), (224, 19)):
        defense = defense_specs.build("vot", (side, side), (5, 5))
        assert isinstance(defense, defenses.VOT)
        wanted = column_bands(side, 5, band=band)
        np.testing.assert_array_equal(defense.masks.boxes, wanted.boxes)
    for typed in ("0", "no", "-3", "1.5"):
        with pytest.raises(ValueError, match=r"bands: .*expected columns such as 4, or usual"):
            defense_specs.build(f"vot:bands={typed}", (32, 32), (5, 5))
    with pytest.raises(ValueError, match="did you mean bands"):
        defense_specs.build("vot:band=4", (32, 32), (5, 5))


def test_over_sizes_it_is_one_classifier():
    """No masks for the largest patch beside it: they would be the same."""
    one = ("vot", "vot:bands=3,ties=smallest", "plurality:bands=2")
    other = ("plurality", "robust_masking:bands=2", "vot:bands=2,built_for=2")
    sizes = [Threat.of(8, side) for side in (1, 2, 3)]
    with_largest = run_defenses.specs_over_sizes([*one, *other], sizes)
    added = ("plurality:built_for=3", "robust_masking:bands=2,built_for=3")
    assert set(with_largest) == {*one, *other, *added}
    assert [defense_specs.is_one_rule(spec) for spec in one] == [True] * 3
    assert [defense_specs.is_one_rule(spec) for spec in other[:2]] == [False] * 2
