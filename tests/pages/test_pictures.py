"""Pictures of a page: those that fit, and no others, are read."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from certmask_jax.pages import pictures

COUNT = 200


def _images(side):
    return np.random.default_rng(side).integers(0, 256, (COUNT, side, side, 3), np.uint8)


@pytest.mark.parametrize("side", [16, 100])
def test_the_first_that_fit_are_those_of_all_and_few_others_are_read(side):
    images, asked = _images(side), []

    def read(number):
        asked.append(number)
        return None if number == 1 else images[number]

    made, gone = pictures.first_data_uris(read, COUNT, budget=30_000)
    whole = pictures.data_uris(list(images), budget=30_000)
    assert 2 < len(made) < COUNT / 4
    assert sorted({*made, 1}) == list(range(len(made) + 1))
    assert made == {number: whole[number] for number in made}
    assert sum(map(len, made.values())) <= 30_000
    assert sum(map(len, made.values())) + len(whole[len(made) + 1]) > 30_000
    assert gone == 1
    assert len(set(asked)) < len(made) + 30


def test_all_are_made_where_they_fit_and_none_where_none_is():
    images = _images(16)[:5]
    made, gone = pictures.first_data_uris(lambda number: images[number], 5, budget=1 << 20)
    assert (len(made), gone) == (5, 0)
    file = io.BytesIO(base64.b64decode(made[3].split(",")[1]))
    assert (np.asarray(Image.open(file)) == images[3]).all()
    assert pictures.first_data_uris(lambda number: None, 3, budget=9) == ({}, 3)
    assert pictures.first_data_uris(lambda number: None, 0, budget=9) == ({}, 0)
