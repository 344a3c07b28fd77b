"""``certify`` with defenses on local evidence, alone and beside those that mask images."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re

import pytest

import certmask_jax as cm
from certmask_jax import weights
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import certify, defense_specs, evidence_entries, report
from tests.support.small_models import first_params, small_bagnet

pytestmark = pytest.mark.usefixtures("compiled_once")

MODEL = "tests.support.small_models:small_bagnet"
SPECS = [
    "patchguard", "double_masking:masks_per_axis=2", "smoothed_vit:band=2", "clipped_bagnet:clip=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "small.npz"
    weights.save(file, first_params(small_bagnet()))
    return str(file)


def _certify(weights_file, *options, specs=SPECS, model=MODEL):
    named = [word for spec in specs for word in ("--defense", spec)]
    of_model = ["--dataset", "digits", "--num-images", "20", "--model", model]
    return certify.main([*of_model, "--weights", weights_file, *named, *options])


def _table(printed):
    return [line for line in printed.splitlines() if "recovery  " in line]


def test_a_run_mixes_defenses_and_is_printed_again(weights_file, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert _certify(weights_file, "--patch", "1", "--out", out) == 0
    table = _table(capsys.readouterr().out)
    assert [line.split()[0] for line in table] == [spec.partition(":")[0] for spec in SPECS]
    results = json.loads((tmp_path / "run" / "results.json").read_bytes())
    assert [one["spec"] for one in results["defenses"]] == SPECS
    masked = [one["masked_images"] for one in results["defenses"]]
    assert masked == [0, 10, 8, 0]
    assert results["forward_passes"]["full_table"] == 20 * (1 + 11 + 8)
    rows = list(csv.DictReader((tmp_path / "run" / "per_image.csv").open()))
    assert len(rows) == 20
    assert _certify(weights_file, "--patch", "1", "--out", out) == 0
    assert "nothing computed" in (said := capsys.readouterr().out)
    assert _table(said) == table
    assert report.main([out]) == 0
    assert capsys.readouterr().err == ""
    page = (tmp_path / "run" / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [len(defense["maps"]) for defense in data["defenses"]] == [1] * len(SPECS)
    for image in data["images"]:
        for one in image["d"]:
            assert (set("".join(one.get("s", ["h"]))) == {"h"}) == bool(one["c"])
    assert certify.main(["--from-tables", out]) == 0
    assert _table(capsys.readouterr().out) == table
    assert certify.main(["--from-tables", out, "--defense", "clipped_bagnet:clip=3"]) == 0
    assert len(_table(capsys.readouterr().out)) == 1
    assert certify.main(["--from-tables", out, "--defense", "clipped_bagnet:clip=2"]) == 2
    assert "evidence is not kept, so evaluate with it, and with --keep-" in capsys.readouterr().err


def test_a_run_on_evidence_alone_has_no_table(weights_file, tmp_path, capsys):
    how = {"specs": ["patchguard_pp:tau=0.1"]}
    assert _certify(weights_file, "--patch", "1", "--dry-run", **how) == 0
    planned = capsys.readouterr().out
    assert "forward passes: 20, one an image" in planned
    assert re.search(r"^time: 0 min \d\d s expected, at .* images/s \(measured on", planned, re.M)
    assert _certify(weights_file, "--patch", "1", "--out", str(tmp_path / "run"), **how) == 0
    assert "evidence (" in capsys.readouterr().out
    assert not (tmp_path / "run" / "tables").exists()
    assert certify.main(["--from-tables", str(tmp_path / "run")]) == 0
    assert "windows of 3x3 of 6x6 cells" in capsys.readouterr().out
    options = ["--from-tables", str(tmp_path / "run"), "--defense", "double_masking"]
    assert certify.main(options) == 2
    error = capsys.readouterr().err
    assert "--defense double_masking: expected none that masks images, as" in error
    assert "no table of these, but defenses on evidence alone (patchguard_pp:tau=0.1); " in error


def test_a_run_on_bands_of_any_model(tmp_path, capsys):
    """The shipped model, each band of a digit with its mirror image."""
    specs = ["derandomized_smoothing:band=3,threshold=top", "mask_ds:band=3"]
    named = [word for spec in specs for word in ("--defense", spec)]
    options = ["--num-images", "12", "--patch", "1", "--views", "mirror", *named]
    assert certify.main([*options, "--dry-run"]) == 0
    assert "forward passes: 216, 18 an image for all" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "run")]
    assert certify.main([*options, *out, "--patch", "2"]) == 0
    said = capsys.readouterr().out
    assert "8 bands of 3 columns" in said
    results = json.loads((tmp_path / "run" / "results.json").read_bytes())
    assert results["forward_passes"]["made"] == 12 * 18
    assert results["provenance"]["passes"]["useful"] == 12 * 18
    assert results["defenses"][0]["options"]["threshold"] is None
    assert certify.main([*options, *out, "--patch", "2"]) == 0
    assert "nothing computed" in capsys.readouterr().out
    folder = ["--from-tables", str(tmp_path / "run")]
    assert certify.main([*folder, "--defense", specs[1]]) == 0
    assert len(_table(capsys.readouterr().out)) == 1
    assert certify.main([*folder, "--defense", "patchguard"]) == 2
    assert "but it is on bands alone" in capsys.readouterr().err


def test_kept_evidence_answers_other_defenses_later(weights_file, tmp_path, capsys):
    options, quick = ["--patch", "1", "--keep-evidence"], ["--no-page"]
    how = {"specs": ["patchguard", "smoothed_vit:band=2"]}
    line = "evidence kept: 0.0 MB, 6 x 6 x 10 and 8 x 10 numbers of 4 bytes for each of 20 images"
    assert _certify(weights_file, *options, "--dry-run", **how) == 0
    assert line in capsys.readouterr().out
    out = ["--out", str(tmp_path / "run")]
    assert _certify(weights_file, *options, *out, *quick, **how) == 0
    assert line in capsys.readouterr().err
    kept = [cm.kept_evidence(tmp_path / "run", number).evidence.shape for number in (0, 1)]
    assert kept == [(20, 6, 6, 10), (20, 8, 10)]
    others = ["clipped_bagnet:clip=2", "derandomized_smoothing:band=2,threshold=top"]
    named = [word for spec in others for word in ("--defense", spec)]
    assert certify.main(["--from-tables", *out[1:], *named, "--patch", "2"]) == 0
    table = _table(capsys.readouterr().out)
    again = ["--out", str(tmp_path / "again"), *quick]
    assert _certify(weights_file, "--patch", "2", *again, specs=others) == 0
    assert _table(capsys.readouterr().out) == table
    assert len(table) == 2
    other = ["--defense", "smoothed_vit:band=3"]
    assert certify.main(["--from-tables", *out[1:], *other]) == 2
    assert "evidence is of other cells or bands" in capsys.readouterr().err
    no_evidence = {"specs": ["double_masking:masks_per_axis=2"]}
    assert _certify(weights_file, *options, *out, **no_evidence) == 2
    assert "--keep-evidence: expected a --defense on evidence" in capsys.readouterr().err


ON_EVIDENCE = ["patchguard", "smoothed_vit:band=2", "mask_ds:band=2"]


def _rows(folder, name="per_image.csv"):
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


def _results(folder):
    return json.loads((folder / "results.json").read_bytes())


@pytest.fixture(scope="module")
def sizes(weights_file, tmp_path_factory):
    """Of three sizes, beside masks: the folder, what was printed, and what was said of it."""
    out = tmp_path_factory.mktemp("sizes") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        specs = [ON_EVIDENCE[0], "double_masking:masks_per_axis=2", *ON_EVIDENCE[1:]]
        options = ["--sizes", "1,3", "--out", str(out), "--no-page"]
        assert _certify(weights_file, *options, specs=specs) == 0
    return out, printed.getvalue()


def test_a_curve_over_sizes_is_that_of_separate_runs(sizes, weights_file, tmp_path):
    results, images = _results(sizes[0]), _rows(sizes[0])
    curves = {curve["defense"]: curve for curve in results["certified_size"] if curve["defense"]}
    kinds = [(c["defense"], c["built_for"], c["classifiers"]) for c in results["certified_size"]]
    masks = "double_masking:masks_per_axis=2"
    assert kinds == [
        (ON_EVIDENCE[0], None, "own rule"),
        (masks, None, "own masks"),
        (masks, [3, 3], "built for"),
        (ON_EVIDENCE[1], None, "one rule"),
        (ON_EVIDENCE[2], None, "own rule"),
    ]
    size_of = {spec: {row["id"]: "0x0" for row in images} for spec in ON_EVIDENCE}
    for number, patch in enumerate("13"):
        alone = tmp_path / patch
        how = {"specs": ON_EVIDENCE}
        options = ["--patch", patch, "--out", str(alone), "--no-page"]
        assert _certify(weights_file, *options, **how) == 0
        for spec, expected in zip(ON_EVIDENCE, _results(alone)["defenses"], strict=True):
            mine = results["defenses"][curves[spec]["results"][number]]
            assert mine == expected
            assert curves[spec]["clean_accuracy"][number] == expected["clean_accuracy"]
            assert curves[spec]["worst_case_accuracy"][number] == expected["worst_case_accuracy"]
            for row, other in zip(images, _rows(alone), strict=True):
                for column in ("answer", "worst_case"):
                    here = row[f"{spec} {patch}x{patch} {column}"]
                    assert here == other[f"{spec} {patch}x{patch} {column}"]
                if here == "1":
                    size_of[spec][row["id"]] = f"{patch}x{patch}"
    for spec, wanted in size_of.items():
        assert {row["id"]: row[f"certified_size:{spec}"] for row in images} == wanted
    assert len({*size_of[ON_EVIDENCE[0]].values()}) > 1
    assert curves[ON_EVIDENCE[1]]["not_monotone"] == 0
    points = _rows(sizes[0], "certified_size.csv")
    assert [point["classifiers"] for point in points[::2]] == [kind for *_, kind in kinds]


def test_the_passes_of_all_sizes_are_those_of_one(sizes):
    """Local logits once an image, and each band."""
    results = _results(sizes[0])
    masked = {one["spec"]: one["masked_images"] for one in results["defenses"]}
    assert masked["smoothed_vit:band=2"] == 8
    beside = results["forward_passes"]["full_table"] - 20 * (1 + 8)
    assert beside % 20 == 0
    assert beside / 20 - 1 <= sum(
        one["masked_images"] for one in results["defenses"] if "double" in one["spec"]
    )
    said = " ".join(sizes[1].split())
    assert "one rule: one classifier, which knows no patch" in said
    assert "own rule: it takes away as much as the patch of its row reaches" in said
    assert "a run for each row would take" in said


def test_a_curve_is_printed_again_and_of_some_of_its_defenses(sizes, tmp_path, capsys):
    folder, printed = sizes
    assert certify.main(["--from-tables", str(folder), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.strip() == printed.split("\n\nresults in")[0].strip()
    for name in ("per_image.csv", "certified_size.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    named = ["--defense", "smoothed_vit:band=2", "--out", str(tmp_path / "some")]
    assert certify.main(["--from-tables", str(folder), "--sizes", "3", *named]) == 0
    points = [p for p in _rows(folder, "certified_size.csv") if p["classifiers"] == "one rule"]
    assert _rows(tmp_path / "some", "certified_size.csv") == [points[1]]
    assert report.main([str(folder)]) == 0
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("smoothed_vit:band=9", "band: expected columns from 1 to 7"),
        ("smoothed_vit:band=2,stride=0", "stride: cannot read '0'"),
        ("smoothed_vit:band=2x3", "band: expected one number of pixels"),
        ("smoothed_vit:band=7", "meet all bands of 7 in some place"),
        ("derandomized_smoothing:threshold=0", "threshold: expected a share in (0, 1]"),
        ("derandomized_smoothing:threshold=most", "threshold: cannot read 'most'"),
        ("derandomized_smoothing:bands=4", "did you mean band"),
        ("mask_ds:band=2,axis=both", "one window of neighbours"),
    ],
)
def test_bands_that_cannot_be_are_one_error_before_any_work(tmp_path, capsys, spec, words):
    out = ["--out", str(tmp_path / "run")]
    assert certify.main(["--patch", "2", "--defense", spec, *out]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert f"--defense {spec}: " in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("patchguard:threshold=1", ["--patch", "1"], "threshold: expected"),
        ("patchguard:clop=1", ["--patch", "1"], "did you mean"),
        ("patchguard:masks_per_axis=2", ["--patch", "1"], "which takes no masks"),
        ("clipped_bagnet:clip=none", ["--patch", "1"], "clip: cannot read 'none'"),
        ("bagcert:threshold=inf", ["--patch", "1"], "threshold: expected a number between"),
        ("patchguard", ["--patch", "6"], "reach all of them"),
        ("patchguard", ["--patch", "1", "--patches", "2"], "expected one patch"),
        ("patchguard", ["--patch", "1", "--views", "mirror"], "no --views"),
        (
            "tests.support.unguarded_masking:Unguarded",
            ["--patch", "1", "--margin-guard", "0.1"],
            "expected no margin guard, as the class Unguarded does not say",
        ),
        ("patchguard", ["--sizes", "1,6"], "reach all of them in one place, so nothing"),
    ],
)
def test_what_cannot_be_is_one_error_before_any_work(
    weights_file, tmp_path, capsys, spec, options, words
):
    out = tmp_path / "run"
    assert _certify(weights_file, *options, "--out", str(out), specs=[spec]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "--defense " in error
    assert not out.exists()


def test_a_model_without_local_logits_is_told_what_has_them(capsys):
    assert certify.main(["--patch", "1", "--defense", "patchguard"]) == 2
    assert "BagNet" in capsys.readouterr().err


def test_a_field_that_a_model_claims_is_looked_at(weights_file, tmp_path, capsys):
    model = "tests.support.small_models:bagnet_of_wrong_field"
    options = ["--patch", "1", "--out", str(tmp_path / "run")]
    assert _certify(weights_file, *options, specs=["patchguard"], model=model) == 2
    assert "but it also sees" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_they_are_listed_and_no_defense_that_masks(capsys):
    assert certify.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in evidence_entries.EVIDENCE)
    with pytest.raises(ValueError, match="for certify and attack"):
        defense_specs.build("patchguard", (8, 8), (1, 1))


@pytest.mark.parametrize(
    "name", [name for name, one in evidence_entries.EVIDENCE.items() if not one.is_local]
)
def test_the_default_of_a_key_of_bands_is_its_builders(name):
    threat = Threat.of(32, 5)
    usual = evidence_entries.build(name, threat, None)
    for key in evidence_entries.EVIDENCE[name].keys:
        typed = f"{name}:{key.name}={key.default or 4}"
        assert evidence_entries.build(typed, threat, None) == usual, typed
