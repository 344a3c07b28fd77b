"""Cells that keep their bits, and a convolution by Fourier transform, whose cells do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax.inference.cell_fields import cells_keep_bits, check_fields

SHAPE = (16, 16, 1)


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


def _cells(function, kernel):
    program = jax.jit(lambda pixels: function(kernel, pixels.astype(jnp.float32) / 64 - 2))
    return lambda images: program(jnp.asarray(images))


@pytest.mark.parametrize(("function", "keeps"), [(_plain, True), (_fourier, False)])
def test_bits_of_cells_that_see_nothing_of_a_patch(kernel, function, keeps):
    x = np.random.default_rng(1).normal(size=(2, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(function(kernel, x), _plain(kernel, x), atol=1e-4)
    how = {"field": (5, 5), "stride": (1, 1), "images": 8, "exact": True, "what": "net"}
    assert cells_keep_bits(_cells(function, kernel), SHAPE, **how) == keeps


def test_a_field_that_is_too_small_is_seen_by_bits_and_by_gradients(kernel):
    how = {"field": (4, 5), "stride": (1, 1), "images": 8, "exact": True, "what": "net"}
    with pytest.raises(ValueError, match=r"net: expected the cell .* to stay as it is"):
        cells_keep_bits(_cells(_plain, kernel), SHAPE, **how)
    check_fields(_plain, kernel, SHAPE, field=(5, 5), stride=(1, 1), what="net")
    with pytest.raises(ValueError, match=r"net: expected the cell .* but it also sees \(4, 0\)"):
        check_fields(_plain, kernel, SHAPE, field=(4, 5), stride=(1, 1), what="net")


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_rounded_on_its_way_to_a_cell_is_seen_by_its_change_alone(kernel, exact):
    def quantised(params, x):
        mean = jnp.round(8 * x.mean(axis=(1, 2), keepdims=True))
        return _plain(params, x) + 6 * mean

    check_fields(quantised, kernel, SHAPE, field=(5, 5), stride=(1, 1), what="net")
    how = {"field": (5, 5), "stride": (1, 1), "images": 8, "exact": exact, "what": "net"}
    with pytest.raises(ValueError, match=r"field of 5x5 and stride of 1x1 say, but it changed by"):
        cells_keep_bits(_cells(quantised, kernel), SHAPE, **how)
