"""What is made of patched images: whose word it is that one is broken."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from certmask_jax.attacks.search_replans import Replans


def test_an_image_is_broken_when_the_engine_of_a_run_says_so():
    """A search looks at whole tables; a wrong answer of theirs is asked for once more."""
    asked_for = []

    def answers(images):
        asked_for.append(images.tolist())
        return np.asarray([7, 1], np.int32)  # by rounding the first of them is right after all

    replans = object.__new__(Replans)
    replans._asked = SimpleNamespace(answers=answers)
    replans._run = SimpleNamespace(is_wrong=lambda slot, answer: answer != slot)
    said = np.asarray([7, 2, 7, 1], np.int32)
    images = np.arange(4, dtype=np.uint8)
    assert replans._confirmed([7] * 4, images, said).tolist() == [7, 7, 7, 1]
    assert asked_for == [[1, 3]]
    assert replans._confirmed([7] * 2, images[:2], said[[0, 2]]).tolist() == [7, 7]
    assert len(asked_for) == 1  # what is right costs nothing more
