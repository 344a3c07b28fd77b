"""How long defenses on evidence would take, from the first blocks of the run itself."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from certmask_jax.certification.evidence_run import evaluate_evidence
from certmask_jax.certification.run_hooks import EvidenceHooks
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.tables.image_sets import FirstImages, TestSet

_MOST_IMAGES = 256
_SECONDS = 3.0  # of blocks that are timed


def seconds_an_image(
    test_set: TestSet,
    local: LocalLogits | None,
    params: Any,
    defenses: Sequence[EvidenceDefense],
    *,
    clock: Callable[[], float] = time.monotonic,
    **how: Any,
) -> tuple[float, int]:
    """Seconds of this machine for an image, compiling left out.

    Args:
      test_set, local, params, defenses: as of ``evaluate_evidence``, whose other keywords are
        ``how``; at most 256 images are evaluated, into a folder that goes again.
      clock: in seconds.

    Returns:
      The seconds, and on how many images they were measured.

    Raises:
      ValueError, OSError: as ``evaluate_evidence``.
    """
    count = min(_MOST_IMAGES, len(test_set))

    def times(*, stops: bool) -> list[tuple[int, float]]:
        at: list[tuple[int, float]] = [(0, clock())]
        hooks = EvidenceHooks(
            progress=lambda done, _: at.append((done, clock())),
            stop=lambda: stops and len(at) > 2 and at[-1][1] - at[1][1] > _SECONDS,
        )
        with tempfile.TemporaryDirectory() as folder:
            evaluate_evidence(
                FirstImages(test_set, count), local, params, defenses, folder, hooks=hooks, **how
            )
        return at

    # The first block compiles, so what is timed begins behind it; where it is the only one it is
    # evaluated once more.
    at = times(stops=True)[1:]
    if len(at) < 2:
        at = times(stops=False)
    images = at[-1][0] - at[0][0]
    return (at[-1][1] - at[0][1]) / images, images
