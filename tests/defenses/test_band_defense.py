"""Defenses on bands as values: golden results, exhausted votes, constructed attacks, errors."""

from __future__ import annotations

import itertools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import oracle_small_fields as slow
import pytest
from many_cases import cases

from certmask_jax.defenses import patchguard
from certmask_jax.defenses.band_defense import DerandomizedSmoothing, SmoothedViT
from certmask_jax.defenses.mask_ds_defense import MaskDS
from certmask_jax.masks.threats import Threat

CLASSES = 3


def _found(defense, logits, labels):
    results = jax.jit(lambda u, y: defense.results(u, y))(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)
    )
    return jax.tree.map(np.asarray, results._asdict())


def _of_labels(labels, classes):
    """Logits of bands whose best class is theirs alone."""
    return 9.0 * (np.asarray(labels)[..., None] == np.arange(classes))


def _met(image, shapes, band, stride, axis, wrap=True):
    """``bool[places, bands]`` of one patch by the definition, pixel by pixel."""
    seen = []
    sides = [(n, b, s) for n, b, s in zip(image, band, stride, strict=True)]
    starts = [range(0, n, s) for n, _, s in sides]
    if not wrap:
        starts = [
            sorted({*range(0, n - b + 1, s), n - b}) for n, b, s in sides
        ]  # fmt: skip
    shown = [
        [{(first + i) % n for i in range(b)} for first in of]
        for of, (n, b, _) in zip(starts, sides, strict=True)
    ]
    every = [set(range(n)) for n in image]
    rows = [(one, every[1]) for one in shown[0]]
    columns = [(every[0], one) for one in shown[1]]
    parts = {
        "rows": rows,
        "columns": columns,
        "both": rows + columns,
        "blocks": list(itertools.product(*shown)),
    }[axis]
    for height, width in shapes:
        for top in range(image[0] - height + 1):
            for left in range(image[1] - width + 1):
                patch = set(range(top, top + height)), set(range(left, left + width))
                seen.append([bool(r & patch[0]) and bool(c & patch[1]) for r, c in parts])
    return np.array(seen)


ALL = [
    DerandomizedSmoothing(Threat.of(8, 1), band=2, threshold=0.3, ties="largest"),
    SmoothedViT(Threat.of(8, (1, 2)), band=(1, 2), stride=2, axis="both"),
    MaskDS(Threat.of(8, 1), band=2, axis="blocks", features="votes", above=0.4, threshold=0.5),
]


@pytest.mark.parametrize("defense", ALL, ids=lambda one: one.name)
def test_a_defense_is_a_value_and_json(defense):
    again = pickle.loads(pickle.dumps(defense))
    assert again == defense
    assert hash(again) == hash(defense)
    assert type(defense)(defense.threat, band=2) != defense
    assert json.loads(json.dumps(defense.facts)) == defense.facts
    assert {"band", "stride", "axis", "wrap"} < set(defense.facts)


def test_its_line_says_what_there_is():
    lines = [str(one) for one in ALL]
    assert (
        lines[0] == "derandomized_smoothing: 8 bands of 2 columns for 1x1 patches on 8x8, recovery"
    )
    assert lines[1].startswith("smoothed_vit: 8 bands of 1 rows or 2 columns for 1x2 patches")
    assert lines[2].startswith("mask_ds: 64 blocks of 2x2 for")


def test_bands_are_the_papers_unless_said():
    large = Threat.of((224, 299), 32)
    bands = [one(Threat.of(32, 5)).band for one in (DerandomizedSmoothing, SmoothedViT, MaskDS)]
    assert bands == [4, 4, 4]
    bands = [one(large).band for one in (DerandomizedSmoothing, SmoothedViT, MaskDS)]
    assert bands == [25, 19, 25]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [DerandomizedSmoothing, SmoothedViT, MaskDS])
def test_bands_that_are_not_finite_are_never_certified(kind, bad):
    """One band of eight says no number, and the seven others are of one mind."""
    defense = kind(Threat.of((4, 8), 1), band=1)
    evidence = np.tile(np.float32([0, 5, 0]), (2, 8, 1))
    evidence[1, 3, 0] = bad
    labels = jnp.ones(2, jnp.int32)
    results = defense.results(jnp.asarray(evidence), labels)
    assert results.answer.tolist() == [1, 1]
    assert results.worst_case.tolist() == [True, False]
    within = defense.guarded(jnp.asarray(evidence), labels, margin_guard=0.01)
    assert within.tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "logits", "axis", "size"),
    [
        ("ds_column", "band_logits", "columns", 32),
        ("ds_block", "block_logits", "blocks", 10),
        ("cifar_ds_column", "band_logits", "columns", 32),
    ],
)
def test_golden_of_levine_and_feizi(shared, name, logits, axis, size):
    golden = np.load(shared / "golden" / "small_fields" / f"{name}.npz")
    labels = golden["label"]
    for case in [key[:2] for key in golden if key.endswith("_patch")]:
        keys = [n for n in ("band", "block") if f"{case}_{n}" in golden]
        defense = DerandomizedSmoothing(
            Threat.of(size, int(golden[f"{case}_patch"])),
            band=int(golden[f"{case}_{keys[0]}"]) if keys else 4,
            axis=axis,
            threshold=float(golden[f"{case}_threshold"]) if f"{case}_threshold" in golden else None,
        )
        results = _found(defense, golden[logits], labels)
        np.testing.assert_array_equal(results["answer"], golden[f"{case}_peer_pred"])
        np.testing.assert_array_equal(results["worst_case"], golden[f"{case}_sound_exact"])
        published = golden[f"{case}_peer_certified"] & (golden[f"{case}_peer_pred"] == labels)
        np.testing.assert_array_equal(results["conditions"]["published_gap"], published)


@pytest.mark.parametrize("case", [2, 4, 7])
def test_golden_of_smoothed_vits(shared, case):
    golden = np.load(shared / "golden" / "small_fields" / "svit_certify.npz")
    of = {key[3:]: golden[key] for key in golden if key.startswith(f"p{case}_")}
    axis = {"col": "columns", "both": "both", "block": "blocks"}[str(of["mode"])]
    defense = SmoothedViT(
        Threat.of(int(of["width"]), int(of["patch"])),
        band=int(of["ablation"]), stride=int(of["stride"]), axis=axis,
    )  # fmt: skip
    assert defense.published_reach() == of["affected_formula"]
    assert sum(p.sum(axis=1).max() for p in defense.affected) == of["affected_true_max"]
    classes = int(max(of["labels"].max(), of["label"].max())) + 1
    results = _found(defense, _of_labels(of["labels"], classes), of["label"])
    np.testing.assert_array_equal(results["answer"] == of["label"], of["peer_smoothed_correct"])
    np.testing.assert_array_equal(results["worst_case"], of["sound_exact"])
    np.testing.assert_array_equal(results["conditions"]["published_gap"], of["peer_certified"])


def test_golden_of_mask_ds(shared):
    golden = np.load(shared / "golden" / "small_fields" / "maskds_cifar_confidence.npz")
    for case in ("p0", "p1"):
        window = int(golden[f"{case}_window"][0])
        defense = MaskDS(Threat.of(32, window - 3), band=4)
        assert defense.window == (window, 1)
        labels = golden["label"].astype(np.int32)
        results = defense.masked(jnp.asarray(golden["local_logits"]), jnp.asarray(labels))
        np.testing.assert_array_equal(results.answer, golden[f"{case}_peer_pred"])
        np.testing.assert_array_equal(results.worst_case, golden[f"{case}_sound"])
        certified = golden[f"{case}_peer_result"] == 2
        np.testing.assert_array_equal(results.conditions["provable_masking"], certified)


@pytest.mark.parametrize(
    ("image", "shapes", "band", "stride", "axis", "wrap"),
    [
        ((1, 9), [(1, 1)], (2, 2), (2, 2), "columns", True),  # where the closed form is one short
        ((6, 1), [(1, 1), (2, 1)], (1, 1), (1, 1), "rows", True),
        ((4, 3), [(1, 1)], (1, 1), (1, 1), "both", True),
        ((3, 3), [(1, 1)], (1, 2), (2, 1), "blocks", False),
    ],
)
def test_the_worst_case_of_votes_is_what_exhausted_votes_leave(
    image, shapes, band, stride, axis, wrap
):
    """Every vote of the bands that are met, for any classes or none, by the definition."""
    met = _met(image, shapes, band, stride, axis, wrap)
    sides = {"columns": (band[1], stride[1]), "rows": (band[0], stride[0])}
    b, s = sides.get(axis, (band, stride))
    threat = Threat.of(image, *shapes)
    how = {"band": b, "stride": s, "axis": axis, "wrap": wrap}
    smoothing = DerandomizedSmoothing(threat, **how, threshold=0.4)
    rng = np.random.default_rng(2)
    count = cases(150)
    labels = rng.integers(0, 2, count)
    votes = rng.random((count, met.shape[1], 2)) < np.where(
        labels[:, None, None] == np.arange(2), 0.9, 0.35
    )
    # The rest of each softmax goes to ten more classes, too little for a vote of any.
    trust = np.where(votes, 0.45, 0.02)
    rest = np.repeat((1 - trust.sum(axis=2, keepdims=True)) / 10, 10, axis=2)
    logits = np.log(np.concatenate([trust, rest], axis=2))
    robust = np.ones(count, bool)
    all_votes = np.concatenate([votes, np.zeros_like(votes[..., :1])], axis=2)
    for group in np.unique(met, axis=0):
        for said in itertools.product([0, 1], repeat=3 * int(group.sum())):
            attacked = all_votes.copy()
            attacked[:, group] = np.array(said, bool).reshape(-1, 3)
            robust &= attacked.sum(axis=1).argmax(axis=1) == labels
    results = _found(smoothing, logits, labels)
    np.testing.assert_array_equal(smoothing.votes(jnp.asarray(logits))[..., :2], votes)
    np.testing.assert_array_equal(results["worst_case"], robust)
    assert 5 < robust.sum() < count - 5
    assert smoothing.exact


def test_two_patches_at_once_meet_what_each_of_them_meets():
    threat = Threat.of((1, 9), 1, patches=2)
    defense = SmoothedViT(threat, band=2)
    one = _met((1, 9), [(1, 1)], (1, 2), (1, 1), "columns")
    rng = np.random.default_rng(3)
    count = cases(200)
    said = np.where(rng.random((count, 9)) < 0.9, 0, rng.integers(1, 3, (count, 9)))
    labels = np.zeros(count, int)
    robust = np.ones(count, bool)
    for first, second in itertools.combinations_with_replacement(one, 2):
        for target in (0, 1, 2):
            attacked = np.where(first | second, target, said)
            counts = (attacked[..., None] == np.arange(3)).sum(axis=1)
            robust &= counts.argmax(axis=1) == 0
    results = _found(defense, _of_labels(said, 3), labels)
    np.testing.assert_array_equal(results["worst_case"], robust)
    assert 5 < robust.sum() < count - 5
    assert defense.condition_names == ()


def test_a_published_gap_that_is_no_proof_stays_under_its_name():
    """Smoothed ViTs' own fast setting: 17 bands for the label, 6 for another class."""
    defense = SmoothedViT(Threat.of(224, 32), band=19, stride=10)
    said = np.zeros((1, 23), int)
    hit = [0, 1, 2, 3, 21, 22]
    said[0, [b for b in range(23) if b not in hit][:6]] = 1
    results = _found(defense, _of_labels(said, 2), np.zeros(1, int))
    assert results["conditions"]["published_gap"].all()
    assert not results["worst_case"].any()
    said[0, hit] = 1
    assert _found(defense, _of_labels(said, 2), np.zeros(1, int))["answer"].tolist() == [1]


@pytest.mark.parametrize(
    ("image", "patch", "how"),
    [
        ((1, 7), (1, 1), {"band": 2}),
        ((1, 7), (1, 1), {"band": 2, "wrap": False}),
        ((1, 8), (1, 2), {"band": 2, "stride": 3}),
        ((7, 1), (1, 1), {"band": 1, "axis": "rows", "features": "votes", "above": 0.3}),
        ((3, 4), (1, 1), {"band": (1, 2), "axis": "blocks"}),
        ((1, 7), (1, 1), {"band": 2, "threshold": 0.4}),
    ],
)  # fmt: skip
def test_mask_ds_withstands_every_attack_on_the_bands_that_a_patch_meets(image, patch, how):
    defense = MaskDS(Threat.of(image, patch), **how)
    band, stride = (np.broadcast_to(how.get(n, 1), 2).tolist() for n in ("band", "stride"))
    axis, wrap = how.get("axis", "columns"), how.get("wrap", True)
    if axis != "blocks":
        band, stride = (
            [min(b, n) for b, n in zip(of, image, strict=True)] for of in (band, stride)
        )
    met = _met(image, [patch], band, stride, axis, wrap)
    rng = np.random.default_rng(4)
    count = cases(300)
    labels = rng.integers(0, CLASSES, count)
    logits = (
        rng.normal(0, 1, (count, met.shape[1], CLASSES)) + 1.2 * np.eye(CLASSES)[labels][:, None]
    )
    results = _found(defense, logits, labels)
    trust = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32), axis=-1))
    if how.get("features") == "votes":
        trust = (trust > 0.3).astype(np.float32)
    boxes = slow.windows(defense.cells, defense.window, wrap)
    answers = slow.robust_masking(
        trust.reshape(count, *defense.cells, CLASSES),
        defense.window,
        1,
        how.get("threshold", 0),
        wrap,
    )
    np.testing.assert_array_equal(results["answer"], answers)
    withstood = np.ones(count, bool)
    for group in np.unique(met, axis=0):
        assert any(set(np.flatnonzero(group)) <= set(window) for window in boxes)
        for target in range(CLASSES):
            attacked = trust.copy()
            attacked[:, group] = np.arange(CLASSES) == target
            said = slow.robust_masking(
                attacked.reshape(count, *defense.cells, CLASSES), defense.window, 1,
                how.get("threshold", 0), wrap,
            )  # fmt: skip
            withstood &= (said == labels) | (labels == target)
    assert not (results["worst_case"] & ~withstood).any()
    assert 5 < results["worst_case"].sum() < count - 5
    assert defense.exact == (how.get("threshold", 0) == 0)
    if defense.exact:
        np.testing.assert_array_equal(results["worst_case"], withstood)
    published = results["conditions"]["provable_masking"]
    assert (published == results["worst_case"]).mean() > 0.9


@pytest.mark.parametrize(
    ("image", "patch", "how"),
    [
        ((1, 6), (1, 2), {"band": 1}),  # windows of two, of which none is across the seam
        ((1, 11), (1, 3), {"band": 1, "stride": 2}),  # two of six bands, or one
        ((1, 7), (1, 1), {"band": 2, "wrap": False}),  # one band alone at the ends
    ],
)
def test_no_content_of_the_bands_that_are_met_does_more_than_the_worst_case(image, patch, how):
    """Every content of a small alphabet, of each band and class on its own, by the plain rule."""
    defense = MaskDS(Threat.of(image, patch), **how)
    (met,) = defense.affected
    assert met.sum(axis=1).max() == 2
    rng = np.random.default_rng(5)
    count = cases(200)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    trust = rng.choice(
        [0, 0.25, 0.5, 0.75], p=[0.7, 0.2, 0.1, 0], size=(count, met.shape[1], CLASSES)
    )
    trust[np.arange(count), :, labels] = rng.choice([0.25, 0.5, 1], size=(count, met.shape[1]))
    shaped = (count, *defense.cells, CLASSES)
    given = jnp.asarray(trust.reshape(shaped), jnp.float32)
    worst_case = np.asarray(defense.masked(given, jnp.asarray(labels)).worst_case)
    withstood = np.ones(count, bool)
    contents = [*itertools.product((0, 1), repeat=CLASSES), (0.5, 0.5, 0.5), (0, 0.5, 1)]
    for group in np.unique(met, axis=0):
        for content in itertools.product(contents, repeat=int(group.sum())):
            attacked = trust.copy()
            attacked[:, group] = content
            said = slow.robust_masking(attacked.reshape(shaped), defense.window, 1, 0, defense.wrap)
            withstood &= said == labels
    np.testing.assert_array_equal(worst_case, withstood)
    assert 10 < worst_case.sum() < count - 10
    every_window = patchguard.robust_masking_worst_case(
        given, labels, window=defense.window, clip=1, wrap=defense.wrap
    )
    assert not (np.asarray(every_window) & ~worst_case).any()
    assert (np.asarray(every_window) != worst_case).any() == defense.wrap


def test_a_threshold_leaves_a_lower_bound_that_is_about_the_bands_that_are_met():
    """Below every attack of an alphabet, and above what attacks on any window leave."""
    defense = MaskDS(Threat.of((1, 6), (1, 2)), band=1, threshold=0.5)
    (met,) = defense.affected
    rng = np.random.default_rng(7)
    labels = rng.integers(0, CLASSES, cases(400)).astype(np.int32)
    shaped = (len(labels), *defense.cells, CLASSES)
    trust = np.where(rng.random(shaped) < 0.25, 0.25, 0)
    trust[np.arange(len(labels)), ..., labels] = rng.choice([0.25, 0.5, 1], size=shaped[:-1])
    worst_case = np.asarray(
        defense.masked(jnp.asarray(trust, jnp.float32), jnp.asarray(labels)).worst_case
    )
    how = {"clip": 1.0, "threshold": 0.5, "wrap": True}
    truth = slow.robust_masking_by_attack(
        trust, labels, defense.window, (0, 0.125, 0.25, 0.5, 0.75, 1), ties="largest", **how,
        attacked_sets=[np.flatnonzero(group) for group in np.unique(met, axis=0)],
    )  # fmt: skip
    every_window = patchguard.robust_masking_worst_case(trust, labels, window=defense.window, **how)
    assert not (worst_case & ~truth).any()
    assert not (every_window & ~worst_case).any()
    assert (worst_case & ~every_window).any()
    assert not defense.exact


def test_sets_that_a_patch_reaches_are_of_the_map():
    given, labels = np.ones((1, 4, 1, 2)), [0]
    sets = np.ones((2, 4, 1), bool)
    for wrong, options, words in (
        (sets[:, :3], {}, r"reached: expected bool\[sets, 4, 1\]"),
        (sets.astype(int), {}, "got int64"),
        (sets[:0], {}, "at least one"),
        (sets, {"exact": True}, "none beside exact"),
    ):
        with pytest.raises(ValueError, match=words):
            patchguard.robust_masking_worst_case(given, labels, window=1, reached=wrong, **options)


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 16, 3), (2, 8)])
def test_bands_that_are_not_its_own_are_refused(shape):
    defense = MaskDS(Threat.of(8, 1), band=2)
    with pytest.raises(ValueError, match=r"evidence: expected \[T, 8, K\], .*8 bands of 2 columns"):
        defense.results(jnp.zeros(shape), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SmoothedViT(Threat.of(8, 7), band=2), "meet all bands of 2 in some place"),
        (lambda: SmoothedViT(Threat.of(8, 1), band=8), "band: expected columns from 1 to 7"),
        (lambda: SmoothedViT(Threat.of(8, 1), band=2, stride=9), "stride: expected columns from 1"),
        (lambda: SmoothedViT(Threat.of(8, 1), band=(2, 3)), "band: expected one number of pixels"),
        (lambda: SmoothedViT(Threat.of(8, 1), band=0), "band: expected"),
        (
            lambda: SmoothedViT(Threat.of(8, 1), band=2, axis="cross"),
            "axis: expected columns",
        ),
        (lambda: DerandomizedSmoothing(Threat.of(8, 1), threshold=0), r"threshold: .*\(0, 1\]"),
        (lambda: DerandomizedSmoothing(Threat.of(8, 1), threshold=1.1), r"threshold: .*\(0, 1\]"),
        (lambda: DerandomizedSmoothing(Threat.of(8, 1), ties="any"), "ties: expected"),
        (lambda: MaskDS(Threat.of(8, 1), axis="both", band=1), "one window of neighbours"),
        (lambda: MaskDS(Threat.of(8, 1, patches=2), band=1), "one window of neighbours"),
        (lambda: MaskDS(Threat.of(8, 1), band=1, threshold=1), "threshold: .*below 1"),
        (lambda: MaskDS(Threat.of(8, 1), band=1, above=1), "above: .*below 1"),
        (lambda: MaskDS(Threat.of(8, 1), band=1, features="six"), "features: expected"),
    ],
)
def test_what_cannot_be_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()
