"""Why a defense answered what it did, and why that is proved or not: a sentence each, by its rule.

Masks are counted from 1, as they are drawn. What was not evaluated is not spoken of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.by_placement import FAILS
from certmask_jax.defenses.certmask_votes import CertMask, CertMaskDetection
from certmask_jax.defenses.crosscert_detection import CrossCert
from certmask_jax.defenses.defense import ALERT, Guarantee
from certmask_jax.defenses.minority_reports_detector import MinorityReports
from certmask_jax.defenses.pair_cover_recovery import PairCover
from certmask_jax.defenses.patchcleanser_masking import ChallengerMasking
from certmask_jax.defenses.patchcure_masking import PatchCURE
from certmask_jax.masks import distinct_unions
from certmask_jax.pages.inspected import Inspected
from certmask_jax.tables.prediction_table import NO_LABEL, UNKNOWN

_NAMED = 4  # masks

Sayer = Callable[[int], str]
"""A label in words."""


def name_of(label: int, class_names: Sequence[str]) -> str:
    """A class, an alert, or no label, in words."""
    if label == ALERT:
        return "an alert"
    if label == NO_LABEL:
        return "no label"
    named = class_names[label] if 0 <= label < len(class_names) else ""
    return named or f"class {label}"


def why_answered(one: Inspected, row: int, answer: int, class_names: Sequence[str]) -> str:
    """How the rule came to its answer on a clean image."""

    def said(label: int) -> str:
        return name_of(label, class_names)

    labels = one.labels(row, one.single)
    known = labels != UNKNOWN
    values, counts = np.unique(labels[known], return_counts=True)
    if not len(values):
        return f"The rule answers {said(answer)}."
    votes = " and ".join(
        f"{count} say {said(int(value))}"
        for count, value in sorted(zip(counts.tolist(), values.tolist(), strict=True))[::-1][:3]
    )
    agree = len(values) == 1
    summary = f"Of {int(known.sum())} masks {votes}"
    if agree:
        summary = f"All {int(known.sum())} masks say {said(int(values[0]))}"
    match one.defense:
        case CrossCert():
            return _of_crosscert(one, row, answer, said)
        case MinorityReports():
            return _of_minority(one, row, answer, said)
        case CertMaskDetection():
            dissent = int(known.sum() - counts.max())
            allowed = one.defense.tolerance
            return (
                f"{_masks(dissent)} of {len(labels)} dissent{'s' * (dissent == 1)}, and at most "
                f"{allowed} may."
                if answer != ALERT
                else f"An alert: at least {_masks(dissent)} dissent{'s' * (dissent == 1)}, and at "
                f"most {allowed} may."
            )
        case CertMask():
            k = one.defense.masks.promise
            mine = counts[values == answer]
            exact = not agree and len(mine) and int(mine[0]) == k
            return f"{summary}{f': exactly k = {k} votes win' if exact else ''}."
        case PairCover():
            return _of_pair_cover(one, row, answer, said, summary)
    if agree:
        return f"All masks say {said(answer)}."
    if not one.pair.size or isinstance(one.defense, ChallengerMasking):
        return f"{summary}; the rule answers {said(answer)}."
    most = _base(one, row, values, counts)
    dissenting = np.flatnonzero(known & (labels != most))
    begin = (
        f"The image itself says {said(most)}"
        if isinstance(one.defense, PatchCURE)
        else f"Most masks say {said(most)}"
    )
    first = values[counts == counts.max()].tolist()
    if len(first) > 1 and not isinstance(one.defense, PatchCURE):
        tied = " and ".join(said(int(label)) for label in first)
        begin = f"{tied} have most masks, {counts.max()} each, and {said(most)} is taken"
    if answer != most:
        standing = [i for i in dissenting.tolist() if labels[i] == answer]
        who = f"mask {standing[0] + 1} " if standing else "a mask "
        return (
            f"{begin}, but {who}says {said(answer)} under every second mask, so it stands and is "
            "the answer."
        )
    return f"{begin}; {_none_stands(one, row, dissenting.tolist(), said)}."


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
      margin_guard: of the report (``Report.margin_guard``). A map of places knows of none.
    """

    def said(number: int) -> str:
        return name_of(number, class_names)

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
        end = f"; all {len(labels)} masks say {said(label)}" if all_true else ""
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
            return _upper(f"{where} {outcome} even alone.")
        at = " and ".join(f"row {down}, column {across}" for _, _, down, across in others)
        both = f"{where} with {_others(len(others))} at {at}"
        if failing_map.exact:
            return _upper(f"{both} could change the answer.")
        return f"Nothing is proved against {both}."
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

    None where no label is wrong, or where no one mask explains all that are.
    """
    labels = one.labels(row, one.single)
    wrong = (labels != label) & (labels != UNKNOWN)
    if not one.pair.size or one.second is not one.defense.mask_set:
        return int(wrong.argmax()) if wrong.sum() == 1 else None
    pairs = one.labels(row, one.pair.ravel()).reshape(one.pair.shape)
    bad = (pairs != label) & (pairs != UNKNOWN)
    total = int(bad.sum())
    if not total:
        return None
    crosses = bad.sum(axis=0) + bad.sum(axis=1) - bad.diagonal()
    explains = np.flatnonzero(crosses == total)
    alone = [i for i in explains.tolist() if wrong[i]]
    if len(explains) > 1 and len(alone) != 1:  # one pair alone: either mask may be blamed
        return None
    return int(alone[0] if alone else explains[0]) if len(explains) else None


def _of_minority(one: Inspected, row: int, answer: int, said: Sayer) -> str:
    unmasked = distinct_unions.unmasked(one.defense.mask_set.image_size)
    column = one.defense.masked_images.places(unmasked)
    itself = int(one.labels(row, column)[0])
    labels = one.labels(row, one.single)
    dissenting = np.flatnonzero((labels != itself) & (labels != UNKNOWN)).tolist()
    if answer == ALERT:
        who = f"{_named(dissenting)} {_say(dissenting)} {said(int(labels[dissenting[0]]))}"
        return f"An alert: the image says {said(itself)}, but {who}."
    if dissenting:
        return f"The image says {said(itself)}; who dissents is not confident enough for an alert."
    return f"The image says {said(itself)}, and no mask dissents."


def _of_crosscert(one: Inspected, row: int, answer: int, said: Sayer) -> str:
    assert isinstance(one.defense, CrossCert)
    single = one.labels(row, one.single)
    pairs = one.labels(row, one.pair.ravel()).reshape(one.pair.shape)
    bands, index = distinct_unions.unions(one.defense.bands, 1)
    votes = one.labels(row, one.defense.masked_images.places(bands)[index])
    values, counts = np.unique(votes, return_counts=True)
    most = int(values[counts == counts.max()][-1])  # the largest of those with most
    share = f"({counts.max()} of {len(votes)})"
    standing = np.flatnonzero((pairs == single[:, None]).all(axis=1)) if pairs.size else single[:0]
    if not len(standing) and (single != single[0]).any():
        return "An alert: the masks disagree and none of them stands."
    label = int(single[standing[0]] if len(standing) else single[0])
    if answer == ALERT:
        return f"An alert: the masks say {said(label)}, and the bands {said(most)} {share}."
    return f"The masks say {said(answer)}, and so do the bands {share}."


def _of_pair_cover(one: Inspected, row: int, answer: int, said: Sayer, summary: str) -> str:
    labels = np.asarray(one.table.predictions)[row]
    groups = one.defense.masked_images.location_groups(one.defense.mask_set.threat)
    settles = [group for group in groups if (labels[group] == answer).all()]
    if not settles:
        return f"{summary}; no place settles it, so the majority answers."
    who = np.flatnonzero(settles[0][one.single]).tolist()
    return f"{_named(who)} agree on {said(answer)}, and together hide some place: that settles it."


def _base(one: Inspected, row: int, values: NDArray[np.int64], counts: NDArray[np.intp]) -> int:
    """What the rule answers if no mask stands against it."""
    if isinstance(one.defense, PatchCURE):
        unmasked = distinct_unions.unmasked(one.defense.mask_set.image_size)
        return int(one.labels(row, one.defense.masked_images.places(unmasked))[0])
    best = values[counts == counts.max()]
    return int(best[0] if getattr(one.defense, "ties", "largest") == "smallest" else best[-1])


def _none_stands(one: Inspected, row: int, masks: Sequence[int], said: Sayer) -> str:
    """What refutes each mask that dissents."""
    refuted = {i: _refuted(one, row, i) for i in masks}
    first = next(((i, j) for i, j in refuted.items() if j is not None), None)
    if first is None or first[1] is None:
        return f"{_named(masks)} dissent{'s' * (len(masks) == 1)} and may not stand"
    i, j = first
    own = said(int(one.labels(row, one.single)[i]))
    other = said(int(one.labels(row, one.pair[i])[j]))
    if len(masks) == 1:
        return f"mask {i + 1} says {own} and does not stand, as with mask {j + 1} it says {other}"
    none = "neither stands" if len(masks) == 2 else "none of them stands"
    return (
        f"{_named(masks)} disagree and {none}: mask {i + 1} says {own}, and with mask {j + 1} "
        f"{other}"
    )


def _refuted(one: Inspected, row: int, mask: int) -> int | None:
    """A second mask with which a mask no longer says its own label."""
    own = int(one.labels(row, one.single)[mask])
    labels = one.labels(row, one.pair[mask])
    others = np.flatnonzero((labels != own) & (labels != UNKNOWN))
    return int(others[0]) if len(others) else None


def _weakness(
    one: Inspected, row: int, label: int, hiding: Sequence[int], said: Sayer, where: str
) -> str:
    """Why the masks that hide a patch do not save the answer there."""
    count = "only " if len(hiding) == 1 else ""
    who = f"{count}{_named(hiding)} hide{'s' * (len(hiding) == 1)} {where}"
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
            return _upper(
                f"{who}, and {none} by {said(label)}: mask {i + 1}{with_} says {said(other)}"
            )
        return _upper(f"{who}, and masks that show it can stand against that")
    bad = [i for i in hiding if labels[i] not in (label, UNKNOWN)]
    if bad:
        return _upper(f"{who}, and mask {bad[0] + 1} says {said(int(labels[bad[0]]))}")
    return _upper(f"{who}; the {len(labels) - len(hiding)} that show it can outvote that")


def _others(count: int) -> str:
    return "another" if count == 1 else f"{count} others"


def _is_alone(one: Inspected, first: int, second: int) -> bool:
    return bool(one.pair[first, second] == one.single[first])


def _named(masks: Sequence[int]) -> str:
    """``mask 3``, ``masks 3 and 4``, ``masks 1, 2, 3, 4 and 12 more``."""
    numbers = [str(i + 1) for i in masks]
    if len(numbers) == 1:
        return f"mask {numbers[0]}"
    if len(numbers) > _NAMED + 1:
        numbers = [*numbers[:_NAMED], f"{len(numbers) - _NAMED} more"]
    return f"masks {', '.join(numbers[:-1])} and {numbers[-1]}" if numbers else "no mask"


def _masks(count: int) -> str:
    return f"{count} mask{'s' * (count != 1)}"


def _say(masks: Sequence[int]) -> str:
    return "says" if len(masks) == 1 else "say"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
