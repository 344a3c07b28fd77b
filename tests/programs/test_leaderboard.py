"""``certmask leaderboard``: what has a place, what has none and why, and what papers claim."""

from __future__ import annotations

import dataclasses
import json

import hand_made_reports
import numpy as np

from certmask_jax.certification import report
from certmask_jax.pages.claims import CLAIMS
from certmask_jax.programs import defense_specs, leaderboard

FACTS = {
    "command": "certmask certify --dataset cifar10", "versions": {"jax": "1"},
    "devices": {"kind": "cpu"}, "dataset": "cifar10", "split": "test", "model": "net",
    "weights_sha256": "0a", "precision": "highest",
    "subset": {"how": "first", "of": 10_000, "seed": None}, "patch": ["1"],
    "data_config": {"input_size": [8, 8]},
}  # fmt: skip


def _result(name="double_masking", *, threat=hand_made_reports.ON_8, **numbers):
    """Hand-made numbers of a defense, with the masks and conditions that it has."""
    built = defense_specs.build(name, threat.image_size, threat)
    certified = numbers.get("certified", 6)
    given = dict.fromkeys(built.row_conditions, certified) | numbers.pop("conditions", {})
    made = hand_made_reports.result(name, threat=threat, conditions=given, **numbers)
    return dataclasses.replace(
        made, name=built.name, masks=len(built.mask_set), masked_images=len(built.masked_images)
    )


def _written(folder, *results, provenance=FACTS, margin=0.25):
    folder.mkdir()
    for one in results:
        one.per_image["smallest_margin"][:] = margin
    made = hand_made_reports.report(*results, provenance=provenance, undefended_accuracy=0.875)
    report.write(made, folder)
    return str(folder)


def _told(run, name, results, lines, **facts):
    """The files of an attack; ``lines``: numbers of images with whether each was broken."""
    (run / name).mkdir()
    (run / name / "attack.json").write_text(json.dumps({"results": results}))
    settings = {"format": 1, "settings": {"weights_sha256": "0a"}}
    facts |= {"defense": "double_masking", "label": 1, "class": "1", "certified": False}
    rows = [{**facts, "number": i, "image": f"test:{i}", "broken": b} for i, b in lines]
    text = "".join(json.dumps(row) + "\n" for row in [settings, *rows])
    (run / name / "attacks.jsonl").write_text(text)


def _attacked(run, *broken, contradicted=()):
    """An attack that is told of eight images, and tried seven of them."""
    line = {"defense": "double_masking", "attacked": 7, "contradictions": [*contradicted]}
    _told(run, "attack", [line], [(i, i in broken if i < 7 else None) for i in range(8)])


def _made(tmp_path, capsys, *runs):
    assert leaderboard.main([*runs, "--out", str(tmp_path / "board")]) == 0
    content = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    page = (tmp_path / "board" / "leaderboard.html").read_text()
    return content, page, capsys.readouterr().err


def test_entries_are_ranked_by_what_is_proved(tmp_path, capsys):
    weak = _result(certified=3, clean=8)
    claimed = _result("certmask", certified=0, conditions={"k_fold_correct": 8})
    strong = _result("pair_cover", certified=5, clean=6)
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
    facts = FACTS | {"patch": ["5"], "data_config": {"input_size": [32, 32]}}
    run = _written(tmp_path / "run", _result(threat=CLAIMS[-1].threat), provenance=facts)
    content, _, _ = _made(tmp_path, capsys, run)
    (task,) = content["tasks"]
    assert {claim["data"] for claim in task["claims"]} == {"cifar10"}
    assert all(claim["source"] for claim in task["claims"])
    assert len(task["claims"]) + len(content["other_claims"]) == len(CLAIMS)


def test_what_is_refused_is_named_with_why(tmp_path, capsys):
    good = _result()
    vague = {key: value for key, value in FACTS.items() if key != "weights_sha256"}
    rosy = dataclasses.replace(good, worst_case_accuracy=0.875)
    wrong = _result(clean=4, certified=6)
    runs = [
        _written(tmp_path / "vague", good, provenance=vague),
        _written(tmp_path / "rosy", rosy),
        _written(tmp_path / "wrong", wrong),
        _written(tmp_path / "patched", good, provenance=FACTS | {"patched_with_noise_of_seed": 0}),
        _written(tmp_path / "no rows", good),
        _written(tmp_path / "broken", good),
    ]
    (tmp_path / "no rows" / "per_image.csv").unlink()
    _attacked(tmp_path / "broken", 0, contradicted=["test:0"])
    content, page, said = _made(tmp_path, capsys, *runs)
    assert content["tasks"] == []
    why = [one["why"] for one in content["refused"]]
    contradicted = "its files contradict each other: its rows of images give worst_case_accuracy "
    assert why == [
        f"{contradicted}0.7500 of double_masking, and it prints 0.8750",
        "it does not say where it comes from: weights_sha256 not recorded",
        "double_masking certifies 2 images that it answers wrongly",
        "its images are patched already",
        "it has no rows of images (per_image.csv), by which its numbers are checked",
        "an attack contradicts 1 of its certificates",
    ]
    assert said.count("refused: ") == 6
    assert "No run has a place." in page


def test_damaged_runs_are_left_out_and_named(tmp_path, capsys):
    good = _written(tmp_path / "good", _result())
    damaged = {
        "results": ("results.json", "is damaged"),
        "rows": ("per_image.csv", "expected a row for each of the 8 images"),
        "attack": ("attack/attack.json", "is damaged"),
        "tables": ("tables/table.json", "is damaged"),
    }
    for name, (file, _) in damaged.items():
        _written(tmp_path / name, _result())
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
    good = _written(tmp_path / "good", _result())
    _, page, _ = _made(tmp_path, capsys, good)
    assert leaderboard.main([str(tmp_path / "non"), "--out", str(tmp_path / "board")]) == 2
    assert "expected the folder of a finished run" in capsys.readouterr().err
    assert (tmp_path / "board" / "leaderboard.html").read_text() == page


def test_an_entry_says_over_how_many_images_it_was_attacked(tmp_path, capsys):
    run = _written(tmp_path / "run", _result(clean=7, certified=4), _result("pair_cover"))
    _attacked(tmp_path / "run", 5)
    content, page, _ = _made(tmp_path, capsys, run)
    other, one = content["tasks"][0]["entries"]
    assert (one["under_attack"], one["under_attack_images"]) == (0.75, 8)
    np.testing.assert_allclose(one["under_attack_interval"], [0.4093, 0.9285], atol=1e-4)
    said = "7 of 8 images attacked, nothing contradicted, 75.0 [40.9, 92.9] left right of these 8"
    assert one["audit"] == said
    assert said in page
    assert (other["audit"], other["under_attack"]) == ("not attacked", None)


def test_a_place_to_write_to_is_asked_for(tmp_path, capsys):
    assert leaderboard.main([str(tmp_path)]) == 2
    assert "--out" in capsys.readouterr().err


def test_every_attack_in_a_folder_may_contradict_and_those_aimed_at_images_alone_are_told(
    tmp_path, capsys
):
    def of_run(name, *attacks, clean=7):
        margin = 0.25 + 0.01 * len(name)  # rows of their own
        run = _written(tmp_path / name, _result(clean=clean, certified=2), margin=margin)
        for kind, results, lines, *of_patch in attacks:
            _told(tmp_path / name, kind, results, lines, **dict.fromkeys(of_patch, "cat"))
        return run

    def given(*broken):
        entry = {"defense": "double_masking", "contradictions": [f"test:{i}" for i in broken]}
        return [entry], [(i, i in broken) for i in range(8)], "patch"

    def audited(*broken):
        certificates = {"contradicted": [f"test:{i}" for i in broken if i < 2]}
        entry = {"defense": "double_masking", "certificates": certificates, "attacked": 4}
        plain = {"defense": "undefended", "certificates": None, "attacked": 0}
        return [entry, plain], [(i, i in broken) for i in range(4)]

    def halves(*broken):
        entries, lines, patch = given(*broken)
        return {"held_out": given()[0], "made_on": entries}, lines, patch

    runs = [
        of_run("good", ("universal", *halves()), ("patches", *given())),
        of_run("audited", ("audit", *audited())),
        of_run("to the end", ("audit", *audited(3)), clean=4),
        of_run("one", ("universal", *halves(0))),
        of_run("two", ("patches", *given(0)), ("audit", *audited(0, 1))),
        of_run("lain elsewhere", ("attack", *halves(0))),
    ]
    content, _, _ = _made(tmp_path, capsys, *runs)
    assert [entry["audit"] for entry in content["tasks"][0]["entries"]] == [
        "not attacked",
        "4 of 8 images attacked, nothing contradicted",
        "4 of 8 images attacked, nothing contradicted, 37.5 [13.7, 69.4] left right of these 8",
    ]
    assert [(one["run"], one["why"]) for one in content["refused"]] == [
        (run, f"an attack contradicts {count} of its certificates")
        for run, count in zip(runs[3:], (1, 2, 1), strict=True)
    ]
