"""The library's own work under whatever settings of JAX its user has.

Guards and checks that people export to find errors of their own (``JAX_TRANSFER_GUARD``,
``JAX_DEBUG_NANS``) have none to find here: a transfer is meant, and an image whose logits are not
finite is reported and never certified. Contexts of JAX, so that the user's settings stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax

# Of JAX before 0.8 it is elsewhere.
_enable_x64: Any = getattr(jax if hasattr(jax, "enable_x64") else jax.experimental, "enable_x64")  # noqa: B009


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Lets arrays be moved and numbers be NaN."""
    with jax.transfer_guard("allow"), jax.debug_nans(False), jax.debug_infs(False):
        yield


@contextlib.contextmanager
def reproducible() -> Iterator[None]:
    """Makes the numbers of a function the same under all settings: 32 bits, one random generator.

    The generator is Threefry as JAX has it by default (``jax_threefry_partitionable``). Products
    are the backend's default; whoever wants others says so inside.
    """
    with (
        unguarded(),
        _enable_x64(False),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.default_matmul_precision("default"),
    ):
        yield


def usual_promotion() -> AbstractContextManager[None]:
    """Flax's layers bring inputs and parameters to one type by JAX's usual rules."""
    return jax.numpy_dtype_promotion("standard")
