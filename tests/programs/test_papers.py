"""The papers' tables: recipes that can be run, and figures beside ours."""

from __future__ import annotations

import json

import pytest

from certmask_jax.masks.threats import Threat
from certmask_jax.programs import evidence_entries
from certmask_jax.programs.certification_options import parser as certify_parser
from certmask_jax.programs.certification_options import read_config
from certmask_jax.programs.defense_specs import check
from certmask_jax.programs.threat_options import threats
from experiments.papers import certmask, mrcert, patchcleanser, patchguard, runner
from experiments.papers.recipes import Paper, Row, Table

PAPERS = [patchcleanser.PAPER, certmask.PAPER, mrcert.PAPER, patchguard.PAPER]
ROWS = [(paper, table, row) for paper in PAPERS for table in paper.tables for row in table.rows]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda one: one.name)
def test_every_row_names_a_defense_and_a_patch_that_there_are(paper):
    for table in paper.tables:
        assert table.rows
        for row in table.rows:
            if row.defense:
                check(row.defense)
            options = read_config(certify_parser().parse_args(row.patch.split())).threat
            for size in ((224, 224), (32, 32)):
                for threat in threats(options, size):
                    assert isinstance(threat, Threat)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda one: one.name)
def test_a_figure_has_a_source_and_nothing_else_has(paper):
    for _, table, row in (item for item in ROWS if item[0] is paper):
        has_figures = row.clean is not None or row.certified is not None
        assert bool(row.source) == has_figures, (table.name, row)


def test_figures_are_those_of_their_sources():
    """Read off the sources once more, a few of each."""

    def claims(table, data, patch):
        return {
            row.label: (row.clean, row.certified)
            for row in table.rows
            if row.data == data and row.patch == f"--patch {patch}"
        }

    assert claims(patchcleanser.TABLE2, "ImageNet", "2%") == {
        "PC-ResNet": (81.6, 53.0), "PC-ViT": (83.9, 62.1), "PC-MLP": (79.4, 53.8),
    }  # fmt: skip
    assert claims(patchcleanser.TABLE2, "CIFAR-10", "2.4%")["PC-ViT"] == (None, None)
    assert claims(patchguard.TABLE5, "CIFAR-10", "2.4%") == {
        "Mask-BN": (76.2, 37.2), "Mask-DS": (80.0, 62.2), "CBN": (84.2, 9.3), "DS": (83.9, 56.2),
    }  # fmt: skip
    assert claims(patchguard.TABLE5, "ImageNet", "3%")["Mask-BN"] == (50.7, 9.8)
    assert claims(patchguard.TABLE5, "ImageNette", "1%")["Mask-DS"] == (91.2, 83.7)


SMALL = Paper(
    "small",
    "A paper",
    "nowhere",
    (
        Table(
            "table1",
            "two defenses",
            (
                Row("A", "double_masking:masks_per_axis=2", "X", "--patch 1", "M", 90.0, 1.5, "S"),
                Row("B", "minority_reports:masks_per_axis=2", "X", "--patch 1"),
                Row("C", "patchguard", "X", "--patch 1", "BagNet"),
                Row("D", "", "Y", "--patch 1", "M", 99.0, None, "S"),
            ),
        ),
    ),
)


def test_a_table_has_the_papers_figures_beside_those_of_a_run(tmp_path, capsys):
    out = tmp_path / "papers"
    words = ["table1", "--model", "nearest_mean:create", "--num-images", "12", "--out", str(out)]
    assert runner.run(SMALL, words) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "patch-1" / "results.json").read_text())
    by_name = {one["name"]: one for one in results["defenses"]}
    assert set(by_name) == {"double_masking", "minority_reports"}
    rows = [line for line in printed.splitlines() if line.startswith("| ")][1:]
    a, b, c, d = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    worst = by_name["double_masking"]["worst_case_accuracy"]
    assert a[:5] == ["A", "X, M", "90.0 (1)", "1.5 (1)", "1x1"]
    assert a[8].startswith(f"{100 * worst:.1f} [")
    condition = by_name["double_masking"]["conditions"]["two_mask_correct"]
    assert a[7].startswith(f"{100 * condition:.1f} [")
    assert b[1:4] == ["X", "not at hand", "not at hand"]
    clean = by_name["minority_reports"]["clean_accuracy"]
    assert b[6].startswith(f"{100 * clean:.1f} [")
    assert c[4:] == ["patch 1", "`patchguard`", "not run", "", ""]  # no local logits here
    assert d[6].startswith(f"{100 * results['undefended_accuracy']:.1f} [")
    assert "(1) S" in printed
    assert "12 images of digits" in printed
    kept = json.loads((out / "table.json").read_text())
    assert [row["paper"]["clean"] for row in kept["rows"]] == [90.0, None, None, 99.0]
    assert (out / "table.md").read_text() == printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table9"], "expected one of table1 of A paper, got 'table9'"),
        (["table1", "--patch", "5"], "--patch: has no use here"),
        (["table1", "--shard", "0/2"], "--shard: has no use here, as a table is made of whole"),
        (["table1", "--quick", "--num-images", "5"], "--quick: expected it or --num-images"),
        (["table1", "--rows-of", "Z"], "--rows-of: expected all or one of X, Y"),
    ],
)
def test_what_cannot_be_is_said(words, said):
    with pytest.raises(ValueError, match=r"expected|has no use") as raised:
        runner.run(SMALL, words)
    assert said in str(raised.value)


def test_rows_are_those_of_the_data_at_hand():
    parse = runner.parser(patchguard.PAPER)

    def data_of(*words):
        table = runner._chosen(patchguard.TABLE5, parse.parse_args(["table5", *words]))
        return {row.data for row in table.rows}

    assert data_of("--dataset", "cifar10") == {"CIFAR-10"}
    assert data_of("--dataset", "image_folder") == {"ImageNet", "ImageNette", "CIFAR-10"}
    assert data_of("--dataset", "cifar10", "--rows-of", "ImageNet") == {"ImageNet"}
    assert data_of("--rows-of", "all") == {"ImageNet", "ImageNette", "CIFAR-10"}


def test_sides_are_those_of_the_guide_on_images_of_224():
    rows = patchcleanser.FIGURES6TO8.rows
    found = [
        threats(read_config(certify_parser().parse_args(row.patch.split())).threat, (224, 224))
        for row in rows
    ]
    assert [threat.shapes[0][0] for (threat,) in found] == list(patchcleanser._SIDES)


def test_local_defenses_need_local_logits():
    assert evidence_entries.is_local("patchguard")
    assert not runner._runs(SMALL.tables[0].rows[2], False)
    assert runner._runs(SMALL.tables[0].rows[2], True)
