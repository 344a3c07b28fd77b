"""Eight simulated devices for every test, and where the development data is, if it is there."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Development data beside the checkout: CIFAR-10, weights, golden results."""
    if not (_SHARED / "golden").is_dir():
        pytest.skip("needs ../shared (CIFAR-10, weights, golden results), which is not here")
    return _SHARED
