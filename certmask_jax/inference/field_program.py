"""The compiled table of an image from its distinct fields, and these fields in chunks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from certmask_jax.inference.devices import AXIS, compiler_options
from certmask_jax.inference.distinct_fields import LocalFields, LocalLogits
from certmask_jax.inference.masked_pass import masked_logits, outputs_of
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables.outputs import Outputs

_MASKS_AT_ONCE = 8  # whose fields are gathered together


def in_chunks(
    fields: LocalFields, chunk: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Origins ``[n, C, 2]`` and boxes ``[n, C, R, 4]`` of fields; index ``[m, M, F]``.

    Filled up with the first ones.
    """

    def split(array: NDArray[np.int32], size: int) -> NDArray[np.int32]:
        lacking = -len(array) % size
        whole = np.concatenate([array, np.repeat(array[:1], lacking, axis=0)])
        return whole.reshape(-1, size, *array.shape[1:])

    return (
        split(fields.origins, chunk),
        split(fields.boxes, chunk),
        split(fields.index, _MASKS_AT_ONCE),
    )


def _windows(image: Array, local: LocalLogits) -> Array:
    """What each local logit sees: ``[h, w, c]`` -> ``[Fh * Fw, field, field, c]``.

    By indices that are known when it is compiled: slices at places that are not become a loop over
    the fields on some devices.
    """
    height, width, channels = image.shape
    grid, side = local.grid((height, width)), local.field
    rows, columns = (
        np.arange(count)[:, None] * local.stride + np.arange(side) for count in grid
    )  # [Fh, field], [Fw, field]
    cut = image[rows][:, :, columns]  # [Fh, field, Fw, field, c]
    return cut.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, channels)


@functools.lru_cache(maxsize=16)
def table_program(local: LocalLogits, preprocessing: Preprocessing, mesh: Mesh) -> Any:
    """The jitted ``(params, images [devices, h, w, c], chunks) -> Outputs [devices, V]``.

    ``chunks`` is what ``in_chunks`` gives. Sums over fields are made in the same order for all
    masked images.
    """

    def table(params: Any, images: Array, work: tuple[Array, Array, Array]) -> Outputs:
        image, (origins, boxes, index) = images[0], work  # an image a device

        windows = _windows(image, local)
        columns = local.grid((image.shape[0], image.shape[1]))[1]

        def evaluated(some: tuple[Array, Array]) -> Array:
            rows, places = (some[0] // local.stride).T
            pixels = windows[rows * columns + places]
            logits = masked_logits(
                local.apply_fn, params, pixels, some[1], preprocessing=preprocessing
            )
            return logits.reshape(len(pixels), -1)

        logits = jax.lax.map(evaluated, (origins, boxes))
        logits = logits.reshape(-1, logits.shape[-1])
        means = jax.lax.map(lambda some: logits[some].mean(axis=1), index)
        read = outputs_of(means.reshape(-1, logits.shape[-1]))
        return Outputs(*(output[None] for output in read))

    return jax.jit(
        jax.shard_map(
            table,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,  # any model may be given, whatever it carries in its loops
        ),
        compiler_options=compiler_options(mesh),
    )
