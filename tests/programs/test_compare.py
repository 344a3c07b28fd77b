"""``certmask compare``: runs beside each other, from their results alone."""

from __future__ import annotations

import csv
import io

import hand_made_reports
import pytest

from certmask_jax.certification import report
from certmask_jax.certification.report.paired import unmatched
from certmask_jax.pages import compare_page
from certmask_jax.programs import compare
from certmask_jax.programs import report as report_program


@pytest.fixture
def runs(tmp_path):
    folders = []
    for name, certified in (("one", 6), ("two", 8)):
        folder = tmp_path / name
        folder.mkdir()
        report.write(
            hand_made_reports.report(
                hand_made_reports.result(certified=certified),
                ids=[f"<{i}>" for i in range(hand_made_reports.COUNT)],
            ),
            folder,
        )
        folders.append(str(folder))
    return folders


def test_two_runs_are_a_table_of_paired_differences(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert compare.main(runs) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "certified" in line)
    assert line.split() == [
        "double_masking", "certified", "75.0", "[40.9,", "92.9]", "100.0", "[67.6,", "100.0]",
        "+25.0", "[-12.0,", "59.1]", "0.5", "2", "0",
    ]  # fmt: skip


def test_tables_for_documents_have_the_same_numbers(runs, capsys):
    assert compare.main([*runs, "--format", "csv"]) == 0
    told = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(told.out)))
    assert told.err.startswith("first: ")
    assert "second: " in told.err
    assert [row["what"] for row in rows] == ["certified", "clean"]
    assert rows[0]["first"] == "0.75"
    assert rows[0]["second"] == "1"
    ends = [(f"{name}_low", f"{name}_high") for name in ("first", "second")]
    intervals = [[round(100 * float(rows[0][end]), 1) for end in pair] for pair in ends]
    assert intervals == [[40.9, 92.9], [67.6, 100]]
    assert (rows[0]["gained"], rows[0]["lost"], rows[0]["p_value"]) == ("2", "0", "0.5")
    assert compare.main([*runs, "--format", "markdown"]) == 0
    markdown = capsys.readouterr().out
    assert "| double_masking | certified | 75.0 [40.9, 92.9] | 100.0 [67.6, 100.0] |" in markdown
    assert compare.main([*runs, "--format", "latex"]) == 0
    assert "\\begin{tabular}" in capsys.readouterr().out


def test_one_run_is_its_own_table(runs, capsys):
    assert compare.main([runs[0], "--format", "markdown"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == report.as_markdown(
        report.read(compare.parser().parse_args(runs[:1]).runs[0])
    )


def test_the_page_names_the_images_that_changed(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert report_program.main([*runs, "--out", str(page)]) == 0
    text = page.read_text()
    assert 'gained: class 1, <span class="mono">&lt;6&gt;</span>' in text
    assert "2 runs on the same 8 images" in text
    assert capsys.readouterr().out == f"{page}\n"
    assert report_program.main(runs) == 2
    assert "--out: expected a file for the page of several runs" in capsys.readouterr().err
    assert report_program.main([*runs, "--out", str(page), "--most-images", "3"]) == 2
    assert "--most-images" in capsys.readouterr().err


def test_what_cannot_be_compared_is_one_line(runs, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    report.write(hand_made_reports.usual(), other)
    assert compare.main([runs[0], str(other)]) == 2
    assert capsys.readouterr().err == (
        "error: expected two runs of the same images, got one of 8 and one of 8, of which 0 are "
        "the same\n"
    )
    assert compare.main([str(tmp_path)]) == 2
    assert "expected the folder of a finished run, with results.json" in capsys.readouterr().err


def test_what_only_one_of_two_runs_has_is_said_both_ways(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    folders = []
    for name, others in (("one", ("a", "b")), ("two", ("c",))):
        folders.append(str(tmp_path / name))
        (tmp_path / name).mkdir()
        results = [hand_made_reports.result(spec=spec) for spec in ("double_masking", *others)]
        made = hand_made_reports.report(
            *results, provenance={"dataset": f"set {name}", "model": "m"}
        )
        report.write(made, tmp_path / name)
    assert compare.main(folders) == 0
    printed = capsys.readouterr().out
    assert "Only first has a, b. Only second has c." in printed
    assert "first: 8 images of set one were certified for the model m." in printed
    assert "second: 8 images of set two were certified for the model m." in printed
    assert "second differs from first in: data (set one, then set two)." in printed
    page = tmp_path / "page.html"
    assert report_program.main([*folders, "--out", str(page)]) == 0
    text = page.read_text()
    assert "Only A has a, b. Only B has c." in text
    assert "B differs from A in: data (set one, then set two)." in text
    assert "8 images of set one were certified" in text
    one = hand_made_reports.report(hand_made_reports.result(), provenance={"views": ["mirror"]})
    guarded = hand_made_reports.report(hand_made_reports.result(), margin_guard=0.5)
    assert compare_page.unlike(("A", "B"), one, one) == "B has the settings of A."
    assert compare_page.unlike(("A", "B"), one, guarded) == (
        "B differs from A in: views (['mirror'], then none); margin guard (none, then 0.5)."
    )
    other = hand_made_reports.ON_8.of(8, 2)
    several = hand_made_reports.report(
        hand_made_reports.result(), hand_made_reports.result(threat=other)
    )
    alone = hand_made_reports.report(hand_made_reports.result())
    assert unmatched(alone, several) == ([], ["double_masking 2x2"])
