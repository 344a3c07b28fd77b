"""Defenses are values: equal when rebuilt, hashable, picklable, static under ``jit``."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from defense_cases import CASES

import certmask_jax as cm
from certmask_jax import defenses, mask_sets
from certmask_jax.defenses import over_tables
from certmask_jax.masks import pair_covers
from certmask_jax.masks.threats import Threat
from certmask_jax.tables.prediction_table import from_labels


def _masks(name):
    """Masks that the defense takes."""
    if name == "pair_cover":
        return pair_covers.pairs_of_blocks((8, 8), 2, rows=(2, 3))
    return _tiling() if name.startswith("certmask") else _grid()


BUILDERS = {
    name: functools.partial(lambda name: CASES[name].build(_masks(name)), name)
    for name in CASES
    if name != "two_rounds"  # of the same masks twice
}
BUILDERS |= {
    "two sets": lambda: defenses.double_masking(_grid(), _grid(3)),
    "against": lambda: defenses.double_masking(_grid(), against=Threat.of((8, 8), 1)),
    "votes": lambda: defenses.votes(_grid(), most),
}


def most(says):
    return says.sum()


def _grid(number=2):
    return mask_sets.budgeted_grid(8, 2, masks_per_axis=number)


def _tiling():
    return mask_sets.exact_k_fold(8, 2, mask_size=4, coverage=2)


def _table(defense, count=20):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((count, len(defense.masked_images))) < 0.2, 1, 0)
    return from_labels(labels, defense.masked_images, num_classes=3)


@pytest.mark.parametrize("name", BUILDERS)
def test_equal_when_rebuilt_hashable_and_pickled(name):
    one, other = BUILDERS[name](), BUILDERS[name]()
    assert one is not other
    assert one == other
    assert hash(one) == hash(other)
    assert {one: 1}[other] == 1
    assert dataclasses.replace(one, spec="as typed") == one
    assert copy.deepcopy(one) == one
    again = pickle.loads(pickle.dumps(one))
    assert again == one
    assert hash(again) == hash(one)
    table = _table(one)
    np.testing.assert_array_equal(again.rule(table), one.rule(table))
    assert "\n" not in repr(one)
    assert repr(one).startswith(f"{type(one).__name__}(")


def test_all_of_them_differ():
    built = [build() for build in BUILDERS.values()]
    assert len(set(built)) == len(built)
    assert defenses.double_masking(_grid()) != defenses.double_masking(_grid(3))
    assert defenses.double_masking(_grid()) != defenses.challenger_masking(_grid())
    assert defenses.minority_reports(_grid(), tau=0.1) != defenses.minority_reports(_grid())


def test_pickling_carries_fields_alone():
    defense = defenses.double_masking(_grid())
    defense.rule(_table(defense))
    assert set(defense.__getstate__()) == {f.name for f in dataclasses.fields(defense)}
    hash(defense.masks)
    assert set(defense.masks.__getstate__()) == {
        "boxes", "image_size", "threat", "promise", "name"
    }  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_rebuilt_compiles_nothing_anew(name):
    table, labels = _table(BUILDERS[name]()), np.zeros(20, int)

    def ask():
        defense = BUILDERS[name]()
        defense.rule(table)
        defense.worst_case(table, labels)
        defense.conditions(table, labels)

    ask()
    before = over_tables._reduced._cache_size()
    ask()
    assert over_tables._reduced._cache_size() == before


@pytest.mark.parametrize("name", BUILDERS)
def test_pure_functions_pass_through_jit_and_vmap(name):
    defense = BUILDERS[name]()
    table, labels = _table(defense), np.arange(20) % 2
    shown = jax.tree.map(jnp.asarray, table)
    for pure, method in (
        (cm.rule, functools.partial(defense.rule, table)),
        (cm.certificate, functools.partial(defense.certificate, table, labels)),
        (cm.worst_case, functools.partial(defense.worst_case, table, labels)),
    ):
        given = () if pure is cm.rule else (jnp.asarray(labels),)
        expected = np.asarray(method())
        jitted = jax.jit(pure, static_argnums=0)
        np.testing.assert_array_equal(jitted(defense, shown, *given), expected)
        mapped = jax.jit(jax.vmap(functools.partial(pure, defense)))(shown, *given)
        np.testing.assert_array_equal(mapped, expected)
        before = jitted._cache_size()
        jitted(BUILDERS[name](), shown, *given)
        assert jitted._cache_size() == before


def test_pure_functions_take_the_table_of_several_defenses():
    double, detector = BUILDERS["double_masking"](), BUILDERS["minority_reports"]()
    columns, (own, _) = cm.distinct_unions.merge([double.masked_images, detector.masked_images])
    rng = np.random.default_rng(1)
    table = from_labels(rng.integers(0, 2, (30, len(columns))), columns, num_classes=2)
    answers = jax.jit(cm.rule, static_argnums=0)(double, table)
    np.testing.assert_array_equal(answers, double.rule(table))
    assert answers.dtype == jnp.int32
    np.testing.assert_array_equal(columns.places(double.masked_images), own)


def test_places_are_found_once(monkeypatch):
    double = BUILDERS["double_masking"]()
    columns, _ = cm.distinct_unions.merge(
        [double.masked_images, cm.distinct_unions.unmasked((8, 8))]
    )
    monkeypatch.setattr(cm.distinct_unions, "distinct", None)  # repainting would fail
    assert columns.places(double.masked_images).tolist() == list(range(len(double.masked_images)))
    rebuilt = defenses.double_masking(_grid()).masked_images
    assert columns.places(rebuilt).tolist() == list(range(len(rebuilt)))


def test_mask_sets_and_masked_images_are_equal_by_content():
    one, other = _grid(), _grid()
    assert one == other
    assert hash(one) == hash(other)
    assert one != _grid(3)
    assert one != cm.MaskSet(one.boxes, one.image_size, one.threat, one.promise, "another name")
    assert one != "a grid"
    images = [cm.distinct_unions.unions(masks, 2)[0] for masks in (one, other)]
    assert images[0] == images[1]
    assert hash(images[0]) == hash(images[1])
    with pytest.raises(ValueError, match="read-only"):
        images[0].boxes[0] = 1
    wider = cm.MaskedImages(np.pad(images[0].boxes, ((0, 0), (0, 1), (0, 0))), (8, 8))
    assert wider != images[0]  # other boxes, though the same pixels


# --- the papers' mathematics on plain arrays ---


def test_rules_by_hand():
    table = jnp.array([[1, 1, 1], [1, 1, 1], [1, 1, 2]])  # mask 2 says 2, not under mask 0
    assert int(cm.rules.double_masking(table)) == 1
    stands = jnp.array([[1, 1, 2], [1, 1, 2], [2, 2, 2]])  # mask 2 says 2, whatever else
    assert int(cm.rules.double_masking(stands)) == 2
    assert int(cm.rules.challenger_masking(stands)) == 2
    assert int(cm.rules.double_masking(jnp.array([[0, 3], [3, 1]]))) == 1  # a tie: the largest
    assert int(cm.rules.double_masking(jnp.array([[0, 3], [3, 1]]), ties="smallest")) == 0
    assert bool(cm.rules.two_mask_correct(stands, 2)) is False
    assert bool(cm.rules.k_fold_correct(jnp.array([1, 1, 1]), 1))
    assert int(cm.rules.certmask(jnp.array([4, 2]), k=2)) == 1  # exactly k votes
    assert int(cm.rules.certmask(jnp.array([6, 0]), k=6)) == 0
    assert int(cm.rules.certmask(jnp.array([4, 2]), k=3)) == 0  # the majority
    labels, trust = jnp.array([1, 2]), jnp.array([0.9, 0.4])
    assert int(cm.rules.minority_reports(labels, trust, jnp.array(1), tau=0.5)) == 1
    assert int(cm.rules.minority_reports(labels, trust, jnp.array(1), tau=0.3)) == cm.ALERT


def test_rules_pass_through_jit_and_vmap():
    rng = np.random.default_rng(0)
    tables = rng.integers(0, 3, (50, 4, 4)).astype(np.int32)
    tables = np.minimum(tables, tables.transpose(0, 2, 1))
    for rule in (cm.rules.double_masking, cm.rules.challenger_masking):
        mapped = jax.jit(jax.vmap(rule))(tables)
        assert mapped.tolist() == [int(rule(jnp.asarray(table))) for table in tables]
    votes = rng.integers(0, 4, (50, 3)).astype(np.int32)
    rule = functools.partial(cm.rules.certmask, k=2)
    assert jax.jit(jax.vmap(rule))(votes).tolist() == [int(rule(jnp.asarray(v))) for v in votes]
    correct = jax.vmap(cm.rules.two_mask_correct, in_axes=(0, None))(tables, 0)
    assert correct.tolist() == (tables == 0).all(axis=(1, 2)).tolist()
