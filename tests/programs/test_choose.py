"""``certmask choose``: what it chooses, reports, refuses, and goes on with."""

from __future__ import annotations

import dataclasses
import json
import shlex

import hand_made_reports
import nearest_mean
import numpy as np
import pytest
import small_runs
from PIL import Image

import certmask_jax as cm
from certmask_jax.certification import evaluation
from certmask_jax.certification.answer_passes import answers_alone
from certmask_jax.data import digits_arrays
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.threats import Threat
from certmask_jax.programs import choose
from certmask_jax.programs.certification_config import read_config
from certmask_jax.programs.certification_options import parser as certify_parser
from certmask_jax.programs.choosing import choose_candidates, choose_options, choose_runs
from certmask_jax.programs.choosing.image_halves import halves
from certmask_jax.tables import saved_table

SPECS = (
    "pair_cover:partition=2/3",
    "double_masking:masks_per_axis=2",
    "double_masking:masks_per_axis=3,split=even",
    "double_masking:masks_per_axis=6",  # 16 masks of one round: dearer than the budget
)
SMALL = ["--model", "nearest_mean:create", "--num-images", "80", "--patch", "1", "--budget", "14"]
SMALL += ["--may-lose", "20"]  # of twenty images
THREE = [word for spec in SPECS for word in ("--defense", spec)]


@pytest.fixture(autouse=True, scope="module")
def _compiled_once():
    with pytest.MonkeyPatch.context() as patched:
        small_runs.compile_once(patched)
        yield


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The folder of a choice that was stopped for want of time, and went on."""
    out = tmp_path_factory.mktemp("choice") / "run"
    assert choose.main([*SMALL, *THREE, "--out", str(out), "--max-minutes", "0.0001"]) == 3
    assert not (out / "choice.json").exists()
    assert choose.main([*SMALL, *THREE, "--out", str(out)]) == 0
    return out


def _defense(spec):
    return choose_candidates.defense_specs.build(spec, (8, 8), Threat.of((8, 8), 1))


def test_the_front_is_that_of_whole_tables_and_is_reported_on_the_other_images(chosen):
    """Tables, guards and split are made here anew, without the program."""
    choice = json.loads((chosen / "choice.json").read_text())
    images, labels = (array[:80] for array in digits_arrays("test"))
    order = np.random.default_rng(0).permutation(80)
    here, there = order[:40], np.sort(order[40:])
    model = nearest_mean.create()
    how = Preprocessing(mean=model.data_config.mean, std=model.data_config.std)

    def measured(spec, places):
        defense = _defense(spec)
        table = cm.predict(
            model.apply_fn, (), images[places], defense.masked_images, preprocessing=how
        )
        passes = answers_alone(table, defense, None)
        right = defense.rule(table) == labels[places]
        return passes.mean(), right.mean(), defense.worst_case(table, labels[places]).mean()

    first = {spec: measured(spec, here) for spec in SPECS[:3]}
    front = [
        spec
        for spec in SPECS[:3]
        if first[spec][0] <= 14
        and not any(
            (other[0] <= first[spec][0] and other[2] >= first[spec][2])
            and (other[0], -other[2]) != (first[spec][0], -first[spec][2])
            for name, other in first.items()
            if name != spec
        )
    ]
    front.sort(key=lambda spec: first[spec][0])
    names = [one["defense"] for one in choice["candidates"]]
    kept = [names[one["candidate"]] for one in choice["front"]]
    assert len(kept) > 1
    assert kept == [spec for spec in front if spec in kept]
    for lost in set(front) - set(kept):  # for another one, by no more than it says
        (drop,) = [drop for drop in choice["dropped"] if names[drop["candidate"]] == lost]
        better = first[names[drop["by"]]]
        assert better[0] <= first[lost][0]
        assert 0 < first[lost][2] - better[2] <= drop["at_most"]
    assert [names[one] for one in choice["too_dear"]] == [SPECS[3]]
    for one, spec in zip(choice["front"], kept, strict=True):
        for part, places in (("chosen_on", here), ("reported_on", there)):
            got = one[part]
            numbers = got["passes"], got["clean_accuracy"], got["worst_case_accuracy"]
            assert numbers == pytest.approx(measured(spec, places)), (spec, part)
            low, high = got["worst_case_accuracy_interval"]
            assert low <= numbers[2] <= high
    assert choice["images"] == {"chosen_on": 40, "reported_on": 40}
    assert choice["passes"]["made_to_choose"] <= choice["passes"]["whole_tables"] + 40
    reported = saved_table.load(chosen / "reported" / "mean-none" / "tables")
    assert reported.labels.tolist() == labels[there].tolist()


def test_the_same_command_goes_on_and_another_choice_is_refused(chosen, capsys, monkeypatch):
    before = small_runs.contents(chosen)

    def never(*given, **options):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(evaluation.BlockWork, "computed", never)
    monkeypatch.setattr(choose_runs, "answer_waves", never)
    assert choose.main([*SMALL, *THREE, "--out", str(chosen)]) == 0
    printed = capsys.readouterr().out
    assert "40 images (seed 0)" in printed
    assert "choice never saw" in printed
    after = small_runs.contents(chosen)
    assert {name for name in before if before[name] != after[name]} <= {
        "choice.json", "reported/mean-none/results.json",
    }  # fmt: skip
    assert choose.main([*SMALL, *THREE, "--choice-seed", "1", "--out", str(chosen)]) == 2
    assert "seed is 0 there, 1 here; choose another name" in capsys.readouterr().err
    words = [*SMALL[:6], "--budget", "13", *SMALL[8:], *THREE, "--out", str(chosen)]
    assert choose.main(words) == 2
    assert "budget is 14.0 there, 13.0 here" in capsys.readouterr().err
    assert small_runs.contents(chosen) == after


def test_a_second_choice_in_a_folder_is_refused_while_the_first_is_at_work(
    chosen, tmp_path, capsys, monkeypatch
):
    """The second is begun after the first round of the first, which then ends as one alone does."""
    out = tmp_path / "run"
    words = [*SMALL, *THREE, "--out", str(out)]
    real, second = choose_runs.Runs.certified, []

    def certified(*given):
        done = real(*given)
        if not second:
            second.append(small_runs.contents(out))
            capsys.readouterr()
            second.append(choose.main(words))
            second.extend([capsys.readouterr(), small_runs.contents(out)])
        return done

    monkeypatch.setattr(choose_runs.Runs, "certified", certified)
    assert choose.main(words) == 0
    before, status, (printed, said), after = second
    assert (status, printed) == (2, "")
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line == (
        f"error: {out}: another process is writing this choice; wait for it, or choose another "
        "--out"
    )
    assert before
    assert after == before
    ours, alone = (json.loads((one / "choice.json").read_text()) for one in (out, chosen))
    del ours["provenance"], alone["provenance"]  # folder and time
    assert ours == alone
    assert choose.main(words) == 0


def test_the_command_of_a_choice_is_read_by_certify(chosen):
    for one in json.loads((chosen / "choice.json").read_text())["front"]:
        words = shlex.split(one["command"])
        at = words.index("--model")
        config = read_config(certify_parser().parse_args(words[at:]))
        assert config.data.num_images == 80
        assert config.defenses[0] in SPECS


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "3"], "expected at least 4 passes an image"),
        (["--budget", "3s"], "expected passes such as 30, or milliseconds such as 200ms"),
        (["--budget", "0ms"], "expected passes such as 30, or milliseconds such as 200ms"),
        (["--least-clean", "101"], "--least-clean: expected a percent of at most 100"),
        (["--floor", "1:50"], "--floor: expected --sizes beside it"),
        (["--calibrate", "80"], "--calibrate: expected 1 to 79 of the 80 images"),
        (["--fill", "mean/"], "--fill: expected each candidate once"),
        (["--defense", "minority_reports:masks_per_axis=2"], "of one guarantee"),
        (["--patch", "1,2"], "--patch: expected one threat to choose for, got 2"),
        (["--no-halving"], "--may-lose: has no use with --no-halving"),
        (["--no-decide"], "--no-decide: has no use with a choice"),
        (["--page"], "--page: has no use with a choice"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_before_any_work(tmp_path, capsys, options, said):
    dropped = {"--budget": ["--budget", "14"], "--patch": ["--patch", "1"]}.get(options[0], [])
    words = [word for word in SMALL if word not in dropped]
    out = tmp_path / "run"
    assert choose.main([*words, *options, *THREE[:2], "--out", str(out)]) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not out.exists()


def test_images_that_cannot_be_read_count_nowhere(tmp_path, capsys):
    folder = tmp_path / "images"
    for digit in range(10):
        for place, at in enumerate(np.flatnonzero(digits_arrays("test")[1] == digit)[:2]):
            file = folder / str(digit) / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits_arrays("test")[0][at].squeeze()).save(file)
    first, _ = halves(list(range(20)), None, 0)
    for at in first.places[:2]:  # sorted by class and name
        (folder / str(at // 2) / f"{at % 2}.png").write_bytes(b"no image")
    words = ["--dataset", "image_folder", "--data-dir", str(folder), "--on-unreadable", "skip"]
    words += [*SMALL[:2], *SMALL[4:8], *THREE[:2], "--out", str(tmp_path / "run")]
    assert choose.main(words) == 0
    assert "chosen on 8 images (seed 0); the numbers below are of the other 10" in " ".join(
        capsys.readouterr().out.split()
    )
    kept = json.loads((tmp_path / "run" / "choice.json").read_text())
    assert kept["images"] == {"chosen_on": 8, "reported_on": 10}
    columns = kept["candidates"][0]["masked_images"] + 1  # the image itself too
    assert kept["passes"]["whole_tables"] == 8 * columns


def test_a_demand_that_nothing_meets_is_said_with_what_comes_near(tmp_path, capsys):
    words = [*SMALL, *THREE[:2], "--least-clean", "100", "--out", str(tmp_path / "run")]
    words[words.index("--num-images") + 1] = "300"
    assert choose.main(words) == 2
    (line,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
    assert "no candidate of 1 keeps to --budget 14" in line


def test_over_sizes_each_candidate_is_one_classifier_with_its_weights_and_floors():
    words = ["--sizes", "1,2,3", "--size-weights", "1,0,3", "--floor", "2:40", "--budget", "50"]
    options = choose_options.read(choose.parser().parse_args(words))
    assert options.size_weights == (0.25, 0, 0.75)
    assert options.floors == (("2", 0.4),)
    threats = [Threat.of((8, 8), size) for size in (1, 2, 3)]
    candidates = choose_candidates.candidates(options, threats, [1])
    assert len(candidates) > 3
    for one in candidates:
        assert {defense.masks for defense in one.defenses} == {one.defenses[0].masks}
        assert [defense.threat for defense in one.defenses] == threats


def test_a_choice_over_sizes_counts_every_size(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--model", "nearest_mean:create", "--num-images", "40", "--budget", "14"]
    words += ["--sizes", "1,2", "--size-weights", "3,1", "--floor", "2:10", "--views", "none"]
    assert choose.main([*words, "--defense", SPECS[0], "--out", str(out)]) == 0
    assert "floor at 2" in capsys.readouterr().out
    choice = json.loads((out / "choice.json").read_text())
    (one,) = choice["front"]
    results = json.loads((out / "reported" / "mean-none" / "results.json").read_text())
    at_1, at_2 = (part["worst_case_accuracy"] for part in results["defenses"])
    assert at_1 >= at_2 > 0.1
    assert one["reported_on"]["worst_case_accuracy"] == pytest.approx((3 * at_1 + at_2) / 4)
    assert one["reported_on"]["demands"] == {"floor at 2": {"share": at_2, "asked": 0.1}}


def test_what_is_measured_is_the_weighted_mean_over_sizes_and_each_floor():
    words = ["--budget", "9", "--sizes", "1,2", "--size-weights", "3,1"]
    words += ["--floor", "2:60", "--least-clean", "90"]
    options = choose_options.read(choose.parser().parse_args(words))
    threats = [Threat.of((8, 8), size) for size in (1, 2)]
    one, other = choose_candidates.candidates(options, threats, [2])[:2]
    results = [hand_made_reports.result(certified=n, clean=c) for n, c in ((0, 0), (0, 0), (6, 0))]
    results.append(hand_made_reports.result(certified=4, clean=7))
    report = hand_made_reports.report(*results)
    answers = {other.spec: [[n - 1, 1] if n else [] for n in range(8)]}
    measured = choose_runs.Certified(report, answers, [one, other]).measured(
        other, options, ("1", "2")
    )
    assert measured.worth == pytest.approx((3 * 6 + 4) / 4 / 8)
    assert measured.cost == 2 * 3.5  # two views
    assert measured.right.sum() == 7
    assert [(d.name, d.share, d.is_met) for d in measured.demands] == [
        ("least clean", 7 / 8, False), ("floor at 2", 4 / 8, False),
    ]  # fmt: skip
    whole = dataclasses.replace(options, budget_of="table")
    measured = choose_runs.Certified(report, {}, [one, other]).measured(other, whole, ("1", "2"))
    assert measured.cost == 2 * len(other.defenses[0].masked_images)


def test_equal_candidates_are_one_and_every_variant_has_them():
    words = ["--budget", "50", "--fill", "mean/black", "--views", "none/mirror", "--patch", "5"]
    options = choose_options.read(choose.parser().parse_args(words))
    candidates = choose_candidates.candidates(options, [Threat.of((32, 32), 5)], [1, 2, 1, 2])
    specs = [one.spec for one in candidates if one.variant == options.variants[0]]
    assert "double_masking:masks_per_axis=4" in specs
    assert "double_masking:masks_per_axis=4,split=even" not in specs  # even already
    assert len(candidates) == 4 * len(specs)
    assert {(one.variant.fill, one.variant.views, one.passes_each) for one in candidates} == {
        ("mean", "none", 1), ("mean", "mirror", 2), ("black", "none", 1), ("black", "mirror", 2),
    }  # fmt: skip
    command = choose_options.command_of(
        [*words, "--defense=x", "--out", "a b", "--no-halving"], "mrcert", options.variants[3]
    )
    assert command.endswith("certify --patch 5 --defense mrcert --fill black --views mirror")


def test_halves_have_no_image_in_common_and_all_of_them():
    one, other = halves(small_runs.SmallTestSet(count=11), None, 3)
    assert len(one) == 5
    assert sorted([*one.places, *other.places]) == list(range(11))
    assert halves(small_runs.SmallTestSet(count=11), 5, 3)[0].places.tolist() == (
        one.places.tolist()
    )
    assert one.read(1, 3).ids == tuple(f"Bild {i}\n\u00e4" for i in one.places[1:3])
