"""Why no patch can change the outcome on an image, or where one may: a sentence, by its rule.

What was not evaluated is not spoken of.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from certmask_jax.defenses.by_placement import FAILS, HOLDS
from certmask_jax.defenses.crosscert_detection import CrossCert
from certmask_jax.defenses.defense import Defense, Guarantee
from certmask_jax.defenses.interval_bounds_recovery import IntervalBounds
from certmask_jax.defenses.minority_reports_detector import MinorityReports
from certmask_jax.pages.inspected import Inspected
from certmask_jax.pages.mask_words import Sayer, name_of, named, upper
from certmask_jax.tables.prediction_table import UNKNOWN, from_labels


def why_proved(
    one: Inspected,
    row: int,
    label: int,
    answer: int,
    certified: bool,
    class_names: Sequence[str],
    *,
    margin_guard: float = 0.0,
) -> str:
    """Why no patch can change the outcome on an image, or where one may.

    Args:
      one: the defense on T images.
      row: which of them.
      label: the true one.
      answer: of the defense without a patch.
      certified: what the report says of the image.
      class_names: of the data.
      margin_guard: of the report (``Report.margin_guard``).
    """

    def said(number: int) -> str:
        return name_of(number, class_names)

    by_bounds = isinstance(one.defense, IntervalBounds)
    if certified and by_bounds:
        return (
            f"Whatever a patch shows at any one place, {said(label)} stays before all others: "
            "bounds of the logits show it."
        )
    detects = one.defense.guarantee == Guarantee.DETECTION
    if certified:
        if one.pair.size and detects:
            return f"Wherever a patch is, the answer stays {said(label)}, or is an alert."
        if one.pair.size and _a_good_row_hides_each(one, row, label):
            return (
                f"Wherever a patch is, a mask hides it and stands by {said(label)}, whichever "
                "second mask is added."
            )
        labels = one.labels(row, one.single)
        all_true = bool(len(labels)) and bool((labels == label).all())
        all_of_them = "the one mask says" if len(labels) == 1 else f"all {len(labels)} masks say"
        end = f"; {all_of_them} {said(label)}" if all_true else ""
        outcome = "brings about a wrong answer without an alert" if detects else "changes this"
        return f"No patch at any place {outcome}{end}."
    if answer != label:
        return f"Without any patch the answer is {said(answer)}, not {said(label)}."
    known = np.asarray(one.table.known)[row]
    if one.defense.needs_all_sure and (known & ~one.table.sure[row]).any():
        return (
            "Under some mask two logits tie or are not finite, and such images are not certified."
        )
    failing_map = next((m for m in one.maps if (m.states[row] == FAILS).any()), None)
    if failing_map is None:
        smallest = np.asarray(one.table.margins)[row].min().astype(np.float32)
        if margin_guard and smallest <= margin_guard:
            return (
                f"Under some mask two logits are at most the margin guard of {margin_guard:g} "
                "apart, and such images are not certified."
            )
        all_hold = all((each.states[row] == HOLDS).all() for each in one.maps)
        if all_hold and 0 < len(one.maps) < len(one.defense.threat.shapes):
            return "A patch of a shape that has no map here could change the answer."
        return "Some place could not be proved."
    spots = failing_map.spots
    failing = np.flatnonzero(failing_map.states[row] == FAILS)
    spot = int(failing[spots.sizes[failing].argmax()])
    top, left = spots.example[spot].tolist()
    size = "x".join(map(str, spots.shape))
    where = f"a {size + ' ' if len(one.maps) > 1 else ''}patch at row {top}, column {left}"
    if failing_map.worst is not None and failing_map.others is not None:
        others = failing_map.others[failing_map.worst[row, spot]].tolist()
        if all(tuple(other) == (*spots.shape, top, left) for other in others):
            outcome = "could change the answer" if failing_map.exact else "may change the answer"
            return upper(f"{where} {outcome} even alone.")
        at = " and ".join(f"row {down}, column {across}" for _, _, down, across in others)
        both = f"{where} with {_others(len(others))} at {at}"
        if failing_map.exact:
            return upper(f"{both} could change the answer.")
        return f"Nothing is proved against {both}."
    if by_bounds:
        return (
            f"Bounds of the logits do not show that {said(label)} stays before all others, "
            f"whatever {where} shows."
        )
    if not len(one.single):
        return f"Nothing is proved against {where}."
    hiding = np.flatnonzero(spots.hidden[spot][one.single])
    bands = (
        "; the bands that meet such a patch can say so, too"
        if isinstance(one.defense, CrossCert)
        else ""
    )
    return f"{_weakness(one, row, label, hiding.tolist(), said, where)}{bands}."


def _a_good_row_hides_each(one: Inspected, row: int, label: int) -> bool:
    """Whether each place is hidden by a mask of true labels only, with every second mask.

    Double masking has images that are certified without, where half of the masks hide a place.
    """
    right = (one.labels(row, one.pair.ravel()) == label).reshape(one.pair.shape)
    good = one.single[right.all(axis=1)]
    return bool(one.defense.groups[:, good].any(axis=1).all())


def one_mask_to_blame(one: Inspected, row: int, label: int) -> int | None:
    """The only mask that all wrong labels have in common, from 0: without it all would be true.

    Of copies of a mask the first is named. A detector raises an alert by it, or may miss a patch;
    there each mask has to be evaluated, as any other one could dissent, too.

    None where no label is wrong, where no one mask explains all that are, or where the image would
    be lost without it.
    """
    labels = one.labels(row, np.arange(len(one.defense.masked_images)))
    wrong = (labels != label) & (labels != UNKNOWN)
    if isinstance(one.defense, IntervalBounds) or not len(one.single) or not wrong.any():
        return None
    own = np.zeros((len(one.single), len(labels)), np.bool_)  # what a mask is part of
    for mask, single in enumerate(one.single.tolist()):
        own[mask, single] = True
        if one.pair.size:
            own[mask, one.pair[mask]] = True
    explains = np.flatnonzero(~(wrong & ~own).any(axis=1))
    alone = [mask for mask in explains.tolist() if wrong[one.single[mask]]]
    if len({int(one.single[mask]) for mask in alone}) == 1:
        blamed = int(alone[0])
    elif len(explains) == 1 and one.pair.size and one.second is one.defense.mask_set:
        blamed = int(explains[0])
    else:  # of one pair alone either mask may be blamed
        return None
    if one.defense.guarantee == Guarantee.DETECTION and not _detects_without(one, row, blamed):
        return None
    return blamed if _holds_at_best(one.defense, label, one.table.num_classes) else None


@functools.lru_cache(maxsize=256)
def _holds_at_best(defense: Defense, label: int, num_classes: int) -> bool:
    """Whether an image is certified of which every label is true."""
    true = np.full((1, len(defense.masked_images)), label)
    table = from_labels(true, defense.masked_images, num_classes=num_classes)
    return bool(np.asarray(defense.worst_case(table, np.array([label], np.int32)))[0])


def _detects_without(one: Inspected, row: int, mask: int) -> bool:
    """Whether a detector heard enough of its masks, if this one had said the true label."""
    singles = one.single
    if (one.labels(row, singles) == UNKNOWN).any():
        return False
    if not isinstance(one.defense, MinorityReports):
        return True
    heard = np.asarray(one.table.confidences)[row, singles] > one.defense.tau
    heard[singles == singles[mask]] = True
    return bool(one.defense.groups[:, singles[heard]].any(axis=1).all())


def _weakness(
    one: Inspected, row: int, label: int, hiding: Sequence[int], said: Sayer, where: str
) -> str:
    """Why the masks that hide a patch do not save the answer there."""
    count = "only " if len(hiding) == 1 else ""
    who = f"{count}{named(hiding)} hide{'s' * (len(hiding) == 1)} {where}"
    labels = one.labels(row, one.single)
    if one.pair.size:
        wrong = []
        for i in hiding:
            pairs = one.labels(row, one.pair[i])
            bad = np.flatnonzero((pairs != label) & (pairs != UNKNOWN)).tolist()
            if bad:
                wrong.append((i, bad[0], int(pairs[bad[0]])))
        if len(wrong) == len(hiding) and wrong:
            i, j, other = wrong[0]
            with_ = "" if _is_alone(one, i, j) else f" with mask {j + 1}"
            none = "it does not stand" if len(hiding) == 1 else "none of them stands"
            return upper(
                f"{who}, and {none} by {said(label)}: mask {i + 1}{with_} says {said(other)}"
            )
        return upper(f"{who}, and masks that show it can stand against that")
    bad = [i for i in hiding if labels[i] not in (label, UNKNOWN)]
    if bad:
        return upper(f"{who}, and mask {bad[0] + 1} says {said(int(labels[bad[0]]))}")
    return upper(f"{who}; the {len(labels) - len(hiding)} that show it can outvote that")


def _others(count: int) -> str:
    return "another" if count == 1 else f"{count} others"


def _is_alone(one: Inspected, first: int, second: int) -> bool:
    return bool(one.pair[first, second] == one.single[first])
