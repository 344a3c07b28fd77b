"""Images through a model, and defenses on the evidence that it gives of them, on all devices.

Evidence stays on the device that made it: of each image only answers and verdicts come back.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.evidence_defense import EvidenceDefense, check_guarded
from certmask_jax.inference.cell_fields import cells_keep_bits, check_fields
from certmask_jax.inference.devices import AXIS, compiler_options
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.evidence_sources import BandSource, Evidence, LocalSource, Source
from certmask_jax.inference.preprocessing import Preprocessing
from certmask_jax.tables.outputs import NO_LABEL


class EvidenceOutputs(NamedTuple):
    """What is kept of B images."""

    answers: Array  # int32[B, D], labels or ALERT
    verdicts: Array  # bool[B, Q]: of each defense the worst case, its conditions, and guarded
    undefended: Array  # int32[B], the label of the image itself; NO_LABEL where not finite
    margins: Array  # float32[B], the smallest of that label and those of bands; NaN: not finite
    holds: Array  # bool[B, P]: of each defense the verdict at each place alone
    leads: Array  # float32[B, L]: the leads there of those that have any; NaN: not finite
    kept: tuple[Array, ...] = ()  # float32[B, ..., K] of each source, where it is to be kept


@functools.lru_cache(maxsize=16)
def results_program(
    sources: tuple[Source, ...],
    preprocessing: Preprocessing,
    defenses: tuple[EvidenceDefense, ...],
    mesh: Mesh,
    *,
    places: bool = False,
    keep: bool = False,
    margin_guard: float = 0.0,
) -> Any:
    """The jitted ``(params, images uint8[B, h, w, c], labels int32[B]) -> EvidenceOutputs``.

    B is a multiple of the devices, each of which has its own share. ``sources`` has one for each
    defense; equal ones are evaluated once. Undefended is the model of the first that says it.
    Verdicts at places are asked for by ``places``, and the evidence itself by ``keep``, of each
    source once, in their order; else there are none of them. With ``margin_guard`` there is one
    more verdict of each defense, its last: whether its worst case holds within that.

    Raises:
      ValueError: for a guard beside a defense of which nothing is known within one.
    """
    check_guarded(defenses, margin_guard)

    def outputs(params: Any, images: Array, labels: Array) -> EvidenceOutputs:
        evidence = {
            source: source.evidence(params, images, preprocessing)
            for source in dict.fromkeys(sources)
        }
        if keep:  # what is kept are the bits that the defenses see
            evidence = {
                source: one._replace(parts=jax.lax.optimization_barrier(one.parts))
                for source, one in evidence.items()
            }
        finite = {source: _finite(one.parts) for source, one in evidence.items()}
        each = [
            defense.results(evidence[source].parts, labels)
            for source, defense in zip(sources, defenses, strict=True)
        ]
        verdicts = [
            verdict
            for source, defense, results in zip(sources, defenses, each, strict=True)
            for verdict in (
                results.worst_case & finite[source],
                *(results.conditions[name] & finite[source] for name in defense.condition_names),
                *(
                    [
                        defense.guarded(evidence[source].parts, labels, margin_guard=margin_guard)
                        & results.worst_case
                        & finite[source]
                    ]
                    if margin_guard
                    else []
                ),
            )
        ]
        whole = next(one.whole for one in evidence.values() if one.whole is not None)
        margins = [_margin(whole)]
        margins += [_margin(evidence[s].parts) for s in evidence if isinstance(s, BandSource)]
        all_finite = functools.reduce(jnp.logical_and, finite.values())
        holds, leads = _at_places(sources, defenses, evidence, finite, labels, asked=places)
        return EvidenceOutputs(
            jnp.stack([results.answer for results in each], axis=1),
            jnp.stack(verdicts, axis=1),
            jnp.where(_finite(whole), whole.argmax(axis=1), NO_LABEL).astype(jnp.int32),
            jnp.where(all_finite & _finite(whole), functools.reduce(jnp.minimum, margins), jnp.nan),
            holds,
            leads,
            tuple(one.parts for one in evidence.values()) if keep else (),
        )

    split = PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            outputs,
            mesh=mesh,
            in_specs=(PartitionSpec(), split, split),
            out_specs=split,
            check_vma=False,  # any model may be given, whatever it carries in its loops
        ),
        compiler_options=compiler_options(mesh),
    )


def in_batches(
    program: Any, params: Any, images: NDArray[np.uint8], labels: NDArray[np.int32], batch: int
) -> EvidenceOutputs:
    """The program on any number of images, ``batch`` at a time, the last ones filled up: NumPy."""
    parts = []
    for start in range(0, len(images), batch):
        some, true = images[start : start + batch], labels[start : start + batch]
        count = len(some)
        some = np.concatenate([some, np.zeros((batch - count, *some.shape[1:]), np.uint8)])
        true = np.concatenate([true, np.zeros(batch - count, np.int32)])
        with unguarded():
            outputs = jax.device_get(program(params, jnp.asarray(some), jnp.asarray(true)))
        parts.append(jax.tree.map(lambda array, n=count: np.asarray(array)[:n], outputs))
    joined: EvidenceOutputs = jax.tree.map(lambda *columns: np.concatenate(columns), *parts)
    return joined


def local_shape(
    local: LocalLogits, params: Any, image_shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    """``(H, W, K)`` of the evidence of what the model sees; nothing is evaluated.

    Raises:
      ValueError: for evidence of another shape than field and stride make.
    """
    height, width, _ = image_shape
    rows, columns = local.grid((height, width))
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    shape = jax.eval_shape(local.apply_fn, params, image).shape
    if len(shape) != 4 or shape[:3] != (1, rows, columns) or shape[3] < 2:
        raise ValueError(
            f"local logits: expected [1, {rows}, {columns}, K] for images {image.shape}, as fields "
            f"of {local.field} pixels every {local.stride} make, got {list(shape)}"
        )
    return rows, columns, int(shape[3])


def check_local(
    local: LocalLogits, params: Any, image_shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    """``local_shape`` of evidence whose cells see what they say.

    By their gradients, see ``check_fields``.

    Raises:
      ValueError: for evidence of another shape, or cells that see other pixels.
    """
    shape = local_shape(local, params, image_shape)
    check_fields(
        local.apply_fn,
        params,
        image_shape,
        field=(local.field, local.field),
        stride=(local.stride, local.stride),
        what="local logits",
    )
    return shape


def local_cells_keep_bits(
    local: LocalLogits,
    params: Any,
    image_shape: tuple[int, int, int],
    *,
    preprocessing: Preprocessing,
    images: int,
) -> bool:
    """Whether cells keep their bits when pixels change that they do not see.

    Args:
      local, params, preprocessing: the model.
      image_shape: ``(h, w, c)`` of its images.
      images: as many as a device evaluates at once.

    Raises:
      ValueError: for a cell that sees other pixels.
    """
    source = LocalSource(local)
    program = jax.jit(lambda held, pixels: source.evidence(held, pixels, preprocessing).parts)
    return cells_keep_bits(
        lambda pixels: program(params, pixels),
        image_shape,
        field=(local.field, local.field),
        stride=(local.stride, local.stride),
        images=images,
        exact=preprocessing.precision == "highest",
        what="local logits",
    )


def _at_places(
    sources: tuple[Source, ...],
    defenses: tuple[EvidenceDefense, ...],
    evidence: Mapping[Source, Evidence],
    finite: Mapping[Source, Array],
    labels: Array,
    *,
    asked: bool,
) -> tuple[Array, Array]:
    """Verdicts at places of all defenses side by side, and the leads of those that have any."""
    holds, leads = [jnp.zeros((len(labels), 0), jnp.bool_)], [jnp.zeros((len(labels), 0))]
    for source, defense in zip(sources, defenses, strict=True):
        if not asked or defense.kept_places == (0, 0):
            continue
        usable = finite[source][:, None]
        at = defense.at_places(evidence[source].parts, labels)
        holds.append(at.holds & usable)
        if at.leads is not None:
            leads.append(jnp.where(usable, at.leads, jnp.nan))
    return jnp.concatenate(holds, axis=1), jnp.concatenate(leads, axis=1)


def _finite(evidence: Array) -> Array:
    """``bool[T]``: whether all of ``float32[T, ...]`` is finite."""
    return jnp.isfinite(evidence.reshape(len(evidence), -1)).all(axis=1)


def _margin(logits: Array) -> Array:
    """``float32[T]``: the least lead of a best class, of logits ``[T, ..., K]``."""
    top = jax.lax.top_k(logits, 2)[0]
    leads = top[..., 0] - top[..., 1]
    return leads.reshape(len(logits), -1).min(axis=1)
