"""``certmask audit``: time that is shared, what it says of a run, a lie that is found and kept."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from certmask_jax.attacks import AttackedImages
from certmask_jax.data import digits_arrays
from certmask_jax.programs import attack, audit, certify
from certmask_jax.programs.attacking import audit_budget, opened_attacks
from certmask_jax.programs.attacking.attack_folder import LINES
from certmask_jax.programs.attacking.attack_job import Attacker
from certmask_jax.programs.attacking.attacked_run import AttackedRun, read_run

DEFENSE, COUNT = "double_masking:masks_per_axis=2", 12
# Trying places first takes three times as long on so few images.
FAST = ["--steps", "20", "--at-once", "4", "--locations", "2", "--places", "gradient"]


class Clock:
    """Seconds that pass as images are attacked."""

    def __init__(self, seconds_an_image, compiling=0.0):
        self.now, self.each, self.compiling = 0.0, seconds_an_image, compiling
        self.attacked = {spec: [] for spec in seconds_an_image}

    def __call__(self):
        return self.now

    def attack(self, spec, numbers):
        once = 0.0 if self.attacked[spec] else self.compiling
        self.now += self.each[spec] * len(numbers) + once
        self.attacked[spec] += numbers
        return audit_budget.Taken(len(numbers), once)


def test_time_is_shared_and_not_images():
    clock = Clock({"quick": 1.0, "slow": 5.0})
    waiting = {"quick": list(range(90)), "slow": list(range(90))}
    whole = audit_budget.spend(waiting, 100.0, clock.attack, least=1, most=4, clock=clock)
    assert not whole
    assert clock.now <= 100
    quick, slow = len(clock.attacked["quick"]), 5 * len(clock.attacked["slow"])
    assert abs(quick - slow) <= 20  # four slow images at once
    assert quick + slow > 90
    assert clock.attacked["quick"] == list(range(quick))  # in the order that was asked for


def test_what_one_leaves_the_others_have():
    clock = Clock({"one": 1.0, "other": 1.0, "none": 1.0})
    waiting = {"one": [7, 3], "other": list(range(50)), "none": []}
    assert not audit_budget.spend(waiting, 30.0, clock.attack, most=4, clock=clock)
    assert clock.attacked["one"] == [7, 3]
    assert len(clock.attacked["other"]) >= 24
    clock = Clock({"one": 1.0, "other": 1.0})
    assert audit_budget.spend({"one": [1], "other": [2]}, 9.0, clock.attack, most=4, clock=clock)


def test_a_search_is_not_begun_that_the_time_does_not_do_for():
    clock = Clock({"one": 4.0})
    assert not audit_budget.spend({"one": list(range(9))}, 11.0, clock.attack, most=4, clock=clock)
    assert clock.attacked["one"] == [0, 1]
    assert clock.now == 8


def test_it_ends_with_a_search_that_was_ended():
    clock = Clock({"one": 1.0, "other": 1.0})

    def attack_some(spec, numbers):
        clock.attack(spec, numbers)
        return audit_budget.Taken(len(numbers) - (spec == "other"))

    waiting = {"one": list(range(9)), "other": list(range(9))}
    assert not audit_budget.spend(waiting, 99.0, attack_some, most=4, clock=clock)
    assert clock.attacked == {"one": [0], "other": [0]}


def test_what_is_compiled_once_is_not_counted_for_those_that_follow():
    clock = Clock({"one": 1.0}, compiling=6.0)
    assert audit_budget.spend({"one": list(range(5))}, 11.0, clock.attack, most=4, clock=clock)
    assert clock.now == 11


@pytest.mark.parametrize(("end", "asked"), [(5.0, [60, 62]), (62.0, [60, 61, 62])])
def test_a_watch_ends_a_search_but_not_before_it_knows_the_speed(end, asked):
    clock = Clock({"one": 1.0})
    watch = audit_budget.Watch(end, 10, clock)
    clock.now = 3.0
    watch.begin()
    over = []
    for clock.now in asked:
        over.append(watch.is_over())
    assert over == [False] * (len(asked) - 1) + [True]
    assert watch.seconds_to_begin == 57  # compiled
    assert watch.seconds_a_step == pytest.approx(2 / (10 * (len(asked) - 1)))


class Quick(Attacker):
    """Searches nothing, which takes long: a white pixel is put on every image, and few are broken.

    That a search finds what is to be found, and a proof that is none, is for ``test_attack``.
    """

    breaks = (-1,)  # numbers of images

    def _seen(self, defense):
        return super()._seen(defense) if defense is None else None

    def _attacked(self, defense, asked, images, labels, numbers, stops, settled):
        stop = stops.between_steps
        left = any([stop(), stop(), stop()])
        patched = images.copy()
        patched[:, 0, 0] = 255
        broken = np.isin(numbers, self.breaks)
        count = len(images)
        return AttackedImages(
            patched, broken, np.where(broken, (labels + 1) % 10, labels),
            np.tile([[[1, 1, 0, 0]]], (count, 1, 1)), np.zeros(count), np.full(count, 40),
            np.full(count, not left),
        )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opened_attacks, "attacker_of", Quick)
        yield


@pytest.fixture(scope="module")
def run(digits_run):
    claims = read_run(digits_run).claims().of[DEFENSE]
    Quick.breaks = (next(one.number for one in claims if one.is_right and not one.is_certified),)
    return digits_run


@pytest.fixture(scope="module")
def audited(run):
    assert audit.main([str(run), "--minutes", "9", *FAST]) == 0
    return run / "audit"


def _lines(folder):
    _, *lines = (json.loads(line) for line in (folder / LINES).read_text().splitlines())
    return lines


def test_certificates_of_the_least_margin_come_first(audited, run):
    with (run / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    of = f"{DEFENSE} 1x1"
    right = [n for n, row in enumerate(rows) if row[f"{of} answer"] == row["label"]]
    certified = [n for n in right if rows[n][f"{of} worst_case"] == "1"]
    margins = [float(rows[n][f"{of} smallest_margin"]) for n in certified]
    wanted = [certified[place] for place in np.argsort(margins)]
    numbers = [line["number"] for line in _lines(audited)]
    assert len(wanted) >= 2
    assert numbers[: len(wanted)] == wanted
    assert sorted(numbers) == right
    assert all(line["broken"] is not None for line in _lines(audited))


def test_the_table_stands_in_order_and_is_that_of_the_run(audited, run):
    said = json.loads((audited / "attack.json").read_text())
    known = json.loads((run / "results.json").read_text())["defenses"][0]
    [row] = said["results"]
    assert row["certified"] == known["certified_accuracy"]
    assert row["worst_case"] == known["worst_case_accuracy"]
    assert row["clean"] == known["clean_accuracy"]
    assert row["certified"] <= row["worst_case"] <= row["under_attack"] <= row["clean"]
    lines = _lines(audited)
    assert row["attacked"] == len(lines) == round(COUNT * row["clean"])
    broken = sum(line["broken"] for line in lines)
    assert row["under_attack"] == pytest.approx(row["clean"] - broken / COUNT)
    assert row["certificates"] == {
        "count": round(COUNT * row["worst_case"]),
        "attacked": round(COUNT * row["worst_case"]),
        "contradicted": [],
        "evidence": [],
        "unconfirmed": [],
    }
    [alone] = row["papers"].values()  # double masking's condition is the worst case itself
    nothing = {"contradicted": [], "evidence": [], "unconfirmed": []}
    assert alone == {"count": 0, "attacked": 0, **nothing}


def test_a_killed_audit_goes_on(audited, run, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(audited, part)
    whole = (audited / LINES).read_bytes().splitlines(keepends=True)
    (part / LINES).write_bytes(b"".join(whole[:3]) + whole[3][:20])
    assert audit.main([str(run), "--minutes", "9", *FAST, "--out", str(part)]) == 0
    assert _lines(part)[:2] == _lines(audited)[:2]
    images = [{line["number"]: line["image"] for line in _lines(one)} for one in (part, audited)]
    assert images[0] == images[1]
    assert len(_lines(part)) == len(images[0])
    assert "nothing was left to do" not in capsys.readouterr().err
    assert audit.main([str(run), "--minutes", "9", *FAST, "--out", str(part)]) == 0
    assert "auditing: nothing was left to do\n" in capsys.readouterr().err


def test_several_runs_share_the_time(run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("audit"))
    assert audit.main([str(run), str(other), "--minutes", "9", *FAST]) == 0
    assert {line["number"] for line in _lines(other / "audit")} == {
        line["number"] for line in _lines(run / "audit")
    }
    assert capsys.readouterr().out.count("certificates attacked") == 2


def test_a_budget_that_is_too_small_says_what_an_image_takes(run, tmp_path, capsys):
    out = tmp_path / "o"
    assert audit.main([str(run), "--minutes", "0.0001", *FAST, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(
        f"error: --minutes 0.0001: expected time for an image of {run}, which takes "
    )
    measured = r"[\d.e-]+ min to begin, and then up to [\d.e-]+ min for 40 steps \(measured\)"
    assert re.search(f"which takes {measured}; give more minutes", error)
    assert not _lines(out)


def _edited(run, folder, **columns):
    """A run whose rows of images say something else, and which of them do."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("audit"))
    with (run / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    new = {f"{DEFENSE} 1x1 {name}": text for name, text in columns.items()}
    with (folder / "per_image.csv").open("w", newline="") as file:
        write = csv.DictWriter(file, rows[0])
        write.writeheader()
        write.writerows({**row, **new} for row in rows)
    return [row["id"] for row in rows if row[f"{DEFENSE} 1x1 worst_case"] == "0"]


@pytest.mark.parametrize("images", ["all", "certified"])
def test_certificates_of_a_run_that_are_none_now_are_named_and_no_proof_is_blamed(
    run, tmp_path, capsys, images
):
    """``Quick`` breaks one of them, so a certificate that the run alone has would be broken."""
    folder = tmp_path / "run"
    never = _edited(run, folder, worst_case="1")
    assert never
    assert audit.main([str(folder), "--minutes", "9", *FAST, "--images", images]) == 2
    said = capsys.readouterr()
    assert "proof" not in said.err.replace("held against a proof", "")
    told = next(line for line in said.err.splitlines() if "recorded, such as" in line)
    count = "1 image does" if len(never) == 1 else f"{len(never)} images do"
    assert told.startswith(f"error: {count} not give what the run recorded")
    assert sum(one in told for one in never) == min(5, len(never))
    lines = _lines(folder / "audit")
    assert {line["image"] for line in lines if line["broken"] is None} == set(never)
    [row] = json.loads((folder / "audit" / "attack.json").read_text())["results"]
    of = row["certificates"]
    assert (of["count"], of["attacked"]) == (COUNT, COUNT - len(never))
    assert set(of["unconfirmed"]) == set(never)
    assert not of["contradicted"]
    out = " ".join(said.out.split())
    assert f"{len(never)} left out as they are not confirmed now (" in out
    assert not (folder / "audit" / "contradictions.json").exists()


def test_what_rounding_may_decide_is_said_and_is_no_error(run, tmp_path, capsys):
    folder = tmp_path / "run"
    never = _edited(run, folder, worst_case="1", smallest_margin="0.0009")
    assert audit.main([str(folder), "--minutes", "9", *FAST]) == 0
    told = capsys.readouterr().err
    assert f"such as {never[0]}" in told
    assert "margins so small that rounding may decide" in told
    assert "error" not in told


def test_an_audit_of_an_older_version_that_blamed_a_proof_is_told_anew(
    audited, run, tmp_path, capsys
):
    """Its lines have a broken image that the run alone certifies."""
    folder = tmp_path / "run"
    never = _edited(run, folder, worst_case="1")
    shutil.copytree(audited, folder / "audit")
    assert next(line["image"] for line in _lines(audited) if line["broken"]) in never
    assert audit.main([str(folder), "--minutes", "9", *FAST]) == 2
    assert "a proof of this program" not in capsys.readouterr().err


def test_a_certificate_of_what_is_wrong_without_a_patch_is_contradicted(
    tmp_path, capsys, monkeypatch
):
    """One of four digits lies among others, and all are certified by a defense that lies."""
    monkeypatch.setattr(Quick, "breaks", ())
    images, labels = digits_arrays("test")
    for number, (image, label) in enumerate(zip(images[:4], labels, strict=False)):
        label = (label + 1) % 10 if number == 2 else label
        file = tmp_path / "data" / str(label) / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    for label in range(10):
        (tmp_path / "data" / str(label)).mkdir(exist_ok=True)
    run, lie = tmp_path / "run", "lying_defense:Liar:masks_per_axis=2"
    command = ["--dataset", "image_folder", "--data-dir", str(tmp_path / "data"), "--no-page"]
    command += ["--model", "vit_digits", "--defense", lie, "--out", str(run)]
    assert certify.main(command) == 0
    assert audit.main([str(run), "--minutes", "9", *FAST]) == attack.CONTRADICTED
    said = capsys.readouterr()
    wrong = f"{(labels[2] + 1) % 10}/02.png"
    assert f"{wrong} is certified, and answered {labels[2]} without any patch, on one" in said.err
    assert said.err.count("a proof of this program is wrong") == 1
    [row] = json.loads((run / "audit" / "attack.json").read_text())["results"]
    of = row["certificates"]
    assert (of["count"], of["attacked"], of["contradicted"]) == (4, 3, [wrong])
    assert of["evidence"][0]["after"] == labels[2]
    assert "1 contradicted; of images without one broken 0 of 0" in " ".join(said.out.split())
    assert f"    number 2, {wrong}: wrong without a patch" in said.out.splitlines()
    [kept] = json.loads((run / "audit" / "contradictions.json").read_text())["contradictions"]
    assert (kept["line"]["image"], kept["stands"]) == (wrong, True)


@pytest.mark.parametrize(
    ("each", "status"),
    [
        ([attack.CONTRADICTED, audit._TooSmall("little")], attack.CONTRADICTED),
        ([audit._TooSmall("little"), attack.CONTRADICTED], attack.CONTRADICTED),
        ([attack.CONTRADICTED, ValueError("gone")], attack.CONTRADICTED),
        ([audit._TooSmall("little"), 0], 2),
        ([0, audit._TooSmall("little")], 2),
        ([0, ValueError("gone")], 2),
    ],
)
def test_a_contradiction_is_not_forgotten_whatever_becomes_of_other_runs(
    run, tmp_path, capsys, monkeypatch, each, status
):
    """Here runs come to what they are told to."""
    told = iter(each)

    class Told:
        def __init__(self, *given):
            pass

        def run(self, *given):
            what = next(told)
            if isinstance(what, Exception):
                raise what
            return what

    monkeypatch.setattr(audit, "_Audit", Told)
    monkeypatch.setattr(opened_attacks, "opened_job", lambda *given, **how: None)
    for check in ("check_same", "check_threats"):
        monkeypatch.setattr(AttackedRun, check, lambda *given: None)
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("audit"))
    assert audit.main([str(run), str(other), "--minutes", "9"]) == status
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"error: {what}" for what in each if isinstance(what, Exception)]
    assert next(told, None) is None  # all runs had their turn


def test_a_certificate_that_a_patch_contradicts_is_said_and_kept(
    run, tmp_path, capsys, monkeypatch
):
    """``Quick`` says that it broke one that is certified."""
    certified = [one.number for one in read_run(run).claims().of[DEFENSE] if one.is_certified]
    monkeypatch.setattr(Quick, "breaks", certified[-1:])
    out = tmp_path / "o"
    status = audit.main([str(run), "--minutes", "9", *FAST, "--out", str(out)])
    assert status == attack.CONTRADICTED
    said = capsys.readouterr()
    [broken] = [line for line in _lines(out) if line["broken"]]
    assert f"{broken['image']} is certified, and answered {broken['after']}" in said.err
    assert "please report this" in said.err
    kept = json.loads((out / "contradictions.json").read_text())
    assert [one["line"] for one in kept["contradictions"]] == [broken]
    assert not any(one["stands"] for one in kept["contradictions"])  # it only pretends
    assert "weights_sha256" in kept["provenance"]
    text = " ".join(said.out.split())
    number, image, file = (broken[key] for key in ("number", "image", "file"))
    assert " 1 contradicted; of images" in text
    # From where the person stands, and in one piece however long it is.
    (line,) = [line for line in said.out.splitlines() if line.startswith("    number ")]
    path = shlex.quote(str(out / file))
    assert line == f"    number {number}, {image}: {path}"
    assert len(path) > 80
    assert Path(*shlex.split(path)).is_file()
    assert f"with the patch in {path}" in said.err
    assert "finding about that paper" not in text
    [row] = json.loads((out / "attack.json").read_text())["results"]
    assert [one["file"] for one in row["certificates"]["evidence"]] == [file]


OF_PAPER = "certmask:tiling=exact,coverage=2x2"


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory):
    """The folder of a run of image files some of which CertMask's paper alone calls certified."""
    folder = tmp_path_factory.mktemp("papers")
    images, labels = digits_arrays("test")
    for number, (image, label) in enumerate(zip(images[:COUNT], labels, strict=False)):
        file = folder / "data" / str(label) / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(file)
    for label in range(10):
        (folder / "data" / str(label)).mkdir(exist_ok=True)
    command = ["--dataset", "image_folder", "--data-dir", str(folder / "data"), "--no-page"]
    command += ["--model", "vit_digits", "--defense", OF_PAPER, "--out", str(folder / "run")]
    assert certify.main(command) == 0
    return folder / "run"


def _of_papers(run):
    """From the rows of images: numbers and smallest margins of those of the paper, and of others.

    Of none the worst case is certified.
    """
    with (run / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of = f"{OF_PAPER} 1x1"
    assert not any(row[f"{of} worst_case"] == "1" for row in rows)
    assert all(row[f"{of} answer"] == row["label"] for row in rows)
    margins = {n: float(row[f"{of} smallest_margin"]) for n, row in enumerate(rows)}
    alone = {n for n, row in enumerate(rows) if row[f"{of} k_fold_correct"] == "1"}
    return margins, alone


def test_what_a_paper_alone_certifies_is_attacked_before_others_and_named(
    paper_run, tmp_path, capsys, monkeypatch
):
    margins, alone = _of_papers(paper_run)
    assert 5 < len(alone) < COUNT  # more than are named
    others = set(margins) - alone
    monkeypatch.setattr(Quick, "breaks", [*alone, min(others)])
    out = tmp_path / "o"
    assert audit.main([str(paper_run), "--minutes", "9", *FAST, "--out", str(out)]) == 0
    lines = _lines(out)
    wanted = [*sorted(alone, key=margins.get), *sorted(others, key=margins.get)]
    assert [line["number"] for line in lines] == wanted
    broken = [line for line in lines if line["number"] in alone]
    [row] = json.loads((out / "attack.json").read_text())["results"]
    assert row["papers"] == {
        "k_fold_correct": {
            "count": len(alone),
            "attacked": len(alone),
            "contradicted": [line["image"] for line in broken],
            "evidence": [
                {key: line[key] for key in ("number", "image", "after", "file")} for line in broken
            ],
            "unconfirmed": [],
        }
    }
    assert all((out / line["file"]).is_file() for line in broken)
    assert row["certificates"]["count"] == 0
    assert row["broken"] == len(alone) + 1
    assert not (out / "contradictions.json").exists()
    printed = capsys.readouterr().out
    said = " ".join(printed.split())
    assert (
        f"k fold correct: the paper alone calls {len(alone)} images certified; {len(alone)} "
        f"attacked, {len(alone)} contradicted number "
    ) in said
    begin = printed.splitlines().index(f"    and {len(alone) - 5} more, in attack.json") - 5
    for line, of in zip(printed.splitlines()[begin:], broken[:5], strict=False):
        path = shlex.quote(str(out / of["file"]))
        assert line == f"    number {of['number']}, {of['image']}: {path}"
    assert broken[5]["file"] not in said
    assert "is a finding about that paper and no defect of this program" in said


@pytest.mark.parametrize(
    ("images", "of_alone", "of_others"),
    [("published", True, False), ("uncertified", True, True), ("certified", False, False)],
)
def test_images_can_be_chosen_by_what_is_said_of_them(
    paper_run, tmp_path, images, of_alone, of_others
):
    margins, alone = _of_papers(paper_run)
    out = tmp_path / "o"
    command = [str(paper_run), "--minutes", "9", *FAST, "--images", images]
    assert audit.main([*command, "--out", str(out)]) == 0
    wanted = {n for n in margins if (of_alone if n in alone else of_others)}
    assert {line["number"] for line in _lines(out)} == wanted


@pytest.mark.parametrize("program", [audit, attack])
def test_files_with_other_pixels_are_said_and_left_out(paper_run, tmp_path, capsys, program):
    """Two files hold another digit now, under the names that they had."""
    data = tmp_path / "data"
    shutil.copytree(paper_run.parent / "data", data)
    files = sorted(data.rglob("*.png"))
    changed = [files[0], files[-1]]
    pixels = [file.read_bytes() for file in changed]
    for file, other in zip(changed, pixels[::-1], strict=True):
        file.write_bytes(other)
    out = tmp_path / "o"
    command = [str(paper_run), "--data-dir", str(data), *FAST, "--out", str(out)]
    assert program.main([*command, *(["--minutes", "9"] if program is audit else [])]) == 2
    said = capsys.readouterr()
    names = [file.relative_to(data).as_posix() for file in changed]
    assert "error: 2 images do not give what the run recorded" in said.err
    told = next(line for line in said.err.splitlines() if "2 images do not give" in line)
    assert "other pixels, weights or versions, or an edited run" in told
    assert all(name in told for name in names)
    lines = _lines(out)
    assert {line["image"] for line in lines if line["broken"] is None} == set(names)
    results = json.loads((out / "attack.json").read_text())["results"]
    if program is attack:  # the plain model beside the defense
        assert [row["images"] for row in results] == [COUNT - 2] * 2
        assert [set(row["otherwise"]) for row in results] == [set(names)] * 2
    assert {row["clean"] for row in results} == {1.0}  # as in the run
    assert {row["attacked"] for row in results} == {COUNT - 2}


def test_what_was_wrong_in_the_run_and_is_right_now_is_left_out_too(
    paper_run, tmp_path, capsys, monkeypatch
):
    """Under the defense alone: the model without one answers as it did."""
    monkeypatch.setattr(Quick, "breaks", ())
    other = tmp_path / "run"
    shutil.copytree(paper_run, other)
    with (paper_run / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = f"{OF_PAPER} 1x1 answer"
    rows[3][column] = str((int(rows[3]["label"]) + 1) % 10)
    with (other / "per_image.csv").open("w", newline="") as file:
        write = csv.DictWriter(file, rows[0])
        write.writeheader()
        write.writerows(rows)
    assert attack.main([str(other), *FAST]) == 2
    said = "1 image does not give what the run recorded, such as"
    assert f"{said} {rows[3]['id']}: other pixels" in capsys.readouterr().err
    left_out = [line for line in _lines(other / "attack") if line["broken"] is None]
    assert [(line["defense"], line["number"]) for line in left_out] == [(OF_PAPER, 3)]
    plain, defended = json.loads((other / "attack" / "attack.json").read_text())["results"]
    assert (plain["images"], plain["otherwise"]) == (COUNT, [])
    assert (defended["images"], defended["attacked"]) == (COUNT - 1, COUNT - 1)
    assert defended["clean"] == 1
    assert defended["under_attack"] == 1  # nothing breaks here, and nothing is missing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}"], "--minutes: required"),
        (["{run}", "--minutes", "0"], "--minutes: expected more than 0"),
        (["{out}", "--minutes", "1"], "expected the folder of a run of certify, with results.json"),
        (["{run}", "{out}", "--minutes", "1", "--out", "x"], "--out: expected one RUN beside it"),
        (["{run}", "--minutes", "1", "--distributed"], "--distributed: has no use in an audit"),
        (
            ["{run}", "--minutes", "1", "--only", "x", *FAST],
            "--only: expected what is",
        ),
        (["{run}", "--minutes", "1", "--weights", "{out}/w.npz"], "{out}/w.npz"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, words, said):
    names = {"run": run, "out": tmp_path}
    assert audit.main([word.format(**names) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said.format(**names) in error
