"""Random changes of training images that leave their label: moves, flips, crops.

Pure functions of a key over batches ``float32[B, h, w, c]``, on the device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array


def moved(key: Array, images: Array, *, shift: float, rotate: float, zoom: float) -> Array:
    """Random shift (pixels), rotation (degrees) and zoom (fraction), edges repeated."""
    height, width = images.shape[1:3]
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    axes = (jnp.arange(side, dtype=jnp.float32) for side in (height, width))
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)

    def one(key: Array, image: Array) -> Array:
        keys = jax.random.split(key, 3)
        angle = jnp.deg2rad(jax.random.uniform(keys[0], minval=-rotate, maxval=rotate))
        scale = 1 + jax.random.uniform(keys[1], minval=-zoom, maxval=zoom)
        offset = jax.random.uniform(keys[2], (2,), minval=-shift, maxval=shift)
        turn = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        source = (
            (grid - centre[None, None]) @ (turn * scale) + centre[None, None] + offset[None, None]
        )
        sample = functools.partial(
            jax.scipy.ndimage.map_coordinates,
            coordinates=[source[..., 0], source[..., 1]],
            order=1,
            mode="nearest",
        )
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def flipped(key: Array, images: Array) -> Array:
    """Mirrors every other image, by chance, left to right."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def cropped(key: Array, images: Array, *, pad: int) -> Array:
    """Pads by ``pad`` pixels of 0, the mean colour, and crops at random to the size before."""
    _, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * pad + 1)

    def one(image: Array, corner: Array) -> Array:
        start = (corner[0], corner[1], jnp.zeros((), corner.dtype))
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(one)(padded, corners)
