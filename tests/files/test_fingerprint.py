"""What is said of two runs that are not the same."""

from __future__ import annotations

import pytest

from certmask_jax.files.fingerprint import differences


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b is 1 there, 2 here"]),
        ({"a": 1}, {"b": "x"}, ["a is 1 there, None here", "b is None there, 'x' here"]),
        ({"a": ["1%"]}, {"a": ["1"]}, ["a is ['1%'] there, ['1'] here"]),
        ({"a": ["x", "y"]}, {"a": ["y"]}, ["a has 'x' there alone, nothing here alone"]),
        ({"a": ["x", "y"]}, {"a": ["z", "y"]}, ["a has 'x' there alone, 'z' here alone"]),
        ({"a": []}, {"a": ["z"]}, ["a is [] there, ['z'] here"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a is [1, 2] there, [2, 1] here"]),
        ({"a": [1]}, {"a": [1, 1]}, ["a is [1] there, [1, 1] here"]),
        (
            {"a": [{"n": 1, "m": 2}]},
            {"a": [{"n": 1, "m": 3}]},
            ["a is [{'m': 2, 'n': 1}] there, [{'m': 3, 'n': 1}] here"],
        ),
    ],
)
def test_each_difference_is_a_line(there, here, said):
    assert differences(there, here) == said
