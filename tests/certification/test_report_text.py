"""The table of a report as a terminal shows it: whole screens, and what holds at every width."""

from __future__ import annotations

import dataclasses

import hand_made_reports as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certmask_jax.certification import certified_size, report
from certmask_jax.certification.report import labels, layout, notices
from certmask_jax.masks.threats import Threat

AT_80 = """\
8 images, undefended accuracy 100.0 [67.6, 100.0]
against 1x1 patches on 8x8

defense             for  masked  clean                worst case
------------------  ---  ------  -------------------  -----------------
double_masking      rec     136  100.0 [67.6, 100.0]  75.0 [40.9, 92.9]
certmask            rec     136   87.5 [52.9, 97.8]    0.0 [0.0, 32.4]
certmask_detection  det     136   75.0 [40.9, 92.9]   62.5 [30.6, 86.3]

double_masking: 16 masks of 2x2
certmask:tiling=exact,coverage=2x2: 16 masks of 2x2, paper's condition
  k_fold_correct 62.5 [30.6, 86.3]
certmask_detection:tiling=exact,coverage=2x2,tolerance=3: 16 masks of 2x2, false
  alerts on clean images 25.0 [7.1, 59.1]

worst case: % of images on which no attacker can win who puts one patch anywhere
  and chooses every prediction that sees a patch pixel. Only this number is a
  certificate. Brackets: 95% intervals (Wilson).
rec, recovery: always the true label; det, detection: the true label or an alert
paper's condition: what the defense's paper calls certified, where it is not the
  worst case itself
the papers' own two_mask_correct and k_fold_correct hold on the same images as
  the worst case, where not shown
masked: distinct masked images of an image
forward passes: 40.0 an image of 137; the others could not change a verdict
near ties, which another device or batch may break otherwise (a margin guard
  leaves them out): certified images with a logit margin below 0.001, 0.01, 0.1:
  double_masking 0, 1, 2"""

TABLE_AT_120 = """\
defense             guarantee  masked  clean                worst case         paper's condition
------------------  ---------  ------  -------------------  -----------------  --------------------------------
double_masking      recovery      136  100.0 [67.6, 100.0]  75.0 [40.9, 92.9]
certmask            recovery      136   87.5 [52.9, 97.8]    0.0 [0.0, 32.4]   k_fold_correct 62.5 [30.6, 86.3]
certmask_detection  detection     136   75.0 [40.9, 92.9]   62.5 [30.6, 86.3]

double_masking: 16 masks of 2x2
certmask:tiling=exact,coverage=2x2: 16 masks of 2x2
certmask_detection:tiling=exact,coverage=2x2,tolerance=3: 16 masks of 2x2, false alerts on clean
  images 25.0 [7.1, 59.1]"""  # noqa: E501  # a screen

TABLE_AT_50 = """\
   for  clean                worst case
-  ---  -------------------  -----------------
A  rec  100.0 [67.6, 100.0]  75.0 [40.9, 92.9]
B  rec   87.5 [52.9, 97.8]    0.0 [0.0, 32.4]
C  det   75.0 [40.9, 92.9]   62.5 [30.6, 86.3]

A = double_masking: 16 masks of 2x2, 136 masked
  images
B = certmask:tiling=exact,coverage=2x2: 16 masks
  of 2x2, 136 masked images, paper's condition
  k_fold_correct 62.5 [30.6, 86.3]
C = certmask_detection:tiling=exact,coverage=2x2,
  tolerance=3: 16 masks of 2x2, 136 masked images,
  false alerts on clean images 25.0 [7.1, 59.1]"""

TABLE_AT_40 = """\
   for  clean          worst case
-  ---  -------------  ------------
A  rec  100.0          75.0
        [67.6, 100.0]  [40.9, 92.9]
B  rec   87.5           0.0
        [52.9, 97.8]   [0.0, 32.4]
C  det   75.0          62.5
        [40.9, 92.9]   [30.6, 86.3]"""


def _blocks(text, *which):
    return "\n\n".join(np.array(text.split("\n\n"), dtype=object)[list(which)])


def test_a_screen_of_80_columns():
    assert report.as_text(made.usual()) == AT_80
    assert report.as_text(made.usual(), width=80) == AT_80


@pytest.mark.parametrize(
    ("width", "blocks", "expected"),
    [(120, [1, 2], TABLE_AT_120), (50, [1, 2], TABLE_AT_50), (40, [1], TABLE_AT_40)],
)
def test_screens_of_other_widths(width, blocks, expected):
    assert _blocks(report.as_text(made.usual(), width=width), *blocks) == expected


def test_long_names_stand_whole_where_there_is_room():
    lines = report.as_text(made.usual(), width=200).splitlines()
    assert any(line.startswith(f"{made.DETECTION}  detection ") for line in lines)


def test_rows_of_several_patches_carry_them_and_so_does_the_legend():
    sizes = [Threat.of(8, 1), Threat.of(8, (2, 3))]
    hand_made = made.report(
        *(
            made.result(
                "certmask_detection", threat=t, guarantee="detection", alerts=a, near=(0, 0, a)
            )
            for t, a in zip(sizes, (1, 2), strict=True)
        )
    )
    text = report.as_text(hand_made)
    assert "against" not in text.split("\n\n", maxsplit=1)[0]
    rows = _blocks(text, 1).splitlines()
    assert rows[0].split()[:2] == ["defense", "patch"]
    assert [row.split()[1] for row in rows[2:]] == ["1x1", "2x3"]
    legend = " ".join(_blocks(text, 2).split())
    assert "1x1: 16 masks of 2x2, false alerts on clean images 12.5" in legend
    assert "2x3: 16 masks of 2x2, false alerts on clean images 25.0" in legend
    assert "certmask_detection 1x1 0, 0, 1; certmask_detection 2x3 0, 0, 2" in " ".join(
        text.split()
    )


def test_patches_with_long_names_are_keyed_to_the_legend():
    threats = [Threat.of(8, 2, patches=2), Threat.of(8, 1, region=(0, 0, 4, 8))]
    text = report.as_text(made.report(*(made.result(threat=t) for t in threats)))
    assert [row.split()[1] for row in _blocks(text, 1).splitlines()[2:]] == ["P1", "P2"]
    assert "P1 = 2 patches of 2x2 on 8x8" in text
    assert "P2 = 1x1 patches within 0,0,4,8 on 8x8" in text
    assert "who puts the patches of its row where they may be" in " ".join(text.split())


def test_defenses_of_one_name_are_told_apart():
    specs = [f"double_masking:masks_per_axis={n}" for n in (2, 3)]
    text = report.as_text(
        made.report(*(made.result(spec=s) for s in specs), made.result("mrcert")), width=70
    )
    names = [row.split("  ")[0] for row in _blocks(text, 1).splitlines()[2:]]
    assert names == ["double_masking A", "double_masking B", "mrcert"]
    assert f"A = {specs[0]}: 16 masks of 2x2" in text
    assert f"B = {specs[1]}: 16 masks of 2x2" in text


def test_a_condition_is_shown_where_it_differs_on_any_image():
    other = np.roll(made.verdicts(6), 1)  # as many images, but not the same
    one = made.result()
    shown = dataclasses.replace(one, per_image={**one.per_image, "two_mask_correct": other})
    assert "two_mask_correct 75.0" in report.as_text(made.report(shown), width=120)
    text = report.as_text(made.report(one), width=120)
    assert "two_mask_correct 75.0" not in text
    assert "paper's condition" not in text
    assert "the papers' own two_mask_correct holds on the same images as the worst case" in text


def test_several_conditions_of_one_defense_go_to_the_legend_of_a_narrow_screen():
    hand_made = made.report(made.result("mrcert", conditions={"c_r": 5, "round_trip": 2}))
    wide, narrow = (report.as_text(hand_made, width=width) for width in (130, 80))
    both = "c_r 62.5 [30.6, 86.3], round_trip 25.0 [7.1, 59.1]"
    assert both in _blocks(wide, 1)
    assert both in " ".join(_blocks(narrow, 2).split())


def test_a_lower_bound_is_marked_and_explained():
    text = report.as_text(made.report(made.result(exact=False)))
    assert ">=75.0 [40.9, 92.9]" in text
    assert ">=: a proved lower bound of the worst case" in text


def test_images_that_are_left_out_are_named_and_the_others_counted():
    left_out = {f"n/{n}.jpg": "cut short" for n in range(6)} | {"a\x1b[2J\n.png": "gone"}
    text = report.as_text(made.report(made.result(), left_out=left_out))
    assert text.startswith("8 of 15 images, undefended accuracy")
    assert "7 left out, which count nowhere: n/0.jpg (cut short)" in text
    assert "(cut short), ..." in " ".join(text.split())
    few = made.report(made.result(), left_out={"a\x1b[2J\n.png": "gone"})
    assert r"a\x1b[2J\n.png (gone)" in report.as_text(few)
    assert report.to_json(few)["left_out"] == {"a\x1b[2J\n.png": "gone"}


# --- over patch sizes ---


def _over_sizes(*, guarantee="recovery", alerts=None):
    sizes = (1, 2, 3)
    results = [
        made.result(
            "votes",
            spec,
            threat=Threat.of(8, size),
            guarantee=guarantee,
            alerts=alerts,
            clean=8 - size,
            certified=7 - 2 * size,
            mask_set=f"{4 * size} masks of 4x4 for {Threat.of(8, size)}",
        )
        for spec in ("votes", "votes:built_for=3")
        for size in sizes
    ]
    families = [
        certified_size.Family("votes", None, (0, 1, 2)),
        certified_size.Family("votes", (3, 3), (3, 4, 5)),
    ]
    return certified_size.with_curves(made.report(*results), families)


SIZES_AT_80 = """\
votes, recovery
patch  masks      clean              worst case, own    worst case, built
                                     masks              for 3x3
-----  ---------  -----------------  -----------------  -----------------
1x1    4 of 4x4   87.5 [52.9, 97.8]  62.5 [30.6, 86.3]  62.5 [30.6, 86.3]
2x2    8 of 4x4   75.0 [40.9, 92.9]  37.5 [13.7, 69.4]  37.5 [13.7, 69.4]
3x3    12 of 4x4  62.5 [30.6, 86.3]  12.5 [2.2, 47.1]   12.5 [2.2, 47.1]
masked: 136 at every size
built for 3x3: 16 masks, 136 masked images, clean 62.5 [30.6, 86.3] at every
  size"""

SIZES_AT_40 = """\
votes, recovery
patch  clean         worst case,
                     own masks
-----  ------------  ------------
1x1    87.5          62.5
       [52.9, 97.8]  [30.6, 86.3]
2x2    75.0          37.5
       [40.9, 92.9]  [13.7, 69.4]
3x3    62.5          12.5
       [30.6, 86.3]  [2.2, 47.1]
patch  worst case,
       built for
       3x3
-----  ------------
1x1    62.5
       [30.6, 86.3]
2x2    37.5
       [13.7, 69.4]
3x3    12.5
       [2.2, 47.1]
masks: 4 of 4x4 at 1x1, 8 of 4x4 at 2x2,
  12 of 4x4 at 3x3
masked: 136 at every size
built for 3x3: 16 masks, 136 masked
  images, clean 62.5 [30.6, 86.3] at
  every size"""


@pytest.mark.parametrize(("width", "expected"), [(80, SIZES_AT_80), (40, SIZES_AT_40)])
def test_screens_over_patch_sizes(width, expected):
    assert _blocks(report.as_text(_over_sizes(), width=width), 1) == expected


def test_false_alerts_that_do_not_fit_stand_below_with_their_sizes():
    over_sizes = _over_sizes(guarantee="detection", alerts=1)
    assert "false alerts" in _blocks(report.as_text(over_sizes, width=120), 1).splitlines()[1]
    below = " ".join(_blocks(report.as_text(over_sizes, width=70), 1).split())
    assert "false alerts: 12.5 [2.2, 47.1] at every size" in below


# --- widths ---


def test_wide_characters_count_twice_and_marks_nothing():
    assert layout.display_width("abc") == 3
    assert layout.display_width("\u96d9\u906e\u7f69") == 6  # three ideographs
    assert layout.display_width("\uff21") == 2  # a fullwidth letter
    assert layout.display_width("e\u0301") == 1  # an accent of its own
    columns = [layout.Column("x", ("\u96d9", "ab", "e\u0301")), layout.Column("y", ("1", "2", "3"))]
    lines = layout.table(columns)
    assert lines[2:] == ["\u96d9  1", "ab  2", "e\u0301   3"]
    assert layout.wrapped("\u96d9\u906e \u7f69", 5) == ["\u96d9\u906e", "  \u7f69"]


def test_long_words_break_after_punctuation_and_intervals_never():
    assert layout.wrapped("a:bcdef,ghij", 8) == ["a:bcdef,", "  ghij"]
    assert layout.wrapped("x 1.0 [0.5, 2.0] y", 12) == ["x 1.0", "  [0.5, 2.0]", "  y"]
    assert layout.wrapped("", 10) == []
    assert layout.wrapped("onlyword", 3) == ["onlyword"]


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.integers(8, 60))
def test_a_paragraph_keeps_its_text_in_lines_that_fit(text, width):
    lines = layout.wrapped(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    for line in lines:
        assert layout.display_width(line) <= width or len(line.split()) == 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["double_masking", "mrcert", "\u96d9\u906e\u7f69", "x" * 30]),
            WORDS,
            st.sampled_from([1, 2, 3]),
            st.integers(0, 8),
            st.sampled_from(["recovery", "detection"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(40, 200),
)
def test_no_line_is_wider_than_the_screen(rows, width):
    results = [
        made.result(
            name,
            f"{name}:{options}",
            threat=Threat.of(8, size),
            guarantee=guarantee,
            certified=certified,
            conditions={"some_condition": certified, "another": 3},
            exact=exact,
        )
        for name, options, size, certified, guarantee, exact in rows
    ]
    text = report.as_text(made.report(*results), width=width)
    for line in text.split("\n"):
        assert layout.display_width(line) <= width or len(line.split()) == 1, line
    for value in ("clean", "worst case"):
        assert value in text


@given(st.lists(st.sampled_from(["a", "a #2", "b", "a #3"]), max_size=8))
def test_unique_names_are_unique_and_keep_the_first(names):
    unique_names = labels.unique(names)
    assert len(set(unique_names)) == len(unique_names)
    for name in set(names):
        assert unique_names[names.index(name)] == name


@pytest.mark.parametrize(
    ("threat", "expected"),
    [
        (Threat.of(32, 5), "5x5"),
        (Threat.of(32, (5, 9), (9, 5)), "5x9 or 9x5"),
        (Threat.of(32, 5, patches=2), "2 patches of 5x5"),
        (Threat((32, 32), (((5, 5),), ((3, 3),))), "2 patches of 3x3 and of 5x5"),
        (Threat.of(32, 5, region=(0, 0, 8, 8)), "5x5 within 0,0,8,8"),
        (
            Threat.of(32, *((n, 21 - n) for n in range(1, 21))),
            "1x20 to 20x1 (20 shapes)",
        ),
    ],
)
def test_what_patches_are_called(threat, expected):
    assert labels.patch(threat) == expected


@pytest.mark.parametrize(
    ("subset", "says"),
    [
        ({"how": "at random", "of": 1234, "seed": 7}, "drawn at random from 1,234, seed 7"),
        ({"how": "evenly over classes", "of": 50, "seed": None}, "of 50, as many of each class"),
        ({"how": "first", "of": 50, "seed": None}, "the first images of 50"),
    ],
)
def test_it_says_which_images_and_classes_these_are(subset, says):
    facts = {"subset": subset, "only_classes": [3, 5, 8]}
    hand_made = made.usual().with_facts(facts)
    assert hand_made.provenance == facts
    text = " ".join(report.as_text(hand_made, width=100).split())
    assert says in text
    assert "chooses among the 3 classes of the data set only" in text
    assert says not in report.as_text(made.usual(), width=100)


def test_no_fact_but_a_notice_steers_what_is_printed():
    facts = {"subset": {"how": "first", "of": 50, "seed": None}, "fields": 9, "class_names": ["a"]}
    bare, told = made.usual(), dataclasses.replace(made.usual(), provenance=facts)
    assert report.as_text(told) == report.as_text(bare)
    assert report.files.per_image_csv(told) == report.files.per_image_csv(bare)


def test_notices_stand_in_their_order_whatever_order_they_came_in():
    given = (
        notices.LabelFlips(4096, 3, 0.25),
        notices.DroppedTokens((5, 17)),
        notices.Viewed(("itself", "mirror")),
        notices.DistinctFields(81, 2.5),
        notices.PatchedAlready(7),
        notices.InTwoParts("cells", ("5x5 patches on 8x8",), ("1x2 patches on 1x4",)),
        notices.OnlyClasses(10),
        notices.MissingImages(("c\x1b.png",)),
        notices.Subset("first", 50),
    )
    hand_made = dataclasses.replace(
        made.usual(),
        notices=given,
        left_out={"a": "gone"},
        margin_guard=0.5,
        non_finite_images=("b",),
    )
    text = " ".join(report.as_text(hand_made, width=1000).split())
    places = [
        text.index(words)
        for words in (
            "1 left out, which count nowhere: a (gone)",
            "the first images of 50",
            r"1 more in the list of labels, not in the folder, counted nowhere: c\x1b.",
            "the model chooses among the 10 classes",
            "two parts: cells; masks, and what they are against, are in cells of the map between "
            "them (5x5 patches on 8x8 reach windows of 1x2 on 1x4 cells)",
            "the images are patched already",
            "forward passes: 40.0 an image of 137",
            "means over 2 views of each masked image, which is 2 forward passes: itself, mirror",
            "hidden tokens: left out of the model's sequence and not filled",
            "from 81 distinct fields, as many as 2.5 whole images have",
            "precision: 3 of 4,096 masked images have another label in float32",
            "margin guard: no image is certified with a logit margin of 0.5 or less",
            "WARNING: NaN or infinite logits on 1 image, never certified: b",
        )
    ]
    assert places == sorted(places)
    assert len(report.notes.notices_of(hand_made)) == len(notices.IN_ORDER)


def test_what_is_stored_is_read_back_as_notices():
    """Under the names that tables and results.json have had from the beginning."""
    assert notices.recorded({"command": "x", "missing_images": []}) == ()
    flips = {"compared": 12, "flips": 0, "largest_margin": 0.0}
    stored = {
        "label_flips_against_float32": flips,
        "subset": {"how": "at random", "of": 9, "seed": 0},
        "missing_images": ["m"],
        "only_classes": [1, 2],
        "patched_with_noise_of_seed": 0,
        "fields": 4,
        "fields_as_whole_images": 0.5,
        "kept_tokens": [5, 17],
    }
    assert set(notices.recorded(stored)) == {
        notices.LabelFlips(**flips),
        notices.Subset("at random", 9, 0),
        notices.MissingImages(("m",)),
        notices.OnlyClasses(2),
        notices.PatchedAlready(0),
        notices.DistinctFields(4, 0.5),
        notices.DroppedTokens((5, 17)),
    }
    written = report.to_json(made.usual().with_facts(stored))
    assert written["provenance"] == stored
    twice = made.usual().with_facts(stored).with_facts({"only_classes": [1, 2, 3]})
    assert notices.OnlyClasses(3) in twice.notices
    assert len(twice.notices) == 7
    assert not {"notices", "class_names"} & {*written}
