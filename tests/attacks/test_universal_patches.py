"""Universal patches: a closed form that is reached, and a patch that is put where it should be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks import patch_search, universal_steps
from certmask_jax.inference.devices import device_mesh

SIZE = 6


def _linear(params, x):
    return jnp.einsum("bhwc,khwc->bk", x, params)


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    params = jnp.asarray(random.normal(size=(2, SIZE, SIZE, 1)), jnp.float32)
    return params, random.integers(0, 256, (10, SIZE, SIZE, 1), np.uint8)


def _made(world, labels, threat, **how):
    params, images = world
    search = attacks.PatchSearch(steps=60, step_size=0.1, momentum=0.9, surplus=1e6)
    return attacks.universal_patch(
        _linear, params, images, labels, threat=threat, search=search, images_a_step=16,
        mesh=device_mesh(jax.devices()[:1]), **how,
    )  # fmt: skip


def test_the_best_patch_for_all_places_of_a_linear_model_is_found(world):
    """Of two classes the mean lead is linear, and its slope the mean of those of the places."""
    params, _ = world
    threat = cm.Threat.of(SIZE, (3, 2), region=[(0, 1, 4, 4)])
    made = _made(world, np.zeros(10, np.int32), threat)
    weights = np.asarray(params[1] - params[0])
    places = [(row, column) for row in (0, 1) for column in (1, 2)]
    slope = np.mean([weights[r : r + 3, c : c + 2] for r, c in places], axis=0)
    clear = np.abs(slope) > 0.25  # others are moved by which places happen to be drawn
    assert clear.sum() >= 3
    assert (made.pixels == np.where(slope > 0, 255, 0))[clear].all()
    assert made.losses[-10:].mean() < made.losses[:10].mean()
    aimed = _made(world, np.zeros(10, np.int32), threat, target=0)
    assert (aimed.pixels == np.where(slope < 0, 255, 0))[clear].all()


def test_a_patch_is_one_of_its_seed(world):
    threat = cm.Threat.of(SIZE, 2)
    how = {
        "masked_images": cm.mask_sets.budgeted_grid(SIZE, 2, masks_per_axis=2),
        "transformations": attacks.Transformations(brightness=(0.7, 1.2), scale=(0.5, 1.0)),
    }
    labels = np.ones(10, np.int32)
    how["masked_images"] = cm.defenses.DoubleMasking(how["masked_images"]).masked_images
    first, again, other = (_made(world, labels, threat, seed=s, **how) for s in (1, 1, 2))
    assert (first.pixels == again.pixels).all()
    assert (first.losses == again.losses).all()
    assert (first.losses != other.losses).any()
    assert first.pixels.shape == (2, 2, 1)


def test_a_patch_is_put_where_it_should_be():
    image = np.zeros((5, 6, 2), np.float32)
    patch = np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2)
    whole = np.asarray(attacks.pasted(image, patch, [1, 2]))
    assert (whole[1:3, 2:5] == patch).all()
    assert whole.sum() == patch.sum()
    half = np.asarray(attacks.pasted(image, np.tile(patch, (2, 1, 1)), [0, 0], scale=0.5))
    assert (half[:2, :1] != 0).all()  # one and a half of three columns
    assert (half[2:] == 0).all()
    assert (half[:, 1:] == 0).all()
    bright = np.asarray(attacks.pasted(image, patch * 20, [0, 0], brightness=2.0))
    assert bright.max() == 255
    assert bright[0, 0, 0] == 40


def test_bad_input_is_one_clear_error(world):
    labels = np.zeros(10, np.int32)
    with pytest.raises(ValueError, match="threat: expected one patch of one shape"):
        _made(world, labels, cm.Threat.of(SIZE, 2, patches=2))
    with pytest.raises(ValueError, match="target: expected a class from 0 to 1, got 2"):
        _made(world, labels, cm.Threat.of(SIZE, 2), target=2)
    with pytest.raises(ValueError, match="scale: expected 0 < least <= most <= 1"):
        attacks.Transformations(scale=(0.5, 1.5))
    for brightness in ((0.0, 1.0), (1.0, np.inf), (2.0, 1.0)):
        with pytest.raises(ValueError, match="brightness: expected"):
            attacks.Transformations(brightness=brightness)


@pytest.mark.parametrize("optimizer", ["sign", "adam"])
def test_one_that_was_stopped_ends_with_the_same_patch(world, optimizer):
    params, images = world
    momentum = 0.5 if optimizer == "sign" else 0.0
    search = attacks.PatchSearch(
        steps=50, step_size=0.01, optimizer=optimizer, momentum=momentum, surplus=1e6
    )  # so small that it is nowhere at the end of the range

    def made(**how):
        return attacks.universal_patch(
            _linear, params, images, np.zeros(10, np.int32), threat=cm.Threat.of(SIZE, 2),
            search=search, images_a_step=4, mesh=device_mesh(jax.devices()[:1]), **how,
        )  # fmt: skip

    told = []
    whole = made(progress=told.append)
    assert [len(one.losses) for one in told] == [20, 40]
    half = made(stop=lambda: True)
    assert (half.levels == told[0].levels).all()
    for begun in (half, told[1]):
        again = made(begun=begun)
        assert (again.pixels == whole.pixels).all()
        assert (again.levels == whole.levels).all()
        assert (again.losses == whole.losses).all()
        assert (again.judged == whole.judged).all()
    assert (half.pixels != whole.pixels).any()


def _bent(params, x):
    """Two classes; the second wins by pixels that are near those it likes best."""
    likes = 4 - jnp.abs(x - params[None]).sum(axis=(1, 2, 3))
    return jnp.stack([jnp.zeros_like(likes), likes], axis=1)


def test_the_best_of_those_that_were_judged_is_kept():
    """One image at one place, so that each draw is the same, and steps that never settle."""
    likes = np.full((SIZE, SIZE, 1), 0.5, np.float32)
    images, there = np.zeros((1, SIZE, SIZE, 1), np.uint8), (slice(1, 3), slice(2, 4))
    threat = cm.Threat.of(SIZE, 2, region=[(1, 2, 3, 4)])
    search = attacks.PatchSearch(
        steps=130, step_size=0.07, momentum=0.97, schedule="constant", surplus=100
    )
    told = []

    def made(**how):
        return attacks.universal_patch(
            _bent, jnp.asarray(likes), images, [0], threat=threat, search=search, images_a_step=1,
            mesh=device_mesh(jax.devices()[:1]), **how,
        )  # fmt: skip

    whole = made(progress=told.append)
    seen = [np.rint(one.levels) for one in (*told, whole)]
    losses = []
    for patch in seen:
        image = np.zeros((SIZE, SIZE, 1))
        image[there] = patch / 255
        losses.append(100 - 4 + np.abs(image - likes).sum())
    assert np.argmin(losses) < len(seen) - 2  # else the last would do
    assert losses[-1] < losses[-2]  # nor is it any that is better than the one before
    np.testing.assert_allclose(whole.judged, losses, rtol=1e-6)
    assert (whole.pixels == seen[int(np.argmin(losses))]).all()
    again = made(begun=told[-1])
    assert (again.pixels == whole.pixels).all()
    assert (again.judged == whole.judged).all()


def test_steps_in_one_program_are_those_of_many(world):
    """What accelerators run, a loop inside the program, is what CPUs do step by step."""
    params, images = world
    mesh = device_mesh(jax.devices()[:1])
    labels, corners = np.zeros(10, np.int32), np.asarray([[0, 0], [2, 3]], np.int32)
    given = (images, labels, corners, np.zeros((1, 1, 4), np.int32))
    seen = universal_steps.World(*map(jnp.asarray, given))
    search = attacks.PatchSearch(steps=6, momentum=0.5)
    how = attacks.Transformations(scale=(0.5, 1.0))
    kind = universal_steps.Kind(_linear, cm.Preprocessing(), search, how, 4, None)
    patch = jnp.full((2, 2, 1), 100.0)
    start = patch, patch_search.steps_of(search).init(patch)
    key = jax.random.key(0)
    whole, _, losses = universal_steps.steps_program(kind, 3, mesh)(
        params, seen, *start, key, jnp.int32(0)
    )
    once, now, each = universal_steps.steps_program(kind, 1, mesh), start, []
    for step in range(3):
        *now, loss = once(params, seen, *now, key, jnp.int32(step))
        each.append(float(loss))
    np.testing.assert_allclose(whole, now[0], atol=1e-3)
    np.testing.assert_allclose(losses, each, rtol=1e-5)
