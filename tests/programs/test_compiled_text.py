"""What is read in the text of a compiled program, against programs and sums made by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certmask_jax.inference import chunk_program, field_program
from certmask_jax.inference.devices import device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits, local_fields
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.mask_sets import budgeted_grid
from certmask_jax.masks import distinct_unions
from certmask_jax.programs.measurements import compiled_text
from certmask_jax.programs.measurements.compiled_text import Buffer

BY_HAND = """HloModule jit_chunk, is_scheduled=true

%fused_exp (p.1: bf16[8,4]) -> bf16[8,4] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  ROOT %e.1 = bf16[8,4]{1,0} exponential(%p.1), metadata={op_name="exp(x)"}
}

%body (b.0: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %b.0 = (s32[], f32[8,4]{1,0}) parameter(0)
  %b.1 = f32[8,4]{1,0} get-tuple-element(%b.0), index=1
  %b.2 = f32[8,4]{1,0:T(8,128)S(1)} copy(%b.1), backend_config={"estimated_cycles":"10"}
  ROOT %b.3 = (s32[], f32[8,4]{1,0}) tuple(%b.0, %b.2)
}

%condition (c.0: (s32[], f32[8,4])) -> pred[] {
  %c.0 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %c.1 = pred[] constant(true)
}

ENTRY %main (x: f32[8,4]) -> bf16[4] {
  %x = f32[8,4]{1,0:T(8,128)} parameter(0), sharding={devices=[8,1]<=[8]}
  %loop = (s32[], f32[8,4]{1,0}) while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  %got = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %some = (bf16[8,4]{1,0}, /*index=1*/f32[4]{0}) fusion(%got, %x), kind=kLoop, calls=%fused_exp, \
backend_config={"estimated_cycles":"100"}
  %part = bf16[8,4]{1,0} get-tuple-element(%some), index=0
  %start = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%part), dimensions={0}
  ROOT %done = bf16[64,4]{1,0} all-gather-done(%start)
}
"""


def test_a_program_by_hand():
    program = compiled_text.read(BY_HAND)
    assert program.entry == "main"
    assert compiled_text.loops(program) == [5]
    assert compiled_text.collectives(program) == ["all-gather"]
    assert compiled_text.cycles(program) == 100 + 5 * 10
    assert compiled_text.narrow(program, "exponential") == 1  # a fused one
    assert compiled_text.narrow(program, "copy") == 0  # of 32 bits
    assert compiled_text.of_shape(program, (8, 4)) == {"bf16", "f32"}
    written = compiled_text.written(program)
    assert written[Buffer("f32", (8, 4), is_near=True)] == 5
    assert written[Buffer("f32", (4,))] == 1
    assert Buffer("f32", (8, 4)) not in written  # a parameter, and names for parts of others
    # The loop's copies are read from memory five times, 128 bytes each, and stay on the chip; the
    # fusion reads twice 128 and writes 64 and 16; the gathering reads 64 and writes 64 and 512.
    assert compiled_text.traffic(program) == 5 * 128 + 2 * 128 + 64 + 16 + 64 + 64 + 512


@pytest.mark.parametrize(
    ("counts", "bound", "trips"),
    [
        ("s32[] get-tuple-element(%c.0), index=0", "s32[] constant(84)", 84),
        ("f32[] get-tuple-element(%c.0), index=0", "f32[] constant(84)", None),
        ("s32[] get-tuple-element(%c.0), index=0", "s32[] parameter(1)", None),
        ("s32[] negate(%c.0)", "s32[] constant(84)", None),
    ],
)
def test_trips_of_which_the_compiler_says_nothing(counts, bound, trips):
    condition = f"""  %n = {counts}
  %m = {bound}
  ROOT %c.1 = pred[] compare(%n, %m), direction=LT
"""
    text = BY_HAND.replace("  ROOT %c.1 = pred[] constant(true)\n", condition)
    text = text.replace('"known_trip_count":{"n":"5"},', "")
    program = compiled_text.read(text)
    assert compiled_text.loops(program) == [trips]
    assert compiled_text.cycles(program) == 100 + 10 * (trips or 1)


def test_sizes_of_arrays():
    assert Buffer("pred", (3, 5)).bytes == 15
    assert Buffer("s4", (3,)).bytes == 2  # two in a byte
    assert Buffer("f8e4m3fn", (7,)).bytes == 7
    assert Buffer("s32", ()).bytes == 4


def test_text_that_is_none():
    with pytest.raises(ValueError, match="expected the text of a compiled program"):
        compiled_text.read("HloModule nothing")


def test_a_compiled_loop_and_an_unknown_number_of_trips():
    def known(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y @ x), x)

    def unknown(x):
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: jnp.sin(y @ x) + 1, x)

    x = np.eye(64, dtype=np.float32)
    for function, trips in ((known, [7]), (unknown, [None]), (lambda x: x @ x, [])):
        program = compiled_text.read(jax.jit(function).lower(x).compile().as_text())
        assert compiled_text.loops(program) == trips
        assert compiled_text.collectives(program) == []
        assert compiled_text.cycles(program) is None  # what no CPU's compiler says


# --- devices have nothing to tell each other ---

PREPROCESSING = Preprocessing((0.5,), (0.5,))
SHAPE = (8, 8, 1)


def _linear(params, images):
    return images.reshape(len(images), -1) @ params


def _local(params, images):
    """Logits of fields of 4 pixels every 2."""
    return jax.lax.conv_general_dilated(
        images, params, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _chunk(mesh):
    params = jax.ShapeDtypeStruct((64, 5), np.float32)
    return chunk_program.lowered_chunk(
        _linear, PREPROCESSING, mesh, params, (4, *SHAPE), 2, 4 * mesh.size
    )


def _table(mesh):
    local = LocalLogits(_local, 4, 2)
    masks = budgeted_grid(8, 2, masks_per_axis=2)
    fields = local_fields(distinct_unions.one_round(masks)[0], local)
    return field_program.table_program(local, PREPROCESSING, mesh).lower(
        np.zeros((4, 4, 1, 5), np.float32),
        np.zeros((mesh.size, *SHAPE), np.uint8),
        field_program.in_chunks(fields, 16),
    )


@pytest.fixture
def _left_to_the_partitioner(monkeypatch):
    """JAX without ``shard_map``: each function is given the arrays of all devices."""

    def shard_map(function, *, mesh, in_specs, out_specs, check_vma):
        def sharded(*arrays):
            of = [jax.sharding.NamedSharding(mesh, spec) for spec in in_specs]
            arrays = jax.lax.with_sharding_constraint(arrays, tuple(of))
            return jax.lax.with_sharding_constraint(
                function(*arrays), jax.sharding.NamedSharding(mesh, out_specs)
            )

        return sharded

    monkeypatch.setattr(jax, "shard_map", shard_map)


@pytest.mark.eight_devices
@pytest.mark.parametrize("lowered", [_chunk, _table])
def test_devices_do_not_wait_for_each_other(lowered):
    mesh = device_mesh()
    assert mesh.size == 8
    text = lowered(mesh).compile().as_text()
    assert compiled_text.collectives(compiled_text.read(text)) == []


@pytest.mark.eight_devices
@pytest.mark.usefixtures("_left_to_the_partitioner")
def test_without_shard_map_they_would():
    """So that the test above can fail: the partitioner gathers all logits for ``top_k``."""
    text = _chunk(device_mesh()).compile().as_text()
    assert "all-gather" in compiled_text.collectives(compiled_text.read(text))
