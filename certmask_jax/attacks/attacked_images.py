"""Attacks on many images: each is tried with goal after goal until its answer is wrong.

A fixed number of searches runs at once. After every few steps the real rule is asked about the
patched pixels, rounded to levels; one that is broken, or has used up its goals, makes room for
the next image. What is reported as broken was answered wrongly as ``uint8`` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.patch_search import Goals, PatchSearch, Searches, begun, steps_program
from certmask_jax.attacks.patched_pixels import with_patches
from certmask_jax.attacks.search_slots import SearchSlots
from certmask_jax.attacks.table_goals import Goal
from certmask_jax.defenses.defense import Defense, Guarantee
from certmask_jax.inference import early_exit
from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.early_exit import Question
from certmask_jax.inference.engine_choice import engine_for
from certmask_jax.inference.masked_pass import computed_with
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.masks.distinct_unions import MaskedImages
from certmask_jax.tables.prediction_table import PredictionTable, check_labels

STEPS_BETWEEN = 10
"""After so many steps the rule is asked, and ``progress`` is told."""


class AttackedImages(NamedTuple):
    """What came of B images.

    Attributes:
      patched: ``uint8[B, h, w, c]``: broken, or as the last search left it.
      broken: ``bool[B]``: the defense answers wrongly.
      answers: ``int32[B]``, what it answers, labels or ``ALERT``.
      places: ``int64[B, K, 4]``, of the patch that is there.
      targets: ``int32[B]``, the label that was aimed at.
      steps: ``int64[B]``, of all searches of the image together.
    """

    patched: NDArray[np.uint8]
    broken: NDArray[np.bool_]
    answers: NDArray[np.int32]
    places: NDArray[np.int64]
    targets: NDArray[np.int32]
    steps: NDArray[np.int64]


@reproducible()
def attack_images(
    apply_fn: ApplyFn,
    params: Any,
    images: ArrayLike,
    labels: ArrayLike,
    defense: Defense | None,
    goals: Sequence[Sequence[Goal]],
    *,
    preprocessing: Preprocessing | None = None,
    search: PatchSearch | None = None,
    starts: int = 1,
    at_once: int = 8,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AttackedImages:
    """Patches that are to make a defense answer wrongly.

    Args:
      apply_fn, params, preprocessing: the model, differentiable by JAX.
      images: ``uint8[B, h, w, c]``, without patches.
      labels: ``int[B]``, true classes.
      defense: the rule that is to err; None for the model itself, without masks.
      goals: of each image the goals that are tried, the best first; see ``goals_at``, and
        ``undefended_goals`` where there is no defense.
      search: how a patch is searched for.
      starts: searches for each goal; the first begins at the image's own pixels, others at random.
      at_once: searches that run at once over all devices, rounded up to their number.
      seed: of all randomness: what an image gets depends on it and on the image's number alone.
      numbers: of the images, 0 and on by default; so that parts of a set get what all of it would.
      mesh: 1-D mesh; all devices of this process by default.
      progress: called with the images that are settled and those of them that are broken.

    Raises:
      ValueError: for images, labels or goals that do not belong together.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4:
        raise ValueError(f"images: expected shape [B, h, w, c], got {list(pixels.shape)}")
    masked = _unmasked(pixels.shape[1:3]) if defense is None else defense.masked_images
    check_images(pixels, masked.image_size)
    if len(goals) != len(pixels):
        raise ValueError(f"goals: expected those of {len(pixels)} images, got {len(goals)}")
    if starts < 1 or at_once < 1:
        raise ValueError(f"starts, at_once: expected at least 1, got {starts} and {at_once}")
    how = PatchSearch() if search is None else search
    shown = Preprocessing() if preprocessing is None else preprocessing
    on = device_mesh() if mesh is None else mesh
    asker = _Asker(apply_fn, params, pixels.shape[1:], masked, defense, shown, on)
    truth = check_labels(labels, len(pixels), asker.num_classes)
    few = 1 << max(0, len(pixels) - 1).bit_length()  # few sizes of programs
    slots = -(-min(at_once, few) // on.size) * on.size
    alerts = defense is not None and defense.guarantee == Guarantee.DETECTION
    known = range(len(pixels)) if numbers is None else numbers
    if len(known) != len(pixels):
        raise ValueError(f"numbers: expected those of {len(pixels)} images, got {len(known)}")
    run = SearchSlots(
        pixels, truth, known, len(masked), goals, starts, slots, seed, allows_alert=alerts
    )
    everywhere = NamedSharding(on, PartitionSpec())
    shares = NamedSharding(on, PartitionSpec(AXIS))
    held, boxes = jax.device_put((computed_with(params, shown), masked.boxes), everywhere)
    searches: Searches | None = None
    while run.fill():
        goals_now, keys, fresh, from_image = jax.device_put(run.arrays(), shares)
        count = min(STEPS_BETWEEN, how.steps)
        beginning = begun(goals_now, keys, how, from_image=from_image)
        searches = beginning if searches is None else _chosen(fresh, beginning, searches)
        program = steps_program(apply_fn, shown, how, count, on)
        searches = program(held, boxes, goals_now, searches, keys)
        patched = _levels(goals_now, searches.free)
        run.settle(patched, asker.answers(patched), count, how.steps)
        if progress is not None:
            progress(int(run.settled.sum()), int(run.broken.sum()))
    if run.untried:
        run.answers[run.untried] = asker.answers(pixels[run.untried])
    return AttackedImages(run.patched, run.broken, run.answers, run.places, run.targets, run.steps)


def _unmasked(image_size: tuple[int, int]) -> MaskedImages:
    return MaskedImages(np.zeros((1, 1, 4), np.int32), image_size)


class _Asker:
    """What a defense, or the model without one, answers, with no more passes than that takes."""

    def __init__(
        self,
        apply_fn: ApplyFn,
        params: Any,
        shape: tuple[int, int, int],
        masked: MaskedImages,
        defense: Defense | None,
        preprocessing: Preprocessing,
        mesh: Mesh,
    ) -> None:
        self._defense, self._masked = defense, masked
        self._engine = engine_for(
            apply_fn, params, shape, masked, preprocessing=preprocessing, mesh=mesh
        )
        self.num_classes = self._engine.num_classes

    def answers(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        """``int32[B]``: labels, ``ALERT``, or ``NO_LABEL``."""
        step = self._engine.images_at_once()
        parts = [self._some(images[at : at + step]) for at in range(0, len(images), step)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def _some(self, images: NDArray[np.uint8]) -> NDArray[np.int32]:
        if self._defense is None:
            return self._engine.table(images).predictions[:, 0].astype(np.int32)
        question = Question(self._defense, np.arange(len(self._masked)))
        found = early_exit.evaluate(self._engine, images, [question], None)
        return self._defense.rule(PredictionTable.of(found, self._masked, self.num_classes))


@jax.jit
def _chosen(fresh: Array, beginning: Searches, going_on: Searches) -> Searches:
    def pick(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, beginning, going_on)


@jax.jit
def _rounded(goals: Goals, free: Array) -> Array:
    patched = jax.vmap(with_patches)(goals.images, jnp.round(free), goals.corners)
    return patched.astype(jnp.uint8)


def _levels(goals: Goals, free: Array) -> NDArray[np.uint8]:
    """The patched images as they are stored: whole levels, untouched outside the patches."""
    return np.asarray(_rounded(goals, free))
