"""Parameters on the devices: whole on each, the same numbers and types wherever they were."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np

from certmask_jax.inference.devices import compiler_facts, device_mesh, put_everywhere


def test_everything_is_whole_on_every_device():
    mesh = device_mesh()
    first, other = jax.devices()[0], jax.devices()[-1]
    arrays = {
        "numpy": np.arange(6, dtype=np.float32).reshape(2, 3),
        "there": jax.device_put(jnp.arange(3, dtype=jnp.int8), other),
        "half": jnp.array([1.5, -2], jnp.bfloat16),
        "weak": jnp.asarray(2.0),
        "number": 3.0,
        "key": jax.random.key(4),
        "everywhere": put_everywhere(np.ones(2, np.float32), mesh),
    }
    put = put_everywhere(arrays, mesh)
    assert put.keys() == arrays.keys()
    for name, leaf in put.items():
        before = arrays[name]
        assert leaf.sharding.is_fully_replicated
        assert leaf.devices() == {*mesh.devices.flat}
        now, was = jax.typeof(leaf), jax.typeof(before)
        assert (now.shape, now.dtype) == (was.shape, was.dtype), name
        assert now.weak_type == was.weak_type, name
        if name == "key":
            before, leaf = jax.random.key_data(before), jax.random.key_data(leaf)
        np.testing.assert_array_equal(leaf, before)
    assert len(mesh.devices.flat) > 1
    assert first in put["there"].devices()


def test_arrays_may_be_given_away_afterwards():
    """What the devices hold stays, although nothing was copied on the way."""
    given = jax.device_put(jnp.arange(1000.0, dtype=jnp.float32), jax.devices()[0])
    put = put_everywhere(given, device_mesh())
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(given)
    np.testing.assert_array_equal(put, np.arange(1000))
    np.testing.assert_array_equal(doubled, 2 * np.arange(1000))


def test_a_run_says_how_its_programs_are_compiled_where_that_is_not_the_default():
    """Other products have other last bits, so that it is another run."""
    assert compiler_facts(device_mesh()) == {}
    gpus = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="gpu")]))
    assert compiler_facts(gpus) == {"compiler_options": {"xla_gpu_enable_triton_gemm": False}}
