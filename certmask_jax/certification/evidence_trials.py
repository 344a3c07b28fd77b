"""What is tried of a model on these devices before a run on evidence begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from certmask_jax.certification.evidence_batches import fitted
from certmask_jax.certification.evidence_opened import OpenedEvidence
from certmask_jax.inference.cell_fields import MIXES
from certmask_jax.inference.evidence_program import check_local, local_cells_keep_bits


def tried(
    run: OpenedEvidence, params: Any, warn: Callable[[str], None]
) -> tuple[OpenedEvidence, bool | None]:
    """A run with as much at once as the devices have memory for, whose cells see their fields.

    Args:
      run: as it was opened.
      params: of the model.
      warn: told in a line of what does not do, see ``fitted`` and ``MIXES``.

    Returns:
      The run, and whether cells keep their bits; None where no defense is on cells.

    Raises:
      ValueError: for cells that see other pixels than they say.
    """
    if run.on_local is not None:
        check_local(run.on_local, params, run.preprocessing.model_shape(run.first.shape[1:]))
    work = fitted(
        run.work,
        run.defenses,
        run.held,
        num_images=len(run.run_images),
        image_shape=run.first.shape[1:],
        preprocessing=run.preprocessing,
        mesh=run.mesh,
        margin_guard=run.margin_guard,
        warn=warn,
    )
    run = dataclasses.replace(run, work=work)
    keeps_bits = _keeps_bits(run)
    if keeps_bits is False:
        warn(MIXES)
    return run, keeps_bits


def _keeps_bits(run: OpenedEvidence) -> bool | None:
    """Whether cells keep their bits on these devices; None where no defense is on cells."""
    if run.on_local is None:
        return None
    resized = run.preprocessing.resize_to  # whose weights are 0 where a cell sees nothing
    return local_cells_keep_bits(
        run.on_local,
        run.held,
        (*(resized or run.first.shape[1:3]), run.first.shape[3]),
        preprocessing=dataclasses.replace(run.preprocessing, resize_to=None),
        images=run.work.images // run.mesh.size,
    )
