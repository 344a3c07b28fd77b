"""The files of a report, and what is printed of it for documents and other programs."""

from __future__ import annotations

import csv
import io
import json
import re

import hand_made_reports as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certmask_jax.certification import report
from certmask_jax.masks.threats import Threat


def _read(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _written(hand_made, folder, name):
    report.write(hand_made, folder)
    content = (folder / name).read_bytes()
    assert not content.startswith(b"\xef\xbb\xbf")
    return _read(content.decode())


def test_all_files_are_written_and_explained(tmp_path):
    report.write(made.usual(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(report.FILES)
    explained = (tmp_path / "README.txt").read_text()
    for name in (
        "results.json",
        "results.csv",
        "per_image.csv",
        "alert",
        "none",
        "0x0",
        "left_out",
    ):
        assert name in explained
    assert max(map(len, explained.splitlines())) <= 100


def test_a_row_an_image_says_defense_and_patch_and_has_words_for_codes(tmp_path):
    rows = _written(made.usual(), tmp_path, "per_image.csv")
    assert [row["id"] for row in rows] == [f"test:{number}" for number in range(8)]
    assert [row["undefended"] for row in rows] == ["1"] * 7 + ["none"]
    answers = [row[f"{made.DETECTION} 1x1 answer"] for row in rows]
    assert answers == ["1"] * 6 + ["alert"] * 2
    assert [row["double_masking 1x1 worst_case"] for row in rows] == ["1"] * 6 + ["0"] * 2
    assert [row[f"{made.CERTMASK} 1x1 k_fold_correct"] for row in rows] == ["1"] * 5 + ["0"] * 3
    assert rows[0]["double_masking 1x1 smallest_margin"] == "0.25"
    assert not any(name.endswith("_name") for name in rows[0])


def test_columns_are_unique_whatever_is_given_twice():
    sizes = [Threat.of(8, 1), Threat.of(8, 1), Threat.of(8, 2)]
    hand_made = made.report(*(made.result(threat=t) for t in sizes), made.result("mrcert"))
    (header, *_) = csv.reader(io.StringIO(report.files.per_image_csv(hand_made), newline=""))
    assert len(set(header)) == len(header)
    assert [name for name in header if name.endswith(" answer")] == [
        "double_masking 1x1 answer",
        "double_masking 1x1 #2 answer",
        "double_masking 2x2 answer",
        "mrcert 1x1 answer",
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog"], "dog"),
        (["cat", ""], ""),
        (["cat", None], ""),
        (["cat"], ""),
        (["cat", 'a\u0308 \u72ac, "x"\n'], 'a\u0308 \u72ac, "x"\n'),
        (["n\udce9", "n\udce9"], "n\\udce9"),
    ],
)
def test_names_of_classes_stand_beside_their_numbers(tmp_path, names, expected):
    hand_made = made.report(
        made.result("votes", guarantee="detection", clean=7, alerts=1),
        class_names=names,
    )
    rows = _written(hand_made, tmp_path, "per_image.csv")
    assert [(row["label"], row["label_name"]) for row in rows] == [("1", expected)] * 8
    assert (rows[7]["undefended"], rows[7]["undefended_name"]) == ("none", "")
    assert rows[0]["votes 1x1 answer_name"] == expected
    assert (rows[7]["votes 1x1 answer"], rows[7]["votes 1x1 answer_name"]) == ("alert", "")


@pytest.mark.parametrize("names", [[], ["0", "1", "2"], ["", ""]])
def test_names_that_say_nothing_more_are_left_out(names):
    hand_made = made.report(made.result(), class_names=names)
    (row, *_) = _read(report.files.per_image_csv(hand_made))
    assert "label_name" not in row


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda t: "\0" not in t),
        min_size=8,
        max_size=8,
    )
)
def test_ids_come_back_whatever_they_are(ids):
    rows = _read(report.files.per_image_csv(made.report(made.result(), ids=ids)))
    assert [row["id"] for row in rows] == ids


def test_ids_that_look_like_formulas_and_bytes_that_are_no_text(tmp_path):
    ids = ["=1+1", "+x", "-3", "@a", 'a"b', "a,b", "a\nb", "a\udce9"]
    rows = _written(made.report(made.result(), ids=ids), tmp_path, "per_image.csv")
    assert [row["id"] for row in rows] == [*ids[:-1], "a\\udce9"]


def test_a_row_a_defense_and_threat():
    other = Threat.of(8, 2, patches=2)
    hand_made = made.report(
        *made.usual().defenses,
        made.result("mrcert", threat=other, conditions={"c_r": 5, "round_trip": 2}, exact=False),
        left_out={"a": "gone"},
        margin_guard=0.5,
    )
    rows = _read(report.results_csv(hand_made))
    assert [row["defense"] for row in rows] == [
        "double_masking", made.CERTMASK, made.DETECTION, "mrcert",
    ]  # fmt: skip
    assert [row["name"] for row in rows][1] == "certmask"
    assert [row["patch"] for row in rows] == ["1x1"] * 3 + ["2 patches of 2x2"]
    assert [row["bound"] for row in rows] == ["exact"] * 3 + ["at least"]
    for row, result in zip(rows, hand_made.defenses, strict=True):
        assert (row["num_images"], row["left_out"], row["margin_guard"]) == ("8", "1", "0.5")
        for name in ("clean_accuracy", "worst_case_accuracy", "certified_accuracy"):
            ends = (row[f"{name}_low"], row[f"{name}_high"])
            assert float(row[name]) == getattr(result, name)
            np.testing.assert_allclose(list(map(float, ends)), result.intervals[name], atol=1e-6)
        assert row["undefended_accuracy"] == "1"
        assert float(row["condition_accuracy"]) == next(iter(result.conditions.values()))
    assert [row["false_alert_rate"] for row in rows] == ["", "", "0.25", ""]
    assert [row["condition_2"] for row in rows] == ["", "", "", "round_trip"]
    assert rows[3]["condition_2_accuracy"] == "0.25"


def test_results_json_is_written_last(tmp_path, monkeypatch):
    """What is there says that the other files are of the same report."""
    order, real = [], report.files.whole_files.write

    def write(path, content):
        order.append(path.name)
        real(path, content)

    monkeypatch.setattr(report.files.whole_files, "write", write)
    report.write(made.usual(), tmp_path)
    assert order[-1] == "results.json"
    json.loads((tmp_path / "results.json").read_text())


# --- for documents ---

ODD = r"votes:x=50%_&#$~^|*<\{[1]}"


def _odd():
    return made.report(made.result("votes", ODD, conditions={"a_b": 2}, exact=False))


MARKDOWN = """\
8 images, undefended accuracy 100.0 [67.6, 100.0]; against 1x1 patches on 8x8; % of images \
[95% intervals]

| defense | guarantee | masks | masked images | clean | worst case | paper's condition |
|---|---|---|--:|---|---|---|
| double_masking | recovery | 16 of 2x2 | 136 | 100.0 [67.6, 100.0] | 75.0 [40.9, 92.9] |  |
| certmask:tiling=exact,coverage=2x2 | recovery | 16 of 2x2 | 136 | 87.5 [52.9, 97.8] | \
0.0 [0.0, 32.4] | k_fold_correct 62.5 [30.6, 86.3] |
| certmask_detection:tiling=exact,coverage=2x2,tolerance=3 | detection | 16 of 2x2 | 136 | \
75.0 [40.9, 92.9] | 62.5 [30.6, 86.3] |  |"""

LATEX = r"""
% 8 images, undefended accuracy 100.0 [67.6, 100.0]; against 1x1 patches on 8x8; % of images [95% intervals]
\begin{tabular}{lllrlll}
\hline
defense & guarantee & masks & masked images & clean & worst case & paper's condition \\
\hline
votes:x=50\%\_\&\#\$\textasciitilde{}\textasciicircum{}\textbar{}{*}\textless{}\textbackslash{}\{{[}1]\} & recovery & 16 of 2x2 & 136 & 100.0 {[}67.6, 100.0] & $\geq$75.0 {[}40.9, 92.9] & a\_b 25.0 {[}7.1, 59.1] \\
\hline
\end{tabular}
""".strip()  # noqa: E501  # a file


def test_markdown():
    assert report.as_markdown(made.usual()) == MARKDOWN


def test_pipes_and_marks_do_not_break_markdown():
    lines = report.as_markdown(_odd()).splitlines()
    assert lines[4].startswith(r"| votes:x=50%\_&#$~^\|\*\<\\{[1]} | recovery |")
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:]]
    assert set(bars) == {8}


def test_latex():
    assert report.as_latex(_odd()) == LATEX


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.booleans())
def test_latex_is_balanced_and_has_the_same_columns_in_each_row(spec, several):
    threats = [Threat.of(8, n) for n in ((1, 2) if several else (1,))]
    hand_made = made.report(*(made.result("x", spec, threat=t) for t in threats))
    text = report.as_latex(hand_made)
    body = [line for line in text.splitlines() if not line.startswith("%")]
    bare = re.sub(r"\\[&%$#_{}]", "", "\n".join(body))
    depth = np.cumsum([(c == "{") - (c == "}") for c in bare])
    assert depth.min() >= 0
    assert depth[-1] == 0
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[%#_^~]", bare)
    columns = re.match(r"\\begin\{tabular\}\{([lr]+)\}", body[0])[1]
    rows = [line for line in bare.splitlines() if line.endswith(r"\\")]
    assert {row.count("&") for row in rows} == {len(columns) - 1}
    assert len(rows) == 1 + len(threats)
    assert body[-1] == r"\end{tabular}"


def test_documents_of_several_patches_have_a_column_for_them():
    hand_made = made.report(*(made.result(threat=Threat.of(8, n)) for n in (1, 2)))
    assert "| double_masking | 2x2 | recovery |" in report.as_markdown(hand_made)
    assert "against" not in report.as_markdown(hand_made)
    assert r"double\_masking & 2x2 & recovery" in report.as_latex(hand_made)
