"""Certified size: brute force says the same, one classifier's is monotone, and a run resumes."""

from __future__ import annotations

import csv
import itertools
import json
import sys

import jax.numpy as jnp
import numpy as np
import oracle
import oracle_certified_size as brute
import pytest
from covers import random_cover, with_random_promise
from defense_cases import CASES
from small_runs import blocks_of, compile_once

from certmask_jax import data, defenses, mask_sets
from certmask_jax.certification import certified_size, evaluation, verdicts
from certmask_jax.certification.block_sizes import BlockSizes
from certmask_jax.data import Batch
from certmask_jax.defenses import ALERT, Guarantee, adversary
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks import distinct_unions
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import certify, defense_specs, merge, run_defenses
from certmask_jax.programs.threat_options import ThreatOptions, read_sizes, threats
from certmask_jax.tables import saved_table
from certmask_jax.tables.prediction_table import from_labels

WIDTH, CLASSES = 11, 3
BIAS = np.array([0.1, 0.0, -0.1], np.float32)  # so that nothing is a tie where all is masked


class SmallTestSet:
    """Images of one row of pixels, and a linear model of them."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.labels = rng.integers(0, CLASSES, count).astype(np.int32)
        self.weights = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
        bright = 40 * self.weights[:, self.labels].T + rng.normal(scale=60, size=(count, WIDTH))
        self.images = np.clip(100 + bright, 0, 255).astype(np.uint8)[:, None, :, None]

    def __len__(self):
        return len(self.images)

    def read(self, start, stop):
        ids = tuple(map(str, range(start, stop)))
        return Batch(self.images[start:stop], self.labels[start:stop], ids)

    def classify(self, image):
        return int((image.ravel() / 255 @ self.weights.astype(np.float64) + BIAS).argmax())


def _linear(params, x):
    return jnp.dot(x.reshape(len(x), -1), params, precision="highest") + BIAS[None]


SPECS = ("double_masking:masks_per_axis=1x3", "certmask_detection:tiling=tight,mask_size=1x6")
SIZES = ("1x1", "1x2", "1x3", "1x4", "1x5")


def _report(folder, test_set, *, decide):
    attacks = threats(ThreatOptions(sizes=SIZES), (1, WIDTH))
    specs = run_defenses.specs_over_sizes(SPECS, attacks)
    chosen = run_defenses.build_defenses(specs, attacks)
    saved = evaluation.evaluate(
        test_set, _linear, test_set.weights, chosen, folder,
        preprocessing=Preprocessing(), decide=decide, chunk=64,
    )  # fmt: skip
    return run_defenses.over_sizes(verdicts.certify(saved, chosen), specs)


@pytest.mark.parametrize("decide", [True, False])
def test_a_linear_model_has_the_certified_sizes_of_brute_force(tmp_path, decide):
    test_set = SmallTestSet(40)
    report = _report(tmp_path / "tables", test_set, decide=decide)
    if decide:
        assert report.forward_passes["made"] < report.forward_passes["full_table"]
    curves = report.certified_size
    assert [(curve.defense, curve.built_for) for curve in curves] == [
        (spec, built_for) for spec in SPECS for built_for in (None, (1, 5))
    ]
    differ = 0
    for curve in curves:
        survives = (
            brute.detection_survives
            if curve.guarantee == "detection"
            else brute.double_masking_survives
        )
        answers = np.empty((len(SIZES), len(test_set)), int)
        certified = np.empty((len(SIZES), len(test_set)), bool)
        for s, size in enumerate(curve.sizes):
            built_for = curve.built_for or size
            if curve.guarantee == "detection":  # 6 px hide 7 - p locations in a row
                starts = {
                    min(at, WIDTH - 6)
                    for at in range(0, WIDTH + 1 - built_for[1], 7 - built_for[1])
                }
                boxes = [(0, start, 1, start + 6) for start in sorted(starts)]
            else:
                boxes = oracle.patchcleanser_boxes((1, WIDTH), built_for, 3)
            for t, image in enumerate(test_set.images[..., 0]):
                answers[s, t], certified[s, t] = survives(
                    image, test_set.labels[t], boxes, size, test_set.classify, CLASSES
                )
        np.testing.assert_array_equal(
            certified,
            [report.defenses[number].per_image["worst_case"] for number in curve.results],
        )
        np.testing.assert_allclose(curve.worst_case_accuracy, certified.mean(axis=1))
        np.testing.assert_allclose(curve.clean_accuracy, (answers == test_set.labels).mean(axis=1))
        label = curve.defense + (" built for 1x5" if curve.built_for else "")
        sizes = report.per_image[f"certified_size:{label}"]
        expected = [brute.largest(column) for column in certified.T]
        assert sizes.tolist() == [("0x0", *SIZES)[number] for number in expected]
        assert len(set(expected)) > 1
        if curve.built_for:
            assert curve.not_monotone == 0
            shares = [np.mean(np.array(expected) > s) for s in range(len(SIZES))]
            np.testing.assert_allclose(curve.worst_case_accuracy, shares)  # the distribution
        else:
            differ += curve.not_monotone
    assert differ > 0  # with own masks an image may fail at a smaller size


# --- one classifier: what holds against a patch holds against every smaller one ---

NAMES = [
    "double_masking", "challenger_masking", "certmask", "certmask_detection tolerant",
    "minority_reports",
]  # fmt: skip


def _all_tables(defense, classes):
    return np.array(list(itertools.product(range(classes), repeat=len(defense.masked_images))))


def _hidden(defense):
    masks = defense.mask_set
    patch = defense.threat.shapes[0]
    covered = oracle.hides(defense.masked_images.boxes, masks.image_size, patch)
    return covered.reshape(len(covered), -1)


def _by_definition(defense, tables, classes, label=0):
    detects = defense.guarantee == Guarantee.DETECTION
    answers = defense.rule(from_labels(tables, defense.masked_images, num_classes=classes))
    allowed = [label, ALERT] if detects else [label]
    return brute.robust_on_every_table(answers, tables, _hidden(defense), label, allowed)


@pytest.mark.parametrize("name", NAMES)
def test_one_classifier_is_monotone_on_every_table(name):
    """All tables of small covers: exact at every size, and never less at a smaller one."""
    rng = np.random.default_rng(sum(map(ord, name)))
    sharper = 0
    # Four masks of 4 pixels that follow on each other: smaller patches are hidden by several.
    covers = [(mask_sets.budgeted_grid((1, 7), (1, 4), mask_stride=1), 2)]
    covers += [(random_cover(rng, 2, 6, 4), 3), (random_cover(rng, 3, 6, 4), 3)]
    for masks, classes in covers:
        largest = CASES[name].build(with_random_promise(rng, masks))
        tables = _all_tables(largest, classes)
        table = from_labels(tables, largest.masked_images, num_classes=classes)
        labels = np.zeros(len(tables), int)
        before = None
        for patch in (4, 3, 2, 1):
            threat = Threat.of(masks.image_size, (1, patch))
            defense = CASES[name].build(largest.mask_set, against=threat)
            np.testing.assert_array_equal(defense.rule(table), largest.rule(table))
            holds = defense.worst_case(table, labels)
            exact = _by_definition(defense, tables, classes)
            if defense.exact:
                np.testing.assert_array_equal(holds, exact)
            assert not (holds & ~exact).any()
            if before is not None:
                assert not (before & ~holds).any()
                sharper += (holds & ~before).sum()
            before = holds
    if name in ("double_masking", "challenger_masking"):  # one round here: all right, or lost
        assert sharper > 0


def _own_masks(rng):
    """Double masking for patches of 1 and of 2 pixels, and the masked images of both."""
    pair = [defenses.double_masking(random_cover(rng, 2, 4, patch)) for patch in (1, 2)]
    columns, places = distinct_unions.merge([defense.masked_images for defense in pair])
    return pair, columns, places


def test_with_own_masks_a_larger_size_implies_no_smaller_one_and_picking_one_is_unsound():
    """Soundness, 3.4: taking whichever defense certifies what it sees is beaten by the attacker."""
    rng = np.random.default_rng(2)
    not_monotone = beaten = 0
    for _ in range(6):
        pair, columns, places = _own_masks(rng)
        tables = np.array(list(itertools.product((0, 1), repeat=len(columns))))
        table = from_labels(tables, columns, num_classes=2)
        answers = [defense.rule(table) for defense in pair]
        own = [defense.worst_case(table, np.zeros(len(tables), int)) for defense in pair]
        not_monotone += (own[1] & ~own[0]).sum()
        # Label-free: a defense certifies what it sees if it would for its own answer.
        vouches = [
            defense.worst_case(table, answer) for defense, answer in zip(pair, answers, strict=True)
        ]
        picked = np.where(vouches[1], answers[1], answers[0])  # the largest size that is certified
        hidden = oracle.hides(columns.boxes, (1, 4), (1, 1)).reshape(len(columns), -1)
        robust = brute.robust_on_every_table(picked, tables, hidden, 0, [0])
        claimed = own[0] | own[1]  # "certified at some size, so at 1 px"
        lost = np.flatnonzero(claimed & ~robust)
        beaten += len(lost)
        if len(lost) and beaten == len(lost):  # the package's own adversary agrees

            def rule(row, num_classes, pair=pair, places=places):
                of_pair = []
                for defense, place in zip(pair, places, strict=True):
                    own_row = row._replace(
                        predictions=row.predictions[place], confidences=row.confidences[place]
                    )
                    answer = defense.row_rule(own_row, num_classes)
                    vouched = defense.row_worst_case(own_row, answer, num_classes)
                    of_pair.append((answer, vouched))
                return jnp.where(of_pair[1][1], of_pair[1][0], of_pair[0][0])

            assert not adversary.worst_case(rule, tables[lost[0]], hidden.T, 0, num_classes=2)
        # Each classifier by itself is what its curve says.
        for defense, place, proved in zip(pair, places, own, strict=True):
            np.testing.assert_array_equal(proved, _by_definition_at(defense, place, tables))
    assert not_monotone > 0
    assert beaten > 0


def _by_definition_at(defense, place, tables):
    answers = defense.rule(from_labels(tables[:, place], defense.masked_images, num_classes=2))
    every = _all_tables(defense, 2)
    robust = _by_definition(defense, every, 2)
    of_table = {tuple(row): value for row, value in zip(every.tolist(), robust, strict=True)}
    holds = np.array([of_table[tuple(row)] for row in tables[:, place].tolist()])
    assert not (holds & (answers != 0)).any()
    return holds


def test_the_share_of_images_with_a_size_is_no_classifiers_accuracy():
    """Two images, each certified by one of two defenses: half of them, for either classifier."""
    certified = np.array([[True, False], [False, True]])
    assert certified_size.largest(certified).tolist() == [1, 2]
    assert (certified_size.largest(certified) >= 1).mean() == 1.0
    assert certified.mean(axis=1).tolist() == [0.5, 0.5]


def test_largest_by_hand():
    certified = np.array([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    assert certified_size.largest(certified).tolist() == [3, 1, 2, 0, 2]
    assert certified_size.largest(np.zeros((0, 2), bool)).tolist() == [0, 0]


# --- the program ---

DEFENSES = ["--defense", "double_masking:masks_per_axis=2", "--defense", "certmask:tiling=tight"]
SMALL = ["--num-images", "12", *DEFENSES]


def _rows(out, name="per_image.csv"):
    with (out / name).open() as file:
        return list(csv.DictReader(file))


def _results(out):
    return json.loads((out / "results.json").read_text())


def test_the_curve_is_that_of_separate_runs(tmp_path, capsys, monkeypatch):
    compile_once(monkeypatch)
    out = tmp_path / "sizes"
    assert certify.main([*SMALL, "--sizes", "1-3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "certified_size.csv, certified_size.png, tables" in printed
    assert "built for 3x3" in printed
    results, images, points = _results(out), _rows(out), _rows(out, "certified_size.csv")
    curves = results["certified_size"]
    assert [(c["defense"], c["built_for"]) for c in curves] == [
        ("double_masking:masks_per_axis=2", None),
        ("double_masking:masks_per_axis=2", [3, 3]),
        ("certmask:tiling=tight", None),
        ("certmask:tiling=tight", [3, 3]),
    ]
    assert results["provenance"]["sizes"] == ["1", "2", "3"]
    specs = ["double_masking:masks_per_axis=2", "double_masking:masks_per_axis=2,built_for=3"]
    specs += ["certmask:tiling=tight", "certmask:tiling=tight,built_for=3"]
    for patch in ("1", "2", "3"):
        given = [option for spec in specs for option in ("--defense", spec)]
        alone = ["--num-images", "12", "--patch", patch, "--out", str(tmp_path / patch)]
        assert certify.main([*given, *alone]) == 0
    point = iter(points)
    for number, curve in enumerate(curves):
        size_of = {row["id"]: "0x0" for row in images}
        for s, patch in enumerate(("1", "2", "3")):
            expected = _results(tmp_path / patch)["defenses"][number]
            row = next(point)
            assert (row["defense"], row["patch"]) == (curve["defense"], f"{patch}x{patch}")
            assert row["built_for"] == ("" if curve["built_for"] is None else "3x3")
            for name in ("clean_accuracy", "worst_case_accuracy"):
                assert curve[name][s] == expected[name]
                assert curve["intervals"][name][s] == expected["intervals"][name]
                assert float(row[name]) == pytest.approx(expected[name], abs=1e-5)
                low = expected["intervals"][name][0]
                assert float(row[f"{name}_low"]) == pytest.approx(low, abs=1e-5)
            ours = f"{specs[number]} {patch}x{patch}"
            for mine, alone in zip(images, _rows(tmp_path / patch), strict=True):
                for column in ("answer", "worst_case", "certificate"):
                    assert mine[f"{ours} {column}"] == alone[f"{ours} {column}"]
                if alone[f"{ours} worst_case"] == "1":
                    size_of[mine["id"]] = f"{patch}x{patch}"
        label = curve["defense"] + ("" if curve["built_for"] is None else " built for 3x3")
        for row in images:
            assert row[f"certified_size:{label}"] == size_of[row["id"]]
    assert next(point, None) is None
    assert (out / "certified_size.png").read_bytes()[:4] == b"\x89PNG"


def test_the_classifier_of_all_sizes_takes_no_masked_images_of_its_own(tmp_path):
    attacks = threats(ThreatOptions(sizes=("1", "4")), (16, 16))
    specs = run_defenses.specs_over_sizes(["double_masking"], attacks)
    assert specs == ("double_masking", "double_masking:built_for=4")
    own = [defense_specs.build(specs[0], (16, 16), (p, p)) for p in (1, 4)]
    both = run_defenses.build_defenses(specs, attacks)
    assert len(evaluation.merged(both)[0]) == len(evaluation.merged(own)[0])


def _bytes(out):
    results = _results(out)
    for name in ("started", "seconds", "command", "masked_images_settled", "passes"):
        del results["provenance"][name]
    files = ("per_image.csv", "certified_size.csv", "certified_size.png")
    return results, *((out / name).read_bytes() for name in files)


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, capsys, monkeypatch):
    compile_once(monkeypatch)
    blocks_of(monkeypatch, BlockSizes(chunks=30, least_blocks=1, moment=0, stretch=0))
    command = [*SMALL, "--sizes", "1,3", "--chunk", "8"]
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    assert certify.main([*command, "--out", str(alone)]) == 0
    printed = capsys.readouterr().out.split("\n\nresults in")[0]
    real = data.Dataset.read

    def interrupted(dataset, start, stop):
        if start > 0:  # after the first block
            raise KeyboardInterrupt
        return real(dataset, start, stop)

    monkeypatch.setattr(data.Dataset, "read", interrupted)
    assert certify.main([*command, "--out", str(stopped)]) == 130
    assert not (stopped / "results.json").exists()
    assert 0 < saved_table.images_done(stopped / "tables")[0] < 12
    monkeypatch.setattr(data.Dataset, "read", real)
    assert certify.main([*command, "--out", str(stopped)]) == 0
    assert capsys.readouterr().out.startswith(printed)
    assert _bytes(stopped) == _bytes(alone)
    (stopped / "certified_size.csv").unlink()  # killed between the table and its reports
    assert certify.main([*command, "--out", str(stopped)]) == 0
    assert _bytes(stopped) == _bytes(alone)
    capsys.readouterr()
    assert certify.main([*command, "--out", str(stopped)]) == 0
    assert "complete already" in capsys.readouterr().out

    shared = tmp_path / "shared"
    for share in ("0/2", "1/2"):
        assert certify.main([*command, "--out", str(shared), "--shard", share]) == 0
    capsys.readouterr()
    assert merge.main([str(shared)]) == 0
    assert capsys.readouterr().out.startswith(printed.strip())
    for name in ("per_image.csv", "certified_size.csv"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes()

    assert certify.main(["--from-tables", str(alone)]) == 0
    assert capsys.readouterr().out.strip() == printed.strip()
    copy = tmp_path / "copy"
    some = ["--sizes", "1,3", "--defense", "certmask:tiling=tight", "--out", str(copy)]
    assert certify.main(["--from-tables", str(alone), *some]) == 0
    points = _rows(alone, "certified_size.csv")
    assert _rows(copy, "certified_size.csv") == [p for p in points if "certmask" in p["defense"]]


def test_without_matplotlib_everything_but_the_figure(tmp_path, capsys, monkeypatch):
    compile_once(monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "run"
    assert certify.main([*SMALL, "--sizes", "1,2", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "no certified_size.png" in captured.err
    assert "pip install 'certmask_jax[plots]'" in captured.err
    assert "per_image.csv, certified_size.csv, tables" in captured.out
    assert not (out / "certified_size.png").exists()
    assert certify.main([*SMALL, "--sizes", "1,2", "--out", str(out)]) == 0
    assert "complete already" in capsys.readouterr().out


def test_sizes_as_they_are_written():
    assert read_sizes("1-3") == ("1", "2", "3")
    assert read_sizes("2, 5x9,10 - 11,40%") == ("2", "5x9", "10", "11", "40%")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", ""], "--sizes: expected patch sizes from the smallest"),
        (["--sizes", "1,,2"], "--sizes: expected patch sizes from the smallest"),
        (["--sizes", "3-1"], "--sizes: expected patch sizes from the smallest"),
        (["--sizes", "0-2"], "--sizes: expected patch sizes from the smallest"),
        (["--sizes", "1-999999999999"], "at most 1000 sizes"),
        (["--sizes", "1-"], "expected pixels such as 5 or 5x9"),
        (["--sizes", "two"], "expected pixels such as 5 or 5x9"),
        (["--sizes", "1,200%"], "expected a number in (0, 100]"),
        (["--sizes", "7-9"], "fits the image of 8x8 pixels, got 9x9"),
        (["--sizes", "1,3,2"], "none twice, got 2x2 after 3x3"),
        (["--sizes", "2,2"], "none twice, got 2x2 after 2x2"),
        (["--sizes", "1%,1.2%"], "none twice, got 1x1 after 1x1"),
        (["--sizes", "1x3,2x2"], "none twice, got 2x2 after 1x3"),
        (["--sizes", "1-2", "--patch", "1"], "expected either --patch or --sizes"),
        (["--sizes", "1-2", "--defense", "doublemasking"], "did you mean double_masking"),
        (
            ["--sizes", "1-3", "--defense", "certmask:tiling=tight,mask_size=2"],
            "at least the patch (3x3)",
        ),
        (
            ["--sizes", "1-3", "--defense", "double_masking:built_for=2"],
            "use larger masks, or a builder that covers (tight_grid, budgeted_grid, exact_k_fold) "
            "(3x3 patches on 8x8, one of 3 threats)",
        ),
        (
            ["--sizes", "2-4", "--defense", "certmask:tiling=exact,mask_size=4,coverage=2x2"],
            "got 2-fold; use a larger mask_size (each pixel allows one more) (4x4 patches",
        ),
        (["--patch", "1", "--defense", "double_masking:built_for=9"], "fits the image of 8x8"),
        (["--patch", "1", "--defense", "double_masking:built_for=x"], "built_for: cannot read 'x'"),
    ],
)
def test_bad_input_is_one_line_before_any_work(tmp_path, capsys, options, message):
    out = tmp_path / "run"
    assert certify.main(["--num-images", "12", "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[-1].startswith("error: ")
    assert not out.exists()
