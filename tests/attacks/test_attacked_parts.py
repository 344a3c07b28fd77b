"""Attacks through a stem and a head: a closed form, and cells that a patch reaches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax import attacks
from certmask_jax.attacks.patched_pixels import cells_reached, shows
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.two_parts import TwoParts, mean_of_kept

SIZE, CLASSES, COUNT, FIELD, STRIDE = 9, 3, 12, 3, 2
HOW = cm.Preprocessing()


def _stem(params, x):
    return (
        jax.lax.conv_general_dilated(
            x,
            params["kernel"],
            (STRIDE, STRIDE),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        * params["place"][None]
    )


PARTS = TwoParts(_stem, mean_of_kept, field=FIELD, stride=STRIDE, image_size=SIZE)


@pytest.fixture(scope="module")
def world():
    random = np.random.default_rng(0)
    params = {
        "kernel": jnp.asarray(random.normal(size=(FIELD, FIELD, 1, CLASSES)), jnp.float32),
        "place": jnp.asarray(random.normal(size=(4, 4, CLASSES)), jnp.float32),
    }
    return params, random.integers(0, 256, (COUNT, SIZE, SIZE, 1), np.uint8)


def _asked(defense, params):
    return attacks.attacked(
        defense, PARTS, params, (SIZE, SIZE, 1), preprocessing=HOW,
        mesh=device_mesh(jax.devices()[:1]),
    )  # fmt: skip


def _attacked(defense, world, goals):
    params, images = world
    asked = _asked(defense, params)
    labels = asked.answers(images)
    made = attacks.attack_images(
        PARTS, params, images, labels, asked, goals(asked, images, labels), preprocessing=HOW,
        search=attacks.PatchSearch(steps=40), mesh=device_mesh(jax.devices()[:1]), at_once=COUNT,
    )  # fmt: skip
    return images, labels, made


def test_a_linear_stem_and_head_are_broken_exactly_where_a_patch_can(world):
    params, images = world
    place = np.asarray([[2, 3, 4, 1]])
    here = np.ones(1, bool)

    def goals(asked, images, labels):
        del asked, images
        each = [np.asarray([z], np.int32) for z in range(CLASSES)]
        return [
            [attacks.Goal(place, z, here, 0, True, 0.0, target=int(z[0])) for z in each if z != y]
            for y in labels
        ]

    _, labels, made = _attacked(None, world, goals)
    whole = np.asarray(PARTS(params, jnp.asarray(images / 255, jnp.float32)))
    slopes = np.asarray(
        jax.jacobian(lambda x: PARTS(params, x[None])[0])(jnp.zeros((SIZE, SIZE, 1)))
    )
    inside = (slice(4, 6), slice(1, 4))
    can = []
    for image, label, logits in zip(images, labels, whole, strict=True):
        leads = []
        for z in set(range(CLASSES)) - {int(label)}:
            slope = slopes[label] - slopes[z]
            fixed = logits[label] - logits[z] - (slope[inside] * image[inside] / 255).sum()
            leads.append(fixed + np.minimum(slope[inside], 0).sum())
        can.append(min(leads) < 0)
    assert (made.broken == np.asarray(can)).all()
    assert 0 < sum(can) < COUNT


def test_masked_maps_are_attacked_and_no_certificate_is_contradicted(world):
    params, _ = world
    threat = cm.Threat.of(SIZE, 1)
    masks = cm.mask_sets.budgeted_grid(PARTS.grid, PARTS.on_cells(threat).shapes[-1],
                                       mask_stride=1)  # fmt: skip
    defense = cm.defenses.patchcure(masks)
    search = attacks.PatchSearch(steps=40)
    images, labels, made = _attacked(
        defense, world,
        lambda asked, images, labels: attacks.promising_goals(
            asked, images, labels, threat=threat, search=search
        ),
    )  # fmt: skip
    table = cm.predict(PARTS, params, images, defense.masked_images, preprocessing=HOW)
    after = cm.predict(PARTS, params, made.patched, defense.masked_images, preprocessing=HOW)
    assert (defense.rule(after) == made.answers).all()
    assert (made.broken == (made.answers != labels)).all()
    assert not (made.broken & defense.worst_case(table, labels)).any()
    assert made.broken.any()


def test_the_cells_that_a_patch_reaches_are_counted_one_by_one():
    for row in range(SIZE - 1):
        place = np.asarray([[2, 1, row, 8], [1, 1, 0, 0]])
        (height, width, top, left), first = cells_reached(
            place, image_size=(SIZE, SIZE), field=(FIELD, FIELD), stride=(STRIDE, STRIDE)
        ).tolist()
        met = [i for i in range(4) if i * STRIDE < row + 2 and i * STRIDE + FIELD > row]
        assert list(range(top, top + height)) == met
        assert list(range(left, left + width)) == [3]
        assert first == [1, 1, 0, 0]
    nowhere = cells_reached(
        np.asarray([[1, 1, 3, 0]]), image_size=(9, 9), field=(1, 1), stride=(2, 2)
    )
    assert not shows(np.zeros((2, 1, 4), np.int32), nowhere).any()
