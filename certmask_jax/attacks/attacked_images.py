"""Attacks on many images: each is tried with goal after goal until its answer is wrong.

A fixed number of searches runs at once. After every few steps the real rule is asked about the
patched pixels, rounded to levels; one that is broken, or has used up its goals, makes room for
the next image. What is reported as broken was answered wrongly as ``uint8`` pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_defenses import attacked
from certmask_jax.attacks.attacked_model import Attacked
from certmask_jax.attacks.followed_slopes import check_slopes, some_of
from certmask_jax.attacks.goals_in_time import GoalsInTime, StoppedChoosing
from certmask_jax.attacks.patch_search import PatchSearch, Searches, begun, steps_program
from certmask_jax.attacks.patched_pixels import check_places, with_patches
from certmask_jax.attacks.search_objectives import padded_boxes
from certmask_jax.attacks.search_replans import Replans
from certmask_jax.attacks.search_slots import SearchSlots
from certmask_jax.attacks.table_goals import Goal
from certmask_jax.defenses.defense import Defense
from certmask_jax.defenses.evidence_defense import EvidenceDefense
from certmask_jax.inference.devices import AXIS, device_mesh
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.model_function import ApplyFn
from certmask_jax.inference.model_kinds import kind_of
from certmask_jax.inference.preprocessing import Preprocessing, check_images
from certmask_jax.tables.prediction_table import check_labels

STEPS_BETWEEN = 10
"""After so many steps the rule is asked, and ``progress`` is told."""


class AttackedImages(NamedTuple):
    """What came of B images.

    Attributes:
      patched: ``uint8[B, h, w, c]``: broken, or what came nearest, by the loss of the search,
        whenever the rule was asked.
      broken: ``bool[B]``: the defense answers wrongly.
      answers: ``int32[B]``, what it answers, labels or ``ALERT``.
      places: ``int64[B, K, 4]``, of the patch that is there.
      targets: ``int32[B]``, the label that was aimed at.
      steps: ``int64[B]``, of all searches of the image together.
      settled: ``bool[B]``: false for images that were left when it was stopped.
      objectives: ``str[B]``, what was aimed at last, in words: empty without a goal; or None.
    """

    patched: NDArray[np.uint8]
    broken: NDArray[np.bool_]
    answers: NDArray[np.int32]
    places: NDArray[np.int64]
    targets: NDArray[np.int32]
    steps: NDArray[np.int64]
    settled: NDArray[np.bool_]
    objectives: NDArray[np.str_] | None = None


WhenSettled = Callable[[AttackedImages, Sequence[int]], None]
"""(what came of all images so far, those that are settled now) -> None."""


@reproducible()
def attack_images(
    apply_fn: ApplyFn,
    params: Any,
    images: ArrayLike,
    labels: ArrayLike,
    defense: Defense | EvidenceDefense | Attacked | None,
    goals: Sequence[Sequence[Goal]] | GoalsInTime,
    *,
    local: LocalLogits | None = None,
    preprocessing: Preprocessing | None = None,
    search: PatchSearch | None = None,
    starts: int = 1,
    at_once: int = 8,
    halvings: int = 8,
    targeted: bool = False,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    when_settled: WhenSettled | None = None,
) -> AttackedImages:
    """Patches that are to make a defense answer wrongly.

    Args:
      apply_fn, params, preprocessing: the model, differentiable by JAX; also a ``TwoParts``, whose
        defense masks its map, and ``SeenTokens``.
      images: ``uint8[B, h, w, c]``, without patches.
      labels: ``int[B]``, true classes.
      defense: the rule that is to err; None for the model itself, without masks; or what
        ``attacked`` made of them.
      goals: of each image the goals that are tried, the best first; see ``promising_goals``,
        ``goals_at``, and ``undefended_goals`` where there is no defense; or ``GoalsInTime``, whose
        places are looked at as they are chosen, and which may stop it.
      local: the model's local logits, for a defense on these.
      search: how a patch is searched for.
      starts: searches for each goal; the first begins at the image's own pixels, others at random.
      at_once: searches that run at once over all devices, rounded up to their number.
      halvings: where a rule errs at one number of votes alone, the way between a patch under
        which too few masks say the label and one under which too many do is halved so often.
      targeted: an image is searched for until the target of a goal is answered. One that is
        answered with another wrong label is broken, and its search goes on.
      seed: of all randomness: what an image gets depends on it and on the image's number alone.
      numbers: of the images, 0 and on by default; so that parts of a set get what all of it would.
      mesh: 1-D mesh; all devices of this process by default.
      progress: called with the images that are settled and those of them that are broken.
      stop: asked after every few steps; if so, the images that are not settled are left.
      when_settled: called with what came of all so far and the images that have settled since, but
        for those without a goal, whose answers are asked for at the end.

    Raises:
      ValueError: for images, labels or goals that do not belong together, a place that the threat
        of the defense does not allow or that is not inside the image, or a model without a
        gradient, see ``check_slopes``.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4:
        raise ValueError(f"images: expected shape [B, h, w, c], got {list(pixels.shape)}")
    rule = defense.defense if isinstance(defense, Attacked) else defense
    check_images(pixels, _size_of(apply_fn, rule, pixels.shape[1:3]))
    if len(goals) != len(pixels):
        raise ValueError(f"goals: expected those of {len(pixels)} images, got {len(goals)}")
    if starts < 1 or at_once < 1:
        raise ValueError(f"starts, at_once: expected at least 1, got {starts} and {at_once}")
    parts = None if rule is None else kind_of(apply_fn).parts
    inside = pixels.shape[1:3] if rule is None else rule.threat

    def check(some: Iterable[Goal]) -> None:
        check_places((goal.place for goal in some), inside, parts)

    if isinstance(goals, GoalsInTime):
        goals, with_some = goals.each(check), np.ones(len(pixels), np.bool_)
    else:
        check(goal for some in goals for goal in some)
        with_some = np.asarray([bool(some) for some in goals], np.bool_)
    how = PatchSearch() if search is None else search
    on = device_mesh() if mesh is None else mesh
    shown = Preprocessing() if preprocessing is None else preprocessing
    asked = (
        defense
        if isinstance(defense, Attacked)
        else attacked(
            defense, apply_fn, params, pixels.shape[1:], local=local, preprocessing=shown, mesh=on
        )
    )
    truth = check_labels(labels, len(pixels), asked.num_classes)
    few = 1 << max(0, len(pixels) - 1).bit_length()  # few sizes of programs
    slots = -(-min(at_once, few) // on.size) * on.size
    known = range(len(pixels)) if numbers is None else numbers
    if len(known) != len(pixels):
        raise ValueError(f"numbers: expected those of {len(pixels)} images, got {len(known)}")
    check_slopes(asked.followed, asked.params, some_of(pixels[with_some]))
    run = SearchSlots(
        pixels, truth, known, len(asked.boxes), goals, starts, slots, seed,
        allows_alert=asked.may_alert, targeted=targeted,
    )  # fmt: skip
    searching = _Searching(asked, how, on)
    replans = Replans(asked, run, pixels, truth, search=how, halvings=halvings)
    told = np.zeros(len(pixels), np.bool_)
    while _filled(run):
        replans.begin()
        count = min(STEPS_BETWEEN, how.steps)
        patched, losses = searching.on(run, count)
        replans.judge(patched, losses, count, how.steps)
        if progress is not None:
            progress(int(run.settled.sum()), int(run.broken.sum()))
        if when_settled is not None:
            told[run.untried] = True
            now = np.flatnonzero(run.settled & ~told)
            told[now] = True
            if len(now):
                when_settled(_made(run), now.tolist())
        if stop is not None and stop():
            break
    if run.untried:
        run.answers[run.untried] = asked.answers(pixels[run.untried])
    return _made(run)


def _filled(run: SearchSlots) -> bool:
    """Whether there is anything to search for, now that free slots have images."""
    try:
        return run.fill()
    except StoppedChoosing:
        return False


def _made(run: SearchSlots) -> AttackedImages:
    return AttackedImages(
        run.patched, run.broken, run.answers, run.places, run.targets, run.steps, run.settled,
        np.asarray(run.objectives, np.str_),
    )  # fmt: skip


class _Searching:
    """The searches of all slots on the devices."""

    def __init__(self, asked: Attacked, how: PatchSearch, mesh: Mesh) -> None:
        self._how, self._mesh = how, mesh
        self._objective = asked.objective(how)
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._params, self._boxes = jax.device_put(
            (asked.params, padded_boxes(asked.boxes)), everywhere
        )
        self._searches: Searches | None = None

    def on(self, run: SearchSlots, count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Some steps on; the patched images of all slots as they are stored, and their losses."""
        goals, keys, fresh, from_image = jax.device_put(run.arrays(), self._split)
        beginning = begun(goals.images, keys, self._how, from_image=from_image)
        known = self._searches
        searches = beginning if known is None else _chosen(fresh, beginning, known)
        searches = jax.device_put(searches, self._split)  # else there is another program for these
        program = steps_program(self._objective, self._how, count, self._mesh)
        self._searches = program(self._params, self._boxes, goals, searches, keys)
        patched = _rounded(goals.images, self._searches.free, goals.corners)
        return np.asarray(patched), np.asarray(self._searches.loss)


def _size_of(
    apply_fn: ApplyFn, defense: Defense | EvidenceDefense | None, given: tuple[int, int]
) -> tuple[int, int]:
    """The size that images should have."""
    if defense is None:
        masked = given
    elif isinstance(defense, EvidenceDefense):
        masked = defense.threat.image_size
    else:
        masked = defense.masked_images.image_size
    return kind_of(apply_fn).image_size(masked)


@jax.jit
def _chosen(fresh: Array, beginning: Searches, going_on: Searches) -> Searches:
    def pick(new: Array, old: Array) -> Array:
        return jnp.where(fresh.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, beginning, going_on)


@jax.jit
def _rounded(images: Array, free: Array, corners: Array) -> Array:
    """Whole levels, untouched outside the patches."""
    patched = jax.vmap(with_patches)(images, jnp.round(free), corners)
    return patched.astype(jnp.uint8)
