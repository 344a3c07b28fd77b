"""``certmask leaderboard`` on runs whose files were edited: each is named, and has no place."""

from __future__ import annotations

import json
import shutil

import hand_made_reports
import pytest

from certmask_jax.certification import report
from certmask_jax.programs import attack, certify, leaderboard
from tests.support.small_models import write_linear_digits

DETECTS = "minority_reports:masks_per_axis=2"
SPECS = ["double_masking:masks_per_axis=2", DETECTS]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    words = [word for spec in SPECS for word in ("--defense", spec)]
    linear = ["--dataset", "digits", *write_linear_digits(folder.parent / "w.npz")]
    words = [*linear, "--num-images", "5", *words, "--no-page", "--out", str(folder)]
    assert certify.main(words) == 0
    return folder


@pytest.fixture
def copied(small_run, tmp_path):
    """A copy of the run, with or without its tables."""

    def copy(name="run", *, tables=True):
        folder = tmp_path / name
        left_out = shutil.ignore_patterns() if tables else shutil.ignore_patterns("tables")
        shutil.copytree(small_run, folder, ignore=left_out)
        return folder

    return copy


def _edited(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _board(tmp_path, *runs):
    out = tmp_path / "board"
    assert leaderboard.main([*map(str, runs), "--out", str(out)]) == 0
    content = json.loads((out / "leaderboard.json").read_text())
    return content, (out / "leaderboard.html").read_text()


def _why(tmp_path, run):
    content, page = _board(tmp_path, run)
    assert content["tasks"] == []
    (one,) = content["refused"]
    assert "left out, as it cannot be read" not in one["why"]
    assert "No run has a place." in page
    return one["why"]


def _of_defense(number, **facts):
    return lambda content: content["defenses"][number].update(facts)


def _of_interval(content):
    content["defenses"][1]["intervals"]["worst_case_accuracy"] = [0.79, 0.81]


def _of_clean_interval(content):
    content["defenses"][1]["intervals"]["clean_accuracy"][0] = 0.9


def _of_threat(content):
    content["defenses"][0]["threat"]["patches"] = [[[2, 2]]]


def _of_provenance(**facts):
    return lambda content: content["provenance"].update(facts)


def _without(*names):
    return lambda content: [content["provenance"].pop(name) for name in names]


EDITS = {
    "guarantee": (_of_defense(1, guarantee="recovery"), "gives guarantee detection"),
    "masked images": (_of_defense(0, masked_images=1), "gives masked_images 10"),
    "masks": (_of_defense(0, masks=1), "gives masks 4"),
    "name": (_of_defense(0, name="pair_cover"), "gives name double_masking"),
    "bound": (_of_defense(0, worst_case_exact=False), "gives worst_case_exact True"),
    "interval": (_of_interval, "an interval of worst_case_accuracy"),
    "clean interval": (_of_clean_interval, "an interval of clean_accuracy"),
    "worst case": (_of_defense(0, worst_case_accuracy=0.99), "give worst_case_accuracy"),
    "clean": (_of_defense(1, clean_accuracy=0.99), "give clean_accuracy"),
    "certificate": (_of_defense(0, certified_accuracy=0.99), "give certified_accuracy"),
    "alerts": (_of_defense(1, false_alert_rate=0.01), "give false_alert_rate"),
    "condition": (_of_defense(0, conditions={"two_mask_correct": 0.99}), "two_mask_correct"),
    "undefended": (lambda content: content.update(undefended_accuracy=0.5), "of the run"),
    "passes": (lambda content: content["forward_passes"].update(a_masked_image=3), "give 1 pass a"),
    "patch": (_of_threat, "against"),
    "margin guard": (lambda content: content.update(margin_guard=50.0), ""),
}  # fmt: skip


@pytest.mark.parametrize("tables", [True, False], ids=["tables", "rows"])
@pytest.mark.parametrize("name", EDITS)
def test_what_results_say_of_a_defense_is_derived_and_not_believed(name, tables, copied, tmp_path):
    change, expected = EDITS[name]
    run = copied(tables=tables)
    _edited(run / "results.json", change)
    if name == "patch":
        rows = (run / "per_image.csv").read_text()
        (run / "per_image.csv").write_text(rows.replace(f"{SPECS[0]} 1x1", f"{SPECS[0]} 2x2"))
    why = _why(tmp_path, run)
    assert why.startswith("its files contradict each other: ")
    assert expected in why


OF_RUN = {
    "data set": _of_provenance(dataset="cifar10"),
    "model": _of_provenance(model="resnet"),
    "weights": _of_provenance(weights_sha256="0" * 64),
    "precision": _of_provenance(precision="bfloat16"),
    "command": _of_provenance(command="certmask certify"),
    "class names": _of_provenance(class_names=["a", "b"]),
    "whole set": _of_provenance(images_in_set=5),
    "left out": lambda content: content.update(left_out={"test:9": "gone"}),
    "subset": _without("subset"),
    "null subset": _of_provenance(subset=None),
    "split": _without("split"),
}


@pytest.mark.parametrize("name", OF_RUN)
def test_what_results_say_of_a_run_is_what_its_tables_say(name, copied, tmp_path):
    run = copied()
    _edited(run / "results.json", OF_RUN[name])
    assert _why(tmp_path, run).startswith("its files contradict each other: its tables ")


def test_a_table_says_one_thing_of_where_it_comes_from(copied, tmp_path):
    run = copied()
    for file in ("results.json", "tables/table.json"):
        _edited(run / file, _of_provenance(dataset="cifar10"))
    assert "its table is of another dataset than it says itself" in _why(tmp_path, run)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_without("subset"), "nothing of a subset, and it is of 5 of the 500 images of digits"),
        (_of_provenance(subset=None), "says nothing of a subset, and it is of 5 of the 500 images"),
        (_without("subset", "images_in_set"), "of 5 of the 500 images of digits test"),
        (_of_provenance(subset=None, images_in_set=5), "digits test has 5 images, and digits"),
        (_of_provenance(subset={"how": "", "of": 9, "seed": 0}), "does not say how its subset"),
        (
            _of_provenance(subset={"how": "first", "of": 5, "seed": None}),
            "some of 5 images, and it is of 5",
        ),
        (
            _of_provenance(subset={"how": "first", "of": 50, "seed": None}),
            "has 50 images, and digits test has",
        ),
        (_without("split"), "split not recorded"),
        (_of_provenance(split=None), "split not recorded"),
        (_without("patch"), "patch not recorded"),
        (_without("devices"), "devices not recorded"),
    ],
)
def test_a_run_without_tables_says_of_how_many_images_it_is(change, expected, copied, tmp_path):
    run = copied(tables=False)
    _edited(run / "results.json", change)
    assert expected in _why(tmp_path, run)


def test_older_runs_of_unknown_data_are_refused_and_of_known_are_not(copied, tmp_path):
    run = copied(tables=False)
    _edited(run / "results.json", _without("images_in_set"))
    content, _ = _board(tmp_path, run)
    assert content["tasks"][0]["entries"][0]["sample"] == "first of 500"
    _edited(run / "results.json", _of_provenance(dataset="image_folder", subset=None))
    assert "how many images its data set has (images_in_set)" in _why(tmp_path, run)


@pytest.mark.parametrize("column", ["label", f"{SPECS[0]} 1x1 worst_case", "smallest_margin"])
def test_rows_are_those_of_the_tables(column, copied, tmp_path):
    run = copied()
    lines = (run / "per_image.csv").read_text().splitlines()
    place = lines[0].split(",").index(column)
    cells = lines[1].split(",")
    cells[place] = "1" if cells[place] == "0" else "0"
    (run / "per_image.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:], ""]))
    content, page = _board(tmp_path, run, copied("good"))
    (one,) = content["refused"]
    assert one["why"].startswith("its files contradict each other: ")
    assert one["why"] in page.replace("&#39;", "'")


def test_a_defense_on_evidence_promises_what_its_spec_does(tmp_path):
    facts = {
        "command": "certmask certify", "versions": {"jax": "1"}, "devices": {"kind": "cpu"},
        "dataset": "digits", "split": "test", "model": "net", "weights_sha256": "0a",
        "precision": "highest", "patch": ["1"], "data_config": {"input_size": [8, 8]},
        "subset": {"how": "first", "of": 500, "seed": None},
        "local_logits": {"field": 3, "stride": 1},
    }  # fmt: skip
    made = hand_made_reports.result("patchguard_pp", conditions={"all_agree": 6})
    written = hand_made_reports.report(
        made, provenance=facts, undefended_accuracy=0.875, margin_guard=50.0
    )
    (tmp_path / "run").mkdir()
    report.write(written, tmp_path / "run")
    why = _why(tmp_path, tmp_path / "run")  # not that margins are below the guard, as of tables
    assert "its spec gives guarantee detection of patchguard_pp, and it prints recovery" in why


def test_the_same_rows_have_one_place(copied, tmp_path, capsys):
    one, other, bare = copied("one"), copied("other"), copied("bare", tables=False)
    content, page = _board(tmp_path, bare, one, other)
    entries = [entry for task in content["tasks"] for entry in task["entries"]]
    assert [(entry["run"], entry["verified"]) for entry in entries] == [
        (str(one), "recomputed from its tables")
    ] * 2
    shown = [(again["run"], again["defense"], again["as"]) for again in content["repeated"]]
    assert sorted(shown) == sorted(
        (str(run), spec, str(one)) for run in (bare, other) for spec in SPECS
    )
    assert capsys.readouterr().err.count("shown once: ") == 4
    assert "Shown once" in page


@pytest.fixture(scope="module")
def attacked(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked") / "run"
    shutil.copytree(small_run, folder)
    words = ["--steps", "1", "--starts", "1", "--only", DETECTS]
    assert attack.main([str(folder), *words]) == 0
    return folder


def _lines(run):
    return (run / "attack" / "attacks.jsonl").read_text().splitlines(keepends=True)


def _lose(run):
    (run / "attack" / "attacks.jsonl").write_text("".join(_lines(run)[:-2]))


def _tear(run):
    (run / "attack" / "attacks.jsonl").write_text("".join(_lines(run))[:-9])


def _remove(run):
    (run / "attack" / "attacks.jsonl").unlink()


def _garble(run):
    head, _, *rest = _lines(run)
    (run / "attack" / "attacks.jsonl").write_text("".join([head, "{\n", *rest]))


def _break(run):
    """A certified image that a patch broke."""
    text = "".join(_lines(run)).replace('"broken": false, "certified": true', '"broken": true')
    (run / "attack" / "attacks.jsonl").write_text(text)


def _boast(run):
    _edited(run / "attack" / "attack.json", lambda c: c["results"][0].update(attacked=5_000))


def _of_another(run):
    text = "".join(_lines(run)).replace('"weights_sha256": "', '"weights_sha256": "0')
    (run / "attack" / "attacks.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_lose, "and the lines of attacks.jsonl give"),
        (_tear, "and the lines of attacks.jsonl give"),
        (_remove, "its attack/attack.json has no attacks.jsonl beside it"),
        (_garble, "line 2 is damaged"),
        (_break, "contradicted certificates of"),
        (_boast, "says 5000 images attacked"),
        (_of_another, "is of a run of another weights_sha256"),
    ],
)
def test_what_is_told_of_an_attack_is_counted_from_its_lines(
    damage, expected, attacked, copied, tmp_path
):
    run = tmp_path / "attacked"
    shutil.copytree(attacked, run)
    whole, _ = _board(tmp_path, run)
    (entry,) = [e for task in whole["tasks"] for e in task["entries"] if e["defense"] == DETECTS]
    lines = [json.loads(line) for line in _lines(run)[1:]]
    tried = sum(line["broken"] is not None for line in lines)
    assert entry["audit"].startswith(f"{tried} of {len(lines)} images attacked, nothing")
    damage(run)
    other = copied("other", tables=False)
    content, _ = _board(tmp_path, run, other)
    (one,) = content["refused"]
    assert expected in one["why"]
    (run / "attack" / "attack.json").unlink()  # the lines alone tell as much
    if damage is _break:
        content, _ = _board(tmp_path, run, other)
        assert [one["run"] for one in content["refused"]] == [str(run), str(other)]
        assert f"an attack in {run} contradicts" in content["refused"][1]["why"]
