"""PatchGuard's certificate as its programs compute it: to compare with, not to rely on.

Two are about the rule of ``patchguard``, which answers ties with the largest label. The first one
is about the rule as it was first printed, which takes the window of the predicted class from all
classes. What the programs get wrong, with counterexamples, is in soundness, section 12.4. Without
wrap-around the program of today is right at every threshold.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import unguarded
from certmask_jax.defenses.evidence_windows import (
    Size,
    kept_of_windows,
    meeting,
    most_kept,
    window_sums,
)
from certmask_jax.defenses.plain_arrays import as_given, checked_classes
from certmask_jax.defenses.quantised_evidence import (
    checked_evidence,
    image_by_image,
    image_entries,
    quantised,
)
from certmask_jax.defenses.robust_masking_game import (
    THRESHOLD_BITS,
    Game,
    beats,
    game_on,
    outside_windows,
)

Program = Literal["head", "before_2021_12", "first"]


def as_published(
    evidence: ArrayLike | Array,
    labels: ArrayLike | Array,
    *,
    window: Size,
    clip: float = math.inf,
    threshold: float = 0.0,
    wrap: bool = False,
    program: Program = "head",
) -> Array | NDArray[np.bool_]:
    """Whether the authors' ``provable_masking`` certifies an image, true or not.

    Args:
      evidence, labels, window, clip, threshold, wrap: as of ``robust_masking_worst_case``.
      program: ``"head"`` as it is since December 2021. With ``wrap`` and a threshold above 0 it
        certifies images that can be attacked, since it keeps clean sums for windows that meet the
        attacked one across the seam. ``"before_2021_12"`` as it was, which at a threshold above 0
        took it that nothing is masked where the clean share is small. ``"first"``, of 2020: of the
        runner-up alone, and of a rule that masks the predicted class's window in all classes. It
        does not see that an attack may leave the predicted class as it is, so that a window of
        benign evidence is masked.

    Returns:
      ``bool[T]``; of evidence that is rounded as everywhere here.

    Raises:
      ValueError: as of the rule, and for another ``program``.
    """
    array = checked_evidence(evidence)
    cells = (array.shape[1], array.shape[2])
    game = game_on(cells, window=window, clip=clip, threshold=threshold, wrap=wrap)
    truth = checked_classes(labels, array.shape[:1], array.shape[-1])
    if program not in get_args(Program):
        raise ValueError(f"program: expected one of {get_args(Program)}, got {program!r}")
    if program == "first" and wrap:
        raise ValueError("wrap: expected False for the first program, whose windows do not wrap")
    with unguarded():
        holds = _conditions(
            jnp.asarray(quantised(array, game.grid)), jnp.asarray(truth), game, program
        )
        return as_given(holds, array)


@partial(jax.jit, static_argnames=("game", "program"))
def _conditions(units: Array, labels: Array, game: Game, program: Program) -> Array:
    # Only these are summed anew by the program, also where windows wrap around.
    near = meeting(game.cells, game.window, wrap=game.wrap, seam=False)

    def of_first_program(image: Array, label: Array) -> Array:
        classes = jnp.arange(image.shape[-1], dtype=jnp.int32)
        total = image.sum(axis=(0, 1), dtype=jnp.int32)
        rest = jnp.where(classes == label, -1, total)
        runner = classes[-1] - rest[::-1].argmax()
        outside, whole = outside_windows(image, game), jnp.take(image, label, axis=-1)
        of_label, of_runner = (jnp.take(outside, c, axis=1) for c in (label, runner))
        needed = of_label - of_runner  # what the runner-up has to gain in the window
        part = (game.threshold * (of_label & 0xFFFF)) % 2**THRESHOLD_BITS
        share = game.share(of_label) + (part > 0).astype(jnp.int32)  # rounded up
        kept = kept_of_windows(whole, game.window, wrap=False)
        others = kept_of_windows(jnp.take(image, runner, axis=-1), game.window, wrap=False)
        masked = jnp.take_along_axis(kept, others.argmax(axis=1)[:, None], axis=1)[:, 0]
        partly = jnp.where(near, kept, 0).max(axis=1)
        holds = (needed >= share) & (masked <= needed) & (partly <= needed)
        ahead = (total < total[label]) | ((total == total[label]) & (classes <= label))
        return ahead.all() & holds.all()

    def one(image: Array, label: Array) -> Array:
        if program == "first":
            return of_first_program(image, label)
        own = jnp.take(image, label, axis=-1)
        clean = window_sums(own, game.window, wrap=game.wrap).ravel()
        left = own.sum(dtype=jnp.int32) - clean
        if game.wrap:
            kept = kept_of_windows(own, game.window, wrap=True)
            met = jnp.where(near, kept, 0).max(axis=1)
            apart = jnp.where(near, 0, clean[None, :]).max(axis=1)
        else:
            met, apart = most_kept(own, game.window)
        largest = jnp.maximum(met, apart)
        masked = largest > game.share(left)
        least = left - jnp.where(masked, largest, met if program == "head" else 0)

        classes = jnp.arange(image.shape[-1], dtype=jnp.int32)
        total = image.sum(axis=(0, 1), dtype=jnp.int32)
        first = (total < total[label]) | ((total == total[label]) & (classes <= label))
        raised = least[:, None] + (classes < label).astype(jnp.int32)[None, :]
        safe = beats(raised, outside_windows(image, game), game, capped=False)
        return first.all() & (safe | (classes == label)[None, :]).all()

    pairs = 3 * game.windows**2 if program == "first" else game.entries()
    return image_by_image(one, 4 * image_entries(units) + pairs, units, labels)
