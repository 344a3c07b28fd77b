"""Cells that keep their bits, and a convolution by Fourier transform, whose cells do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import certmask_jax as cm
from certmask_jax.inference.kept_bits import cells_keep_bits

SHAPE = (16, 16, 1)
HOW = cm.Preprocessing((0.5,), (0.25,))


def _plain(params, x):
    return jax.lax.conv_general_dilated(
        x, params, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _fourier(params, x):
    """The same in exact arithmetic: sums over whole rows and columns that cancel."""
    kernel = jnp.fft.rfft2(params[::-1, ::-1, 0, :], s=SHAPE[:2], axes=(0, 1))
    image = jnp.fft.rfft2(x[..., 0])
    made = jnp.fft.irfft2(image[..., None] * kernel[None], s=SHAPE[:2], axes=(1, 2))
    return made[:, 4:, 4:]


@pytest.fixture(scope="module")
def kernel():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 5, 1, 3)), jnp.float32)


@pytest.mark.parametrize(("function", "keeps"), [(_plain, True), (_fourier, False)])
def test_bits_of_cells_that_see_nothing_of_a_patch(kernel, function, keeps):
    x = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(function(kernel, x), _plain(kernel, x), atol=1e-4)
    how = {"preprocessing": HOW, "stride": (1, 1), "images": 8}
    assert cells_keep_bits(function, kernel, SHAPE, field=(5, 5), **how) == keeps


def test_a_field_that_is_too_small_is_seen_too(kernel):
    how = {"preprocessing": HOW, "stride": (1, 1), "images": 8}
    assert not cells_keep_bits(_plain, kernel, SHAPE, field=(4, 5), **how)
