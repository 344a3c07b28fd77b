"""Search without gradients: on linear models, whose strongest patch is known in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from certmask_jax import models
from certmask_jax.attacks.black_box import BlackBoxSearch, search_without_gradients
from certmask_jax.defenses import DoubleMasking
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.inference.two_parts import TwoParts
from certmask_jax.inference.whole_table import predict
from certmask_jax.mask_sets import budgeted_grid
from certmask_jax.masks.distinct_unions import MaskedImages, unmasked
from certmask_jax.masks.threats import Threat

SIZE, PATCH = 8, 3
WEIGHTS = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)


def _logits(images):
    """Two classes; that of a positive product is 1."""
    lead = (images[..., 0] * WEIGHTS).sum((1, 2))
    return np.stack([-lead, lead], axis=1).astype(np.float32)


FUNCTION = models.from_function(
    _logits, num_classes=2, input_size=(SIZE, SIZE), channels=1, sha256="linear"
).apply_fn
HOW = {"preprocessing": Preprocessing()}


def _images(count):
    images = np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 1), np.uint8)
    return images, (_logits(images / 255)[:, 1] > 0).astype(np.int32)


def _engine(masked):
    return engine_for(FUNCTION, (), (SIZE, SIZE, 1), masked, **HOW)


def _plain(images):
    return predict(FUNCTION, (), images, unmasked((SIZE, SIZE)), **HOW).predictions[:, 0]


def _lead(levels, label):
    """By how much the true label leads."""
    return (levels[..., 0] / 255 * WEIGHTS).sum() * (1 if label else -1)


def _strongest(image, label, place):
    """In closed form: every pixel of the patch as its weight wants it."""
    [[height, width, row, column]] = place
    best = image.copy()
    own = WEIGHTS[row : row + height, column : column + width]
    best[row : row + height, column : column + width, 0] = 255 * ((own > 0) != (label == 1))
    return best


@pytest.mark.parametrize("proposals", ["square", "random"])
def test_it_breaks_what_the_strongest_patch_breaks_and_nothing_else(proposals):
    images, labels = _images(24)
    places = [np.array([[[PATCH, PATCH, n % 6, n // 6]]]) for n in range(24)]
    at = [place[0] for place in places]
    best = [_strongest(*one) for one in zip(images, labels, at, strict=True)]
    can = [_lead(image, label) < 0 for image, label in zip(best, labels, strict=True)]
    assert 4 <= sum(can) <= 20
    search = BlackBoxSearch(proposals=proposals, queries=300)
    made = search_without_gradients(
        _engine(unmasked((SIZE, SIZE))), _plain, images, labels, places, search=search
    )
    assert (made.broken <= can).all()
    # Squares find what is to be found but for rounding; random pixels are far from the best.
    assert made.broken.sum() >= (0.9 if proposals == "square" else 0.3) * sum(can)
    assert (made.broken == (_plain(made.patched) != labels)).all()
    assert (made.answers == _plain(made.patched)).all()
    for n in np.flatnonzero(~made.broken):  # how far it came of the way to the strongest patch
        clean, there, most = (
            _lead(one, labels[n]) for one in (images[n], made.patched[n], best[n])
        )
        assert clean - there >= (0.9 if proposals == "square" else 0.4) * (clean - most)
    for n in range(24):
        [[height, width, row, column]] = made.places[n]
        changed = np.argwhere((made.patched[n] != images[n]).any(axis=-1))
        assert (changed >= [row, column]).all()
        assert (changed < [row + height, column + width]).all()
    assert (made.steps[~made.broken] == 300).all()
    assert (made.steps[made.broken] <= 300).all()


def test_what_an_image_gets_depends_on_its_number_and_the_seed_alone():
    images, labels = _images(6)
    places = [np.array([[[PATCH, PATCH, 2, 2]], [[PATCH, PATCH, 4, 4]]])] * 6
    how = {"search": BlackBoxSearch(queries=30)}
    engine = _engine(unmasked((SIZE, SIZE)))
    whole = search_without_gradients(engine, _plain, images, labels, places, seed=3, **how)
    part = search_without_gradients(
        engine, _plain, images[4:], labels[4:], places[4:], seed=3, numbers=[4, 5], **how
    )
    other = search_without_gradients(engine, _plain, images, labels, places, seed=4, **how)
    assert (part.patched == whole.patched[4:]).all()
    assert (part.steps == whole.steps[4:]).all()
    assert (other.patched != whole.patched).any()
    same = search_without_gradients(
        engine, _plain, images[[0, 0]], labels[[0, 0]], places[:2], seed=3, **how
    )
    assert (same.patched[0] == whole.patched[0]).all()
    assert (same.patched[0] != same.patched[1]).any()


def test_a_certified_image_is_never_broken_and_others_are():
    defense = DoubleMasking(budgeted_grid(SIZE, 2, masks_per_axis=2))
    images, labels = _images(30)
    table = predict(FUNCTION, (), images, defense.masked_images, **HOW)
    right = defense.rule(table) == labels
    robust = defense.worst_case(table, labels)
    assert 0 < robust.sum() < right.sum()
    threat = Threat.of(SIZE, 2)
    assert threat == defense.threat
    places = [np.array([[[2, 2, r, c]] for r in (0, 3, 6) for c in (0, 3, 6)])] * int(right.sum())
    told = []
    made = search_without_gradients(
        _engine(defense.masked_images),
        lambda x: defense.rule(predict(FUNCTION, (), x, defense.masked_images, **HOW)),
        images[right],
        labels[right],
        places,
        search=BlackBoxSearch(queries=20),
        progress=lambda settled, broken: told.append((settled, broken)),
    )
    assert not (made.broken & robust[right]).any()
    assert made.broken.any()
    assert told == sorted(told)
    assert told[-1][1] <= made.broken.sum()


def test_an_image_is_told_when_it_is_settled_and_makes_room_for_the_next():
    images, labels = _images(7)
    some, none = np.array([[[PATCH, PATCH, 2, 2]]]), np.zeros((0, 1, 4), np.int64)
    places = [some, some, none, some, some, some, some]
    engine, told, batches = _engine(unmasked((SIZE, SIZE))), [], []

    def answers(x):
        batches.append(len(x))
        return _plain(x)

    def settled(made, rows):
        told.append((rows, made.patched[rows].copy(), made.answers[rows].copy()))
        assert made.settled[rows].all()

    how = {"search": BlackBoxSearch(queries=25), "seed": 3}
    whole = search_without_gradients(engine, _plain, images, labels, places, **how)
    few = search_without_gradients(
        engine, answers, images, labels, places, at_once=2, when_settled=settled, **how
    )
    assert 0 < few.broken.sum() < 6
    for one, other in zip(whole, few, strict=True):
        assert (one == other).all()
    assert max(batches) == 2
    assert sorted(row for rows, *_ in told for row in rows) == [0, 1, 3, 4, 5, 6]
    assert len(told) >= 3  # as two are searched at once
    for rows, patched, answered in told:
        assert (patched == few.patched[rows]).all()
        assert (answered == few.answers[rows]).all()


def test_it_stops_and_says_what_is_settled():
    images, labels = _images(6)
    places = [np.array([[[PATCH, PATCH, 2, 2]]])] * 6
    asked = []
    made = search_without_gradients(
        _engine(unmasked((SIZE, SIZE))), _plain, images, labels, places,
        search=BlackBoxSearch(queries=100), stop=lambda: asked.append(1) or len(asked) == 2,
    )  # fmt: skip
    assert len(asked) == 2
    assert (made.settled == made.broken).all()
    assert not made.settled.all()
    assert (made.steps[~made.settled] == 20).all()


@pytest.mark.parametrize(("pixel", "shown"), [((5, 5), {1}), ((1, 2), {0}), ((1, 5), {0, 1})])
def test_masked_maps_are_asked_that_show_the_cell_of_a_patch(pixel, shown):
    parts = TwoParts(lambda *_: None, lambda *_: None, field=4, stride=4, image_size=SIZE)
    boxes = np.array([[[1, 1, 2, 2]], [[0, 0, 1, 1]]], np.int32)  # each hides a cell
    asked = set()

    def evaluate(images, image_of, columns):
        asked.update(columns.tolist())
        nothing = np.zeros(len(columns))
        return SimpleNamespace(margins=nothing, predictions=nothing)

    engine = SimpleNamespace(
        masked_images=MaskedImages(boxes, parts.grid), images_at_once=lambda: 8, evaluate=evaluate
    )
    images, labels = _images(1)
    places = [np.array([[[1, 1, *pixel]]])]
    search = BlackBoxSearch(queries=2)
    search_without_gradients(engine, _plain, images, labels, places, search=search, parts=parts)
    assert asked == shown


def test_an_image_without_a_place_is_asked_and_left_alone():
    images, labels = _images(2)
    places = [np.zeros((0, 1, 4), np.int64), np.array([[[1, 1, 0, 0]]])]
    made = search_without_gradients(
        _engine(unmasked((SIZE, SIZE))), _plain, images, labels, places,
        search=BlackBoxSearch(queries=5),
    )  # fmt: skip
    assert (made.patched[0] == images[0]).all()
    assert made.answers[0] == labels[0]
    assert made.steps.tolist() == [0, 5]


def test_no_image_at_once_is_refused():
    images, labels = _images(1)
    with pytest.raises(ValueError, match="at_once: expected at least 1, got 0"):
        search_without_gradients(
            _engine(unmasked((SIZE, SIZE))), _plain, images, labels,
            [np.array([[[1, 1, 0, 0]]])], search=BlackBoxSearch(), at_once=0,
        )  # fmt: skip


@pytest.mark.parametrize("wrong", [{"proposals": "gradient"}, {"queries": 0}, {"masks_a_query": 0}])
def test_a_search_that_is_none_is_refused(wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=f"{name}: expected"):
        BlackBoxSearch(**wrong)
