"""What tells a run from others: facts that decide its numbers, in the fingerprint of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certmask_jax.certification.opened_run import OpenedRun
from certmask_jax.defenses.defense import Defense
from certmask_jax.files import fingerprint, processes
from certmask_jax.inference.engine import Engine
from certmask_jax.tables.run_images import RunImages
from certmask_jax.tables.table_writer import TableWriter


def facts_of_run(
    run_images: RunImages,
    first: NDArray[np.uint8],
    engine: Engine,
    params: Any,
    *,
    decided: Sequence[Defense],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """JSON-able facts: runs of the same facts have the same table.

    Args:
      run_images, first: the images, and the first of them, ``uint8[1, h, w, c]``.
      engine: what evaluates them.
      params: of the model; not hashed where ``identity`` has ``weights_sha256``.
      decided: the defenses that decide what is left out; none where nothing is.
      identity: what the caller knows.
    """
    known = known_of(params, identity)
    if decided:
        asked = [(str(d), dict(d.options), fingerprint.of_arrays(d.groups)) for d in decided]
        known["defenses_sha256"] = fingerprint.of_facts(asked)
    return {
        **facts_of_images(run_images, first),
        **engine.facts(),
        **fingerprint.of_environment(),
        **known,
    }


def known_of(params: Any, identity: Mapping[str, Any]) -> dict[str, Any]:
    """``identity`` with ``weights_sha256``, for which parameters are hashed if it is not there."""
    if "weights_sha256" in identity:
        return dict(identity)
    return {**identity, "weights_sha256": fingerprint.of_arrays(params)}


def provenance_of_run(
    num_images: int, engine: Engine, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept with the table and decides no number, and what of the engine results show."""
    return {
        **fingerprint.environment(),
        **provenance,
        **engine.facts(),
        "num_images": num_images,
        "masked_images": len(engine.masked_images),
    }


def writer_of_run(
    run: OpenedRun,
    engine: Engine,
    params: Any,
    *,
    images_per_block: int,
    images_together: int,
    decided: Sequence[Defense],
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
    share: tuple[int, int],
    damaged: Callable[[str], None],
) -> TableWriter:
    """What writes the table of a run, with these facts: begun, or gone on with.

    Args:
      run, engine: its images and what evaluates them.
      images_per_block, images_together: of a block, and of the blocks whose images share chunks.
      params, decided, identity: see ``facts_of_run``.
      provenance: JSON-able facts that decide no number.
      share: ``(i, n)`` of its blocks, as of ``evaluate``; this process has a part of these.
      damaged: told in a line of a block that cannot be read.

    Raises:
      FileExistsError, OSError, ValueError: as ``TableWriter``.
    """
    num_images = len(run.run_images)
    return TableWriter(
        run.folder,
        num_images=num_images,
        masked_images=engine.masked_images,
        num_classes=engine.num_classes,
        images_per_block=images_per_block,
        share=processes.share_of_this(share),
        run={
            **facts_of_run(
                run.run_images, run.first, engine, params, decided=decided, identity=identity
            ),
            **({"images_together": images_together} if images_together > images_per_block else {}),
        },
        about={"provenance": provenance_of_run(num_images, engine, provenance)},
        began=run.run_images.began,
        damaged=damaged,
    )


def facts_of_images(run_images: RunImages, first: NDArray[np.uint8]) -> dict[str, str]:
    """What tells images apart: of files their names and labels, of others the first image."""
    if run_images.began is None:
        return {"first_image_sha256": fingerprint.of_arrays(first)}
    return {"images_sha256": fingerprint.of_facts(run_images.began)}
