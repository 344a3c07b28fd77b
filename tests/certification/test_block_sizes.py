"""How many images a block has, from an engine's chunk, its masks and its operations."""

from __future__ import annotations

import types

import numpy as np
import pytest

from certmask_jax.certification.block_sizes import BlockSizes


def _engine(*, columns=10, chunk=80, flops=None, platform="cpu", devices=1, at_once=500):
    device = types.SimpleNamespace(platform=platform)
    return types.SimpleNamespace(
        masked_images=range(columns),
        mesh=types.SimpleNamespace(devices=np.array([device] * devices)),
        masked_at_once=lambda: chunk,
        images_at_once=lambda: at_once,
        flops_an_image=lambda count: None if flops is None else flops * count,
    )


@pytest.mark.parametrize(
    ("given", "images", "expected"),
    [
        ({}, 10**6, 500),  # what the devices hold
        ({"at_once": 10**4}, 10**6, 256 * 80 // 10),  # so many chunks
        ({"columns": 100}, 10**6, 204),
        ({"columns": 10**6}, 10**6, 1),
        ({}, 100, 7),  # sixteen blocks of a small test set
        ({}, 1, 1),
        ({"flops": 1e7}, 100, 25),  # 1,000 of 1e8 operations would take but a moment: four blocks
        ({"flops": 1e9}, 100, 10),  # and of these 10
        ({"flops": 1e10}, 40, 4),  # one takes a moment, and 20 some seconds
        ({"flops": 1e10}, 12, 3),  # four blocks
        ({"flops": 1e11}, 12, 2),  # of two images, which take some seconds
        ({"flops": 1e12}, 12, 1),
        ({"flops": 1e9}, 10**6, 200),  # 2e12 operations of 1e10 an image
        ({"flops": 1e9, "devices": 2}, 10**6, 400),
        ({"flops": 1e12}, 10**6, 4),  # but not so few
        ({"flops": 1e12, "platform": "gpu"}, 10**6, 100),
    ],
)
def test_images_of_a_block(given, images, expected):
    per_block = BlockSizes().images_per_block(images, _engine(**given), decide=False)
    assert per_block == expected


def test_of_large_tables_early_exit_leaves_out_most():
    sizes, engine = BlockSizes(), _engine(columns=20_480, at_once=10**4)
    assert sizes.images_per_block(10**6, engine, decide=False) == 1
    assert sizes.images_per_block(10**6, engine, decide=True) == 10


def test_other_sizes():
    sizes = BlockSizes(chunks=3, least_blocks=2, least_images=5, cpu_flops=6e10, columns_decided=7)
    assert sizes.images_per_block(100, _engine(), decide=False) == 24
    assert sizes.images_per_block(20, _engine(), decide=False) == 10
    assert sizes.images_per_block(100, _engine(), decide=True) == 34
    assert sizes.images_per_block(100, _engine(flops=1e9), decide=False) == 6
    assert sizes.images_per_block(100, _engine(flops=1e10), decide=False) == 5


@pytest.mark.parametrize(
    ("images_per_block", "given", "expected"),
    [
        (4, {"flops": 1e9}, 28),  # 30 images of 1e10 operations make a stretch: seven blocks
        (30, {"flops": 1e9}, 30),
        (35, {"flops": 1e9}, 35),  # one takes longer
        (4, {"flops": 1e9, "devices": 2}, 60),
        (3, {"flops": 1e9, "at_once": 7}, 6),
        (3, {}, 255),  # nobody knows: 32 chunks of 80 have 256 images of ten
        (3, {"columns": 300}, 6),
        (3, {"columns": 3000}, 3),
        (3, {"at_once": 7}, 6),
    ],
)
def test_blocks_that_are_evaluated_together(images_per_block, given, expected):
    together = BlockSizes().images_together(images_per_block, _engine(**given), decide=False)
    assert together == expected


def test_early_exit_leaves_out_most_of_what_is_evaluated_together_too():
    engine = _engine(columns=20_480, chunk=4096)
    assert BlockSizes().images_in_a_stretch(engine, decide=False) == 6
    assert BlockSizes().images_in_a_stretch(engine, decide=True) == 64
    assert BlockSizes(chunks_together=0).images_in_a_stretch(engine, decide=True) == 0


@pytest.mark.parametrize(
    ("images", "given", "expected"),
    [(30, {"flops": 1e9}, True), (31, {"flops": 1e9}, False), (1, {}, False)],  # nobody knows
)
def test_what_surely_takes_but_seconds(images, given, expected):
    assert BlockSizes().is_short(images, _engine(**given), decide=False) is expected
