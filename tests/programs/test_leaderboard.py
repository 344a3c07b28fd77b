"""``certmask leaderboard``: what has a place, what has none and why, and what papers claim."""

from __future__ import annotations

import dataclasses
import json

import hand_made_reports
import numpy as np

from certmask_jax.certification import report
from certmask_jax.pages.claims import CLAIMS
from certmask_jax.programs import leaderboard

FACTS = {
    "command": "certmask certify --dataset cifar10", "versions": {"jax": "1"},
    "devices": {"kind": "cpu"}, "dataset": "cifar10", "split": "test", "model": "net",
    "weights_sha256": "0a", "precision": "highest",
    "subset": {"how": "first", "of": 10_000, "seed": None},
}  # fmt: skip


def _written(folder, *results, provenance=FACTS):
    folder.mkdir()
    made = hand_made_reports.report(*results, provenance=provenance)
    report.write(made, folder)
    return str(folder)


def _told(run, name, results):
    (run / name).mkdir()
    (run / name / "attack.json").write_text(json.dumps({"results": results}))


def _attacked(run, **facts):
    line = {
        "defense": "double_masking", "images": 6, "attacked": 5, "contradictions": [],
        "under_attack": 0.5, "intervals": {"under_attack": [0.2, 0.8]},
    }  # fmt: skip
    _told(run, "attack", [line | facts])


def _made(tmp_path, capsys, *runs):
    assert leaderboard.main([*runs, "--out", str(tmp_path / "board")]) == 0
    content = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    page = (tmp_path / "board" / "leaderboard.html").read_text()
    return content, page, capsys.readouterr().err


def test_entries_are_ranked_by_what_is_proved(tmp_path, capsys):
    weak = hand_made_reports.result(certified=3, clean=8)
    claimed = hand_made_reports.result("certmask", certified=0, conditions={"k_fold_correct": 8})
    strong = hand_made_reports.result("pair_cover", certified=5, clean=6)
    one = _written(tmp_path / "one", weak, claimed)
    two = _written(tmp_path / "two", strong)
    content, page, said = _made(tmp_path, capsys, one, two)
    (task,) = content["tasks"]
    assert [entry["defense"] for entry in task["entries"]] == [
        "pair_cover", "double_masking", "certmask",
    ]  # fmt: skip
    assert [entry["worst_case"] for entry in task["entries"]] == [0.625, 0.375, 0.0]
    assert task["entries"][0]["sample"] == "first of 10,000"
    assert task["entries"][0]["verified"] == "by rows of images"
    assert (content["refused"], said) == ([], "")
    assert page.count("62.5 [") == 1
    assert len(content["other_claims"]) == len(CLAIMS)
    assert "62.1 claimed" in page


def test_claims_of_papers_stand_beside_what_they_are_about(tmp_path, capsys):
    run = _written(tmp_path / "run", hand_made_reports.result(threat=CLAIMS[-1].threat))
    content, _, _ = _made(tmp_path, capsys, run)
    (task,) = content["tasks"]
    assert {claim["data"] for claim in task["claims"]} == {"cifar10"}
    assert all(claim["source"] for claim in task["claims"])
    assert len(task["claims"]) + len(content["other_claims"]) == len(CLAIMS)


def test_what_is_refused_is_named_with_why(tmp_path, capsys):
    good = hand_made_reports.result()
    vague = {key: value for key, value in FACTS.items() if key != "weights_sha256"}
    rosy = dataclasses.replace(good, worst_case_accuracy=0.875)
    wrong = hand_made_reports.result(clean=4, certified=6)
    runs = [
        _written(tmp_path / "vague", good, provenance=vague),
        _written(tmp_path / "rosy", rosy),
        _written(tmp_path / "wrong", wrong),
        _written(tmp_path / "patched", good, provenance=FACTS | {"patched_with_noise_of_seed": 0}),
        _written(tmp_path / "no rows", good),
        _written(tmp_path / "broken", good),
    ]
    (tmp_path / "no rows" / "per_image.csv").unlink()
    _attacked(tmp_path / "broken", contradictions=["test:0"])
    content, page, said = _made(tmp_path, capsys, *runs)
    assert content["tasks"] == []
    why = [one["why"] for one in content["refused"]]
    assert why == [
        "it does not say where it comes from: weights_sha256 not recorded",
        "its rows of images give worst_case_accuracy 0.7500 of double_masking, and it prints "
        "0.8750",
        "double_masking certifies 2 images that it answers wrongly",
        "its images are patched already",
        "it has no rows of images (per_image.csv), by which its numbers are checked",
        "an attack contradicts 1 of its certificates",
    ]
    assert said.count("refused: ") == 6
    assert "No run has a place." in page


def test_rows_that_are_not_those_of_the_tables_are_refused(tmp_path, capsys, monkeypatch):
    run = _written(tmp_path / "run", hand_made_reports.result())
    (tmp_path / "run" / "tables").mkdir()
    derived = hand_made_reports.report(hand_made_reports.result())
    monkeypatch.setattr(leaderboard.from_tables, "table_of", lambda folder: None)
    monkeypatch.setattr(leaderboard.from_tables, "certify_saved", lambda *a, **k: derived)
    content, _, _ = _made(tmp_path, capsys, run)
    assert content["tasks"][0]["entries"][0]["verified"] == "recomputed from its tables"
    derived.defenses[0].per_image["worst_case"][:] = np.arange(8) < 5
    other = _written(tmp_path / "other", hand_made_reports.result("pair_cover"))
    content, _, said = _made(tmp_path, capsys, run, other)
    assert [entry["run"] for entry in content["tasks"][0]["entries"]] == [other]
    assert "expected the verdicts that its tables give" in content["refused"][0]["why"]
    assert said.startswith(f"refused: {run}: left out, as it cannot be read: ")


def test_damaged_runs_are_left_out_and_named(tmp_path, capsys):
    good = _written(tmp_path / "good", hand_made_reports.result())
    damaged = {
        "results": ("results.json", "is damaged"),
        "rows": ("per_image.csv", "expected a row for each of the 8 images"),
        "attack": ("attack/attack.json", "is damaged"),
        "tables": ("tables/table.json", "is damaged"),
    }
    for name, (file, _) in damaged.items():
        _written(tmp_path / name, hand_made_reports.result())
        (tmp_path / name / file).parent.mkdir(exist_ok=True)
        (tmp_path / name / file).write_text("{")
    runs = [str(tmp_path / name) for name in damaged]
    content, page, said = _made(tmp_path, capsys, *runs, str(tmp_path / "none"), good)
    assert [entry["run"] for entry in content["tasks"][0]["entries"]] == [good]
    assert [one["run"] for one in content["refused"]] == [*runs, str(tmp_path / "none")]
    for one, (_, why) in zip(content["refused"], damaged.values(), strict=False):
        assert why in one["why"]
        assert one["run"] in page
    assert said.count("\n") == 5


def test_where_no_run_can_be_read_nothing_is_replaced(tmp_path, capsys):
    good = _written(tmp_path / "good", hand_made_reports.result())
    _, page, _ = _made(tmp_path, capsys, good)
    assert leaderboard.main([str(tmp_path / "non"), "--out", str(tmp_path / "board")]) == 2
    assert "expected the folder of a finished run" in capsys.readouterr().err
    assert (tmp_path / "board" / "leaderboard.html").read_text() == page


def test_an_entry_says_over_how_many_images_it_was_attacked(tmp_path, capsys):
    results = hand_made_reports.result(), hand_made_reports.result("pair_cover", certified=5)
    run = _written(tmp_path / "run", *results)
    _attacked(tmp_path / "run")
    content, page, _ = _made(tmp_path, capsys, run)
    one, other = content["tasks"][0]["entries"]
    assert (one["under_attack"], one["under_attack_images"]) == (0.5, 6)
    assert one["under_attack_interval"] == [0.2, 0.8]
    said = "5 of 6 images attacked, nothing contradicted, 50.0 [20.0, 80.0] left right of these 6"
    assert one["audit"] == said
    assert said in page
    assert (other["audit"], other["under_attack"]) == ("not attacked", None)


def test_a_place_to_write_to_is_asked_for(tmp_path, capsys):
    assert leaderboard.main([str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err


def test_every_attack_in_a_folder_may_contradict_and_those_aimed_at_images_alone_are_told(
    tmp_path, capsys
):
    def of_run(name, *attacks):
        run = _written(tmp_path / name, hand_made_reports.result())
        for kind, results in attacks:
            _told(tmp_path / name, kind, results)
        return run

    def given(*images):
        facts = {"images": 8, "all_patches": 0.5, "clean": 1.0, "worst_case": 0.5}
        return [{"defense": "double_masking", "contradictions": [*images], **facts}]

    def audited(*images, right=7):
        certificates = {"count": 7, "attacked": 4, "contradicted": [*images]}
        facts = {"images": 8, "attacked": 4, "under_attack": 0.5, "right": right}
        facts["intervals"] = {"under_attack": [0.2, 0.8]}
        return [{"defense": "double_masking", "certificates": certificates, **facts}]

    plain = [{"defense": "undefended", "certificates": None, "attacked": 0}]
    halves = {"held_out": given(), "made_on": given("test:0")}
    runs = [
        of_run("good", ("universal", {"held_out": given()}), ("patches", given())),
        of_run("audited", ("audit", audited() + plain)),
        of_run("to the end", ("audit", audited(right=4))),
        of_run("one", ("universal", halves)),
        of_run("two", ("patches", given("test:0")), ("audit", audited("test:0", "test:1"))),
        of_run("lain elsewhere", ("attack", halves)),
    ]
    content, _, _ = _made(tmp_path, capsys, *runs)
    assert [entry["audit"] for entry in content["tasks"][0]["entries"]] == [
        "not attacked",
        "4 of 8 images attacked, nothing contradicted",
        "4 of 8 images attacked, nothing contradicted, 50.0 [20.0, 80.0] left right of these 8",
    ]
    assert [(one["run"], one["why"]) for one in content["refused"]] == [
        (run, f"an attack contradicts {count} of its certificates")
        for run, count in zip(runs[3:], (1, 2, 1), strict=True)
    ]
