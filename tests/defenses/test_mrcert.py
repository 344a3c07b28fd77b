"""MRCert: its cases, what they promise, by exhaustion over whole tables, and what breaks them."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import oracle
import oracle_mrcert as literal
import pytest
from covers import random_cover

from certmask_jax import data, defenses, mask_sets, models, predict, weights
from certmask_jax.defenses import Defense, adversary
from certmask_jax.defenses.known_so_far import Seen
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.masks.mask_set import MaskSet
from certmask_jax.programs import certify
from certmask_jax.programs.patched_images import PatchedImages
from certmask_jax.tables.prediction_table import NO_LABEL, UNKNOWN, from_labels

DISJOINT = [[0, i, 1, i + 1] for i in range(4)]


def _masks(boxes, width) -> MaskSet:
    return MaskSet(np.array(boxes), (1, width), (1, 1))


COVERS = {
    "two disjoint": (_masks(DISJOINT[:2], 2), 3),
    "two overlapping": (_masks([[0, 0, 1, 2], [0, 1, 1, 3]], 3), 3),
    "three disjoint": (_masks(DISJOINT[:3], 3), 3),
    "three overlapping": (_masks([[0, 0, 1, 2], [0, 1, 1, 3], [0, 2, 1, 4]], 4), 3),
    "one of two twice": (_masks([[0, 0, 1, 1], [0, 1, 1, 2], [0, 1, 1, 2]], 2), 3),
    "one hides all": (_masks([[0, 0, 1, 3], [0, 0, 1, 1], [0, 2, 1, 3]], 3), 3),
    "four disjoint": (_masks(DISJOINT, 4), 2),
    "four, redundant": (_masks([[0, 0, 1, 3], [0, 1, 1, 4], [0, 2, 1, 5], [0, 0, 1, 1]], 5), 2),
}
SMALL = [name for name, (masks, _) in COVERS.items() if len(masks) < 4]


def _columns(defense: Defense, sets) -> dict[frozenset[int], int]:
    """Sets of masks -> the masked image that hides the same pixels, by painting."""
    masks, images = defense.mask_set, defense.masked_images
    pixels = [oracle.paint(boxes, masks.image_size) for boxes in masks.boxes]
    column = {
        oracle.paint(boxes, masks.image_size).tobytes(): i for i, boxes in enumerate(images.boxes)
    }
    nothing = np.zeros(masks.image_size, bool)
    return {s: column[np.any([nothing, *(pixels[m] for m in s)], axis=0).tobytes()] for s in sets}


def _hidden(defense: Defense) -> np.ndarray:
    """By painting: ``bool[L, V]``."""
    masks = defense.mask_set
    hides = oracle.hides(defense.masked_images.boxes, masks.image_size, masks.patch_size)
    return np.unique(hides.reshape(len(hides), -1).T, axis=0)


def _several(hidden: np.ndarray, patches: int) -> np.ndarray:
    """What hides each choice of that many locations, ``bool[L', V]``."""
    chosen = itertools.combinations_with_replacement(hidden, patches)
    return np.unique([np.all(rows, axis=0) for rows in chosen], axis=0)


class Every:
    """All tables of V masked images and K classes, ``[K ** V, V]``, and what a defense says."""

    def __init__(self, defense: Defense, classes: int) -> None:
        self.defense, self.classes = defense, classes
        width = len(defense.masked_images)
        self.rows = np.indices((classes,) * width).reshape(width, -1).T
        self.table = from_labels(self.rows, defense.masked_images, num_classes=classes)
        self.answers = defense.rule(self.table)

    def always(self, holds: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """``bool[K ** V]``: it holds for every table that an attacker at some row may make."""
        weights = self.classes ** np.arange(self.rows.shape[1])[::-1]
        stays = np.ones(len(self.rows), bool)
        for location in hidden:
            kept = self.rows[:, location] @ weights[location]
            broken = np.zeros(self.classes ** self.rows.shape[1], bool)
            broken[kept[~holds]] = True
            stays &= ~broken[kept]
        return stays

    def proved(self, name: str, label: int) -> np.ndarray:
        labels = np.full(len(self.rows), label)
        if name in self.defense.row_conditions:
            return self.defense.conditions(self.table, labels)[name]
        return getattr(self.defense, name)(self.table, labels)


@pytest.fixture(scope="module", params=COVERS)
def every(request) -> Every:
    masks, classes = COVERS[request.param]
    return Every(defenses.mrcert(masks), classes)


def test_the_three_cases_and_the_certificates_are_the_papers(every):
    masks = len(every.defense.mask_set)
    columns = _columns(every.defense, literal.up_to(masks, 4))
    rng = np.random.default_rng(0)
    for t in rng.permutation(len(every.rows))[:800]:
        f = {chosen: int(every.rows[t, column]) for chosen, column in columns.items()}
        assert every.answers[t] == literal.rule(f, masks)
    for name, condition in (("c_r", literal.c_r), ("round_trip", literal.round_trip)):
        proved = np.stack([every.proved(name, y) for y in range(every.classes)])
        certified = np.flatnonzero(proved.any(axis=0))
        some = rng.permutation(len(every.rows))[:200]
        for t in [*rng.permutation(certified)[:200], *some]:
            f = {chosen: int(every.rows[t, column]) for chosen, column in columns.items()}
            label = condition(f, masks)
            np.testing.assert_array_equal(proved[:, t], np.arange(every.classes) == label)


def test_worst_case_is_the_table_adversarys_on_every_table(every):
    hidden = _hidden(every.defense)
    for y in range(every.classes):
        robust = every.always(every.answers == y, hidden)
        np.testing.assert_array_equal(every.proved("worst_case", y), robust)
        certified = every.proved("certificate", y)
        assert certified.any()
        assert not (certified & ~robust).any()
        np.testing.assert_array_equal(certified, every.proved("c_r", y))


def test_round_trip_and_two_patches(every):
    """Every one-patch version is recovered and has c_r, every two-patch version is recovered."""
    hidden = _hidden(every.defense)
    for y in range(every.classes):
        there = every.proved("round_trip", y)
        assert there.any()
        again = every.always(every.proved("c_r", y), hidden)
        assert not (there & ~again).any()
        recovered = every.always(every.answers == y, _several(hidden, 2))
        assert not (there & ~recovered).any()
        assert not (again & ~recovered).any()


def test_certified_labels_hold_for_images_that_are_patched(every):
    """c_r of a patched image: the clean image, whichever it was, has the same answer."""
    certified = every.defense.certified_labels(every.table)
    assert (certified != NO_LABEL).any()
    hidden = _hidden(every.defense)
    single = _columns(every.defense, [frozenset({m}) for m in range(len(every.defense.mask_set))])
    if not hidden[:, list(single.values())].all(axis=0).any():  # else it is always stable
        assert (certified == NO_LABEL).any()
    for z in range(every.classes):
        same = every.always(every.answers == z, hidden)
        np.testing.assert_array_equal(certified == z, every.proved("c_r", z))
        assert same[certified == z].all()


# --- several patches ---


@pytest.mark.parametrize("name", ["two disjoint", "three overlapping", "three disjoint"])
def test_two_patches_on_every_table(name):
    masks, classes = COVERS[name]
    every = Every(defenses.mrcert(masks, patches=2), classes)
    columns = _columns(every.defense, literal.up_to(len(masks), 8))
    pairs, four = _several(_hidden(every.defense), 2), _several(_hidden(every.defense), 4)
    rng = np.random.default_rng(0)
    for t in rng.permutation(len(every.rows))[:400]:
        f = {chosen: int(every.rows[t, column]) for chosen, column in columns.items()}
        assert every.answers[t] == literal.rule_of_patches(f, len(masks), 2)
        label = literal.c_r_of_patches(f, len(masks), 2)
        for y in range(classes):
            assert every.proved("c_r", y)[t] == (y == label) if t < 5 else True
    for y in range(classes):
        robust = every.always(every.answers == y, pairs)
        np.testing.assert_array_equal(every.proved("worst_case", y), robust)
        assert not (every.proved("certificate", y) & ~robust).any()
        there = every.proved("round_trip", y)
        assert there.any()
        assert not (there & ~every.always(every.proved("c_r", y), pairs)).any()
        assert not (there & ~every.always(every.answers == y, four)).any()


# --- mutants: each weakens one condition, and the adversary breaks it ---


@pytest.fixture(scope="module")
def three() -> Every:
    masks, classes = COVERS["three disjoint"]
    return Every(defenses.mrcert(masks), classes)


def _answers(every: Every, further: tuple[int, int, int]) -> np.ndarray:
    masks = len(every.defense.mask_set)
    columns = _columns(every.defense, literal.up_to(masks, 4))
    return np.array(
        [
            literal.rule({s: row[c] for s, c in columns.items()}, masks, further)
            for row in every.rows.tolist()
        ]
    )


def _all_are(every: Every, y: int, sets) -> np.ndarray:
    columns = _columns(every.defense, literal.up_to(len(every.defense.mask_set), 4))
    return (every.rows[:, [columns[frozenset(s)] for s in sets]] == y).all(axis=1)


def test_case_2_with_one_mask_fewer_breaks_two_patch_recovery(three):
    hidden = _hidden(three.defense)
    there = three.proved("round_trip", 0)
    mutant = _answers(three, (2, 1, 2))
    assert not (there & ~three.always(three.answers == 0, _several(hidden, 2))).any()
    assert not three.always(mutant == 0, _several(hidden, 2))[there].any()
    # One patch is recovered all the same: {A, M} is out of the attacker's reach.
    assert not (there & ~three.always(mutant == 0, hidden)).any()


def test_case_1_with_one_mask_fewer_breaks_c_r(three):
    mutant = _answers(three, (1, 2, 2))
    certified = three.proved("c_r", 0)
    assert (certified & ~three.always(mutant == 0, _hidden(three.defense))).any()


def test_case_3_with_one_mask_fewer_breaks_c_r():
    """c_r by mask 3; the patch, under mask 2, makes 0 and 1 agree with all that one mask adds."""
    clean = {s: 0 if 3 in s else 1 for s in literal.up_to(4, 4)}
    assert literal.c_r(clean, 4) == 0
    patched = {s: clean[s] if 2 in s else 1 for s in clean}
    assert literal.rule(patched, 4) == 0
    assert literal.rule(patched, 4, (2, 2, 1)) == 1


@pytest.mark.parametrize(
    "mutant", ["no fourth order", "case 1 without the third order", "any for all"]
)
def test_weaker_certificates_are_broken(three, mutant):
    robust = three.always(three.answers == 0, _hidden(three.defense))
    sets = list(literal.up_to(3, 3))
    whole = _all_are(three, 0, [s for s in sets if len(s) <= 3])
    above = {a: [s for s in sets if a in s] for a in range(3)}
    if mutant == "no fourth order":  # f(x*A*B*C) = f(x*A) is a union of three at most
        four = _masks(DISJOINT, 4)
        every = Every(defenses.mrcert(four), 2)
        robust = every.always(every.answers == 0, _hidden(every.defense))
        holds = _all_are(every, 0, [s for s in literal.up_to(4, 3) if 0 in s])
        exact = _all_are(every, 0, [s for s in literal.up_to(4, 4) if 0 in s])
        assert not (exact & ~robust).any()
    elif mutant == "any for all":
        holds = np.any([_all_are(three, 0, [s]) for s in above[0]], axis=0)
    else:
        holds = _all_are(three, 0, [s for s in sets if len(s) <= 2])
        assert not (whole & ~robust).any()
    assert (holds & ~robust).any()


def test_what_holds_for_one_patch_does_not_for_two(three):
    pairs = _several(_hidden(three.defense), 2)
    robust = three.always(three.answers == 0, pairs)
    assert (three.proved("c_r", 0) & ~robust).any()
    two = defenses.mrcert(three.defense.mask_set, patches=2)
    assert (three.proved("round_trip", 0) & ~robust).sum() == 0
    np.testing.assert_array_equal(two.groups[:, :1], False)  # the image itself hides nothing


@pytest.mark.parametrize("mutant", ["any location", "bases that hide nothing"])
def test_weaker_worst_cases_are_broken(three, mutant):
    hidden = _hidden(three.defense)
    robust = three.always(three.answers == 0, hidden)
    columns = _columns(three.defense, literal.up_to(3, 4))
    stable = {
        s: _all_are(three, 0, [t for t in literal.up_to(3, 4) if s <= t and len(t - s) <= 2])
        for s in literal.up_to(3, 2)
    }
    at = [
        np.any([stable[s] for s in stable if mutant != "any location" or row[columns[s]]], axis=0)
        for row in hidden
    ]
    exact = [np.any([stable[s] for s in stable if row[columns[s]]], axis=0) for row in hidden]
    np.testing.assert_array_equal(np.all(exact, axis=0), robust)
    mutated = np.any(at, axis=0) if mutant == "any location" else np.all(at, axis=0)
    assert (mutated & ~robust).any()


# --- random covers, and the package's own adversary ---


def test_worst_case_on_random_covers_and_all_their_tables():
    rng = np.random.default_rng(5)
    tables = 0
    while tables < 20_000:
        masks = random_cover(rng, int(rng.integers(3, 5)), int(rng.integers(3, 6)), 1 + tables % 2)
        defense = defenses.mrcert(masks)
        classes = 3 if len(defense.masked_images) <= 8 else 2
        if not 1000 < classes ** len(defense.masked_images) < 20_000:
            continue
        every, hidden = Every(defense, classes), _hidden(defense)
        for y in range(classes):
            robust = every.always(every.answers == y, hidden)
            np.testing.assert_array_equal(every.proved("worst_case", y), robust)
            assert not (every.proved("certificate", y) & ~robust).any()
            there = every.proved("round_trip", y)
            assert not (there & ~every.always(every.proved("c_r", y), hidden)).any()
            assert not (there & ~every.always(every.answers == y, _several(hidden, 2))).any()
        tables += len(every.rows)


def test_worst_case_equals_the_packages_adversary():
    rng = np.random.default_rng(2)
    defense = defenses.mrcert(_masks([[0, 0, 1, 2], [0, 1, 1, 3], [0, 2, 1, 4]], 4))
    labels = rng.integers(0, 3, 120)
    noise = rng.random((120, len(defense.masked_images))) < rng.choice([0.02, 0.1, 0.4], (120, 1))
    rows = np.where(noise, rng.integers(0, 3, noise.shape), labels[:, None])
    table = from_labels(rows, defense.masked_images, num_classes=3)
    robust = [
        adversary.worst_case(defense.row_rule, row, defense.groups, int(y), num_classes=3)
        for row, y in zip(rows, labels, strict=True)
    ]
    np.testing.assert_array_equal(defense.worst_case(table, labels), robust)
    assert 10 < sum(robust) < 110


# --- ties, and tables that are not whole ---


def test_a_tie_costs_only_what_rests_on_it():
    defense = defenses.mrcert(_masks(DISJOINT, 4))
    columns = _columns(defense, literal.up_to(4, 4))
    shape = (5, len(defense.masked_images))
    labels, margins = np.zeros(shape, np.int16), np.ones(shape, np.float16)
    margins[1, columns[frozenset({0, 1, 2, 3})]] = 0  # the round trip, and c_r with one mask
    margins[2, columns[frozenset({0, 1, 2})]] = 0  # c_r with the image itself, or masks 0, 1, 2
    margins[3, columns[frozenset({0, 1, 2})]] = 0
    margins[3, columns[frozenset({0, 1, 3})]] = 0
    margins[3, columns[frozenset({2, 3})]] = 0
    labels[4, 0], margins[4, 0] = NO_LABEL, np.nan
    table = from_labels(labels, defense.masked_images, num_classes=2, margins=margins)
    zero = np.zeros(5, int)
    assert defense.conditions(table, zero)["round_trip"].tolist() == [True] + [False] * 4
    assert defense.certificate(table, zero).tolist() == [True, True, True, False, True]
    assert defense.worst_case(table, zero).tolist() == [True, True, True, False, True]
    assert defense.rule(table).tolist() == [0] * 5
    assert defense.certified_labels(table).tolist() == [0, 0, 0, NO_LABEL, 0]


def _asked(defense: Defense, row: np.ndarray, label: int | None) -> np.ndarray:
    """The row, but UNKNOWN where nothing that ``label`` decides depends on it."""
    known = np.zeros(len(row), bool)
    while True:
        seen = Seen(np.where(known, row, UNKNOWN), np.ones(len(row), np.float16), known)
        columns = defense.open_columns(seen, label)
        if not len(columns):
            return seen.predictions
        known[columns[:4]] = True


def test_certified_labels_of_part_of_a_table():
    defense = defenses.mrcert(_masks(DISJOINT, 4))
    rng = np.random.default_rng(0)
    noise = rng.random((60, len(defense.masked_images))) < rng.choice([0.1, 0.5], (60, 1))
    rows = np.where(noise, rng.integers(0, 3, noise.shape), rng.integers(0, 3, (60, 1)))
    whole = from_labels(rows, defense.masked_images, num_classes=3)
    answers = defense.rule(whole)

    def part(labels):
        asked = [_asked(defense, row, y) for row, y in zip(rows, labels, strict=True)]
        return from_labels(asked, defense.masked_images, num_classes=3)

    decided = part(answers)
    assert (decided.predictions == UNKNOWN).any(axis=1).sum() > 20
    certified = defense.certified_labels(decided)
    np.testing.assert_array_equal(certified, defense.certified_labels(whole))
    assert 5 < (certified == NO_LABEL).sum() < 85
    with pytest.raises(ValueError, match="evaluate the whole table"):
        defense.certified_labels(part([None] * 60))


@pytest.mark.parametrize("patches", [1, 2])
def test_early_exit_for_several_patches(patches):
    defense = defenses.mrcert(mask_sets.budgeted_grid(6, 1, masks_per_axis=(2, 3)), patches=patches)
    rng = np.random.default_rng(patches)
    labels = rng.integers(0, 3, 120)
    shape = (120, len(defense.masked_images))
    noise = rng.random(shape) < rng.choice([0, 0.01, 0.05, 0.3], (120, 1))
    rows = np.where(noise, rng.integers(0, 3, shape), labels[:, None])
    # Some images are right only where a certain mask is hidden: c_r with that mask.
    columns = _columns(defense, literal.up_to(6, 4 * patches))
    without = [column for chosen, column in columns.items() if 2 not in chosen]
    rows[:40, without] = rng.integers(0, 3, (40, len(without)))
    rows[:40, [column for chosen, column in columns.items() if 2 in chosen]] = labels[:40, None]
    whole = from_labels(rows, defense.masked_images, num_classes=3)
    asked = [_asked(defense, row, int(y)) for row, y in zip(rows, labels, strict=True)]
    part = from_labels(asked, defense.masked_images, num_classes=3)
    assert (part.predictions == UNKNOWN).mean() > 0.1
    np.testing.assert_array_equal(defense.rule(part), defense.rule(whole))
    np.testing.assert_array_equal(
        defense.worst_case(part, labels), defense.worst_case(whole, labels)
    )
    for name, holds in defense.conditions(whole, labels).items():
        np.testing.assert_array_equal(defense.conditions(part, labels)[name], holds)
        assert 0 < holds.sum() < 120
    assert defense.certificate(whole, labels)[:40].all()
    assert not defense.conditions(whole, labels)["round_trip"][:40].all()


@pytest.mark.parametrize("label", [None, 0, 1])
def test_early_exit_finds_the_one_union_that_is_stable(label):
    """Every other label is the image's own, or another at each union."""
    defense = defenses.mrcert(mask_sets.budgeted_grid(8, 1, masks_per_axis=(2, 3)))
    columns = _columns(defense, literal.up_to(6, 4))
    rows = []
    for chosen in literal.up_to(6, 2):
        for rest in (0, np.arange(len(columns)) % 3):
            row = np.zeros(len(columns), int) + rest
            row[[0, *(columns[s] for s in columns if chosen <= s)]] = [0] + [1] * sum(
                chosen <= s for s in columns
            )
            rows.append(row)
    asked = [_asked(defense, row, label) for row in rows]
    whole = from_labels(rows, defense.masked_images, num_classes=3)
    part = from_labels(asked, defense.masked_images, num_classes=3)
    assert (part.predictions == UNKNOWN).any(axis=1).sum() > 20
    assert (defense.rule(whole)[2:] == 1).all()
    np.testing.assert_array_equal(defense.rule(part), defense.rule(whole))


# --- the programs ---


def test_on_the_command_line(tmp_path, capsys):
    """The default digits: conditions under their names, verdicts of the whole table."""
    runs = {}
    for decide in ("--decide", "--no-decide"):
        out = tmp_path / decide
        options = ["--num-images", "6", "--defense", "mrcert:masks_per_axis=3", "--chunk", "64"]
        assert certify.main([*options, decide, "--out", str(out)]) == 0
        runs[decide] = json.loads((out / "results.json").read_text())
    capsys.readouterr()
    part, whole = (run["defenses"][0] for run in runs.values())
    for name in ("clean_accuracy", "worst_case_accuracy", "certified_accuracy", "conditions"):
        assert part[name] == whole[name]
    assert set(whole["conditions"]) == {"c_r", "round_trip"}
    assert whole["conditions"]["c_r"] == whole["certified_accuracy"]
    assert whole["worst_case_exact"]
    made = [run["forward_passes"]["made"] for run in runs.values()]
    assert made[0] < made[1] == 6 * 256


def test_patched_test_sets(tmp_path, capsys):
    clean = data.load("digits", data_config=models.create("vit_digits").data_config)
    first, other = (PatchedImages(clean, (2, 3), seed) for seed in (0, 1))
    batch = first.read(0, 50)
    changed = (batch.images != clean.read(0, 50).images)[..., 0]
    rows, cols = changed.any(axis=2), changed.any(axis=1)
    assert (rows.sum(axis=1) <= 2).all()
    assert (cols.sum(axis=1) <= 3).all()
    assert changed.any(axis=(1, 2)).all()
    assert len({hidden.tobytes() for hidden in changed}) > 20  # elsewhere on every image
    np.testing.assert_array_equal(first.read(30, 40).images, batch.images[30:40])
    assert (other.read(0, 50).images != batch.images).any()

    options = ["--num-images", "8", "--defense", "mrcert:masks_per_axis=2", "--patched", "3"]
    assert certify.main([*options, "--out", str(tmp_path / "run")]) == 0
    assert "the images are patched already" in capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "results.json").read_text())
    assert result["provenance"]["patched_with_noise_of_seed"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--defense", "mrcert:patches=2"], "unknown option 'patches'"),
        (["--defense", "mrcert:tau=1"], "unknown option 'tau'"),
        (["--defense", "mrcert:masks_per_axis=8"], "at most 262,144 unions, got up to 679,121"),
        (["--patched", "-1"], "--patched: expected a seed"),
        (["--patched", "0", "--patch", "1x2", "--patch", "2x1"], "--patched: expected one --patch"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, options, message):
    assert certify.main(["--num-images", "2", "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_real_verdicts_by_early_exit_are_those_of_the_whole_table(shared):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra: data")
    model = models.create("cifar_resnet20")
    params = weights.load(shared / "weights" / "cifar10_resnet20_cutout.npz", model)
    images = data.load(
        "cifar10", data_config=model.data_config, data_dir=shared / "data" / "tfds", num_images=10
    ).read(0, 10)
    defense = defenses.mrcert(mask_sets.budgeted_grid(32, 5, masks_per_axis=3))
    preprocessing = Preprocessing(model.data_config.mean, model.data_config.std)
    table = predict(
        model.apply_fn, params, images.images, defense.masked_images, preprocessing=preprocessing
    )
    asked = np.stack(
        [_asked(defense, p, int(y)) for p, y in zip(table.predictions, images.labels, strict=True)]
    )
    part = dataclasses.replace(table, predictions=asked)
    assert (asked == UNKNOWN).mean() > 0.4
    for fact in (
        lambda t: defense.rule(t),
        lambda t: defense.worst_case(t, images.labels),
        lambda t: defense.certificate(t, images.labels),
        lambda t: defense.conditions(t, images.labels)["round_trip"],
    ):
        np.testing.assert_array_equal(fact(part), fact(table))
    assert 1 <= defense.worst_case(table, images.labels).sum() < 8
