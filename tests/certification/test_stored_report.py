"""Reports read back from their files, their schema, and two of them compared image by image."""

from __future__ import annotations

import copy
import dataclasses
import json

import hand_made_reports
import jsonschema
import numpy as np
import pytest

from certmask_jax.certification import certified_size, report
from certmask_jax.certification.report.paired import compared, matches
from certmask_jax.masks.threats import Threat


def _over_sizes():
    sizes = [Threat.of(8, side) for side in (1, 2)]
    results = [
        hand_made_reports.result(threat=threat, certified=certified)
        for threat, certified in zip(sizes, (6, 3), strict=True)
    ]
    family = certified_size.Family("double_masking", None, (0, 1))
    return certified_size.with_curves(hand_made_reports.report(*results), [family])


REPORTS = {"usual": hand_made_reports.usual, "over sizes": _over_sizes}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_that_is_read_back_is_the_one_that_was_written(tmp_path, name):
    written = REPORTS[name]()
    report.write(written, tmp_path)
    there = report.read(tmp_path)
    assert report.to_json(there) == report.to_json(written)
    assert tuple(there.ids) == tuple(written.ids)
    for key, values in written.per_image.items():
        np.testing.assert_array_equal(there.per_image[key], values, err_msg=key)
    for one, other in zip(there.defenses, written.defenses, strict=True):
        assert one.threat == other.threat
        for key, values in other.per_image.items():
            np.testing.assert_array_equal(one.per_image[key], values, err_msg=key)
    assert report.as_text(there) == report.as_text(written)
    assert report.as_latex(there) == report.as_latex(written)


def test_without_rows_of_images_the_numbers_are_there(tmp_path):
    report.write(hand_made_reports.usual(), tmp_path)
    (tmp_path / "per_image.csv").unlink()
    there = report.read(tmp_path)
    assert not there.ids
    assert [d.worst_case_accuracy for d in there.defenses] == [0.75, 0.0, 0.625]


@pytest.mark.parametrize("name", REPORTS)
def test_results_satisfy_their_schema(name):
    schema = report.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    content = json.loads(json.dumps(report.to_json(REPORTS[name]())))
    check.validate(content)
    for path, value in (
        (("num_images",), 0),
        (("defenses", 0, "clean_accuracy"), 1.5),
        (("defenses", 0, "guarantee"), "hope"),
        (("defenses", 0, "threat", "image_size"), [8]),
        (("surplus",), 1),
    ):
        broken = copy.deepcopy(content)
        *inner, last = path
        place = broken
        for key in inner:
            place = place[key]
        place[last] = value
        assert not check.is_valid(broken), path


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("defenses", 0, "worst_case_accuracy"),
            "x",
            "[0].worst_case_accuracy: expected number",
        ),
        (("defenses", 0, "masks"), True, "defenses[0].masks: expected integer, got True"),
        (("defenses", 0, "clean_accuracy"), float("nan"), "expected at least 0, got nan"),
        (("defenses", 0, "false_alert_rate"), 1.5, "false_alert_rate: expected at most 1, got 1.5"),
        (("defenses", 0, "near_ties", "0.1"), None, "near_ties['0.1']: expected integer, got None"),
        (("defenses", 0, "threat", "image_size"), [8], "expected at least 2 in the list, got [8]"),
        (("defenses", 1, "guarantee"), "hope", "expected recovery or detection, got 'hope'"),
        (("defenses",), [], "defenses: expected at least 1 in the list, got []"),
        (("num_images",), -3, "num_images: expected at least 1, got -3"),
        (("provenance", "versions"), 3, "provenance.versions: expected object, got 3"),
    ],
)
def test_results_of_another_kind_are_damaged_and_the_place_is_named(tmp_path, path, value, said):
    report.write(hand_made_reports.usual(), tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    *inner, last = path
    place = content
    for key in inner:
        place = place[key]
    place[last] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"results\.json: expected the results of a run") as caught:
        report.read(tmp_path)
    assert said in str(caught.value)


def test_every_field_of_a_result_is_in_the_schema():
    described = report.schema()
    for record, properties in (
        (report.DefenseResult, described["$defs"]["defense"]["properties"]),
        (report.SizeCurve, described["$defs"]["curve"]["properties"]),
    ):
        names = {field.name for field in dataclasses.fields(record)} - {"per_image"}
        assert set(properties) == names


def test_paired_differences_are_those_of_the_literature():
    """Bone-marrow transplants (Bentur et al., 2009): 1, 1, 7 and 12 of 21 children.

    Newcombe's interval and McNemar's exact p as Fagerland, Lydersen and Laake (2014) print them.
    """
    before = np.array([1] * 1 + [1] * 1 + [0] * 7 + [0] * 12, bool)
    after = np.array([1] * 1 + [0] * 1 + [1] * 7 + [0] * 12, bool)
    comparison = compared(before, after)
    assert (len(comparison.lost), len(comparison.gained)) == (1, 7)
    assert comparison.difference == pytest.approx(6 / 21)
    assert comparison.interval == pytest.approx((0.026, 0.507), abs=5e-4)
    assert comparison.p_value == pytest.approx(0.0703, abs=5e-5)
    turned = compared(after, before)
    assert turned.interval == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_equal_runs_differ_nowhere():
    same = np.array([True, False, True])
    comparison = compared(same, same)
    assert (comparison.difference, comparison.p_value, len(comparison.gained)) == (0.0, 1.0, 0)
    assert comparison.interval[0] <= 0 <= comparison.interval[1]
    with pytest.raises(ValueError, match="expected two verdicts on the same images"):
        compared(same, same[:2])


def test_runs_are_matched_by_what_was_typed_and_their_images():
    first = hand_made_reports.usual()
    better = hand_made_reports.report(hand_made_reports.result(certified=8, clean=7))
    (match,) = matches(first, better)
    assert match.certified.gained.tolist() == [6, 7]
    assert match.clean.lost.tolist() == [7]
    others = hand_made_reports.report(hand_made_reports.result(), ids=[f"x{i}" for i in range(8)])
    with pytest.raises(ValueError, match=r"same images, got .* 8 and one of 8, of which 0 are"):
        matches(first, others)
    with pytest.raises(ValueError, match="a defense in common, against the same patch, got double"):
        matches(better, hand_made_reports.report(hand_made_reports.result("plurality")))
