"""How a defense came to what it answered on a clean image: a sentence, by its rule.

What was not evaluated is not spoken of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from certmask_jax.defenses.certmask_votes import CertMask, CertMaskDetection
from certmask_jax.defenses.crosscert_detection import CrossCert
from certmask_jax.defenses.defense import ALERT
from certmask_jax.defenses.interval_bounds_recovery import IntervalBounds
from certmask_jax.defenses.minority_reports_detector import MinorityReports
from certmask_jax.defenses.pair_cover_recovery import PairCover
from certmask_jax.defenses.patchcleanser_masking import ChallengerMasking
from certmask_jax.defenses.patchcure_masking import PatchCURE
from certmask_jax.masks import distinct_unions
from certmask_jax.pages.inspected import Inspected
from certmask_jax.pages.mask_words import Sayer, counted, name_of, named, upper
from certmask_jax.tables.prediction_table import UNKNOWN

_VOTES = 3  # labels that are named


def why_answered(one: Inspected, row: int, answer: int, class_names: Sequence[str]) -> str:
    """How the rule came to its answer on a clean image."""

    def said(label: int) -> str:
        return name_of(label, class_names)

    labels = one.labels(row, one.single)
    known = labels != UNKNOWN
    values, counts = np.unique(labels[known], return_counts=True)
    if not len(values):
        return f"The rule answers {said(answer)}."
    agree = len(values) == 1
    seen = "" if known.all() else " that were evaluated"
    summary = f"Of {counted(int(known.sum()), 'mask')}{seen} {_votes(values, counts, said)}"
    if agree:
        all_of_them = (
            "The one mask says" if known.sum() == 1 else f"All {int(known.sum())} masks say"
        )
        summary = f"{all_of_them} {said(int(values[0]))}"
    match one.defense:
        case IntervalBounds():
            return f"The image itself says {said(answer)}; nothing is masked to answer."
        case CrossCert():
            return _of_crosscert(one, row, answer, said)
        case MinorityReports():
            return _of_minority(one, row, answer, said)
        case CertMaskDetection():
            dissent = int(known.sum() - counts.max())
            who = counted(dissent, "mask")
            who = f"An alert: at least {who}" if answer == ALERT else f"{who} of {len(labels)}"
            do = "dissents" if dissent == 1 else "dissent"
            return f"{who} {do}, and at most {one.defense.tolerance} may."
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


def _votes(values: NDArray[np.int64], counts: NDArray[np.intp], said: Sayer) -> str:
    """Who says what: ``12 say cat, 1 says dog and 3 say other things``."""
    ordered = sorted(zip(counts.tolist(), values.tolist(), strict=True))[::-1]
    parts = [f"{n} {_say(range(n))} {said(int(value))}" for n, value in ordered[:_VOTES]]
    rest = sum(n for n, _ in ordered[_VOTES:])
    if rest:
        parts.append(f"{rest} {_say(range(rest))} something else")
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _of_minority(one: Inspected, row: int, answer: int, said: Sayer) -> str:
    unmasked = distinct_unions.unmasked(one.defense.mask_set.image_size)
    column = one.defense.masked_images.places(unmasked)
    itself = int(one.labels(row, column)[0])
    labels = one.labels(row, one.single)
    dissenting = np.flatnonzero((labels != itself) & (labels != UNKNOWN)).tolist()
    if answer == ALERT:
        who = f"{named(dissenting)} {_say(dissenting)} {said(int(labels[dissenting[0]]))}"
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
    agree = f"{named(who)} agree{'s' * (len(who) == 1)} on {said(answer)}"
    if len(who) == 1:
        return upper(f"{agree}, and hides some place alone: that settles it.")
    return upper(f"{agree}, and together hide some place: that settles it.")


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
        return f"{named(masks)} dissent{'s' * (len(masks) == 1)} and may not stand"
    i, j = first
    own = said(int(one.labels(row, one.single)[i]))
    other = said(int(one.labels(row, one.pair[i])[j]))
    if len(masks) == 1:
        return f"mask {i + 1} says {own} and does not stand, as with mask {j + 1} it says {other}"
    none = "neither stands" if len(masks) == 2 else "none of them stands"
    return (
        f"{named(masks)} disagree and {none}: mask {i + 1} says {own}, and with mask {j + 1} "
        f"{other}"
    )


def _refuted(one: Inspected, row: int, mask: int) -> int | None:
    """A second mask with which a mask no longer says its own label."""
    own = int(one.labels(row, one.single)[mask])
    labels = one.labels(row, one.pair[mask])
    others = np.flatnonzero((labels != own) & (labels != UNKNOWN))
    return int(others[0]) if len(others) else None


def _say(masks: Sequence[int]) -> str:
    return "says" if len(masks) == 1 else "say"
