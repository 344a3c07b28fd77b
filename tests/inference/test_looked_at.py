"""What was looked at is told apart by the claim and the shapes of parameters, and bounded."""

from __future__ import annotations

import numpy as np

from certmask_jax.inference.looked_at import LookedAt


def test_equal_claims_on_equal_shapes_are_one():
    seen = LookedAt()
    params = {"a": np.zeros((2, 3)), "b": [np.zeros(4)]}
    seen.add(seen.key("model", 3, params=params))
    assert seen.key("model", 3, params={"a": np.ones((2, 3)), "b": [np.ones(4)]}) in seen
    assert seen.key("model", 1, params=params) not in seen
    assert seen.key("another", 3, params=params) not in seen
    assert seen.key("model", 3, params={"a": np.zeros((3, 2)), "b": [np.zeros(4)]}) not in seen
    assert seen.key("model", 3, params={"a": np.zeros((2, 3)), "c": [np.zeros(4)]}) not in seen


def test_the_oldest_of_too_many_is_forgotten():
    seen = LookedAt(most=2)
    keys = [seen.key(number, params=()) for number in range(3)]
    for key in (*keys[:2], keys[0], keys[2]):
        seen.add(key)
    assert [key in seen for key in keys] == [False, True, True]
