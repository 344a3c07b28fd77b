"""The papers' tables: recipes that can be run, and figures beside ours."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import hand_made_reports
import nearest_mean
import numpy as np
import pytest
from PIL import Image
from small_runs import PARAMS, linear

import certmask_jax as cm
from certmask_jax.data import digits_arrays
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.views import with_views
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import certification_options, evidence_entries
from certmask_jax.programs.certification_config import read_config
from certmask_jax.programs.certification_options import parser as certify_parser
from certmask_jax.programs.defense_specs import build, check
from certmask_jax.programs.measurements import answer_times, subjects
from certmask_jax.programs.threat_options import threats
from experiments.papers import (
    by_class,
    certmask,
    figures,
    mrcert,
    patchcleanser,
    patchguard,
    runner,
)
from experiments.papers.recipes import CLEAN, Paper, Row, Shows, Table

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
def test_every_row_of_cifar_can_be_built_on_32_pixels(paper):
    """But those of Table 4, whose masks are for images of 224."""
    specs = {
        (row.defense, row.patch)
        for _, table, row in (item for item in ROWS if item[0] is paper)
        if row.data == "CIFAR-10" and table.name != "table4" and row.defense
    }
    for spec, patch in sorted(specs):
        options = read_config(certify_parser().parse_args(patch.split())).threat
        if not evidence_entries.is_on_evidence(spec):
            for threat in threats(options, (32, 32)):
                assert len(build(spec, (32, 32), threat).masked_images)


def test_the_guide_names_the_tables_that_the_digits_are_too_small_for():
    """Without options a table is made of images of 8x8, all its rows."""
    too_small = set()
    for _, table, row in ROWS:
        masks = row.defense and not evidence_entries.is_on_evidence(row.defense)
        if masks and table.shows is not Shows.COUNTS:
            options = read_config(certify_parser().parse_args(row.patch.split())).threat
            try:
                build(row.defense, (8, 8), threats(options, (8, 8))[0])
            except ValueError:
                too_small.add(table.name)
    guide = Path(__file__).parents[2] / "docs" / "papers.md"
    (said,) = re.findall(r"runs on the embedded digits, all but (.*?), whose", guide.read_text())
    assert too_small == set(re.findall("`(.*?)`", said))


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
        Table("times", "t", (Row("A", "", "X", "--patch 1"),), shows=Shows.TIMES),
        Table("too large", "masks", (Row("A", "certmask:mask_size=40", "X", "--patch 1"),)),
        Table("too small", "t", (Row("A", "", "X", "--patch-area 1%"),), shows=Shows.TIMES),
    ),
    unknown={"table2": "nobody knows it"},
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
    assert kept["rows"][0]["ours"]["worst_case"][0] == worst
    with open(out / "table.csv", newline="") as file:
        numbers = list(csv.DictReader(file))
    assert [row["paper_clean"] for row in numbers] == ["0.9", "", "", "0.99"]
    assert float(numbers[1]["clean"]) == clean
    assert numbers[2]["clean"] == ""
    assert not (out / "figure.svg").exists()
    assert (out / "table.md").read_text() == printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table9"], "expected one of table1, times, too large, too small of A paper, got 'tab"),
        (["table1", "--patch", "5"], "--patch: has no use here"),
        (["table1", "--shard", "0/2"], "--shard: has no use here, as a table is made of whole"),
        (["table1", "--object-boxes", "x.csv"], "--object-boxes: has no use with table1"),
        (["times", "--object-boxes", "x.csv"], "--object-boxes: has no use with times"),
        (
            ["too large"],
            "TABLE too large: its rows do not fit these images or this model (certify says "
            "--defense certmask:mask_size=40: mask_size: expected at least the patch",
        ),
        (["times", "--chunk", "8"], "--chunk: has no use in a job that is measured"),
        (["times", "--class-names", "x"], "--class-names: has no use in a job that is measured"),
        (["too small"], "TABLE too small: its rows do not fit these images or this model"),
        (["table1", "--quick", "--num-images", "5"], "--quick: expected it or --num-images"),
        (["table1", "--rows-of", "Z"], "--rows-of: expected all or one of X, Y"),
    ],
)
def test_what_cannot_be_is_said(words, said, tmp_path):
    with pytest.raises(ValueError, match=r"expected|has no use") as raised:
        runner.run(SMALL, [*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert said in str(raised.value)
    assert ("certify says" in str(raised.value)) == words[0].startswith("too ")


def test_rows_are_those_of_the_data_at_hand():
    parse = runner.parser(patchguard.PAPER)

    def data_of(*words):
        table = runner._chosen(patchguard.TABLE5, parse.parse_args(["table5", *words]))
        return {row.data for row in table.rows}

    assert data_of("--dataset", "cifar10") == {"CIFAR-10"}
    assert data_of("--dataset", "image_folder") == {"ImageNet", "ImageNette", "CIFAR-10"}
    assert data_of("--dataset", "cifar10", "--rows-of", "ImageNet") == {"ImageNet"}
    assert data_of("--rows-of", "all") == {"ImageNet", "ImageNette", "CIFAR-10"}


def test_rows_of_other_data_have_another_folder():
    names = {
        runner._name(patchguard.PAPER, patchguard.TABLE5.of([data]), ["--num-images", "20"])
        for data in ("ImageNet", "ImageNette", "CIFAR-10")
    }
    assert len(names) == 3


@pytest.mark.parametrize("paper", PAPERS, ids=lambda one: one.name)
def test_what_is_drawn_has_a_place_on_its_axis(paper):
    for table in paper.tables:
        if table.axis and table.axis != CLEAN:
            assert all(row.x is not None for row in table.rows), table.name


def test_a_figure_has_a_point_for_every_number(tmp_path):
    rows = (
        Row("k = 2", "a", "X", "--patch 1", "", 90.0, 20.0, "S", 2),
        Row("k = 3", "b", "X", "--patch 1", x=3),
        Row("k = 4", "c", "X", "--patch 1", x=4),
    )
    table = Table("figure4", "masks & more", rows, axis="masks an axis")
    ours = {"clean": [0.75, 0.5, 1.0], "worst_case": [0.25, 0.125, 0.5]}
    ours["condition"] = ours["worst_case"]
    svg = ElementTree.fromstring(figures.accuracy(table, [ours, ours, None]))
    space = "{http://www.w3.org/2000/svg}"
    plot = svg.find(f"{space}svg")
    said = [group.find(f"{space}title").text for group in plot.iter(f"{space}g")]
    assert sorted(said) == [
        "k = 2, clean: 75.0%", "k = 2, the paper: 20.0%", "k = 2, the paper: 90.0%",
        "k = 2, worst case: 25.0%", "k = 3, clean: 75.0%", "k = 3, worst case: 25.0%",
    ]  # fmt: skip
    places = {}
    for group in plot.iter(f"{space}g"):
        circle = group.find(f"{space}circle")
        places[group.find(f"{space}title").text] = float(circle.get("cx")), float(circle.get("cy"))
    assert places["k = 2, clean: 75.0%"][0] < places["k = 3, clean: 75.0%"][0]
    assert places["k = 2, the paper: 90.0%"][1] < places["k = 2, clean: 75.0%"][1]
    by_clean = figures.accuracy(dataclasses.replace(table, axis=CLEAN), [ours, ours, None])
    assert by_clean.count("<circle") == 3 + 2  # points, and the legend's
    assert figures.accuracy(table, [None] * 3).count("the paper: ") == 2
    more = figures.accuracy(table, [ours, {**ours, "condition": [0.5, 0.25, 0.75]}, None])
    assert "k = 3, the paper&#39;s condition: 50.0%" in more


def test_classes_are_those_of_the_rows_of_images():
    made = hand_made_reports.report(
        hand_made_reports.result(clean=7, certified=3), class_names=("cat", "dog")
    )
    made.per_image["label"][:] = [1, 1, 1, 1, 0, 0, 1, 1]
    made.per_image["undefended"][:] = [1, 1, 1, 0, 0, 1, 1, 1]
    row = Row("A", "double_masking", "X", "--patch 1")
    first, second = (one.numbers for one in by_class.classes(made, row))
    # Of the dogs (0, 1, 2, 3, 6, 7) three are certified, and all but 7 answered with 1.
    assert (first["class"], first["images"], first["certified"]) == ("dog", 6, 3 / 6)
    assert (first["clean"], first["undefended"]) == (5 / 6, 5 / 6)
    assert (second["class"], second["images"], second["certified"]) == ("cat", 2, 0)
    assert (second["clean"], second["undefended"]) == (0, 1 / 2)
    assert first["certified_low"] < 0.5 < first["certified_high"]
    nameless = dataclasses.replace(made, class_names=("", ""))
    assert [one.name for one in by_class.classes(nameless, row)] == ["class 1", "class 0"]


def test_a_table_of_classes_is_made_of_a_run(tmp_path, capsys):
    row = Row("A", "double_masking:masks_per_axis=2", "X", "--patch 1")
    other = Row("B", "double_masking:masks_per_axis=3", "Y", "--patch 2")
    table = Table("figure13", "classes", (row, other), shows=Shows.CLASSES)
    paper = Paper("small", "A paper", "nowhere", (table,))
    out = tmp_path / "out"
    words = ["figure13", "--model", "nearest_mean:create", "--num-images", "40", "--out", str(out)]
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {number}\n" for number in range(10)))
    assert runner.run(paper, [*words, "--class-names", str(names)]) == 0
    assert [entry.name for entry in out.iterdir() if entry.is_dir()] == ["patch-1"]
    with open(out / "table.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    with open(out / "patch-1" / "per_image.csv", newline="") as file:
        images = list(csv.DictReader(file))
    assert sum(int(one["images"]) for one in classes) == 40
    assert {one["class"] for one in classes} <= {f"name {number}" for number in range(10)}
    certified = sum(int(one[f"{row.defense} 1x1 worst_case"]) for one in images)
    of_classes = sum(float(one["certified"]) * int(one["images"]) for one in classes)
    assert of_classes == pytest.approx(certified)
    shares = [float(one["certified"]) for one in classes]
    assert shares == sorted(shares, reverse=True)
    assert "figures are not at hand" in capsys.readouterr().out
    assert ElementTree.parse(out / "figure.svg").getroot().tag.endswith("svg")


def test_objects_are_measured_where_boxes_are_given(tmp_path, capsys):
    """Of 8x8 pixels an object of 2x4 covers an eighth, and one of 6x8 three quarters."""
    table = Table(
        "figure11", "objects", (Row("A", "double_masking:masks_per_axis=2", "X", "--patch 1"),),
        shows=Shows.OBJECTS,
    )  # fmt: skip
    paper = Paper("small", "A paper", "nowhere", (table,))
    folder = tmp_path / "images"
    pixels, labels = digits_arrays("test")
    for number in range(20):
        digit, place = divmod(number, 2)
        file = folder / str(digit) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        at = np.flatnonzero(labels == digit)[place]
        Image.fromarray(pixels[at].squeeze()).save(file)
    boxes = tmp_path / "boxes.csv"
    words = ["figure11", "--model", "nearest_mean:create", "--dataset", "image_folder"]
    words += ["--data-dir", str(folder), "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="--object-boxes: required for figure11"):
        runner.run(paper, words)
    boxes.write_text("id,x0,y0,x1,y1\nnobody.png,0,0,2,2\n")
    with pytest.raises(ValueError, match=r"--object-boxes .*boxes\.csv: expected boxes of images"):
        runner.run(paper, [*words, "--object-boxes", str(boxes)])
    assert not (tmp_path / "out").exists()
    small = [f"{n}.png,1,1,3,5" for n in range(12)]
    large = [f"{n}.png,0,0,6,8" for n in range(12, 19)]
    boxes.write_text("\n".join(["id,x0,y0,x1,y1", *small, *large]) + "\n")
    assert runner.run(paper, [*words, "--object-boxes", str(boxes)]) == 0
    assert "19 of 20 images have boxes in boxes.csv" in capsys.readouterr().out
    with open(tmp_path / "out" / "patch-1" / "per_image.csv", newline="") as file:
        rows = {
            int(one["id"].rpartition("/")[2][:-4]): int(one[f"{spec} 1x1 worst_case"])
            for spec in [table.rows[0].defense]
            for one in csv.DictReader(file)
        }
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        bins = [(one["low"], one["images"], one["certified"]) for one in csv.DictReader(file)]
    of_small = sum(rows[n] for n in range(12)) / 12
    of_large = sum(rows[n] for n in range(12, 19)) / 7
    assert bins == [("0.1", "12", str(of_small)), ("0.7", "7", str(of_large))]
    assert ElementTree.parse(tmp_path / "out" / "figure.svg").getroot().tag.endswith("svg")


def test_times_are_taken_in_turn_and_compared_image_by_image():
    now = [0.0]
    turns = []

    def taking(name, seconds, passes):
        def answer(image):
            turns.append((name, int(image[0, 0, 0, 0])))
            now[0] += seconds * (1 + int(image[0, 0, 0, 0]))
            return passes

        return answer

    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    answers = {"plain": taking("plain", 0.5, 1), "guard": taking("guard", 2, 36)}
    times = answer_times.measured(answers, images, clock=lambda: now[0])
    assert turns == [(name, n) for n in (0, 0, 1, 2) for name in ("plain", "guard")]
    assert times["guard"] == {
        "milliseconds": 4000, "mean": 4000, "least": 2000, "most": 6000, "passes": 36,
        "over_first": 4,
    }  # fmt: skip
    assert times["plain"]["milliseconds"] == 1000


def test_a_table_of_times_answers_as_the_guard_does(tmp_path, capsys):
    rows = (
        Row("none", "", "X", "--patch 1"),
        Row("A", "double_masking:masks_per_axis=2", "X", "--patch 1"),
    )
    paper = Paper("small", "A paper", "nowhere", (Table("t", "t", rows, shows=Shows.TIMES),))
    words = ["t", "--model", "nearest_mean:create", "--num-images", "12"]
    assert runner.run(paper, [*words, "--out", str(tmp_path / "out")]) == 0
    kept = json.loads((tmp_path / "out" / "table.json").read_text())
    model = nearest_mean.create()
    how = Preprocessing(mean=model.data_config.mean, std=model.data_config.std)
    grid = cm.mask_sets.budgeted_grid(8, 1, masks_per_axis=2)
    guard = cm.defended(
        model.apply_fn, (), cm.defenses.double_masking(grid), channels=1, preprocessing=how
    )
    passes = guard(digits_arrays("test")[0][:12]).masked_images.mean()
    none, one = kept["rows"]
    assert (none["passes"], none["over_first"]) == (1, 1)
    assert one["passes"] == pytest.approx(passes)
    assert kept["images"] == 12
    assert "12 images one at a time" in capsys.readouterr().out
    assert runner.run(paper, [*words, "--out", str(tmp_path / "planned"), "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert planned.startswith("answers of 12 images, one at a time, of 2 rows in turn: ")
    assert not (tmp_path / "planned").exists()


def test_an_option_of_certify_is_used_where_answers_are_timed_or_refused():
    """All others go to certify itself; a new one has to be put on one side."""
    used = {
        *("dataset", "data_dir", "class_index", "labels", "split", "only_classes"),
        *("num_images", "subset_seed", "model", "weights", "weights_entry", "num_classes"),
        *("input_size", "gelu", "pooling", "attention", "resize_positions", "encoding"),
        *("precision", "views", "two_parts", "fill", "whole_images"),
        *("patch", "patch_area", "sizes", "patches", "patch_region", "patched", "patch_lives"),
        "defense",
    }
    known = {action.dest for action in certification_options.parser()._actions} - {"help"}
    assert known == used | set(subjects._OTHERWISE)
    assert not used & set(subjects._OTHERWISE)


def test_views_are_passes_of_the_plain_model_too():
    model = with_views(linear, "mirror")
    answer = answer_times.plain(model, PARAMS, (8, 8, 1), preprocessing=Preprocessing())
    assert answer(digits_arrays("test")[0][:1]) == 2


def test_masks_are_counted_as_the_table_of_soundness_has_them(tmp_path):
    """Derived there by hand and by exhaustion; PatchCleanser's 666 are of both rounds.

    Of 345 it has no figure: an axis of 28 places, 4 a mask, has 31 starts, of which each residue
    mod 4 but one has 8 and one 7, so 23 for three of them times 15 for two.
    """
    rows = [row for row in certmask.MASKS.rows if row.patch in ("--patch 2%", "--patch 2.4%")]
    paper = dataclasses.replace(
        certmask.PAPER, tables=(dataclasses.replace(certmask.MASKS, rows=tuple(rows)),)
    )
    assert runner.run(paper, ["masks", "--out", str(tmp_path)]) == 0
    counts = {}
    for row in json.loads((tmp_path / "table.json").read_text())["rows"]:
        where = row["image"], row["patch"][0], row["mask"][0]
        counts.setdefault(where, {})[row["defense"]] = row["masks"], row["masked_images"]
    spec = "certmask:tiling={},coverage={}".format
    assert counts[224, 32, 48] == {
        spec("replicated", 1): (196, 196), spec("replicated", 6): (1176, 196),
        spec("offset", "3x2"): (1176, 1176), spec("exact", "3x2"): (864, 864),
        spec("tight", 6): (864, 144),
    }  # fmt: skip
    assert counts[32, 5, 8] == {
        spec("replicated", 1): (121, 121), spec("replicated", 6): (726, 121),
        spec("offset", "3x2"): (704, 704), spec("exact", "3x2"): (345, 345),
        spec("tight", 6): (294, 49),
    }  # fmt: skip
    six = {"double_masking:masks_per_axis=6": (36, 666)}
    assert (counts[224, 32, 64], counts[32, 5, 9]) == (six, six)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    masks, other = ["masks", "--rows-of", "CIFAR-10", "--out"], tmp_path / "run"
    other.mkdir()
    (other / "results.json").write_text("{}")
    for folder in (other, other / "results.json"):
        with pytest.raises(FileExistsError, match="this same table to go on with, but it holds o"):
            runner.run(certmask.PAPER, [*masks, str(folder)])
    assert [file.name for file in other.iterdir()] == ["results.json"]
    table = tmp_path / "table"
    for _ in range(2):  # a table may be made again, and a damaged one, too
        assert runner.run(certmask.PAPER, [*masks, str(table)]) == 0
        (table / "table.json").write_text("{")
    (table / "table.json").write_text(json.dumps({"paper": "that one", "table": "table2"}))
    with pytest.raises(FileExistsError, match="but it holds table2 of that one; choose another"):
        runner.run(certmask.PAPER, [*masks, str(table)])


def test_counting_takes_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"--dataset.*masks, which runs nothing"):
        runner.run(certmask.PAPER, ["masks", "--dataset", "cifar10", "--out", str(tmp_path)])


def test_a_figure_that_is_part_of_a_table_is_that_table():
    for paper in PAPERS:
        for name, table in paper.parts.items():
            assert paper.table(name) is paper.table(table)
    assert {"figure6", "figure7", "figure8"} == set(patchcleanser.PAPER.parts)
    assert patchcleanser.PAPER.table("Figure_7") is patchcleanser.FIGURES6TO8
    assert certmask.PAPER.table("mask-size") is certmask.MASK_SIZE
    with pytest.raises(ValueError, match="TABLE appendixD: which question"):
        certmask.PAPER.table("appendixD")


def test_a_name_that_is_known_as_unknown_is_no_misspelling():
    with pytest.raises(ValueError, match="TABLE table2: nobody knows it"):
        runner.run(SMALL, ["table2"])


@pytest.mark.parametrize(("paper", "name"), [(p, n) for p in PAPERS for n in p.unknown])
def test_what_nobody_knows_is_said_and_points_to_what_there_is(paper, name):
    with pytest.raises(ValueError, match=f"TABLE {name}: ") as raised:
        paper.table(name)
    assert any(table.name in str(raised.value) for table in paper.tables)


def test_sides_are_those_of_the_guide_on_images_of_224():
    rows = patchcleanser.FIGURES6TO8.rows
    of_rows = [
        threats(read_config(certify_parser().parse_args(row.patch.split())).threat, (224, 224))
        for row in rows
    ]
    assert [threat.shapes[0][0] for (threat,) in of_rows] == list(patchcleanser._SIDES)


def test_local_defenses_need_local_logits():
    assert evidence_entries.is_local("patchguard")
    assert not runner._runs(SMALL.tables[0].rows[2], False)
    assert runner._runs(SMALL.tables[0].rows[2], True)
