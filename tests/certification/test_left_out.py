"""Images that cannot be read, vanish or are mended between two runs: the others' work stays."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pytest
from small_runs import BLOCKS, COUNT, DEFENSE, PARAMS, contents, evaluate, linear

from certmask_jax.certification import precision_check, report, verdicts
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.data import Batch
from certmask_jax.files.unreadable import UnreadableImage
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.programs.patched_images import PatchedImages
from certmask_jax.tables import merging, run_images, saved_table


class Listed(NamedTuple):
    ids: tuple[str, ...]
    labels: np.ndarray
    sizes: np.ndarray


class Files:
    """A test set of ten files by name, any of which may be missing, broken or another one."""

    def __init__(self, *, without=(), broken=(), other=(), stop_before=None):
        rng = np.random.default_rng(5)
        images = rng.integers(0, 256, (COUNT, 8, 8, 1), np.uint8)
        labels = rng.integers(0, 4, COUNT).astype(np.int32)
        for number in other:
            images[number] = 255 - images[number]
        self.numbers = [number for number in range(COUNT) if number not in without]
        self.broken, self.stop_before, self.read_now = set(broken), stop_before, []
        self.images, self.labels = images[self.numbers], labels[self.numbers]
        sizes = [100 + number + 1000 * (number in other) for number in self.numbers]
        self.listing = Listed(
            tuple(f"file {number}" for number in self.numbers), self.labels, np.array(sizes)
        )

    def __len__(self):
        return len(self.numbers)

    def read(self, start, stop):
        self.read_now += self.numbers[start:stop]
        if self.stop_before in self.numbers[start:stop] and stop - start > 1:
            raise KeyboardInterrupt
        for number in self.numbers[start:stop]:
            if number in self.broken:
                raise UnreadableImage(f"file {number}", "cut short")
        ids = self.listing.ids[start:stop]
        return Batch(self.images[start:stop], self.labels[start:stop], ids)


def verdicts_of(saved):
    of_run = verdicts.certify(saved, [DEFENSE])
    columns = {**of_run.per_image, **of_run.defenses[0].per_image}
    return {one: [column[row] for column in columns.values()] for row, one in enumerate(of_run.ids)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return verdicts_of(evaluate(tmp_path_factory.mktemp("whole"), Files()))


@pytest.mark.parametrize("broken", [(0,), (4,), (9,), (3, 4, 5), (0, 1, 2, 3, 9), tuple(range(9))])
@pytest.mark.parametrize("decide", [False, True])
def test_unreadable_images_are_named_and_count_nowhere(tmp_path, whole, broken, decide):
    said = []
    saved = evaluate(
        tmp_path, Files(broken=broken), skip_unreadable=True, decide=decide,
        hooks=Hooks(warn=said.append),
    )  # fmt: skip
    if not decide:
        left = {name: row for name, row in whole.items() if int(name[5:]) not in broken}
        assert verdicts_of(saved) == left
    of_run = verdicts.certify(saved, [DEFENSE])
    assert of_run.num_images == COUNT - len(broken)
    assert of_run.left_out == {f"file {number}": "cut short" for number in broken}
    labels = Files().labels[[n for n in range(COUNT) if n not in broken]]
    np.testing.assert_array_equal(of_run.per_image["label"], labels)
    assert of_run.forward_passes["full_table"] == 11 * of_run.num_images
    undefended = (of_run.per_image["undefended"] == labels).mean()
    assert of_run.undefended_accuracy == pytest.approx(undefended)
    assert report.to_json(of_run)["left_out"] == of_run.left_out
    assert all("left out: file" in line and "cut short" in line for line in said)
    assert saved_table.load(tmp_path).left_out == dict.fromkeys(broken, "cut short")


def test_known_before_they_are_not_even_read(tmp_path, whole):
    files = Files(broken=(0, 5))
    saved = evaluate(tmp_path, files, unreadable={"file 0": "no header", "file 5": "empty"})
    assert not {0, 5} & set(files.read_now)
    assert saved.left_out == {0: "no header", 5: "empty"}
    assert set(verdicts_of(saved)) == set(whole) - {"file 0", "file 5"}


def test_labels_that_are_no_classes_are_refused_before_any_work(tmp_path):
    files, no_class = Files(), Files().labels.copy()
    no_class[9] = 4
    files.listing = files.listing._replace(labels=no_class)
    with pytest.raises(ValueError, match=r"labels: expected values in 0..3 .*got 4 \(image 9\)"):
        evaluate(tmp_path / "run", files)
    assert files.read_now == [0]
    assert not (tmp_path / "run").exists()
    # Of an image that does not count it does not matter.
    saved = evaluate(tmp_path / "run", files, unreadable={"file 9": "empty"})
    assert saved.left_out == {9: "empty"}


def test_none_that_can_be_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="can be read, got none of 10"):
        evaluate(tmp_path, Files(broken=range(COUNT)), skip_unreadable=True)


def test_found_in_the_middle_it_stops_and_what_was_done_stays(tmp_path, whole):
    with pytest.raises(UnreadableImage, match="file 7: expected an image that can be decoded"):
        evaluate(tmp_path, Files(broken=(7,)))
    done = contents(tmp_path)
    assert saved_table.images_done(tmp_path) == (6, COUNT)
    # Each way out goes on from there: mended, skipped, removed.
    for number, (files, options, count) in enumerate(
        [
            (Files(other=(7,)), {}, 10),
            (Files(broken=(7,)), {"skip_unreadable": True}, 9),
            (Files(without=(7,)), {}, 9),
        ]
    ):
        folder = tmp_path.parent / f"{tmp_path.name} {number}"
        for name, content in done.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        saved = evaluate(folder, files, **options)
        assert min(files.read_now[1:]) >= 6  # after the look at the first image
        rows = verdicts_of(saved)
        assert len(rows) == count
        for name in set(rows) - {"file 7"}:
            assert rows[name] == whole[name]


def test_removed_after_its_block_was_done(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, Files(stop_before=6))
    said, files = [], Files(without=(1, 8))
    saved = evaluate(tmp_path, files, hooks=Hooks(warn=said.append))
    assert set(files.read_now) == {0, 6, 7, 9}  # the first image, and the blocks that were left
    assert verdicts_of(saved) == {n: r for n, r in whole.items() if n not in ("file 1", "file 8")}
    gone = run_images.GONE
    assert said == [f"left out: file 1 ({gone})", f"left out: file 8 ({gone})"]
    # And once more: nothing is computed, nothing is said again.
    said, files = [], Files(without=(1, 8))
    evaluate(tmp_path, files, hooks=Hooks(warn=said.append))
    assert (said, files.read_now) == ([], [0])


def test_removed_first_image(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, Files(stop_before=6))
    saved = evaluate(tmp_path, Files(without=(0, 2)))
    assert verdicts_of(saved) == {n: r for n, r in whole.items() if n not in ("file 0", "file 2")}


@pytest.mark.parametrize("number", [0, 4, 9])
def test_mended_between_two_runs_is_looked_at_again(tmp_path, whole, number):
    evaluate(tmp_path, Files(broken=(number,)), skip_unreadable=True)
    before = contents(tmp_path)
    # As broken as it was: nothing is done.
    files = Files(broken=(number,))
    evaluate(tmp_path, files, skip_unreadable=True)
    assert contents(tmp_path) == before
    assert set(files.read_now) <= {0, 1, number}
    # Mended, with as many bytes or another number: its block alone is done again.
    said, files = [], Files()
    saved = evaluate(tmp_path, files, hooks=Hooks(warn=said.append))
    (block,) = [range(*span) for span in BLOCKS if number in range(*span)]
    assert set(files.read_now) == {0, *block}
    assert len(said) == 1
    assert f"file {number}: another image than before, or readable now" in said[0]
    assert verdicts_of(saved) == whole


def test_another_image_under_the_same_name_is_noticed_by_its_size(tmp_path, whole):
    evaluate(tmp_path, Files())
    files = Files(other=(4,))
    rows = verdicts_of(evaluate(tmp_path, files))
    assert set(files.read_now) == {0, 3, 4, 5}
    assert rows == verdicts_of(evaluate(tmp_path / "alone", Files(other=(4,))))
    assert {name for name in rows if rows[name] != whole[name]} <= {"file 4"}


def test_broken_after_it_was_done_no_longer_counts(tmp_path, whole):
    evaluate(tmp_path, Files())
    files = Files(broken=(4,))
    saved = evaluate(tmp_path, files, unreadable={"file 4": "no header"})
    assert files.read_now == [0]
    assert verdicts_of(saved) == {n: r for n, r in whole.items() if n != "file 4"}


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ((3,), (), r"1 are new \(file 3\)"),
        ((1, 2, 3, 4, 5), (0,), r"5 are new \(file 1, file 2, file 3, \.\.\.\); 1 are gone"),
    ],
)
def test_images_that_appear_are_another_run(tmp_path, then, now, says):
    evaluate(tmp_path, Files(without=then))
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=says):
        evaluate(tmp_path, Files(without=now))
    assert contents(tmp_path) == before


def test_another_label_is_another_run(tmp_path):
    evaluate(tmp_path, Files())
    files = Files()
    files.labels[3] = (files.labels[3] + 1) % 4
    with pytest.raises(FileExistsError, match=r"1 are with another label \(file 3 is of class"):
        evaluate(tmp_path, files)


def test_shares_with_images_left_out_make_up_one_table(tmp_path):
    broken = Files(broken=(1, 7))
    alone = evaluate(tmp_path / "alone", broken, skip_unreadable=True)
    for part in range(2):
        evaluate(tmp_path / f"{part}", broken, skip_unreadable=True, share=(part, 2))
    merging.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert verdicts_of(saved_table.load(tmp_path / "merged")) == verdicts_of(alone)
    assert (tmp_path / "merged" / saved_table.IMAGES).read_bytes() == (
        tmp_path / "alone" / saved_table.IMAGES
    ).read_bytes()
    # What was merged goes on as one run does.
    evaluate(tmp_path / "merged", Files(without=(7,)), unreadable={"file 1": "cut short"})


def test_label_flips_are_counted_on_images_that_are_there(tmp_path):
    how = Preprocessing(precision="bfloat16")
    saved = evaluate(tmp_path, Files(broken=(1, 7)), skip_unreadable=True, preprocessing=how)
    flips = precision_check.label_flips(
        saved, Files(without=(0,), broken=(1, 7)), linear, PARAMS, preprocessing=how, chunk=8
    )
    assert flips.compared == 7 * 11


def test_tables_of_older_versions_are_read(tmp_path):
    """Their files of ids have a checksum of the ids alone."""
    evaluate(tmp_path)
    for file in (tmp_path / "ids").iterdir():
        facts = json.loads(file.read_bytes())
        assert set(facts) == {"crc32", "ids"}
    assert not (tmp_path / saved_table.IMAGES).exists()


def test_all_rows_left_out_is_an_error(tmp_path):
    saved = evaluate(tmp_path, Files())
    with pytest.raises(ValueError, match="all 10 are left out"):
        verdicts.certify(saved._replace(left_out=dict.fromkeys(range(10), "x")), [DEFENSE])


def test_progress_adds_up_with_images_left_out(tmp_path):
    steps, images = [], []
    hooks = Hooks(
        progress=steps.append, block=lambda table, labels: images.append((len(table), len(labels)))
    )
    evaluate(tmp_path, Files(broken=(3, 4, 5, 9)), skip_unreadable=True, hooks=hooks)
    assert sum(step.settled for step in steps) == 11 * COUNT
    assert sum(step.evaluated for step in steps) == 11 * 6
    assert images == [(3, 3), (3, 3)]


def test_rows_without_a_listing_are_skipped_too(tmp_path):
    class Plain(Files):
        listing = None

        def __init__(self, **options):
            super().__init__(**options)
            self.listing = None

        def read(self, start, stop):
            for number in self.numbers[start:stop]:
                if number in self.broken:
                    raise UnreadableImage(f"file {number}", "cut short")
            ids = tuple(map(str, range(start, stop)))
            return Batch(self.images[start:stop], self.labels[start:stop], ids)

    saved = evaluate(tmp_path, Plain(broken=(4,)), skip_unreadable=True)
    assert saved.left_out == {4: "cut short"}


def test_patches_on_files_depend_on_the_name_alone():
    whole = PatchedImages(Files(), (2, 3), seed=4)
    rest = PatchedImages(Files(without=(0, 4)), (2, 3), seed=4)
    numbers = rest.clean.numbers
    np.testing.assert_array_equal(rest.read(0, 8).images, whole.read(0, COUNT).images[numbers])
    np.testing.assert_array_equal(rest.read(3, 8).images, whole.read(0, COUNT).images[numbers[3:]])
    changed = (whole.read(0, COUNT).images != Files().images).any(axis=(1, 2, 3))
    assert changed.all()
    assert rest.listing.ids == rest.clean.listing.ids
