"""The embedded digits: scikit-learn's numbers, read without importing it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from certmask_jax.data import digits_arrays, embedded_digits


def test_they_are_scikit_learns():
    bunch = load_digits()
    rows = embedded_digits._digits_as_shipped()
    np.testing.assert_array_equal(rows, np.column_stack([bunch.data, bunch.target]))


def test_they_are_the_same_where_its_file_lies_elsewhere(monkeypatch):
    file = embedded_digits._digits_as_shipped()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    np.testing.assert_array_equal(embedded_digits._digits_as_shipped(), file)


def test_both_splits_are_all_of_them_once():
    parts = [digits_arrays(split) for split in ("test", "train")]
    assert [images.shape for images, _ in parts] == [(500, 8, 8, 1), (1297, 8, 8, 1)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    bunch = load_digits()
    grey = np.round(bunch.data * (255 / 16)).astype(np.uint8)
    ours = np.column_stack([images.reshape(len(images), -1), labels])
    theirs = np.column_stack([grey, bunch.target])
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))


def test_scikit_learn_is_not_imported_for_them():
    code = (
        "import sys; from certmask_jax.data import digits_arrays; digits_arrays('test'); "
        "print('sklearn' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
