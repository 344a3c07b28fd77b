"""What the real compiler makes of a model for accelerators that are not here, and what to expect.

Everything is of one device of four; an estimate names what it assumes. Nothing is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from certmask_jax.inference import chunk_sizes
from certmask_jax.inference.chunk_program import lowered_chunk
from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits, local_fields
from certmask_jax.inference.field_program import in_chunks, table_program
from certmask_jax.inference.field_tables import fields_at_once
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import flops
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.out_of_memory import is_of_memory
from certmask_jax.programs.measurements import compiled_text
from certmask_jax.programs.measurements.absent_devices import Target, devices
from certmask_jax.programs.measurements.subjects import Subject

_UPLOADED = 16  # images on each device, of which masked images are made
_SHARE_OF_MEMORY = 0.8  # for temporaries and arguments, as of a device that is there


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is compiled.

    Attributes:
      unit: what a chunk has many of.
      shape: of one of them, ``(h, w, c)`` as the model sees it.
      largest: of them in a chunk of one device, to begin with.
      chunks: how many chunks one program makes.
      flops: of one of them, None where nobody knows.
      lowered: the program for so many of them on each device.
    """

    unit: str
    shape: tuple[int, int, int]
    largest: int
    chunks: Callable[[int], int]
    flops: float | None
    lowered: Callable[[int], Any]


def measure(subject: Subject, target: Target, chunk: int | None = None) -> dict[str, Any]:
    """Facts of the compiled program, and an estimate of its speed.

    Args:
      subject: the model; its parameters may be ``jax.ShapeDtypeStruct``.
      target: what it is compiled for, four of them.
      chunk: masked images at once, over all devices (fields, where the model has local logits);
        chosen as it would be there by default.

    Raises:
      ValueError: where the compiler is not installed, or a chunk of one does not fit.
    """
    mesh = device_mesh(devices(target))
    params = jax.eval_shape(
        lambda held: computed_with(held, subject.preprocessing),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), subject.params),
    )
    if subject.local is None:
        work = _of_whole_images(subject, params, mesh, target)
    else:
        work = _of_fields(subject, subject.local, params, mesh, target)
    each = work.largest if chunk is None else -(-chunk // mesh.size)
    program, each, tried = _fitting(work, target, each)
    return {
        "subject": subject.name,
        "precision": subject.preprocessing.precision,
        f"{work.unit}s_at_once_a_device": each,
        "chunks_that_did_not_fit": tried,
        **_facts(program, work, each, subject.num_classes),
        "estimate_of_the_compiler": _estimate(program, work, each, subject, target),
    }


def _of_whole_images(subject: Subject, params: Any, mesh: Mesh, target: Target) -> _Work:
    how = subject.preprocessing
    shape = how.model_shape(subject.image_shape)
    # Of bounds nobody has counted them: they are more than those of a plain pass.
    counts = kind_of(subject.apply_fn).bounded is None
    operations = flops(subject.apply_fn, params, shape, how.model_dtype) if counts else None
    boxes = max(d.masked_images.boxes.shape[1] for d in subject.defenses)
    images = (_UPLOADED, *subject.image_shape)

    def lowered(each: int) -> Any:
        return lowered_chunk(subject.apply_fn, how, mesh, params, images, boxes, each * mesh.size)

    most = chunk_sizes.default_items(target.platform, operations)
    return _Work("masked_image", shape, most, lambda each: 1, operations, lowered)


def _of_fields(
    subject: Subject, local: LocalLogits, params: Any, mesh: Mesh, target: Target
) -> _Work:
    fields = local_fields(subject.defenses[0].masked_images, local)
    shape = (local.field, local.field, subject.image_shape[2])
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))

    def lowered(each: int) -> Any:
        array: Any = jax.ShapeDtypeStruct
        parts = in_chunks(fields, each)
        return table_program(local, subject.preprocessing, mesh).lower(
            jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, sharding=everywhere), params),
            array((mesh.size, *subject.image_shape), np.uint8, sharding=split),
            tuple(array(part.shape, part.dtype, sharding=everywhere) for part in parts),
        )

    return _Work(
        "field",
        shape,
        fields_at_once(len(fields), target.platform),
        lambda each: -(-len(fields) // each),
        flops(local.apply_fn, params, shape, subject.preprocessing.model_dtype),
        lowered,
    )


def _fitting(work: _Work, target: Target, each: int) -> tuple[Any, int, list[int]]:
    """The program of the largest chunk that fits, its size, and those that did not."""
    tried: list[int] = []
    while True:
        try:
            program = work.lowered(each).compile(compiler_options=target.options)
        except jax.errors.JaxRuntimeError as error:
            if not is_of_memory(error):
                raise
        else:
            memory = program.memory_analysis()
            needs = memory.temp_size_in_bytes + memory.argument_size_in_bytes
            if needs <= _SHARE_OF_MEMORY * target.memory:
                return program, each, tried
        if each == 1:
            raise ValueError(
                f"{target.name}: expected memory for one {work.unit.replace('_', ' ')} on each "
                "device, but there is not even that"
            )
        tried.append(each)
        each //= 2


def _facts(program: Any, work: _Work, each: int, classes: int) -> dict[str, Any]:
    text, memory = compiled_text.read(program.as_text()), program.memory_analysis()
    inputs = each * int(np.prod(work.shape))
    logits = compiled_text.of_shape(text, (each, classes))
    wide = [b for b in compiled_text.written(text) if b.dtype == "f32" and b.elements == inputs]
    return {
        "collectives": compiled_text.collectives(text),
        "trips_of_loops": compiled_text.loops(text),
        "float32_copies_of_all_masked_images": len(wide),
        "exponentials_in_16_bits": compiled_text.narrow(text, "exponential"),
        "types_of_logits": sorted(t for t in logits if not t.startswith(("p", "s", "u"))),
        "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
        "temporary_kilobytes_an_item": memory.temp_size_in_bytes / each / 1e3,
        "parameters_and_images_megabytes": memory.argument_size_in_bytes / 1e6,
    }


def _estimate(
    program: Any, work: _Work, each: int, subject: Subject, target: Target
) -> dict[str, Any]:
    text = compiled_text.read(program.as_text())
    precision = subject.preprocessing.precision
    peak, done = target.flops[precision], work.chunks(each) * each
    traffic, cycles = compiled_text.traffic(text), compiled_text.cycles(text)
    seconds = {"by_traffic": traffic / target.bandwidth / done}
    if work.flops is not None:
        seconds["by_operations"] = work.flops / peak
    if cycles is not None and target.clock is not None:
        seconds["by_cycles"] = cycles / target.clock / done
    if "by_cycles" in seconds:
        slowest, how = seconds["by_cycles"], "speed from the compiler's cycles for each operation"
    else:
        slowest = max(seconds.values())
        how = "speed from the slower of operations and traffic, each at its peak, which is seldom"
    facts: dict[str, Any] = {
        f"microseconds_a_{work.unit}_{name}": 1e6 * value for name, value in seconds.items()
    }
    facts[f"{work.unit}s_a_second_a_device"] = 1 / slowest
    if work.flops is not None:
        facts["operations_each"] = work.flops
        facts["share_of_the_peak"] = work.flops / slowest / peak
    facts["traffic_megabytes_each"] = traffic / done / 1e6
    facts["assumes"] = [
        how,
        f"{peak / 1e12:,.4g} TFLOP/s at precision {precision}, {target.bandwidth / 1e12:.3g} TB/s "
        f"({target.source})",
        "operations as counted before the compiler's optimisations",
        "traffic as if each operation read and wrote all of its arrays, and no cache spared any",
    ]
    if "by_cycles" in seconds and target.clock is not None:
        facts["assumes"].append(f"{target.clock / 1e9:.3g} GHz, which follows from the peak")
    return facts
