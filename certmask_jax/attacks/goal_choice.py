"""Goals that are worth a search: places, targets and labels under masks, the most promising first.

Places are tried: a patch of the pixels that the gradient asks for is put at many, and those stay
where it does most, beside those where the table says that it hurts. At each the rule is asked what
would win there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax._own_settings import reproducible
from certmask_jax.attacks.attacked_evidence import OnLocalLogits
from certmask_jax.attacks.attacked_model import Attacked, Showing
from certmask_jax.attacks.first_order import Pairs, gain_at
from certmask_jax.attacks.followed_slopes import check_slopes, some_of
from certmask_jax.attacks.goals_in_time import StoppedChoosing
from certmask_jax.attacks.model_places import Where, places_of_model
from certmask_jax.attacks.patch_places import (
    are_near,
    places_by_gradient,
    random_places,
    weakest_places,
)
from certmask_jax.attacks.patch_search import PatchSearch
from certmask_jax.attacks.patched_pixels import Placement, check_places
from certmask_jax.attacks.table_goals import Goal, counts_of, goal_of, undefended_goals
from certmask_jax.attacks.tried_places import MOST_CHOSEN, best_tried
from certmask_jax.attacks.wanted_labels import ANY, Case, Choices, LabelPlan, lag_of, plans
from certmask_jax.defenses.defense import ALERT, Defense
from certmask_jax.masks.threats import Threat

_PASSES = 1024  # of tables, between two questions whether to stop


@reproducible()
def promising_goals(
    asked: Attacked,
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    *,
    threat: Threat,
    search: PatchSearch,
    locations: int = 3,
    targets: int = 3,
    where: Where = "weakest",
    seeds: Sequence[Sequence[int]] | None = None,
    given: NDArray[np.int64] | None = None,
    target: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[Goal]]:
    """Goals of each image, the best first, ``locations`` at most.

    Args:
      asked: what is attacked, see ``attacked``.
      images: ``uint8[B, h, w, c]``, answered rightly.
      labels: ``int32[B]``, true classes.
      threat: what the attacker may do, in pixels.
      search: that is to follow.
      locations: goals of an image, each a place and a wrong label.
      targets: wrong labels that are looked at, the likeliest first.
      where: see ``Where``.
      seeds: of the randomness of each image; its number by default.
      given: ``int64[P, K, 4]``, places that are looked at and no others: the best goal of each
        comes before other labels at the same places.
      target: the one label that is to be answered; images of that class have no goal. A goal wins
        then if that is what the rule answers.
      stop: asked every few passes; if so, ``StoppedChoosing`` is raised.

    Raises:
      ValueError: for a given place that the threat does not allow, a target that the model has not,
        or a model without a gradient, see ``check_slopes``.
    """
    if target is not None and not 0 <= target < asked.num_classes:
        raise ValueError(
            f"target: expected a class of the model, 0 to {asked.num_classes - 1}, got {target}"
        )
    if given is not None:
        check_places(given, threat)
    looked = where != "random" if given is None else len(given) > locations
    if asked.defense is not None or looked:
        check_slopes(asked.followed, asked.params, some_of(images))
    randoms = [
        np.random.default_rng(list(seed))
        for seed in (seeds if seeds is not None else [[n] for n in range(len(images))])
    ]
    likely = np.argsort(-asked.plain(images), axis=1, kind="stable")
    wrong = [
        [int(z) for z in row if z != y and target in (None, z)][:targets]
        for row, y in zip(likely, labels, strict=True)
    ]
    if asked.defense is None:
        chosen = places_of_model(
            asked, images, labels, randoms, threat=threat, search=search, locations=locations,
            where=where, given=given, target=target, stop=stop,
        )  # fmt: skip
        aim = ANY if target is None else target
        return [
            undefended_goals(int(y), places=places, target=aim) if some else []
            for y, places, some in zip(labels, chosen, wrong, strict=True)
        ]
    if not any(wrong):  # all are of the target's class
        return [[] for _ in images]
    logits = _tables(asked, images, stop)
    of = np.asarray([row for row, some in enumerate(wrong) for _ in some], np.intp)
    aims = np.asarray([z for some in wrong for z in some], np.int32)
    lags: list[NDArray[np.floating]] = [
        np.zeros(len(asked.boxes)) if logits is None else lag_of(logits[row], z)
        for row, z in zip(of, aims, strict=True)
    ]
    looked_at = [_spread(lag, z, search.masks_a_step) for lag, z in zip(lags, aims, strict=True)]
    pairs = Pairs(asked, search, images[of], labels[of], aims, np.stack(looked_at), stop)
    at: list[tuple[int, Placement]] = []  # which (image, target), and where
    left: list[float] = []  # there, beside what has to change at all
    showing = asked.showing()
    if where == "weakest" and given is None:
        weak = _weak(asked.defense, threat)
        for pair, (places, losses) in enumerate(
            best_tried(pairs, threat, weak, [randoms[row] for row in of], showing=showing)
        ):
            at += [(pair, place) for place in places]
            left += losses
    else:
        gains = pairs.ways().gains if len(threat) == 1 else None
        for pair, row in enumerate(of):
            own = None if gains is None else gains[pair]
            there = _places(threat, randoms[row], own, where) if given is None else given
            at += [(pair, place) for place in there]
            left += [0.0 if own is None else -gain_at(own, place) for place in there]
    seen = [bool(showing(place).any()) for _, place in at]  # nothing can be done at others
    at, left = list(itertools.compress(at, seen)), list(itertools.compress(left, seen))
    if isinstance(asked, OnLocalLogits):
        goals_at = _on_local(asked, images, labels, of, aims, at, targeted=target is not None)
    elif logits is None:
        goals_at = [_unanimous(int(aims[pair]), place, showing(place)) for pair, place in at]
    else:
        targeted = target is not None
        goals_at = _on_columns(
            asked, logits, labels, of, aims, lags, at, showing, targeted=targeted
        )
    goals: list[list[tuple[float, Goal]]] = [[] for _ in images]
    for (pair, _), loss, goal in zip(at, left, goals_at, strict=True):
        goals[of[pair]].append((goal.effort + loss, goal))
    choose = _best if given is None else _best_of_each_place
    return [choose(some, locations) for some in goals]


def _tables(
    asked: Attacked, images: NDArray[np.uint8], stop: Callable[[], bool] | None
) -> NDArray[np.float32] | None:
    """All logits of all images, if they are looked at; some images at a time."""
    step = max(1, _PASSES // len(asked.boxes))
    parts = []
    for at in range(0, len(images), step):
        if stop is not None and stop():
            raise StoppedChoosing
        some = asked.tables(images[at : at + step])
        if some is None:
            return None
        parts.append(some)
    return np.concatenate(parts) if parts else None


def _unanimous(target: int, place: Placement, shown: NDArray[np.bool_]) -> Goal:
    """The goal on a table too large to be looked at: all that show the patch say one label."""
    wanted = np.where(shown, target, ANY).astype(np.int32)
    return Goal(place, wanted, shown, ANY, False, 0.0, target=target)


def _weak(defense: object, threat: Threat) -> NDArray[np.int64]:
    """One of each set of masks that alone hides a patch; none where no masks of pixels do."""
    if isinstance(defense, Defense) and defense.masked_images.image_size == threat.image_size:
        return weakest_places(defense.masked_images, threat)
    return np.zeros((0, len(threat), 4), np.int64)


def _places(
    threat: Threat,
    random: np.random.Generator,
    gains: NDArray[np.float32] | None,
    where: Where,
) -> list[Placement]:
    """Where patches of one image with one target are looked at, none of them tried."""
    if where == "random" or gains is None:
        return list(random_places(threat, MOST_CHOSEN, random))
    return list(places_by_gradient(gains, threat, MOST_CHOSEN))


def _on_columns(
    asked: Attacked,
    logits: NDArray[np.float32],
    labels: NDArray[np.int32],
    of: NDArray[np.intp],
    aims: NDArray[np.int32],
    lags: Sequence[NDArray[np.floating]],
    at: Sequence[tuple[int, Placement]],
    showing: Showing,
    *,
    targeted: bool,
) -> list[Goal]:
    cases = [
        Case(
            int(of[pair]),
            showing(place),
            lags[pair],
            int(aims[pair]),
            int(labels[of[pair]]),
            targeted,
        )
        for pair, place in at
    ]
    choices = Choices(asked.boxes, counts_of(asked.defense))
    label_plans: list[LabelPlan] = []
    for _, own in itertools.groupby(cases, key=lambda case: case.image):  # tables of one at once
        label_plans += plans(
            choices,
            asked.answers_if,
            logits,
            list(own),
            may_alert=asked.may_alert,
            alert=ALERT,
        )
    clean = logits.argmax(axis=-1)
    return [
        goal_of(plan, case, place, clean[case.image])
        for plan, case, (_, place) in zip(label_plans, cases, at, strict=True)
    ]


def _on_local(
    asked: OnLocalLogits,
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    of: NDArray[np.intp],
    aims: NDArray[np.int32],
    at: Sequence[tuple[int, Placement]],
    *,
    targeted: bool,
) -> list[Goal]:
    if not at:  # no cell sees any of the places
        return []
    pairs = np.asarray([pair for pair, _ in at], np.intp)
    places = np.stack([place for _, place in at])
    said = asked.answers_at_worst(images[of[pairs]], places, aims[pairs]).tolist()
    nothing = np.full(1, ANY, np.int32)
    made = []
    for (pair, place), answer in zip(at, said, strict=True):
        aim = int(aims[pair])
        case = Case(
            int(of[pair]), nothing != ANY, np.zeros(1), aim, int(labels[of[pair]]), targeted
        )
        wins = case.wins(answer, (ALERT,) if asked.may_alert else ())
        made.append(Goal(place, nothing, nothing != ANY, answer, wins, 0.0, target=aim))
    return made


def _spread(lag: NDArray[np.floating], target: int, count: int) -> NDArray[np.int32]:
    """Some masked images of all, more of those that are easy: ``int32[V]``, the target or ANY."""
    order = np.argsort(lag, kind="stable")
    some = np.unique((np.linspace(0, 1, min(count, len(lag))) ** 2 * (len(lag) - 1)).round())
    wanted = np.full(len(lag), ANY, np.int32)
    wanted[order[some.astype(int)]] = target
    return wanted


def _best(goals: Sequence[tuple[float, Goal]], count: int) -> list[Goal]:
    """Those that win first, then those with least left to do; none that is all but another one."""
    chosen: list[Goal] = []
    for _, goal in sorted(goals, key=lambda one: (not one[1].wins, one[0])):
        if len(chosen) == count:
            break
        if not any(_alike(goal, other) for other in chosen):
            chosen.append(goal)
    return chosen


def _best_of_each_place(goals: Sequence[tuple[float, Goal]], count: int) -> list[Goal]:
    """As ``_best``, of given places: none is left out for being near another."""
    first: list[Goal] = []
    others: list[Goal] = []
    known: set[bytes] = set()
    for _, goal in sorted(goals, key=lambda one: (not one[1].wins, one[0])):
        (others if goal.place.tobytes() in known else first).append(goal)
        known.add(goal.place.tobytes())
    return [*first, *others][:count]


def _alike(one: Goal, other: Goal) -> bool:
    """The same target, and every patch within half its size of the other's."""
    return one.target == other.target and are_near(one.place, other.place)
