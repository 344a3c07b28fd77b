"""The command line: shapes, areas, several patches and regions; what a run says about them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from certmask_jax.masks import distinct_unions
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import certify, defense_specs, merge, run_defenses, threat_options
from certmask_jax.programs.certification_options import parser
from certmask_jax.programs.threat_entries import THREATS
from certmask_jax.programs.threat_options import ThreatOptions

pytestmark = pytest.mark.usefixtures("compiled_once")

SMALL = ["--num-images", "12", "--defense", "double_masking:masks_per_axis=2"]


def _threats(*words, size=(8, 8)):
    return threat_options.threats(threat_options.read(parser().parse_args(words)), size)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", [Threat.of(8, 1)]),
        ("--patch 2x3 --patch 3x2", [Threat.of(8, (2, 3), (3, 2))]),
        ("--patch 1,2,3", [Threat.of(8, 1), Threat.of(8, 2), Threat.of(8, 3)]),
        (
            "--patch 1x2,1x3 --patch 2x1,3x1",
            [Threat.of(8, (1, 2), (2, 1)), Threat.of(8, (1, 3), (3, 1))],
        ),
        ("--patch 2 --patches 2", [Threat.of(8, 2, patches=2)]),
        ("--patch 2 --patch-region 1,2,5,8", [Threat.of(8, 2, region=(1, 2, 5, 8))]),
        ("--patch-area 1", [Threat.of(8, 1)]),
        ("--patch-area 1,1.9%", [Threat.of(8, 1), Threat.of(8, 1)]),
        ("--patch-area 2", [Threat.of(8, (1, 2), (2, 1))]),
        # The rectangles of an area are those that fit the region.
        ("--patch-area 8 --patch-region 0,0,1,8", [Threat.of(8, (1, 8), region=(0, 0, 1, 8))]),
    ],
)
def test_what_the_options_mean(words, expected):
    assert _threats(*words.split()) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--patch 2 --patch-area 1%", "expected it or --patch, got both"),
        ("--patches 0", "--patches: expected at least 1, got 0"),
        ("--patch 1,2 --patch 3", "as many sizes with commas each time .* got 1,2 and 3"),
        ("--patch-area 0", "--patch-area: expected 1 to 64 pixels, .* got '0'"),
        ("--patch-area 65", "expected 1 to 64 pixels"),
        ("--patch-area nan%", "expected 1 to 64 pixels"),
        ("--patch-area big%", "--patch-area: expected a percent"),
        ("--patch-area 3x3", "expected 1 to 64 pixels"),
        ("--patch-region 1,2,3", "expected TOP,LEFT,BOTTOM,RIGHT in pixels, got '1,2,3'"),
        ("--patch-region 0,0,9,8", "region: expected top, left, bottom, right .* got .0, 0, 9, 8."),
        ("--patch 3 --patch-region 0,0,2,8", "no 3x3 patch lies inside"),
        ("--patch-area 3 --patch-region 0,0,0,8", "region: expected top, left"),
        ("--patch 9 --patches 2", "fits the image of 8x8"),
    ],
)
def test_bad_options_are_one_clear_error(words, message):
    with pytest.raises(ValueError, match=message):
        _threats(*words.split())


@pytest.mark.parametrize(
    "options",
    [
        ThreatOptions(("1", "2x3"), None, 1, None),
        ThreatOptions(("1",), None, 2, "0,0,4,4"),
        ThreatOptions((), "1%", 1, None),
    ],
)
def test_a_run_remembers_its_threat(options):
    assert threat_options.recorded(json.loads(json.dumps(options.about()))) == options
    assert ThreatOptions().about() == {"patch": ["1%"]}
    assert threat_options.recorded({}) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("double_masking", "choices of one mask from each set, but 43744 x 43744 are 1.9e+09"),
        ("challenger_masking", "choices of one mask from each set, but 43744 x 43744"),
        ("crosscert", "choices of one mask from each set, but 43744 x 43744"),
        ("plurality", "masked images, got 2,016 x 64 x 43,744 = 5.6e+09"),
        ("minority_reports", "masked images, got 2,016 x 64 x 43,744"),
    ],
)
def test_what_would_not_finish_is_refused_before_unions_are_made(monkeypatch, capsys, name, said):
    monkeypatch.setattr(distinct_unions, "_united", lambda *_, **__: pytest.fail("made"))
    words = ["--dataset", "digits", "--patch", "1", "--patches", "3"]
    assert certify.main([*words, "--defense", f"{name}:masks_per_axis=8"]) == 2
    assert said in capsys.readouterr().err


def test_runs_of_stronger_threats(tmp_path, capsys):
    """One shape of two, two patches and a region, printed, written, and printed again."""
    cases = {
        "shapes": (["--patch", "1x3", "--patch", "3x1"], "1x3 or 3x1 patches on 8x8", 36),
        "two": (["--patches", "2"], "2 patches of 1x1", 15),
        "region": (["--patch-region", "2,2,6,6"], "1x1 patches within 2,2", 10),
    }  # fmt: skip
    for name, (words, line, images) in cases.items():
        out = tmp_path / name
        assert certify.main([*SMALL, *words, "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        assert line in printed
        assert ("one patch anywhere" in printed) == (name == "shapes")
        result = json.loads((out / "results.json").read_text())
        (defense,) = result["defenses"]
        assert defense["masked_images"] == images
        assert line in defense["mask_set"]
        assert defense["worst_case_accuracy"] == defense["certified_accuracy"]
        assert certify.main(["--from-tables", str(out)]) == 0
        table = printed.split("worst case:")[0].strip()
        assert capsys.readouterr().out.split("worst case:")[0].strip() == table
        assert certify.main([*SMALL, *words, "--out", str(out)]) == 0  # complete already
        assert certify.main([*SMALL, "--patch", "2", "--out", str(out)]) == 2
        assert "patch" in capsys.readouterr().err
    region = json.loads((tmp_path / "region" / "results.json").read_text())
    assert region["defenses"][0]["threat"]["region"] == [[2, 2, 6, 6]]
    assert region["provenance"]["threats"] == ["1x1 patches within 2,2,6,6 on 8x8"]


@pytest.mark.parametrize(
    "name", ["double_masking", "challenger_masking", "minority_reports", "certmask:mask_size=4",
             "certmask_detection:mask_size=4"],
)  # fmt: skip
def test_masks_built_for_a_larger_patch(name):
    placed = Threat.of(8, 2, region=(0, 0, 4, 8))
    own = defense_specs.build(name, (8, 8), Threat.of(8, 3))
    key = "," if ":" in name else ":"
    defense = defense_specs.build(f"{name}{key}built_for=3", (8, 8), placed)
    assert defense.threat == placed
    assert defense.mask_set.threat == own.mask_set.threat
    assert (defense.mask_set.boxes == own.mask_set.boxes).all()
    assert f"for 3x3 patches on 8x8, against {placed}" in str(defense)
    with pytest.raises(ValueError, match=r"4x4 patch at row .* is hidden by"):
        defense_specs.build(f"{name}{key}built_for=1", (8, 8), Threat.of(8, 4))
    with pytest.raises(ValueError, match="built_for: cannot read 'big'"):
        defense_specs.build(f"{name}{key}built_for=big", (8, 8), placed)


def test_shares_of_a_stronger_threat_are_merged(tmp_path, capsys):
    words = [*SMALL, "--patches", "2"]
    assert certify.main([*words, "--out", str(tmp_path / "whole")]) == 0
    for share in ("0/2", "1/2"):
        assert certify.main([*words, "--shard", share, "--out", str(tmp_path / "parts")]) == 0
    assert merge.main([str(tmp_path / "parts")]) == 0
    whole, parts = (
        json.loads((tmp_path / name / "results.json").read_text())["defenses"]
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert "2 patches of 1x1" in capsys.readouterr().out


def test_patches_of_different_sizes_at_once():
    (threat,) = threat_options.threats(ThreatOptions(patch=("2+1x3",)), (8, 8))
    assert threat == Threat((8, 8), (((2, 2),), ((1, 3),)))
    several = threat_options.threats(
        ThreatOptions(patch=("2+1,3+2",), patch_region="0,0,8,6"), (8, 8)
    )
    assert several == [
        Threat((8, 8), (((a, a),), ((b, b),)), ((0, 0, 8, 6),)) for a, b in ((2, 1), (3, 2))
    ]
    assert len(several[0]) == 2
    for options in ({"patch": ("2+1",), "patches": 2}, {"patch": ("2+1", "1x3")}):
        with pytest.raises(ValueError, match="without other shapes or --patches"):
            threat_options.threats(ThreatOptions(**options), (8, 8))
    with pytest.raises(ValueError, match="fits the image"):
        threat_options.threats(ThreatOptions(patch=("2+9",)), (8, 8))


def test_masks_that_hide_all_of_an_image_are_said():
    """Two patches may overlap, so their masks are unions: four quarters together, or two alone."""
    specs = ("double_masking:masks_per_axis=2", "minority_reports:masks_per_axis=2")
    attacks = [Threat.of(4, 1), Threat.of(4, 1, patches=2), Threat.of(4, 4)]
    one, two, large = (run_defenses.build_defenses(specs, [attack]) for attack in attacks)
    assert not run_defenses.without_a_view(one)
    (line,) = run_defenses.without_a_view(two)
    assert line.startswith("double_masking: masks against 2 patches of 1x1 on 4x4 hide all of an")
    lines = run_defenses.without_a_view([*one, *two, *large])
    assert lines[0] == line
    assert lines[1].startswith("double_masking, minority_reports: masks against 4x4 patches")


@pytest.mark.parametrize("typed", [typed for entry in THREATS for typed in entry.examples])
def test_what_is_listed_can_be_typed(typed):
    arguments = parser().parse_args(typed.split())
    attacks = threat_options.threats(threat_options.read(arguments), (64, 64))
    usual = threat_options.threats(threat_options.read(parser().parse_args([])), (64, 64))
    assert attacks
    assert attacks != usual


def test_every_option_of_a_threat_is_of_the_table():
    options = parser().parse_args([])
    names = [entry.name.replace("-", "_") for entry in THREATS]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(ThreatOptions))
    assert all(hasattr(options, name) for name in names)
